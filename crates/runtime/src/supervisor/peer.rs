//! A client that is connected to the supervisor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::message::{FromSupervisor, ToSupervisor};
use crate::connection::{Connection, Wait};

/// Identifies a client for the lifetime of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerId(pub(super) u64);

pub(super) struct Peer {
    pub(super) id: PeerId,
    /// Whether the client receives the container's events.
    pub(super) watches: bool,
    connection: Connection,
}

impl Peer {
    pub(super) fn new(id: PeerId, connection: Connection) -> Self {
        Self { id, watches: false, connection }
    }

    /// Receives the next request with its descriptors; `None` if none has arrived yet.
    ///
    /// # Errors
    /// The client has disconnected, or sent something other than a request.
    pub(super) fn recv(&self) -> io::Result<Option<(ToSupervisor, Vec<OwnedFd>)>> {
        match self.connection.recv(Wait::Fail) {
            Ok(Some(received)) => Ok(Some(received)),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a message. A client that has disconnected or does not read misses it, because the supervisor never waits
    /// for one.
    pub(super) fn send(&self, message: &FromSupervisor) {
        self.send_with(message, &[]);
    }

    /// Sends a message with copies of these descriptors. A client that has disconnected or does not read misses it.
    pub(super) fn send_with(&self, message: &FromSupervisor, descriptors: &[OwnedFd]) {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let _ = self.connection.send(message, &borrowed, Wait::Fail);
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
