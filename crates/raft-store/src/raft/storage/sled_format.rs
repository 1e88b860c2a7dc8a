//! The previous format: log and vote in sled, in `db/`, with each entry split into parts. It is converted when it is
//! found.
//!
//! sled stored values over half of its page size in `db/blobs`, which was never synced; a power failure may have lost
//! them. Conversion reads and verifies every entry and takes over only a complete log. `db/` stays valid until it is
//! removed, so an interrupted conversion starts again.
//!
//! In that format, a term could have several leaders, and log ids were ordered by term and Raft id. Both become one
//! number, which keeps different log ids different. The number depends on nothing else, so it is the same on every
//! manager.

use std::io;
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::impls::leader_id_adv::LeaderId as OldLeader;
use openraft::vote::RaftLeaderId as _;
use serde::de::DeserializeOwned;

use super::wal::Wal;
use super::{LogBounds, OpenError};
use crate::raft::disk::Disk;
use crate::raft::type_config::{EntryBytes, LeaderId, LogId, RaftEntry, Vote};
use flota_api::seal::Sealer;

type OldLogId = openraft::LogId<OldLeader<u64, u64>>;
type OldVote = openraft::Vote<OldLeader<u64, u64>>;
type Payload = EntryPayload<EntryBytes, u64, openraft::BasicNode>;
type OldEntry = openraft::Entry<OldLeader<u64, u64>, Payload>;

const NOTE: &str = "acknowledged";
/// Upper bound of the Raft ids in a cluster of the old format.
const IDS: u64 = 1 << 20;

fn term(leader: OldLeader<u64, u64>) -> u64 {
    leader.term * IDS + leader.node_id
}

/// Converts a log id to a term that has one leader.
pub(super) fn log_id(old: OldLogId) -> LogId {
    let leader = LeaderId::new(term(old.leader_id), old.leader_id.node_id);
    LogId::new(leader.to_committed(), old.index)
}

fn vote(old: OldVote) -> Vote {
    Vote { leader_id: LeaderId::new(term(old.leader_id), old.leader_id.node_id), committed: old.committed }
}

/// Copies the old log's note of acknowledged entries into its folder, because the new log has a file of the same name.
fn keep_note(dir: &Path, db: &Path) -> io::Result<()> {
    let (note, kept) = (dir.join(NOTE), db.join(NOTE));
    // A copy that a crash has cut off holds nothing.
    if acknowledged(&kept).is_some() || acknowledged(&note).is_none() {
        return Ok(());
    }
    fs_err::copy(&note, &kept)?;
    std::fs::File::open(&kept)?.sync_all()?;
    std::fs::File::open(db)?.sync_all()
}

/// The content of the old log.
struct OldLog {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    entries: Vec<RaftEntry>,
}

/// Converts `db/` in the folder of `disk`, if it exists.
///
/// # Errors
/// Acknowledged data is missing or changed, or an I/O error. `db/` is then unchanged.
pub(super) fn convert(disk: &Arc<dyn Disk>, sealer: &Sealer, was_here: bool) -> Result<(), OpenError> {
    let Some(dir) = disk.folder() else { return Ok(()) };
    let path = dir.join("db");
    let converted = dir.join("db.converted");
    let is_left = converted.exists();
    if !path.exists() && !is_left {
        return Ok(());
    }
    let place = path.display().to_string();
    let io = |source: io::Error| OpenError::Io { place: place.clone(), source };
    if is_left {
        fs_err::remove_dir_all(&converted).map_err(io)?;
    }
    if !path.exists() {
        return Ok(());
    }
    keep_note(dir, &path).map_err(io)?;
    // sled panics on some kinds of damage. That is reported as damage and must not end the daemon.
    let old = std::panic::catch_unwind(|| read(dir, sealer));
    let old = old.unwrap_or_else(|_| Err("sled can't read it".into()));
    let old = old.map_err(|what| OpenError::Damaged { place: place.clone(), what })?;
    if was_here && old.vote.is_none() {
        return Err(OpenError::Damaged { place: place.clone(), what: "the vote of this manager is gone".into() });
    }
    for name in disk.list().map_err(io)? {
        if name.starts_with("log.") || name.starts_with("spare.") || name == "acknowledged" {
            disk.remove(&name).map_err(io)?;
        }
    }
    disk.sync_names().map_err(io)?;
    let mut wal = Wal::open(Arc::clone(disk), sealer.clone(), false, LogBounds::default().segment_bytes)?.wal;
    write(&mut wal, &old).map_err(io)?;
    fs_err::rename(&path, &converted).map_err(io)?;
    disk.sync_names().map_err(io)?;
    fs_err::remove_dir_all(&converted).map_err(io)?;
    tracing::info!(entries = old.entries.len(), "the Raft log was converted to the format of today");
    Ok(())
}

fn write(wal: &mut Wal, old: &OldLog) -> io::Result<()> {
    use openraft::entry::RaftEntry as _;
    if let Some(vote) = old.vote {
        wal.append_vote(vote)?;
    }
    if let Some(purged) = old.purged {
        wal.append_purge(purged)?;
    }
    for entry in &old.entries {
        wal.append_entry(entry.log_id(), &postcard::to_stdvec(entry).map_err(io::Error::other)?)?;
    }
    if let Some(committed) = old.committed {
        wal.append_committed(committed)?;
    }
    wal.sync()
}

fn read(dir: &Path, sealer: &Sealer) -> Result<OldLog, String> {
    let text = |error: sled::Error| error.to_string();
    let db = sled::Config::new().path(dir.join("db")).mode(sled::Mode::LowSpace).flush_every_ms(None);
    let db = db.open().map_err(text)?;
    let (log, meta) = (db.open_tree("log").map_err(text)?, db.open_tree("meta").map_err(text)?);
    let purged = read_meta::<OldLogId>(&meta, sealer, "purged")?.map(log_id);
    let committed = read_meta::<OldLogId>(&meta, sealer, "committed")?.map(log_id);
    let vote = read_meta::<OldVote>(&meta, sealer, "vote")?.map(vote);
    let mut entries = Vec::new();
    let mut next = purged.map_or(0, |id| id.index + 1);
    let mut parts = log.range(next.to_be_bytes()..).peekable();
    while let Some(first) = parts.peek() {
        let index = split_key(first.as_ref().map_err(|error| error.to_string())?.0.as_ref())?.0;
        if index != next {
            return Err(format!("entry {next} is missing, but {index} is there"));
        }
        let mut sealed = Vec::new();
        for expected in 0u16.. {
            let belongs = |it: &sled::Result<(sled::IVec, sled::IVec)>| {
                it.as_ref().is_ok_and(|(key, _)| split_key(key).is_ok_and(|(at, _)| at == index))
            };
            let Some(part) = parts.next_if(belongs) else { break };
            let (key, bytes) = part.map_err(text)?;
            if split_key(&key)?.1 != expected {
                return Err(format!("a part of entry {index} is missing"));
            }
            sealed.extend_from_slice(&bytes);
        }
        entries.push(read_entry(sealer, index, &sealed)?);
        next = index + 1;
    }
    let acknowledged = acknowledged(&dir.join("db").join(NOTE)).max(committed.map(|id| id.index));
    match acknowledged.filter(|last| *last >= next) {
        Some(last) => Err(format!("it ends before entry {next}, but entry {last} was acknowledged")),
        None => Ok(OldLog { vote, purged, committed, entries }),
    }
}

fn read_entry(sealer: &Sealer, index: u64, sealed: &[u8]) -> Result<RaftEntry, String> {
    let mut what = *b"log........";
    what[3..].copy_from_slice(&index.to_be_bytes());
    let plain = sealer.open(&what, sealed).map_err(|error| format!("entry {index}: {error}"))?;
    let old: OldEntry = postcard::from_bytes(&plain).map_err(|error| format!("entry {index}: {error}"))?;
    if old.log_id.index != index {
        return Err(format!("entry {index} says that it is {}", old.log_id.index));
    }
    Ok(RaftEntry { log_id: log_id(old.log_id), payload: old.payload })
}

fn read_meta<T: DeserializeOwned>(meta: &sled::Tree, sealer: &Sealer, name: &str) -> Result<Option<T>, String> {
    let Some(sealed) = meta.get(name).map_err(|error| error.to_string())? else { return Ok(None) };
    let plain = sealer.open(name.as_bytes(), &sealed).map_err(|error| format!("the record `{name}`: {error}"))?;
    postcard::from_bytes(&plain).map(Some).map_err(|error| format!("the record `{name}`: {error}"))
}

fn split_key(bytes: &[u8]) -> Result<(u64, u16), String> {
    let (index, part) = bytes.split_first_chunk::<8>().ok_or("a key of the log has a wrong length")?;
    let part: [u8; 2] = part.try_into().map_err(|_| "a key of the log has a wrong length")?;
    Ok((u64::from_be_bytes(*index), u16::from_be_bytes(part)))
}

/// Index of the last entry that the old log had acknowledged according to its note.
fn acknowledged(path: &Path) -> Option<u64> {
    let record = std::fs::read(path).ok()?;
    let (index, checksum) = record.split_first_chunk::<8>()?;
    (record.len() == 12 && crc32fast::hash(index).to_be_bytes() == checksum).then_some(u64::from_be_bytes(*index))
}

#[cfg(test)]
mod tests;
