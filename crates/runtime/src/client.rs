//! The daemon's side: starts a supervisor and sends requests to it over its socket.
//!
//! A daemon keeps one connection for each container, [`ContainerEvents`], which delivers events and carries signals.
//! Neither therefore depends on establishing a connection when it is needed. The connection comes from [`start`] or,
//! after a restart of the daemon, from [`ContainerClient::watch`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::connection::{Connection, Wait};
use crate::error::RunError;
use crate::oci::Spec;
use crate::process::wait_readable;
use crate::program::Program;
use crate::state::{self, KILLED};
use crate::supervisor::message::{FromSupervisor, ToSupervisor};
use crate::supervisor::{ContainerEvent, ExecSpec, Order, SOCKET};

/// Largest number of descriptors that a supervisor keeps.
pub const KEPT: usize = crate::syscall::messages::DESCRIPTORS - 1;

/// Longest wait for a container's program to run.
const START_WAIT: Duration = Duration::from_secs(60);

/// Starts the container of `dir`. Blocks until its program runs or has failed to start, for at most a minute. The
/// supervisor holds copies of `kept`, at most [`KEPT`] descriptors, until the container has ended;
/// [`ContainerClient::kept`] returns them.
///
/// # Errors
/// The container did not start. Only its folder is left and, if the start hung, the processes in its cgroups.
pub fn start(
    program: &Program,
    dir: &Path,
    order: &Order,
    mut spec: Spec,
    kept: &[OwnedFd],
) -> Result<ContainerEvents, RunError> {
    let failed = |error: io::Error| RunError::new(format!("failed to start {}: {error}", program.path().display()));
    let bundle = crate::supervisor::bundle(dir);
    // Another runtime gets the profile itself.
    let profile = spec.linux.as_mut().and_then(|it| it.seccomp.as_mut()).filter(|_| order.runtime.is_none());
    let filter = profile.map(|profile| {
        let filter = program.filters.of(profile);
        profile.syscalls.clear();
        filter
    });
    let filter = filter.transpose()?;
    std::fs::create_dir_all(&bundle)
        .and_then(|()| state::write_volatile(&dir.join("order.json"), order))
        .and_then(|()| state::write_volatile(&bundle.join("config.json"), &spec))
        .and_then(|()| filter.map_or(Ok(()), |filter| std::fs::write(bundle.join("seccomp"), filter)))
        .map_err(failed)?;
    let (ours, theirs) = Connection::pair().map_err(failed)?;
    let descriptors: Vec<_> = std::iter::once(theirs.as_fd()).chain(kept.iter().map(AsFd::as_fd)).collect();
    program.launch(dir, &descriptors).map_err(failed)?;
    drop(theirs);
    if !wait_readable(&ours, START_WAIT)? {
        // The launcher may hang as well and delay the next start.
        program.replace_launcher();
        return Err(RunError::new(format!("failed to start a container: it did not begin within {START_WAIT:?}")));
    }
    match ours.recv(Wait::Fail) {
        Ok(Some((FromSupervisor::Started, _))) => Ok(ContainerEvents { connection: ours }),
        Ok(Some((FromSupervisor::Failed(error), _))) => Err(error),
        Ok(_) => Err(RunError::new("failed to start a container: its supervisor ended without an answer")),
        Err(error) => Err(RunError::new(format!("failed to receive from a supervisor: {error}"))),
    }
}

/// Longest wait for a supervisor's answer. While it starts a container, it answers nothing.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// A connection to the supervisor of one container, for requests.
#[derive(Debug)]
pub struct ContainerClient {
    connection: Connection,
    dir: PathBuf,
}

impl ContainerClient {
    /// Connects to the supervisor of the container in `dir`.
    ///
    /// # Errors
    /// There is no supervisor: the container has ended, or its supervisor was killed.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        Ok(Self { connection: Connection::connect(&dir.join(SOCKET))?, dir: dir.to_owned() })
    }

    /// Makes the supervisor send the container's events over this connection from now on.
    ///
    /// # Errors
    /// The supervisor has ended.
    pub fn watch(self) -> io::Result<ContainerEvents> {
        self.connection.send(&ToSupervisor::Watch, &[], Wait::Fail)?;
        Ok(ContainerEvents { connection: self.connection })
    }

    /// Sends a signal to the container's init.
    ///
    /// # Errors
    /// The supervisor has ended or does not read.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        self.connection.send(&ToSupervisor::Kill(signal), &[], Wait::Fail)
    }

    /// Starts a process in the container; blocks until it runs. Three descriptors become its standard ones. For a
    /// process at a terminal there is one descriptor, a socket that receives the terminal's other end.
    ///
    /// # Errors
    /// The process did not start; the error says why.
    pub fn exec(self, spec: &ExecSpec, descriptors: Vec<OwnedFd>) -> Result<ExecProcess, RunError> {
        self.request(&ToSupervisor::Exec(spec.clone()), descriptors)?;
        self.connection.set_receive_timeout(Duration::ZERO).map_err(unreached)?;
        Ok(ExecProcess { connection: self.connection })
    }

    /// As [`Self::exec`], without waiting: [`ExecProcess::exit_code`] says if the process did not start.
    ///
    /// # Errors
    /// The supervisor has ended.
    pub fn exec_later(self, spec: &ExecSpec, descriptors: Vec<OwnedFd>) -> Result<ExecProcess, RunError> {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        // The connection is new, so it has room.
        let sent = self.connection.send(&ToSupervisor::Exec(spec.clone()), &borrowed, Wait::Fail);
        sent.map_err(unreached)?;
        Ok(ExecProcess { connection: self.connection })
    }

    /// Makes the supervisor copy the output to `output` from now on. If the pipe is full, some output is lost, and a
    /// later line says how much. Input from `input` is written to the container's terminal.
    ///
    /// # Errors
    /// Too many clients are attached, or the supervisor has ended.
    pub fn attach(&self, output: OwnedFd, input: Option<OwnedFd>) -> Result<(), RunError> {
        self.request(&ToSupervisor::Attach, std::iter::once(output).chain(input).collect())
    }

    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// The supervisor has ended or does not read.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        self.connection.send(&ToSupervisor::Resize { rows, columns }, &[], Wait::Fail)
    }

    /// Returns copies of the descriptors that the supervisor keeps, in the order in which [`start`] was given them; none if
    /// it has ended, or was started by a version that keeps none.
    ///
    /// # Errors
    /// It does not answer, or no descriptor is available.
    pub fn kept(self) -> io::Result<Vec<OwnedFd>> {
        self.connection.set_receive_timeout(ANSWER_WAIT)?;
        match self.connection.send(&ToSupervisor::Kept, &[], Wait::Fail) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Vec::new()),
            sent => sent?,
        }
        let answer = self.connection.recv(Wait::Block)?;
        Ok(answer.map(|(_, descriptors): (FromSupervisor, _)| descriptors).unwrap_or_default())
    }

    /// Sends a request with these descriptors, which are then closed here, and waits for the answer.
    fn request(&self, request: &ToSupervisor, descriptors: Vec<OwnedFd>) -> Result<(), RunError> {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        self.connection.set_receive_timeout(ANSWER_WAIT).map_err(unreached)?;
        // Few requests go over one connection, so it has room.
        self.connection.send(request, &borrowed, Wait::Fail).map_err(unreached)?;
        drop(descriptors);
        match self.connection.recv(Wait::Block).map_err(unreached)? {
            Some((FromSupervisor::Started, _)) => Ok(()),
            Some((FromSupervisor::Failed(error), _)) => Err(error),
            _ => Err(RunError::new(format!("the container in {} has ended", self.dir.display()))),
        }
    }
}

fn unreached(error: io::Error) -> RunError {
    if error.kind() == io::ErrorKind::WouldBlock {
        return RunError::new("the container's supervisor does not answer");
    }
    RunError::new(format!("failed to reach the container's supervisor: {error}"))
}

/// A daemon's own connection to the supervisor of one container. It can be polled: it is readable when
/// [`Self::next_event`] has something to return.
#[derive(Debug)]
pub struct ContainerEvents {
    connection: Connection,
}

impl ContainerEvents {
    /// Returns the next event, or `None` if no more events follow. If the last event was not
    /// [`ContainerEvent::Exited`], the supervisor was killed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no event yet.
    pub fn next_event(&self) -> io::Result<Option<ContainerEvent>> {
        match self.connection.recv(Wait::Fail)? {
            Some((FromSupervisor::Event(event), _)) => Ok(Some(event)),
            Some((other, _)) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("not an event: {other:?}"))),
            None => Ok(None),
        }
    }

    /// Sends a signal to the container's init.
    ///
    /// # Errors
    /// The supervisor has ended or does not read.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        self.connection.send(&ToSupervisor::Kill(signal), &[], Wait::Fail)
    }
}

impl AsFd for ContainerEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsRawFd for ContainerEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_fd().as_raw_fd()
    }
}

/// A process that was started in a container. It can be polled: it is readable when [`Self::exit_code`] has something to
/// return. Dropping it kills the process.
#[derive(Debug)]
pub struct ExecProcess {
    connection: Connection,
}

impl ExecProcess {
    /// Returns the process's exit code.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while it runs; another error if it did not start.
    pub fn exit_code(&self) -> io::Result<i32> {
        self.result(Wait::Fail)
    }

    /// Blocks until the process ends and returns its exit code.
    pub fn wait(self) -> i32 {
        self.result(Wait::Block).unwrap_or(KILLED)
    }

    fn result(&self, wait: Wait) -> io::Result<i32> {
        let received = loop {
            match self.connection.recv(wait) {
                Ok(Some((FromSupervisor::Started, _))) => {}
                other => break other,
            }
        };
        match received {
            Ok(Some((FromSupervisor::ExecExited(code), _))) => Ok(code),
            Ok(Some((FromSupervisor::Failed(error), _))) => Err(io::Error::other(error.text)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Every process in a container ends with it.
            Ok(_) | Err(_) => Ok(KILLED),
        }
    }
}

impl AsRawFd for ExecProcess {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_fd().as_raw_fd()
    }
}
