//! The process that supervisors are forked from. A daemon has one for as long as it likes, so that no start of a
//! container waits for a program to be loaded; it forks, and nothing else.
//!
//! ```text
//! daemon ── seqpacket socket: DIR, with a descriptor for the report ──▶ launcher ── fork ──▶ supervisor of DIR
//! ```

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
            Err(error) => drop(say(report, format!("failed to start a supervisor: {}", error.desc()).as_bytes())),
        }
    }
    Ok(())
}

/// The other end: has a container started. The descriptor gets the supervisor's report.
pub(crate) fn send(socket: &OwnedFd, dir: &Path, report: &OwnedFd) -> Result<(), Errno> {
    let raw = [report.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let text = [IoSlice::new(dir.as_os_str().as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT, None).map(drop)
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
    if !is_awaited(&report) {
        return 1;
    }
    match start(dir) {
        Ok(supervisor) => match say(report, STARTED) {
            Ok(()) => supervisor.run(),
            // Whoever asked has given up, and may have asked another.
            Err(_) => supervisor.stop(),
        },
        Err(error) => {
            let _ = say(report, error.text.as_bytes());
            1
        }
    }
}

/// Whether somebody still listens: a pipe without a reader is an error to poll(2).
fn is_awaited(report: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(report.as_fd(), PollFlags::empty())];
    !poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

fn start(dir: &Path) -> Result<Supervisor, RunError> {
    let order = state::read(&dir.join("order.json")).act(|| "read the order".into())?;
    Supervisor::start(
        dir,
        order.ok_or_else(|| StepError::refuse("read the order", format!("{} has none", dir.display())))?,
    )
}

fn say(report: OwnedFd, text: &[u8]) -> std::io::Result<()> {
    std::fs::File::from(report).write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_whose_asker_has_gone_is_seen() {
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        assert!(is_awaited(&writer));
        drop(reader);
        assert!(!is_awaited(&writer));
    }

    #[test]
    fn a_title_has_the_folder_and_is_cut_where_there_is_no_room() {
        let memory = |room: usize| [&b"/bin/runtime\0supervise\0ROOM="[..], &vec![b' '; room], &[0]].concat();
        for (room, expected) in [(30, "/bin/runtime supervise /run/a/box"), (0, "/bin/runtime supervise /run/a")] {
            let mut memory = memory(room);
            show(&mut memory, Path::new("/run/a/box"));
            let end = memory.iter().position(|byte| *byte == 0).unwrap_or(memory.len());
            assert_eq!(String::from_utf8_lossy(&memory[..end]), expected);
        }
    }
}
