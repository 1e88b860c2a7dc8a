//! Replies of resolvers, kept as long as their records allow. Bounded in number and bytes: the reply that expires first
//! makes room.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{RData, Record};
use tokio::time::Instant;

use super::message::Reply;

const MOST_REPLIES: usize = 8192;
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// A larger reply is not kept.
const LARGEST_REPLY: usize = 4096;
/// The longest time for which a reply is kept.
const LONGEST: u32 = 24 * 3600;
/// The longest time for which the absence of a name or record is kept (RFC 2308 §5 allows hours).
const LONGEST_ABSENCE: u32 = 300;

/// The key of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The resolvers that are asked. Replies of others don't count, for they may see other names.
    pub(super) servers: Arc<[SocketAddr]>,
    pub(super) query: Query,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

#[derive(Debug)]
struct Kept {
    reply: Rc<Reply>,
    bytes: usize,
    since: Instant,
    until: Instant,
    number: u64,
}

/// The replies that are still true.
#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: HashMap<Key, Kept>,
    /// The keys by the time at which their replies expire.
    expiry: BTreeMap<(Instant, u64), Key>,
    bytes: usize,
    /// Number of replies so far, which tells those apart that expire at the same time.
    numbers: u64,
}

/// Returns for how many seconds a reply may be kept. An absence is kept as long as the zone's record says
/// (RFC 2308 §3, §5), and failures are not kept.
fn lifetime(reply: &Reply) -> Option<u32> {
    let all = || reply.answers.iter().chain(&reply.authorities).chain(&reply.additionals);
    let shortest = all().map(|record| record.ttl).min();
    let absence = |record: &Record| match &record.data {
        RData::SOA(zone) => Some(record.ttl.min(zone.minimum).min(LONGEST_ABSENCE)),
        _ => None,
    };
    let absence = || reply.authorities.iter().find_map(absence);
    let seconds = match reply.code {
        ResponseCode::NoError if absence().is_none() && !reply.answers.is_empty() => shortest,
        ResponseCode::NoError | ResponseCode::NXDomain => Some(absence()?.min(shortest?)),
        _ => None,
    };
    seconds.map(|it| it.min(LONGEST)).filter(|it| *it > 0)
}

impl Cache {
    /// Returns a reply, with the rest of its life in its records.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Reply> {
        let kept = self.kept.get(key).filter(|kept| now < kept.until)?;
        Some(kept.reply.aged(u32::try_from((now - kept.since).as_secs()).unwrap_or(u32::MAX)))
    }

    /// Keeps a reply of so many bytes, if it may be kept.
    pub(super) fn put(&mut self, key: Key, reply: Rc<Reply>, bytes: usize, now: Instant) {
        self.remove(&key);
        let Some(seconds) = lifetime(&reply).filter(|_| bytes <= LARGEST_REPLY) else { return };
        while self.bytes + bytes > MOST_BYTES || self.kept.len() >= MOST_REPLIES {
            let Some((_, first)) = self.expiry.first_key_value() else { break };
            self.remove(&first.clone());
        }
        let until = now + Duration::from_secs(seconds.into());
        self.numbers += 1;
        self.bytes += bytes;
        self.expiry.insert((until, self.numbers), key.clone());
        self.kept.insert(key, Kept { reply, bytes, since: now, until, number: self.numbers });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.kept.remove(key) {
            self.bytes -= kept.bytes;
            self.expiry.remove(&(kept.until, kept.number));
        }
    }
}
