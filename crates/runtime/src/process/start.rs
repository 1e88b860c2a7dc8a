//! The steps after a container is created: writes its process id file, and starts its program.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Act, RunError, StepError};

/// Writes the file atomically, because a program that waits for it must not read a part of the number.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), StepError> {
    let temporary = path.with_file_name(format!(".{}", path.file_name().and_then(|it| it.to_str()).unwrap_or("pid")));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .act(|| format!("write the pid file {}", path.display()))
}

/// Asks the init of a container's folder to run its program, and returns whether it could.
pub(crate) fn start(dir: &Path) -> Result<(), RunError> {
    let open = |name: &str, flags: OFlag| {
        let path = dir.join(name);
        nix::fcntl::open(&path, flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
            .act(|| format!("open {}", path.display()))
    };
    // The reply FIFO is opened before the request is sent, so that the answer can't be lost.
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
