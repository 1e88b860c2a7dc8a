//! Questions that the directory can't answer, asked of resolvers: from the cache if possible, each question only once at
//! a time, and of the next resolver when one does not answer.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cache::{Cache, Key};
use super::exchange::{Answered, ask};
use super::message::Reply;

/// How often resolvers are asked for one reply. With the longest wait of each, this ends before the C library gives up
/// after five seconds.
const ATTEMPTS: usize = 3;
/// How long a resolver that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);
/// How many questions are asked at a time: more than a few clients can have, which are bounded themselves.
const MOST_IN_FLIGHT: usize = 2048;
/// How many resolvers are remembered as silent.
const MOST_SILENT: usize = 1024;

type Waiting = Vec<oneshot::Sender<Option<Rc<Reply>>>>;

/// Asks resolvers. Used on one thread.
#[derive(Debug, Default)]
pub(super) struct Forwarder {
    cache: RefCell<Cache>,
    /// Questions in flight, with those who wait for the reply.
    flights: RefCell<HashMap<Key, Waiting>>,
    /// Resolvers that did not answer, and until when they are asked last.
    silent: RefCell<BTreeMap<SocketAddr, Instant>>,
}

impl Forwarder {
    /// Returns a reply that is known already.
    pub(super) fn cached(&self, key: &Key) -> Option<Reply> {
        self.cache.borrow().get(key, Instant::now())
    }

    /// Asks the resolvers; `None` if none of them has a reply.
    pub(super) async fn resolve(self: Rc<Self>, key: Key) -> Option<Rc<Reply>> {
        let (sender, reply) = oneshot::channel();
        let in_flight = self.flights.borrow().len();
        let is_first = match self.flights.borrow_mut().get_mut(&key) {
            Some(waiting) => {
                waiting.push(sender);
                None
            }
            None => Some(sender),
        };
        if let Some(sender) = is_first {
            if in_flight >= MOST_IN_FLIGHT {
                return None;
            }
            self.flights.borrow_mut().insert(key.clone(), vec![sender]);
            let forwarder = self.clone();
            // Not bound to the client that asks first: others may join it.
            tokio::task::spawn_local(async move { forwarder.fly(key).await });
        }
        reply.await.ok().flatten()
    }

    /// Asks a question and hands the reply to all who wait for it.
    async fn fly(&self, key: Key) {
        let reply = match self.ask_in_turn(&key).await {
            Some(answered) => {
                let bytes = answered.bytes;
                let reply = Rc::new(into_reply(answered.message));
                self.cache.borrow_mut().put(key.clone(), reply.clone(), bytes, Instant::now());
                Some(reply)
            }
            None => None,
        };
        let waiting = self.flights.borrow_mut().remove(&key).unwrap_or_default();
        for waiter in waiting {
            // A client that has gone does not wait any more.
            let _ = waiter.send(reply.clone());
        }
    }

    async fn ask_in_turn(&self, key: &Key) -> Option<Answered> {
        let servers = self.in_order(&key.servers, Instant::now());
        let mut with_edns = true;
        for server in servers.iter().cycle().take(ATTEMPTS) {
            match ask(*server, key, with_edns).await {
                Ok(answered) => {
                    self.silent.borrow_mut().remove(server);
                    match answered.message.response_code {
                        ResponseCode::NoError | ResponseCode::NXDomain => return Some(answered),
                        // The resolver may be older than EDNS.
                        ResponseCode::FormErr | ResponseCode::NotImp => with_edns = false,
                        _ => {}
                    }
                }
                Err(error) => self.note_silence(*server, &error, Instant::now()),
            }
        }
        None
    }

    /// Returns the resolvers in the order in which they are asked: those that were silent lately come last.
    fn in_order(&self, servers: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let silent = self.silent.borrow();
        let mut servers = servers.to_vec();
        servers.sort_by_key(|server| silent.get(server).is_some_and(|until| now < *until));
        servers
    }

    fn note_silence(&self, server: SocketAddr, error: &(dyn std::error::Error + 'static), now: Instant) {
        let mut silent = self.silent.borrow_mut();
        silent.retain(|_, until| now < *until);
        if silent.len() < MOST_SILENT && silent.insert(server, now + SILENCE).is_none() {
            tracing::warn!(dns.resolver = %server, error, "a resolver gives no reply");
        }
    }
}

fn into_reply(message: Message) -> Reply {
    let code = message.response_code;
    let authentic_data = message.authentic_data;
    let Message { answers, authorities, additionals, .. } = message;
    Reply { code, authentic_data, answers, authorities, additionals }
}
