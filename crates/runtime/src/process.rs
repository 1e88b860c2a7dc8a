//! The processes of a container and the order of their actions.
//!
//! ```text
//!  runtime                                      init (child, new namespaces)
//!  folder, control groups, limits
//!  clone3 ─────────────────────────────────────▶ waits
//!  maps of ids, cgroups, rlimits ── "go" ───────▶ names, sysctls, mounts, devices, terminal
//!  hooks prestart, createRuntime ◀── "hooks" ─── waits
//!       ── "go" ───────────────────────────────▶ hooks createContainer, masks, pivot_root,
//!                                                scheduler, labels, user, capabilities, seccomp, program found
//!  writes state.json, pid file ◀──── "ready" ─── waits at the FIFO `start`
//!
//!  start: a byte into the FIFO ─────────────────▶ hooks startContainer, exec
//!  reads the FIFO `started`: its end = it runs, a text = why not
//! ```
//!
//! If a user namespace is joined or a time namespace created, an intermediate process does that and creates init,
//! which is nevertheless the runtime's child (`CLONE_PARENT`). Every function here runs in a single-threaded process.

pub(crate) mod channel;
pub(crate) mod clone;
pub(crate) mod hooks;
pub(crate) mod identity;
pub(crate) mod init;
pub(crate) mod labels;
pub(crate) mod launch;
pub(crate) mod listener;
pub(crate) mod namespaces;
pub(crate) mod program;
pub(crate) mod settings;
pub(crate) mod spawner;
pub(crate) mod start;
pub(crate) mod sysctl;
pub(crate) mod terminal;
pub(crate) mod user_namespace;

pub use channel::interruptible;
pub use terminal::{connect as connect_console, receive as receive_terminal, send as send_terminal};

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::RunError;

/// Returns whether the process behind a descriptor has ended or ends before `until`.
pub(crate) fn ended(process: &OwnedFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // The timeout is rounded up, because one of less than 1 ms becomes 0, which does not wait at all.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= until => return false,
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

/// Returns whether, within `most`, something can be read or the other end is closed.
pub(crate) fn wait_readable(pipe: &impl AsFd, most: Duration) -> Result<bool, RunError> {
    let until = Instant::now() + most;
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(RunError::new(format!("failed to wait for a process: {}", error.desc()))),
        }
    }
}

/// Returns the exit code that a shell reports for a wait status; `None` for a process that was only stopped.
pub fn exit_code(status: nix::sys::wait::WaitStatus) -> Option<i32> {
    match status {
        nix::sys::wait::WaitStatus::Exited(_, code) => Some(code),
        nix::sys::wait::WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}

/// Runs `child` in a new process with the namespaces of `flags` (`CLONE_NEW…`, as for clone(2)) and returns the new
/// process's id. The process exits with the result of `child`. Only for programs with one thread.
///
/// # Errors
/// The kernel refuses to create the process.
pub fn spawn(flags: i32, child: impl FnOnce() -> i32) -> std::io::Result<i32> {
    let flags = u64::try_from(flags).map_err(std::io::Error::other)?;
    match clone::fork(flags, clone::Parent::Caller)? {
        clone::Side::Child => clone::exit(child()),
        clone::Side::Parent(pid, _) => Ok(pid.as_raw()),
    }
}

/// Makes a write to a pipe without a reader return an error instead of ending this process.
pub fn ignore_broken_pipes() {
    clone::ignore_broken_pipes();
}

/// Sends a signal to a process by number. A process that has ended is ignored.
pub fn signal_number(pid: i32, signal: i32) {
    let _ = crate::syscall::process::kill(pid, signal);
}

/// Starts a program with the signals of `mask` blocked; the caller's mask is unchanged.
///
/// # Errors
/// The program can't be run.
pub fn spawn_with_mask(command: &mut std::process::Command, mask: nix::sys::signal::SigSet) -> std::io::Result<i32> {
    clone::with_mask(command, mask);
    Ok(i32::try_from(command.spawn()?.id()).unwrap_or(0))
}

/// Sets the size of a terminal. Other files are ignored.
pub fn resize_terminal(terminal: &impl AsFd, rows: u16, columns: u16) {
    let _ = crate::syscall::files::set_terminal_size(terminal.as_fd(), rows, columns);
}

/// Sets the size of a terminal to that of another. Other files are ignored.
pub fn copy_terminal_size(from: std::os::fd::BorrowedFd<'_>, to: std::os::fd::BorrowedFd<'_>) {
    if let Some((rows, columns)) = crate::syscall::files::terminal_size(from) {
        let _ = crate::syscall::files::set_terminal_size(to, rows, columns);
    }
}

/// Brings up the loopback interface of the caller's network namespace.
///
/// # Errors
/// The kernel refuses the change.
pub fn loopback_up() -> std::io::Result<()> {
    Ok(clone::loopback_up()?)
}
