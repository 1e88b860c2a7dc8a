//! The processes of a container, and the order of what they do.
//!
//! ```text
//!  supervisor                                   init (child, new namespaces)
//!  make cgroups, set limits
//!  clone3 ─────────────────────────────────────▶ waits
//!  put it into its cgroups, then "go" ─────────▶ cgroup namespace, host name, loopback,
//!                                                mounts, pivot_root, user, capabilities, seccomp
//!  reads: end of file = it runs ◀─────────────── exec closes the pipe; an error is written into it first
//! ```
//!
//! Every function here runs in a single-threaded process.

pub(crate) mod clone;
pub(crate) mod exec;
pub(crate) mod init;
pub(crate) mod user;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::RunError;

/// As [`read_report`], for a child that may be kept from saying anything.
pub(crate) fn read_report_within(pipe: OwnedFd, most: Duration) -> Result<(), RunError> {
    let until = Instant::now() + most;
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(RunError(format!("failed to start a process: it did not begin within {most:?}"))),
            Ok(_) => return read_report(pipe),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(RunError(format!("failed to wait for a process: {}", error.desc()))),
        }
    }
}

/// What a child says through its pipe: nothing when it became the program, else why not.
pub(crate) fn read_report(pipe: OwnedFd) -> Result<(), RunError> {
    let mut text = String::new();
    // A child says at most one line.
    let read = std::fs::File::from(pipe).take(4096).read_to_string(&mut text);
    match read {
        Ok(0) => Ok(()),
        Ok(_) => Err(RunError(text)),
        Err(error) => Err(RunError(format!("failed to hear from the container's init: {error}"))),
    }
}

/// The exit code that a shell would show for a wait status.
pub(crate) fn exit_code(status: nix::sys::wait::WaitStatus) -> Option<i32> {
    match status {
        nix::sys::wait::WaitStatus::Exited(_, code) => Some(code),
        nix::sys::wait::WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}

/// Runs `child` in a new process with the namespaces of `flags` (`CLONE_NEW…`, as for clone(2)); it ends with what
/// `child` returns. Only for programs with one thread. Gives the new process's id.
///
/// # Errors
/// The kernel refuses.
pub fn spawn(flags: i32, child: impl FnOnce() -> i32) -> std::io::Result<i32> {
    let flags = u64::try_from(flags).map_err(std::io::Error::other)?;
    match clone::fork(flags)? {
        clone::Side::Child => clone::exit(child()),
        clone::Side::Parent(pid, _) => Ok(pid.as_raw()),
    }
}

/// Takes the loopback interface of the caller's network namespace up.
///
/// # Errors
/// The kernel refuses.
pub fn loopback_up() -> std::io::Result<()> {
    Ok(clone::loopback_up()?)
}
