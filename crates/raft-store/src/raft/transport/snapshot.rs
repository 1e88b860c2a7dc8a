//! Transfer of a snapshot to another manager, in pieces. The response to each piece says where the next one begins.
//!
//! The receiver writes the pieces to a file and keeps none in memory. An interrupted transfer continues where it
//! stopped, because the records of one state always come in the same order and so have the same bytes. A transfer has
//! no time limit; it fails only without progress. The size of the pieces follows the speed of the link. The receiver
//! installs a complete snapshot by itself, and the sender asks repeatedly whether it has.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use super::Method;
use super::peers::Peers;
use crate::raft::disk::{Disk, DiskFile};
use crate::raft::threads::Threads;
use crate::raft::type_config::{EntryBytes, LogId, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::store::{Tables, View};
use flota_api::seal::{OVERHEAD, Sealer};

/// Smallest and largest size of a piece in bytes. A transfer makes progress if the link carries the smallest within
/// [`PIECE_WAIT`].
const PIECES: (usize, usize) = (32 << 10, 1 << 20);
/// A piece that is answered within this time is followed by a larger one, any other by a smaller one.
const FAST: Duration = Duration::from_secs(1);
/// Largest snapshot that is accepted, in bytes.
const SNAPSHOT_BOUND: u64 = 4 << 30;
/// How long the sender waits for the response to a piece.
const PIECE_WAIT: Duration = Duration::from_secs(10);
/// How long the receiver waits for the installation before it answers that it goes on.
const INSTALL_WAIT: Duration = Duration::from_secs(2);
const FILE: &str = "receiving";

/// One piece.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    /// Offset of the bytes in the snapshot.
    offset: u64,
    bytes: EntryBytes,
    pub(super) is_last: bool,
}

impl Piece {
    /// Offset at which the next piece begins.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::try_from(self.bytes.0.len()).expect("it is in memory"))
    }

    /// The sender's vote and the last entry of the snapshot, which identify the transfer.
    fn identity(&self) -> (Vote, Option<LogId>) {
        (self.vote, self.meta.last_log_id)
    }
}

/// The receiver's response to a piece.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PieceAnswer {
    /// Offset at which the next piece must begin.
    Next(u64),
    /// The snapshot is installed, or was not needed.
    Done(SnapshotResponse<TypeConfig>),
    /// The snapshot is complete and is being installed. Any further piece of it asks whether that has ended.
    Installing,
}

/// Sends the whole snapshot. Returns the receiver's response to the last piece.
pub(super) async fn send(
    peers: &Peers,
    to: u64,
    threads: Threads,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<SnapshotResponse<TypeConfig>, Status> {
    let mut pieces = Pieces::new(&snapshot.snapshot);
    // An empty piece asks where an interrupted transfer continues.
    let mut piece = Piece { vote, meta: snapshot.meta, offset: 0, bytes: EntryBytes::default(), is_last: false };
    let (mut sent, mut size): (u64, usize) = (0, PIECES.0);
    loop {
        let begun = Instant::now();
        let next = match peers.call(to, Method::Snapshot, &piece, PIECE_WAIT).await? {
            PieceAnswer::Done(response) => return Ok(response),
            PieceAnswer::Installing => {
                piece = Piece { offset: piece.end(), bytes: EntryBytes::default(), is_last: true, ..piece };
                continue;
            }
            PieceAnswer::Next(next) => next,
        };
        // Every piece that is not empty must advance the receiver.
        if next < sent || (next == sent && !piece.bytes.0.is_empty()) {
            return Err(Status::aborted("the receiver makes no progress with the snapshot"));
        }
        sent = next;
        size = match (piece.bytes.0.is_empty(), begun.elapsed() <= FAST) {
            (true, _) => size,
            (false, true) => (size * 2).min(PIECES.1),
            (false, false) => (size / 2).max(PIECES.0),
        };
        let read = threads.blocking(move || Ok(pieces.read_from(next, size)));
        let (bytes, is_last, rest) = read.await.map_err(|error| Status::internal(error.to_string()))?;
        pieces = rest;
        piece = Piece { offset: next, bytes: EntryBytes(bytes.into()), is_last, ..piece };
    }
}

/// The records of a snapshot as bytes, each preceded by its length.
struct Pieces {
    records: Box<dyn Iterator<Item = Vec<u8>> + Send>,
    /// Offset of `rest` in the snapshot.
    offset: u64,
    rest: Vec<u8>,
}

impl Pieces {
    fn new(view: &View) -> Self {
        Self { records: Box::new(view.records()), offset: 0, rest: Vec::new() }
    }

    /// Returns the piece of at most `size` bytes from `offset` on, and whether it is the last. Offsets must not decrease.
    fn read_from(mut self, offset: u64, size: usize) -> (Vec<u8>, bool, Self) {
        loop {
            let skipped = usize::try_from(offset - self.offset).unwrap_or(usize::MAX).min(self.rest.len());
            self.rest.drain(..skipped);
            self.offset += u64::try_from(skipped).expect("it is in memory");
            // The byte after the piece shows that it is not the last one.
            if self.offset == offset && self.rest.len() > size {
                return (self.rest[..size].to_vec(), false, self);
            }
            let Some(record) = self.records.next() else { return (self.rest.clone(), true, self) };
            let length = u32::try_from(record.len()).expect("a record is bounded by an entry");
            self.rest.extend_from_slice(&length.to_be_bytes());
            self.rest.extend_from_slice(&record);
        }
    }
}

/// State of the snapshot that this manager is receiving, if any.
#[derive(Debug)]
pub(crate) struct Receiving {
    disk: Arc<dyn Disk>,
    sealer: Sealer,
    current: Option<Current>,
    installation: Option<Installation>,
}

/// The installation of a complete snapshot, which goes on if this is dropped.
#[derive(Debug)]
struct Installation {
    /// The sender's vote and the last entry of the snapshot.
    of: (Vote, Option<LogId>),
    task: JoinHandle<Result<SnapshotResponse<TypeConfig>, Status>>,
}

#[derive(Debug)]
struct Current {
    /// Identifies the snapshot: two snapshots with the same log id hold the same state.
    last: Option<LogId>,
    file: Arc<dyn DiskFile>,
    received: u64,
    /// Length of each sealed piece in the file.
    frames: Vec<usize>,
}

impl Receiving {
    pub(crate) fn new(disk: Arc<dyn Disk>, sealer: Sealer) -> Self {
        Self { disk, sealer, current: None, installation: None }
    }

    /// Stores a piece. Returns the offset at which the next one must begin.
    pub(super) fn take(&mut self, piece: &Piece) -> io::Result<u64> {
        let last = piece.meta.last_log_id;
        if self.current.as_ref().is_none_or(|current| current.last != last) {
            let file = self.disk.create(FILE)?;
            self.current = Some(Current { last, file, received: 0, frames: Vec::new() });
        }
        let current = self.current.as_mut().expect("it was set just now");
        let end = piece.end();
        if piece.offset != current.received || piece.bytes.0.is_empty() {
            return Ok(current.received);
        }
        if end > SNAPSHOT_BOUND {
            return Err(io::Error::other(format!("a snapshot has at most {SNAPSHOT_BOUND} bytes")));
        }
        let sealed = self.sealer.seal(&what(current.frames.len()), &piece.bytes.0);
        let at: usize = current.frames.iter().sum();
        current.file.write_at(u64::try_from(at).map_err(io::Error::other)?, &sealed)?;
        current.frames.push(sealed.len());
        current.received = end;
        Ok(end)
    }

    /// Whether the snapshot that this piece belongs to is complete and is being installed.
    pub(super) fn is_installing(&self, piece: &Piece) -> bool {
        self.installation.as_ref().is_some_and(|it| it.of == piece.identity())
    }

    /// Begins to install the snapshot that this piece completed. An earlier installation is no longer asked about.
    pub(super) fn install(
        &mut self,
        piece: &Piece,
        installation: impl Future<Output = Result<SnapshotResponse<TypeConfig>, Status>> + Send + 'static,
    ) {
        self.installation = Some(Installation { of: piece.identity(), task: tokio::spawn(installation) });
    }

    /// Answers whether the installation has ended. Waits for that, but only for [`INSTALL_WAIT`].
    pub(super) async fn installed(&mut self) -> Result<PieceAnswer, Status> {
        let Some(installation) = &mut self.installation else { return Err(Status::aborted("nothing is installed")) };
        let Ok(ended) = tokio::time::timeout(INSTALL_WAIT, &mut installation.task).await else {
            return Ok(PieceAnswer::Installing);
        };
        self.installation = None;
        ended.map_err(|error| Status::internal(error.to_string()))?.map(PieceAnswer::Done)
    }

    /// Builds the tables from all pieces and ends the transfer.
    pub(super) fn finish(&mut self) -> io::Result<Tables> {
        let Some(current) = self.current.take() else { return Err(io::Error::other("no snapshot was begun")) };
        let (mut at, mut plain) = (0, Vec::new());
        let mut records = Vec::new();
        for (number, length) in current.frames.iter().enumerate() {
            let mut sealed = vec![0; *length];
            current.file.read_at(at, &mut sealed)?;
            at += u64::try_from(*length).map_err(io::Error::other)?;
            plain.extend(self.sealer.open(&what(number), &sealed).map_err(io::Error::other)?);
            split(&mut plain, &mut records)?;
        }
        self.disk.remove(FILE)?;
        if !plain.is_empty() {
            return Err(io::Error::other("the snapshot is cut off"));
        }
        Tables::from_records(records.iter().map(Vec::as_slice)).map_err(io::Error::other)
    }
}

/// Removes the complete records from the beginning of `bytes`.
fn split(bytes: &mut Vec<u8>, records: &mut Vec<Vec<u8>>) -> io::Result<()> {
    let mut rest = bytes.as_slice();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(io::Error::other)?;
        let Some((record, after)) = after.split_at_checked(length) else { break };
        records.push(record.to_vec());
        rest = after;
    }
    *bytes = rest.to_vec();
    Ok(())
}

fn what(piece: usize) -> Vec<u8> {
    format!("piece {piece}").into_bytes()
}

const _: () = assert!(PIECES.1 + OVERHEAD < flota_api::defaults::MESSAGE_BOUND);

#[cfg(test)]
mod tests;
