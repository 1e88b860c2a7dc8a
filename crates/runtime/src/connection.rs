//! The protocol between daemon, launcher and supervisor: messages with descriptors over a unix socket.
//!
//! A connection is of type SOCK_SEQPACKET. One packet is one message in JSON, and its descriptors travel in the same
//! packet, so a message arrives complete or not at all. Each direction has its own message type
//! ([`crate::supervisor::message`]). A packet that is too long or has too many descriptors is an error for the
//! receiver, which then drops the connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, recv, setsockopt,
    socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::syscall::files::{own, set_blocking};
use crate::syscall::messages;

/// Largest message in bytes. Only an exec with a large environment comes near it.
const BOUND: usize = 256 << 10;

/// Largest number of connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Whether an operation waits if it can't be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It waits.
    Block,
    /// It fails with [`io::ErrorKind::WouldBlock`].
    Fail,
}

impl Wait {
    fn flags(self) -> MsgFlags {
        match self {
            Self::Block => MsgFlags::empty(),
            Self::Fail => MsgFlags::MSG_DONTWAIT,
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection(OwnedFd);

impl Connection {
    /// Returns two connected ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to a [`Listener`].
    ///
    /// # Errors
    /// Nobody listens there, or [`io::ErrorKind::WouldBlock`]: too many others wait to be accepted.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        // A listener that accepts nobody for a while must not hold up the caller.
        let socket = new_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // The default size is smaller than the bound.
        setsockopt(&socket, sockopt::SndBuf, &(2 * BOUND))?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        set_blocking(socket.as_fd())?;
        Ok(Self(socket))
    }

    /// Bounds how long a message is waited for, after which receiving it fails with [`io::ErrorKind::WouldBlock`].
    pub(crate) fn set_receive_timeout(&self, most: Duration) -> io::Result<()> {
        let most = TimeVal::microseconds(i64::try_from(most.as_micros()).unwrap_or(i64::MAX));
        Ok(setsockopt(&self.0, sockopt::ReceiveTimeout, &most)?)
    }

    /// Bounds how long a message may wait for room, after which sending it fails with [`io::ErrorKind::WouldBlock`].
    pub(crate) fn set_send_timeout(&self, most: Duration) -> io::Result<()> {
        let most = TimeVal::microseconds(i64::try_from(most.as_micros()).unwrap_or(i64::MAX));
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &most)?)
    }

    /// Sends a message with copies of these descriptors.
    pub(crate) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>], wait: Wait) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        messages::send(self.as_fd(), &bytes, descriptors, wait.flags())?;
        Ok(())
    }

    /// Receives the next message with its descriptors; `None` if the peer has closed its end.
    ///
    /// # Errors
    /// The packet is too long or is not such a message, or there is none and `wait` is [`Wait::Fail`].
    pub(crate) fn recv<M: DeserializeOwned>(&self, wait: Wait) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        // The length is read first, so that the buffer is no larger than necessary.
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | wait.flags();
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut [], peek) {
                Err(nix::Error::EINTR) => {}
                // The peer closed its end with unread data.
                Err(nix::Error::ECONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        if length > BOUND {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
        }
        let mut buffer = vec![0; length];
        let received = messages::recv(self.as_fd(), &mut buffer, wait.flags())?;
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..received.bytes])?, received.descriptors)))
    }

    /// Returns whether the peer still has its end open.
    pub(crate) fn is_open(&self) -> bool {
        // POLLHUP is always reported.
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::empty())];
        !poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Connection {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.0
    }
}

/// A socket at a path that accepts connections.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path` and replaces an existing socket.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let socket = new_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(Self(socket))
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// No connection waits, or no descriptor is available.
    pub(crate) fn accept(&self) -> io::Result<Connection> {
        Ok(Connection(own(accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?)))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn new_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(name: &str) -> (Listener, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("flota-connection-{name}-{}", std::process::id()));
        (Listener::bind(&path).expect("a free path"), path)
    }

    #[test]
    fn messages_arrive_one_by_one_each_with_its_descriptors() {
        let (one, other) = Connection::pair().expect("a pair");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        one.send(&"both", &[reader.as_fd(), writer.as_fd()], Wait::Fail).expect("sent");
        one.send(&"none", &[], Wait::Fail).expect("sent");
        for expected in [("both", 2), ("none", 0)] {
            let (text, descriptors) = other.recv::<String>(Wait::Fail).expect("received").expect("open");
            assert_eq!((text.as_str(), descriptors.len()), expected);
        }
        let error = other.recv::<String>(Wait::Fail).expect_err("nothing is left");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(other.is_open());
        drop(one);
        assert!(!other.is_open());
        assert!(other.recv::<String>(Wait::Block).expect("the end").is_none());
    }

    #[test]
    fn message_up_to_the_bound_arrives_and_a_longer_one_is_an_error() {
        let (listener, path) = listener("bound");
        let client = Connection::connect(&path).expect("it listens");
        let server = listener.accept().expect("a connection waits");
        std::fs::remove_file(path).expect("its own file");
        // The two bytes are the quotes.
        let text = "x".repeat(BOUND - 2);
        client.send(&text, &[], Wait::Fail).expect("it fits");
        assert_eq!(server.recv::<String>(Wait::Fail).expect("received").expect("open").0, text);
        client.send(&format!("{text}x"), &[], Wait::Fail).expect("the kernel takes more");
        let error = server.recv::<String>(Wait::Fail).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn listener_takes_the_place_of_one_that_has_gone() {
        let (first, path) = listener("place");
        drop(first);
        let second = Listener::bind(&path).expect("the old socket is removed");
        let _client = Connection::connect(&path).expect("it listens");
        second.accept().expect("a connection waits");
        assert_eq!(second.accept().expect_err("no other waits").kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_file(path).expect("its own file");
    }
}
