//! Starts a container from an order, by means of a runtime.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::unistd::Pid;

use super::apart::{apart, deadline};
use super::container_dir::ContainerDir;
use super::order::Order;
use super::output::Streams;
use super::{mounts, prepare, runtime};
use crate::error::{Act, RunError, StepError};
use crate::process::receive_terminal;
use crate::state::{self, ContainerState};
use crate::syscall::process as kernel;

/// A container whose program runs.
pub(super) struct Started {
    pub(super) init: Pid,
    pub(super) process: OwnedFd,
    pub(super) streams: Streams,
}

pub(super) fn start(folder: &ContainerDir, order: &Order) -> Result<Started, RunError> {
    let (dir, until) = (folder.path(), deadline());
    let rootfs = mounts::mount_all(dir, order, until)?;
    let started = make(dir, order, &rootfs, until);
    // After the time limit, the next attempt may have the path and the control groups.
    if started.is_err() && !folder.is_removed() {
        delete(dir, order);
        let _ = order.groups.sweep();
    }
    started
}

fn make(dir: &Path, order: &Order, rootfs: &Path, until: Instant) -> Result<Started, RunError> {
    let (ours, theirs) = if order.terminal { terminal_pair()? } else { pipes()? };
    let pid = apart("run the runtime", until, || {
        let spec = prepare::complete(dir, order, rootfs)?;
        let console = theirs.take_place()?;
        runtime::of(dir, order).run(&spec, console)
    })?;
    let process = kernel::open(pid).act(|| "open the container's init".into())?;
    let own = i32::try_from(std::process::id()).expect("process ids fit");
    let start_time = state::start_time(pid).unwrap_or(0);
    let written = state::write_volatile(&dir.join("state.json"), &ContainerState { pid, start_time, supervisor: own });
    written.act(|| "write the state".into())?;
    Ok(Started { init: Pid::from_raw(pid), process, streams: ours.streams()? })
}

/// Removes what the runtime keeps of the container. The daemon's next sweep removes what can't be removed here.
pub(super) fn delete(dir: &Path, order: &Order) {
    let _ = apart("run the runtime", deadline(), || runtime::of(dir, order).delete().map(|()| 0));
}

/// The supervisor's ends of a container's standard descriptors.
enum Ours {
    Pipes([OwnedFd; 2]),
    Socket(OwnedFd),
}

/// The container's ends of its standard descriptors.
enum Theirs {
    Pipes([OwnedFd; 2]),
    Socket(OwnedFd),
}

fn pipes() -> Result<(Ours, Theirs), StepError> {
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into());
    let ((out_reader, out_writer), (err_reader, err_writer)) = (pipe()?, pipe()?);
    Ok((Ours::Pipes([out_reader, err_reader]), Theirs::Pipes([out_writer, err_writer])))
}

fn terminal_pair() -> Result<(Ours, Theirs), StepError> {
    let (ours, theirs) = UnixStream::pair().act(|| "make a socket".into())?;
    Ok((Ours::Socket(ours.into()), Theirs::Socket(theirs.into())))
}

impl Ours {
    fn streams(self) -> Result<Streams, StepError> {
        match self {
            Self::Pipes(pipes) => Ok(Streams::Pipes(pipes)),
            Self::Socket(socket) => receive_terminal(&socket).map(Streams::Terminal),
        }
    }
}

impl Theirs {
    /// Makes them this process's standard descriptors. A terminal is created by the runtime, which sends it to the
    /// returned socket.
    fn take_place(&self) -> Result<Option<OwnedFd>, StepError> {
        match self {
            Self::Pipes([stdout, stderr]) => {
                nix::unistd::dup2_stdout(stdout).act(|| "set standard output".into())?;
                nix::unistd::dup2_stderr(stderr).act(|| "set standard error".into())?;
                Ok(None)
            }
            Self::Socket(socket) => socket.try_clone().act(|| "copy a socket".into()).map(Some),
        }
    }
}
