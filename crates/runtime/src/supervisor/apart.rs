//! Work that is done in a process of its own, and killed if it takes too long.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::wait::waitpid;

use super::report;
use crate::error::{Act, RunError};
use crate::process::clone::{self, Parent};
use crate::process::wait_readable;
use crate::syscall::process as kernel;

/// Longest time that a runtime, or the mount of a file system, may take.
const PATIENCE: Duration = Duration::from_secs(55);

/// Runs a function in a separate process and waits for its result, so that the memory it needs is freed with that
/// process. One that takes too long is killed.
pub(super) fn apart(what: &str, act: impl FnOnce() -> Result<i32, RunError>) -> Result<i32, RunError> {
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
            let arrives = wait_readable(&reader, PATIENCE);
            let report = arrives.map(|it| if it { report::read(&reader.into()) } else { None });
            if !matches!(report, Ok(Some(Ok(_)))) {
                // The process has failed and is about to end, or it hangs.
                let _ = kernel::signal(process.as_fd(), libc::SIGKILL);
            }
            let _ = waitpid(pid, None);
            let late = || RunError::new(format!("failed to {what}: it did not end within {PATIENCE:?}"));
            report?.unwrap_or_else(|| Err(late()))
        }
    }
}
