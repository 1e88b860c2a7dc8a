//! Work that is done in a process of its own, and killed if it takes too long.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;

use super::report;
use crate::error::{Act, RunError};
use crate::process::clone::{self, Parent};
use crate::process::wait_readable;
use crate::syscall::process as kernel;

/// Longest time that a container may take to start: its mounts and its runtime together. The daemon waits a little longer, so
/// that it hears what was not done in time.
const PATIENCE: Duration = Duration::from_secs(55);

/// Longest time in which a process that was killed ends, unless a device does not answer.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Returns the time until which a start that begins now may take.
pub(super) fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Runs a function in a separate process and waits for its result, so that the memory it needs is freed with that
/// process. One that has not ended at this time is killed; if it can't be, it is left alone.
pub(super) fn apart(what: &str, until: Instant, act: impl FnOnce() -> Result<i32, RunError>) -> Result<i32, RunError> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into())?;
    match clone::fork(0, Parent::Caller).act(|| "start a process".into())? {
        clone::Side::Child => {
            drop(reader);
            clone::reset_signals();
            report::write(&writer.into(), &act());
            clone::exit(0)
        }
        clone::Side::Parent(pid, process) => {
            drop(writer);
            let arrives = wait_readable(&reader, until.saturating_duration_since(Instant::now()));
            let report = arrives.map(|it| if it { report::read(&reader.into()) } else { None });
            if !matches!(report, Ok(Some(Ok(_)))) {
                // The process has failed and is about to end, or it hangs.
                let _ = kernel::signal(process.as_fd(), libc::SIGKILL);
            }
            if wait_readable(&process, END_PATIENCE).unwrap_or(false) {
                let _ = waitpid(pid, None);
            }
            let late = || RunError::new(format!("failed to {what}: it did not end within {PATIENCE:?}"));
            report?.unwrap_or_else(|| Err(late()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_named_and_killed() {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let late = apart("mount nas:/srv", until, || {
            loop {
                nix::unistd::pause();
            }
        });
        assert_eq!(late.unwrap_err().to_string(), "failed to mount nas:/srv: it did not end within 55s");
        // The process had the other end, too.
        drop(writer);
        assert!(wait_readable(&reader, Duration::from_secs(20)).unwrap(), "it still runs");
        let begun = apart("x", Instant::now() + PATIENCE, || Ok(7));
        assert_eq!(begun.unwrap(), 7);
    }
}
