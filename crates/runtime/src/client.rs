//! The daemon's side: start a supervisor, and speak to it over its socket.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::error::RunError;
use crate::oci::Spec;
use crate::process::wait_readable;
use crate::program::Program;
use crate::state;
use crate::supervisor::launcher::STARTED;
use crate::supervisor::{ExecSpec, Message, Order};

/// A start that takes longer hangs on something.
const START_WAIT: Duration = Duration::from_secs(60);

/// Starts the container of `dir`; blocks until its program runs or could not be started, for a minute at most.
///
/// # Errors
/// Why it did not start. Nothing of it is left then, but the folder, and, where it hung, what is in its cgroups.
pub fn start(program: &Program, dir: &Path, order: &Order, mut spec: Spec) -> Result<(), RunError> {
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
    let (report, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    program.launch(dir, &theirs).map_err(failed)?;
    drop(theirs);
    match wait_readable(&report, START_WAIT)? {
        true => hear(&report),
        false => {
            // Whatever it hangs on, the next start shall not.
            program.drop_launcher();
            Err(RunError::new(format!("failed to start a container: it did not begin within {START_WAIT:?}")))
        }
    }
}

/// A new supervisor reports that the container's program runs, or why not.
fn hear(report: &OwnedFd) -> Result<(), RunError> {
    // One word: a container's init that hangs holds the other end open, too, so no end comes.
    let mut word = [0; 4096];
    match nix::unistd::read(report, &mut word) {
        Ok(count) if word[..count] == *STARTED => Ok(()),
        Ok(0) => Err(RunError::new("failed to start a container: its supervisor ended without a word")),
        Ok(count) => Err(RunError::new(String::from_utf8_lossy(&word[..count]).trim())),
        Err(error) => Err(RunError::new(format!("failed to hear from a supervisor: {}", error.desc()))),
    }
}

/// A connection to the supervisor of one container.
#[derive(Debug)]
pub struct ContainerClient {
    stream: UnixStream,
    dir: PathBuf,
}

impl ContainerClient {
    /// Connects to the supervisor of the container in `dir`.
    ///
    /// # Errors
    /// None is there: the container has ended, or its supervisor was killed.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(dir.join("sock"))?, dir: dir.to_owned() })
    }

    /// Sends the container's init a signal.
    ///
    /// # Errors
    /// The supervisor has gone.
    pub fn kill(&mut self, signal: i32) -> io::Result<()> {
        self.stream.write_all(&line(&Message::Kill(signal))?)
    }

    /// The connection itself: it ends when the container has ended (`exit.json` is there then) or the supervisor was
    /// killed (it is not).
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Starts a process in the container; blocks until it runs. Three descriptors are its standard ones; for a terminal
    /// one, a socket that gets its other end.
    ///
    /// # Errors
    /// Why it did not start.
    pub fn exec(mut self, spec: &ExecSpec, descriptors: Vec<OwnedFd>) -> Result<ExecProcess, RunError> {
        match self.ask(&Message::Exec(spec.clone()), descriptors)? {
            Message::ExecStarted => Ok(ExecProcess { stream: self.stream }),
            Message::Failed(error) => Err(error),
            _ => Err(RunError::new(format!("the container in {} has ended", self.dir.display()))),
        }
    }

    /// Has the output copied to `output` from now on; a pipe that is full loses some and is told how much. What comes at
    /// `input` goes to the container's terminal.
    ///
    /// # Errors
    /// Too many are attached, or the supervisor has gone.
    pub fn attach(&mut self, output: OwnedFd, input: Option<OwnedFd>) -> Result<(), RunError> {
        match self.ask(&Message::Attach, std::iter::once(output).chain(input).collect())? {
            Message::Attached => Ok(()),
            Message::Failed(error) => Err(error),
            _ => Err(RunError::new(format!("the container in {} has ended", self.dir.display()))),
        }
    }

    /// Tells the size of the container's terminal.
    ///
    /// # Errors
    /// The supervisor has gone.
    pub fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        self.stream.write_all(&line(&Message::Resize { rows, columns })?)
    }

    fn ask(&mut self, message: &Message, descriptors: Vec<OwnedFd>) -> Result<Message, RunError> {
        let failed = |error: io::Error| RunError::new(format!("failed to reach the container's supervisor: {error}"));
        let bytes = line(message).map_err(failed)?;
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let sent =
            sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None);
        let sent = sent.map_err(|error| failed(error.into()))?;
        self.stream.write_all(&bytes[sent..]).map_err(failed)?;
        drop(descriptors);
        read_message(&mut self.stream).map_err(failed)
    }
}

/// A process that was started in a container.
#[derive(Debug)]
pub struct ExecProcess {
    stream: UnixStream,
}

impl ExecProcess {
    /// Blocks until it ends; its exit code. Dropping it kills the process.
    pub fn wait(mut self) -> i32 {
        match read_message(&mut self.stream) {
            Ok(Message::ExecExited(code)) => code,
            // With the container ends every process in it.
            Ok(_) | Err(_) => 137,
        }
    }

    /// A second handle to the connection, to cut it off (which kills the process) while another waits.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handle(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}

fn line(message: &Message) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn read_message(stream: &mut UnixStream) -> io::Result<Message> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(serde_json::from_slice(&line)?)
}
