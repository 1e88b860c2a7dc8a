//! A daemon's handle of `flota-runtime`: an open mount of the program, the launcher that runs from it, and compiled
//! filters for reuse.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::connection::{Connection, Wait};
use crate::protected_binary;
use crate::security::seccomp::KeptFilters;
use crate::supervisor::message::ToLauncher;

/// Bytes that a launcher reserves for the title of its supervisors. A longer title is truncated.
const TITLE_ROOM: usize = 512;

/// The program `flota-runtime`, ready to run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    mount: Option<OwnedFd>,
    launcher: Mutex<Option<Launcher>>,
    pub(crate) filters: KeptFilters,
}

impl Program {
    /// Mounts the program read-only, outside of the file system tree, for as long as this lives. A program that runs
    /// from there need not protect itself, which would require executing itself a second time. If the mount fails, the
    /// program is run from its path.
    pub fn open(path: PathBuf) -> Self {
        let mount = File::open(&path).ok().and_then(|it| protected_binary::read_only_mount(&it).ok());
        Self { path, mount, launcher: Mutex::default(), filters: KeptFilters::default() }
    }

    /// Returns the program's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the launcher start a supervisor for a folder, with this end of a connection. Starts a launcher first if
    /// none runs.
    pub(crate) fn launch(&self, dir: &Path, supervisors: &Connection) -> io::Result<()> {
        let mut held = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(launcher) = &*held {
            match launcher.send(dir, supervisors) {
                // The launcher has ended or hangs.
                Err(error) if is_lost(&error) => *held = None,
                other => return other,
            }
        }
        held.insert(Launcher::spawn(self.command())?).send(dir, supervisors)
    }

    /// Ends the launcher. Its pending requests fail.
    pub(crate) fn drop_launcher(&self) {
        *self.launcher.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn command(&self) -> Command {
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

fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::WouldBlock)
}

#[derive(Debug)]
struct Launcher {
    connection: Connection,
    child: Child,
}

impl Launcher {
    fn spawn(mut command: Command) -> io::Result<Self> {
        let (connection, theirs) = Connection::pair()?;
        command.arg("supervise").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        // Supervisors write their folder into this memory, so that `ps` shows it.
        command.env_clear().env("ROOM", " ".repeat(TITLE_ROOM));
        Ok(Self { connection, child: command.spawn()? })
    }

    fn send(&self, dir: &Path, supervisors: &Connection) -> io::Result<()> {
        self.connection.send(&ToLauncher::Supervise(dir.to_owned()), &[supervisors.as_fd()], Wait::Fail)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // The launcher keeps no state, and its supervisors don't depend on it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
