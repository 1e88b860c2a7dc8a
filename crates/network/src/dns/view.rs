//! The names that one client sees: those of its networks first, then those that its resolvers know.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use hickory_proto::op::ResponseCode;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::cache::Key;
use super::directory::Directory;
use super::forwarder::Forwarder;
use super::message::{self, Question, Received, Transport};
use super::records::Rotation;
use super::resolvers::Resolvers;

/// The state that all clients share.
#[derive(Debug)]
pub(super) struct Shared {
    directory: Directory,
    resolvers: RefCell<Resolvers>,
    forwarder: Rc<Forwarder>,
    /// Rotates replies. Taking turns instead would pair with clients that ask for two types in a row.
    random: RefCell<SmallRng>,
}

impl Shared {
    pub(super) fn new(directory: Directory, resolvers: Resolvers) -> Self {
        let random = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
        Self { directory, resolvers: RefCell::new(resolvers), forwarder: Rc::default(), random }
    }
}

/// A reply that waits for a resolver.
pub(super) type Later = LocalBoxFuture<'static, Vec<u8>>;

/// The answer to a message of a client.
pub(super) enum Answer {
    Now(Vec<u8>),
    Later(Later),
    Nothing,
}

/// The names that one client sees.
#[derive(Debug)]
pub(super) struct View {
    shared: Rc<Shared>,
    networks: Vec<String>,
    /// The client's own resolvers; if it has none, the machine's count.
    resolvers: Option<Arc<[SocketAddr]>>,
    forwards: bool,
}

impl View {
    /// Returns the names of these networks. `resolvers`: those of the client; `None` if none are asked for it.
    pub(super) fn new(shared: Rc<Shared>, networks: Vec<String>, resolvers: Option<Vec<SocketAddr>>) -> Self {
        let forwards = resolvers.is_some();
        let resolvers = resolvers.filter(|it| !it.is_empty()).map(Into::into);
        Self { shared, networks, resolvers, forwards }
    }

    /// Answers a message.
    pub(super) fn answer(&self, bytes: &[u8], transport: Transport) -> Answer {
        match message::read(bytes, transport) {
            Received::Question(question) => self.resolve(*question),
            Received::Refused(reply) => Answer::Now(reply),
            Received::Nothing => Answer::Nothing,
        }
    }

    fn resolve(&self, question: Question) -> Answer {
        let Shared { directory, resolvers, forwarder, random } = &*self.shared;
        let rotation = Rotation { turn: random.borrow_mut().random::<u32>() as usize, room: question.room() };
        let (name, kind) = (&question.query.name, question.query.query_type);
        if let Some(found) = directory.find(&self.networks, name, kind, rotation) {
            return Answer::Now(question.encode_found(&found));
        }
        if !self.forwards {
            return Answer::Now(question.encode_error(ResponseCode::NXDomain));
        }
        let machine = || resolvers.borrow_mut().current(Instant::now());
        let servers = self.resolvers.clone().unwrap_or_else(machine);
        if servers.is_empty() {
            return Answer::Now(question.encode_error(ResponseCode::ServFail));
        }
        let (dnssec_ok, checking_disabled) = (question.dnssec_ok(), question.checking_disabled());
        let key = Key { servers, query: question.query.clone(), dnssec_ok, checking_disabled };
        if let Some(reply) = forwarder.cached(&key) {
            return Answer::Now(question.encode(&reply));
        }
        let reply = forwarder.clone().resolve(key);
        let later = async move {
            match reply.await {
                Some(reply) => question.encode(&reply),
                None => question.encode_error(ResponseCode::ServFail),
            }
        };
        Answer::Later(later.boxed_local())
    }
}
