//! The process that supervisors are forked from. A daemon has one for as long as it likes, so that no start of a
//! container waits for a program to be loaded; it forks, and nothing else.
//!
//! ```text
//! daemon ── seqpacket socket: DIR, with a descriptor for the report ──▶ launcher ── fork ──▶ supervisor of DIR
//! ```

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::Supervisor;
use crate::error::{Act, RunError, StepError};
use crate::process::clone::{self, Parent};
use crate::state;
use crate::syscall::{files, process as kernel};

/// A folder's path, with room.
const PACKET: usize = 8192;
/// What a supervisor reports when its container's program runs; anything else is why it could not be started.
pub(crate) const STARTED: &[u8] = b"+";

/// Forks a supervisor for each folder that comes at standard input, until that ends. In `title`, the memory of this
/// process's command line, each writes its folder behind what is there.
///
/// # Errors
/// Standard input is no such socket.
pub fn launch(title: &mut [u8]) -> Result<(), RunError> {
    files::close_from_3();
    let act = || "listen for containers to be started".to_owned();
    std::env::set_current_dir("/").act(act)?;
    kernel::set_name(c"flota-launcher").act(act)?;
    // Supervisors that end are nobody's concern here.
    clone::ignore_children();
    while let Some((dir, report)) = receive().act(act)? {
        match clone::fork(0, Parent::Caller) {
            Ok(clone::Side::Parent(..)) => {}
            Ok(clone::Side::Child) => {
                show(title, &dir);
                clone::exit(supervise(&dir, report))
            }
            Err(error) => say(report, format!("failed to start a supervisor: {}", error.desc()).as_bytes()),
        }
    }
    Ok(())
}

/// The other end: has a container started. The descriptor gets the supervisor's report.
pub(crate) fn send(socket: &OwnedFd, dir: &Path, report: &OwnedFd) -> Result<(), Errno> {
    let raw = [report.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let text = [IoSlice::new(dir.as_os_str().as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

fn receive() -> Result<Option<(PathBuf, OwnedFd)>, Errno> {
    loop {
        let mut packet = [0; PACKET];
        let mut room = nix::cmsg_space!([i32; 1]);
        let mut slices = [IoSliceMut::new(&mut packet)];
        let socket = files::standard()[0].as_raw_fd();
        let received = match recvmsg::<()>(socket, &mut slices, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let rights = received.cmsgs()?.find_map(|it| match it {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.into_iter().map(files::own).next(),
            _ => None,
        });
        let count = received.bytes;
        match rights {
            Some(report) => return Ok(Some((std::ffi::OsString::from_vec(packet[..count].to_vec()).into(), report))),
            None if count == 0 => return Ok(None),
            // Nobody to report to.
            None => {}
        }
    }
}

fn show(title: &mut [u8], dir: &Path) {
    let arguments = title.split(|byte| *byte == 0).take(2).collect::<Vec<_>>().join(&b' ');
    let text = [&arguments[..], dir.as_os_str().as_bytes()].join(&b' ');
    title.fill(0);
    for (to, from) in title.iter_mut().zip(text) {
        *to = from;
    }
}

/// A supervisor's whole life; its exit code.
fn supervise(dir: &Path, report: OwnedFd) -> i32 {
    clone::reset_signals();
    match start(dir) {
        Ok(supervisor) => {
            say(report, STARTED);
            supervisor.run()
        }
        Err(error) => {
            say(report, error.text.as_bytes());
            1
        }
    }
}

fn start(dir: &Path) -> Result<Supervisor, RunError> {
    let order = state::read(&dir.join("order.json")).act(|| "read the order".into())?;
    Supervisor::start(
        dir,
        order.ok_or_else(|| StepError::refuse("read the order", format!("{} has none", dir.display())))?,
    )
}

fn say(report: OwnedFd, text: &[u8]) {
    let _ = std::fs::File::from(report).write_all(text);
}
