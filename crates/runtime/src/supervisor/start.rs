//! Starts a container from an order, by means of a runtime.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::order::Order;
use super::output::Streams;
use super::{mounts, prepare, report, runtime};
use crate::error::{Act, RunError, StepError};
use crate::process::clone::{self, Parent};
use crate::process::{receive_terminal, wait_readable};
use crate::state::{self, ContainerState};
use crate::syscall::process as kernel;

/// Longest time that a runtime may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(55);

/// A container whose program runs.
pub(super) struct Started {
    pub(super) init: Pid,
    pub(super) process: OwnedFd,
    pub(super) streams: Streams,
}

pub(super) fn start(dir: &Path, order: &Order) -> Result<Started, RunError> {
    let rootfs = mounts::mount_all(dir, order)?;
    let started = make(dir, order, &rootfs);
    if started.is_err() {
        delete(dir, order);
        let _ = order.groups.sweep();
    }
    started
}

fn make(dir: &Path, order: &Order, rootfs: &Path) -> Result<Started, RunError> {
    let (ours, theirs) = if order.terminal { terminal_pair()? } else { pipes()? };
    let pid = apart(|| {
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
    let _ = apart(|| runtime::of(dir, order).delete().map(|()| 0));
}

/// Runs a function in a separate process and waits for its result, so that the memory it needs is freed with that
/// process.
fn apart(act: impl FnOnce() -> Result<i32, RunError>) -> Result<i32, RunError> {
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
            let late = || RunError::new(format!("failed to run the runtime: it did not end within {PATIENCE:?}"));
            report?.unwrap_or_else(|| Err(late()))
        }
    }
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
