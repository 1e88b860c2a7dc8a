//! A container's terminal: created in the container, with its master sent to the client.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::MsgFlags;
use nix::sys::stat::{SFlag, fstat, major};

use crate::error::{Act, StepError};
use crate::oci::ConsoleSize;
use crate::rootfs::RootDir;
use crate::syscall::files::{set_terminal_size, terminal_peer, unlock_terminal};
use crate::syscall::{messages, mounts as kernel};

/// Major number of /dev/ptmx (Documentation/admin-guide/devices.txt).
const MASTER: u64 = 5;

/// Both ends of a terminal.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) peer: OwnedFd,
}

/// Creates a terminal in the container's own devpts. The opened file is verified, because an image could have placed
/// another file there (CVE-2025-52565).
pub(crate) fn make(root: &RootDir, size: Option<ConsoleSize>) -> Result<Terminal, StepError> {
    let path = Path::new("/dev/pts/ptmx");
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = root.find_without_links(path, flags).act(|| "open /dev/pts/ptmx in the container".into())?;
    let about = fstat(&master).act(|| "look at /dev/pts/ptmx".into())?;
    let is_device = about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !is_device || major(about.st_rdev) != MASTER {
        return Err(StepError::refuse("open /dev/pts/ptmx in the container", "it is something else"));
    }
    unlock_terminal(master.as_fd()).act(|| "unlock the terminal".into())?;
    let peer = terminal_peer(master.as_fd()).act(|| "open the terminal".into())?;
    if let Some(size) = size {
        set_terminal_size(master.as_fd(), size.height, size.width).act(|| "set the terminal's size".into())?;
    }
    Ok(Terminal { master, peer })
}

impl Terminal {
    /// Binds the terminal at /dev/console.
    pub(crate) fn bind_console(&self, root: &RootDir) -> Result<(), StepError> {
        let target = root.make_file(Path::new("/dev/console")).act(|| "make /dev/console".into())?;
        let tree = kernel::open_tree(self.peer.as_fd(), Path::new(""), false);
        let tree = tree.act(|| "open the terminal's mount".into())?;
        kernel::move_mount(tree.as_fd(), target.as_fd()).act(|| "mount the terminal at /dev/console".into())
    }

    /// Sends the master to the socket, and makes the other end this process's standard descriptors and controlling
    /// terminal. The process must be a session leader.
    pub(crate) fn use_here(self, socket: &OwnedFd) -> Result<(), StepError> {
        send(socket, &self.master)?;
        nix::unistd::dup2_stdin(&self.peer).act(|| "set standard input".into())?;
        nix::unistd::dup2_stdout(&self.peer).act(|| "set standard output".into())?;
        nix::unistd::dup2_stderr(&self.peer).act(|| "set standard error".into())?;
        crate::syscall::files::own_terminal().act(|| "own the terminal".into())
    }
}

/// Connects to the socket that receives the master.
pub fn connect(path: &Path) -> Result<OwnedFd, StepError> {
    UnixStream::connect(path).map(OwnedFd::from).act(|| format!("connect to the console socket {}", path.display()))
}

/// Sends the master of a terminal over the socket.
///
/// # Errors
/// The peer has closed the socket.
pub fn send(socket: &OwnedFd, master: &OwnedFd) -> Result<(), StepError> {
    // runc sends this text, and some receivers check it.
    let sent = messages::send(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()], MsgFlags::empty());
    sent.act(|| "give the terminal away".into()).map(drop)
}

/// Receives what [`Terminal::use_here`] sent.
///
/// # Errors
/// The socket can't be read, or the message brought no terminal.
pub fn receive(socket: &OwnedFd) -> Result<OwnedFd, StepError> {
    let act = || "receive the terminal".to_owned();
    let received = messages::recv(socket.as_fd(), &mut [0; 64], MsgFlags::empty()).act(act)?;
    received.descriptors.into_iter().next().ok_or_else(|| StepError::refuse(act(), "none came"))
}
