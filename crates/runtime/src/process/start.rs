//! What comes after a container is made: its process id for others, and the word to its init that it may begin.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Act, RunError, StepError};

/// Whole or not at all: who waits for the file must not read half of a number.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), StepError> {
    let temporary = path.with_file_name(format!(".{}", path.file_name().and_then(|it| it.to_str()).unwrap_or("pid")));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .act(|| format!("write the pid file {}", path.display()))
}

/// Tells the init of a container's folder to become its program, and hears whether it could.
pub(crate) fn start(dir: &Path) -> Result<(), RunError> {
    let open = |name: &str, flags: OFlag| {
        let path = dir.join(name);
        nix::fcntl::open(&path, flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
            .act(|| format!("open {}", path.display()))
    };
    // First the ear, then the word.
    let heard = File::from(open("started", OFlag::O_RDONLY)?);
    let mut told = File::from(open("start", OFlag::O_WRONLY)?);
    told.write_all(b"s").act(|| "tell init to start".into())?;
    drop(told);
    if !super::wait_readable(&heard, super::launch::PATIENCE * 10)? {
        return Err(StepError::refuse("start the program", "its hooks did not end in time").into());
    }
    let mut said = String::new();
    heard.take(4096).read_to_string(&mut said).act(|| "hear from init".into())?;
    for name in ["start", "started"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    match said.split_once('\n') {
        None => Ok(()),
        Some((code, text)) => {
            let code = code.parse().ok().filter(|it| *it != 1);
            Err(RunError { text: text.to_owned(), code })
        }
    }
}
