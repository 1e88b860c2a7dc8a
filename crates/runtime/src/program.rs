//! A daemon's handle of `flota-runtime`: an open mount of the program, the launcher that runs from it, and compiled
//! filters for reuse.
//!
//! A launcher forks one supervisor after the other. Starts beyond the few that its socket queues wait. A launcher that
//! takes none for long hangs: another one takes its place, and it ends once it has served what it had queued.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::connection::{Connection, Wait};
use crate::protected_binary;
use crate::security::seccomp::KeptFilters;
use crate::supervisor::message::ToLauncher;

/// Bytes that a launcher reserves for the title of its supervisors. A longer title is truncated.
const TITLE_ROOM: usize = 512;

/// Longest wait for a launcher to take a request. It forks a supervisor in a few milliseconds.
const QUEUE_WAIT: Duration = Duration::from_secs(10);

/// The program `flota-runtime`, ready to run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    mount: Option<OwnedFd>,
    launchers: Mutex<Launchers>,
    pub(crate) filters: KeptFilters,
}

#[derive(Debug, Default)]
struct Launchers {
    current: Option<Launcher>,
    /// Launchers that were replaced and have not ended yet.
    retired: Vec<ChildProcess>,
}

impl Program {
    /// Mounts the program read-only, outside of the file system tree, for as long as this lives. A program that runs
    /// from there need not protect itself, which would require executing itself a second time. If the mount fails, the
    /// program is run from its path.
    pub fn open(path: PathBuf) -> Self {
        let mount = File::open(&path).ok().and_then(|it| protected_binary::read_only_mount(&it).ok());
        Self { path, mount, launchers: Mutex::default(), filters: KeptFilters::default() }
    }

    /// Returns the program's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the launcher start a supervisor for a folder. The first descriptor is the supervisor's end of a
    /// connection; it keeps the others. Starts a launcher first if none runs, or if the current one has ended or
    /// hangs. Waits while its queue is full.
    pub(crate) fn launch(&self, dir: &Path, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut launchers = self.launchers.lock().unwrap_or_else(PoisonError::into_inner);
        launchers.retired.retain_mut(ChildProcess::runs);
        if let Some(launcher) = &launchers.current {
            match launcher.send(dir, descriptors) {
                Err(error) if is_lost(&error) => launchers.retire(),
                other => return other,
            }
        }
        launchers.current.insert(Launcher::spawn(self.command(), QUEUE_WAIT)?).send(dir, descriptors)
    }

    /// Starts another launcher for the next container. The current one ends after the requests that it has queued.
    pub(crate) fn replace_launcher(&self) {
        self.launchers.lock().unwrap_or_else(PoisonError::into_inner).retire();
    }

    pub(crate) fn command(&self) -> Command {
        match &self.mount {
            Some(mount) => {
                let mut command = Command::new(format!("/proc/self/fd/{}", mount.as_raw_fd()));
                std::os::unix::process::CommandExt::arg0(&mut command, &self.path);
                command
            }
            None => Command::new(&self.path),
        }
    }
}

impl Launchers {
    /// Closes the connection of the current launcher, after which it reads what is queued and ends.
    fn retire(&mut self) {
        self.retired.extend(self.current.take().map(|it| it.process));
    }
}

/// Returns whether the launcher has ended, or has taken nothing for [`QUEUE_WAIT`].
fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::WouldBlock)
}

#[derive(Debug)]
struct Launcher {
    connection: Connection,
    process: ChildProcess,
}

impl Launcher {
    /// Starts a launcher, to which a request waits at most this long for room.
    fn spawn(mut command: Command, queue_wait: Duration) -> io::Result<Self> {
        let (connection, theirs) = Connection::pair()?;
        connection.set_send_timeout(queue_wait)?;
        command.arg("supervise").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        // Supervisors write their folder into this memory, so that `ps` shows it.
        command.env_clear().env("ROOM", " ".repeat(TITLE_ROOM));
        Ok(Self { connection, process: ChildProcess(command.spawn()?) })
    }

    fn send(&self, dir: &Path, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.connection.send(&ToLauncher::Supervise(dir.to_owned()), descriptors, Wait::Block)
    }
}

/// A launcher's process. It keeps no state, and its supervisors don't depend on it.
#[derive(Debug)]
struct ChildProcess(Child);

impl ChildProcess {
    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn launcher_that_takes_nothing_is_replaced_but_not_killed() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec /bin/sleep 1000"]);
        let launcher = Launcher::spawn(command, Duration::from_millis(20)).expect("every machine has it");
        let (_ours, theirs) = Connection::pair().expect("a pair");
        let full = (0..100_000).find_map(|_| launcher.send(Path::new("/run/box"), &[theirs.as_fd()]).err());
        assert!(full.is_some_and(|error| is_lost(&error)), "its queue is bounded");
        let mut launchers = Launchers { current: Some(launcher), retired: Vec::new() };
        launchers.retire();
        assert!(launchers.current.is_none() && launchers.retired[0].runs());
    }
}
