//! Snapshots in files, `snap.<index>`: a format number, then frames that consist of a length and sealed bytes. The
//! first frame is the description, the last one an end mark with the number of frames, so that a truncated file is
//! detected. A snapshot is written, synced and renamed, and then the names are synced; after a crash, either the
//! previous snapshot or the new one is complete.

use std::io;
use std::sync::Arc;

use openraft::impls::leader_id_adv::LeaderId as OldLeader;

use super::{OpenError, sled_format};
use crate::level::NewerLevel;
use crate::raft::disk::{Disk, DiskFile};
use crate::raft::type_config::{SnapshotMeta, StoredMembership};
use crate::store::{SnapshotError, Tables};
use flota_api::seal::Sealer;

/// Largest frame in bytes: the bound of an entry plus a margin.
const FRAME_BOUND: usize = 64 << 20;
/// Bytes in one write and one read.
const BUFFER: usize = 1 << 20;

/// Format of the files; files of an unknown format are refused. In format 1, a term could have several leaders (see
/// [`sled_format`]).
const FORMAT: u8 = 2;

type OldMeta = openraft::storage::SnapshotMeta<OldLeader<u64, u64>, u64, openraft::BasicNode>;

/// The snapshots of one manager.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    sealer: Sealer,
}

/// A snapshot that was read from disk.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) meta: SnapshotMeta,
    pub(crate) tables: Tables,
    /// Size of its file in bytes.
    pub(crate) bytes: u64,
}

/// Why a snapshot can't be used.
#[derive(Debug)]
enum ReadError {
    Newer(NewerLevel),
    NewerFormat(u8),
    Bad(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Bad(error)
    }
}

impl SnapshotFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, sealer: Sealer) -> Self {
        Self { disk, sealer }
    }

    /// Writes a snapshot and removes older ones. Returns the size of its file in bytes.
    pub(crate) fn save(&self, meta: &SnapshotMeta, tables: &Tables) -> io::Result<u64> {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let name = format!("snap.{index:020}");
        // A snapshot that is built and one that is received may be written at the same time.
        let temporary = format!("new-snap.{index:020}");
        let written = self.write(&temporary, meta, tables);
        let Ok(bytes) = written else {
            // The disk may be full.
            let _ = self.disk.remove(&temporary);
            return written;
        };
        self.disk.rename(&temporary, &name)?;
        self.disk.sync_names()?;
        for old in self.list()?.into_iter().filter(|other| *other < name) {
            // Both of two concurrent writers may have listed it.
            if let Err(error) = self.disk.remove(&old)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(bytes)
    }

    /// Writes the file of a snapshot and syncs it. Returns its size in bytes.
    fn write(&self, name: &str, meta: &SnapshotMeta, tables: &Tables) -> io::Result<u64> {
        let mut file = FrameWriter { file: self.disk.create(name)?, at: 0, buffer: vec![FORMAT] };
        let description = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        let mut count = 0u64;
        for record in std::iter::once(description).chain(tables.records()) {
            file.write(&self.sealer.seal(&what(count), &record))?;
            count += 1;
        }
        file.write(&self.sealer.seal(b"snap end", &count.to_be_bytes()))?;
        file.flush()?;
        file.file.sync()?;
        Ok(file.at)
    }

    /// Reads the newest snapshot and verifies all of it.
    pub(crate) fn load(&self) -> Result<Option<Loaded>, OpenError> {
        let io = |source| OpenError::Io { place: self.disk.place(), source };
        // Remove files that a crash left incomplete.
        for name in self.disk.list().map_err(io)? {
            if name.starts_with("new-snap.") || name == "receiving" {
                self.disk.remove(&name).map_err(io)?;
            }
        }
        let Some(name) = self.list().map_err(io)?.pop() else { return Ok(None) };
        let place = self.disk.place();
        self.read(&name).map(Some).map_err(|error| match error {
            ReadError::Newer(source) => OpenError::Newer { place, source },
            ReadError::NewerFormat(found) => OpenError::NewerFormat { place, what: "snapshot", found, known: FORMAT },
            ReadError::Bad(error) => OpenError::Damaged { place, what: format!("{name}: {error}") },
        })
    }

    fn read(&self, name: &str) -> Result<Loaded, ReadError> {
        let file = self.disk.open(name)?;
        let bytes = file.length()?;
        let mut file = FrameReader::new(file, bytes);
        let format = file.take(1)?;
        match format[0] {
            1..=FORMAT => {}
            // Others are more likely to be damage.
            newer if newer == FORMAT + 1 => return Err(ReadError::NewerFormat(newer)),
            other => return Err(io::Error::other(format!("it has the format {other}")).into()),
        }
        let mut records = Vec::new();
        loop {
            let frame = file.frame()?;
            let count = u64::try_from(records.len()).expect("it was counted in memory");
            if let Ok(end) = self.sealer.open(b"snap end", &frame) {
                if end != count.to_be_bytes() {
                    return Err(io::Error::other("it does not hold as many records as it says").into());
                }
                break;
            }
            records.push(self.sealer.open(&what(count), &frame).map_err(io::Error::other)?);
        }
        let (meta, records) = records.split_first().ok_or_else(|| io::Error::other("it is empty"))?;
        let meta = if format == [FORMAT] {
            postcard::from_bytes(meta).map_err(io::Error::other)?
        } else {
            convert(&postcard::from_bytes(meta).map_err(io::Error::other)?)
        };
        let tables = Tables::from_records(records.iter().map(Vec::as_slice)).map_err(|error| match error {
            SnapshotError::Newer(newer) => ReadError::Newer(newer),
            SnapshotError::Record(_) => ReadError::Bad(io::Error::other(error)),
        })?;
        Ok(Loaded { meta, tables, bytes })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.list()?.into_iter().filter(|name| name.starts_with("snap.")).collect())
    }
}

/// Converts a description from the previous format.
fn convert(old: &OldMeta) -> SnapshotMeta {
    let membership = &old.last_membership;
    SnapshotMeta {
        last_log_id: old.last_log_id.map(sled_format::log_id),
        last_membership: StoredMembership::new(
            membership.log_id().map(sled_format::log_id),
            membership.membership().clone(),
        ),
    }
}

fn what(frame: u64) -> [u8; 12] {
    let mut what = *b"snap........";
    what[4..].copy_from_slice(&frame.to_be_bytes());
    what
}

struct FrameWriter {
    file: Arc<dyn DiskFile>,
    at: u64,
    buffer: Vec<u8>,
}

impl FrameWriter {
    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(frame);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.at, &self.buffer)?;
        self.at += u64::try_from(self.buffer.len()).map_err(io::Error::other)?;
        self.buffer.clear();
        Ok(())
    }
}

struct FrameReader {
    file: Arc<dyn DiskFile>,
    /// Offset of the next read from the file.
    at: u64,
    length: u64,
    buffer: Vec<u8>,
    /// Number of bytes in the buffer that were consumed.
    taken: usize,
}

impl FrameReader {
    fn new(file: Arc<dyn DiskFile>, length: u64) -> Self {
        Self { file, at: 0, length, buffer: Vec::new(), taken: 0 }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        if self.buffer.len() - self.taken < count {
            self.buffer.drain(..std::mem::take(&mut self.taken));
        }
        while self.buffer.len() - self.taken < count {
            let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
            let part = BUFFER.min(left);
            if part == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            let start = self.buffer.len();
            self.buffer.resize(start + part, 0);
            self.file.read_at(self.at, &mut self.buffer[start..])?;
            self.at += u64::try_from(part).map_err(io::Error::other)?;
        }
        let start = self.taken;
        self.taken += count;
        Ok(self.buffer[start..self.taken].to_vec())
    }

    fn frame(&mut self) -> io::Result<Vec<u8>> {
        let length = self.take(4)?;
        let length = u32::from_be_bytes(*length.first_chunk().expect("four bytes were taken"));
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if length > FRAME_BOUND {
            return Err(io::Error::other(format!("a frame says it has {length} bytes; {FRAME_BOUND} are the most")));
        }
        self.take(length)
    }
}

#[cfg(test)]
mod tests;
