//! A process that is being started, by a helper: the supervisor forks one for each start, so that a start takes neither the
//! supervisor's time nor its memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Act, RunError};
use crate::process::clone::{self, Parent};
use crate::syscall::files::set_nonblocking;
use crate::syscall::process as kernel;

/// A process that a helper is starting.
pub(super) struct Starting {
    /// A descriptor of the helper.
    pub(super) helper: OwnedFd,
    /// Where the helper reports ([`super::report`]).
    pub(super) report: File,
}

impl Starting {
    /// Forks a helper, which reports to the pipe that it is given and ends with the code that it returns.
    pub(super) fn fork(help: impl FnOnce(&File) -> i32) -> Result<Self, RunError> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into())?;
        match clone::fork(0, Parent::Caller).act(|| "start a process".into())? {
            clone::Side::Child => {
                drop(reader);
                clone::reset_signals();
                clone::exit(help(&writer.into()))
            }
            clone::Side::Parent(_, helper) => {
                set_nonblocking(reader.as_fd()).act(|| "start a process".into())?;
                Ok(Self { helper, report: reader.into() })
            }
        }
    }

    /// Kills the helper; one that has ended is ignored.
    pub(super) fn kill(&self) {
        let _ = kernel::signal(self.helper.as_fd(), libc::SIGKILL);
    }
}
