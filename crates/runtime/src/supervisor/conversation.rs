//! One connection to the supervisor: messages as lines of JSON; an exec brings its descriptors along.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

use super::message::Message;
use crate::syscall::files::own;

/// A request that is longer is refused.
const REQUEST_BOUND: usize = 256 << 10;

pub(super) struct Conversation {
    stream: UnixStream,
    buffer: Vec<u8>,
    received: Vec<OwnedFd>,
    /// The exec process that this connection stands for.
    pub(super) process: Option<Pid>,
}

impl Conversation {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), received: Vec::new(), process: None }
    }

    /// The next whole message; `None` while it is not whole.
    ///
    /// # Errors
    /// The other side has gone, or what it says is no message.
    pub(super) fn hear(&mut self) -> io::Result<Option<Message>> {
        let mut chunk = [0; 4096];
        let mut room = nix::cmsg_space!([i32; 3]);
        let count = {
            let mut slices = [io::IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.stream.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = message {
                    self.received.extend(descriptors.into_iter().map(own));
                }
            }
            received.bytes
        };
        if count == 0 || self.buffer.len() + count > REQUEST_BOUND {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// What came with a request.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.received)
    }

    /// Says something; a listener that has gone or does not read is not waited for.
    pub(super) fn say(&mut self, message: &Message) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let _ = self.stream.set_nonblocking(true);
        let _ = self.stream.write_all(&line);
        let _ = self.stream.set_nonblocking(false);
    }
}

impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
