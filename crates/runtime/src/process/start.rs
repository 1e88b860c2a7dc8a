//! The steps after a container is created: writes its process id file, and starts its program.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Act, RunError, StepError};

/// Longest answer of init in bytes, which is an exit code and one line.
const ANSWER: u64 = 4096;

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
    let started = File::from(open("started", OFlag::O_RDONLY)?);
    let mut request = File::from(open("start", OFlag::O_WRONLY)?);
    request.write_all(b"s").act(|| "send the request to start".into())?;
    drop(request);
    let reply = answer(&started, super::launch::PATIENCE * 10)?;
    for name in ["start", "started"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    match reply.split_once('\n') {
        None => Ok(()),
        Some((code, text)) => {
            let code = code.parse().ok().filter(|it| *it != 1);
            Err(RunError { text: text.to_owned(), code })
        }
    }
}

/// Reads init's answer up to its end: init keeps its end of the FIFO until it runs the program or has ended.
fn answer(started: &File, most: Duration) -> Result<String, RunError> {
    let until = Instant::now() + most;
    let mut reply = Vec::new();
    loop {
        if !super::wait_readable(started, until.saturating_duration_since(Instant::now()))? {
            return Err(StepError::refuse("start the program", "its hooks did not end in time").into());
        }
        match started.take(ANSWER).read_to_end(&mut reply) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => {
                other.act(|| "receive from init".into())?;
                return Ok(String::from_utf8_lossy(&reply).into_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// Opens a FIFO for both directions, as init does.
    fn fifo(dir: &Path, name: &str) -> File {
        mkfifo(&dir.join(name), Mode::from_bits_truncate(0o600)).expect("a new name");
        File::options().read(true).write(true).open(dir.join(name)).expect("it does not wait")
    }

    #[test]
    fn answer_of_an_init_that_has_not_ended_yet_is_read_to_its_end() {
        let dir = std::env::temp_dir().join(format!("flota-start-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("in a temporary folder");
        let (mut start_end, mut started) = (fifo(&dir, "start"), fifo(&dir, "started"));
        let init = std::thread::spawn(move || {
            start_end.read_exact(&mut [0]).expect("it is started");
            started.write_all(b"1\nfirst").expect("there is room");
            // Init still holds its end while the other side has read everything.
            while super::super::wait_readable(&started.as_fd(), Duration::ZERO).expect("polled") {
                std::thread::yield_now();
            }
            started.write_all(b" and last").expect("there is room");
        });
        let error = start(&dir).expect_err("init has reported a failure");
        assert_eq!((error.text.as_str(), error.code), ("first and last", None));
        init.join().expect("no panic");
        std::fs::remove_dir_all(dir).expect("its own folder");
    }
}
