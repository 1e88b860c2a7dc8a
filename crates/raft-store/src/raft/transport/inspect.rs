//! The entries in a message, for simulations, which check that no two entries of the same index and term differ.

use std::hash::{DefaultHasher, Hash, Hasher};

use flota_api::proto::raft::RaftMessage;
use openraft::entry::RaftEntry as _;
use openraft::raft::AppendEntriesRequest;

use super::unpack;
use crate::raft::type_config::TypeConfig;

/// An entry in a message to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentEntry {
    /// Its index in the log.
    pub index: u64,
    /// The term in which its leader wrote it.
    pub term: u64,
    /// A hash of its payload.
    pub content: u64,
}

/// Returns the entries of an AppendEntries request; empty for any other message.
pub fn sent_entries(message: &RaftMessage) -> Vec<SentEntry> {
    let Ok(request) = unpack::<AppendEntriesRequest<TypeConfig>>(message) else { return Vec::new() };
    let sent = request.entries.iter().map(|entry| {
        let id = entry.log_id();
        let mut hasher = DefaultHasher::new();
        // Hash the same encoding as in the log.
        postcard::to_stdvec(entry).unwrap_or_default().hash(&mut hasher);
        SentEntry { index: id.index, term: id.leader_id.term, content: hasher.finish() }
    });
    sent.collect()
}
