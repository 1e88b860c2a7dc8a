//! `flota-runtime` in a daemon's hands: its program, the launcher that runs from it, the filters it will need again.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::protected_binary;
use crate::security::seccomp::KeptFilters;
use crate::supervisor::launcher;

/// A folder's path, mostly; a longer one is cut.
const TITLE_ROOM: usize = 512;

/// `flota-runtime`, ready to be run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    mount: Option<OwnedFd>,
    launcher: Mutex<Option<Launcher>>,
    pub(crate) filters: KeptFilters,
}

impl Program {
    /// Mounts it read-only, nowhere in the tree, for as long as this lives: what is run from there need not do that
    /// itself (it has to run itself once more for that). Where it can't be, it is run as it lies.
    pub fn open(path: PathBuf) -> Self {
        let mount = File::open(&path).ok().and_then(|it| protected_binary::read_only_mount(&it).ok());
        Self { path, mount, launcher: Mutex::default(), filters: KeptFilters::default() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has a supervisor started for a folder; it reports to the descriptor. The launcher is started first where there
    /// is none, or none any more.
    pub(crate) fn launch(&self, dir: &Path, report: &OwnedFd) -> io::Result<()> {
        let mut held = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(launcher) = &*held {
            match launcher::send(&launcher.socket, dir, report) {
                // It has ended, or hangs.
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::EAGAIN) => *held = None,
                other => return Ok(other?),
            }
        }
        let launcher = held.insert(Launcher::spawn(self.command())?);
        Ok(launcher::send(&launcher.socket, dir, report)?)
    }

    /// Ends the launcher, with what it was asked and has not done.
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

#[derive(Debug)]
struct Launcher {
    socket: OwnedFd,
    child: Child,
}

impl Launcher {
    fn spawn(mut command: Command) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        command.arg("supervise").stdin(theirs).stdout(Stdio::null());
        // For supervisors, to show what they supervise.
        command.env_clear().env("ROOM", " ".repeat(TITLE_ROOM));
        Ok(Self { socket, child: command.spawn()? })
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It holds nothing, and its supervisors do without it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
