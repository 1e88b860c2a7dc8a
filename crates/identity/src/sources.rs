//! Bounds on what one address may take up before it has shown a certificate, and on what one node may take up with its
//! certificate, so that neither a stranger nor a faulty node keeps the others from being heard. An IPv6 address counts as
//! its /64 network, which one machine usually has to itself.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flota_api::id::NodeId;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

/// Handshakes in progress, open connections without a certificate, and open connections of one node or user, each by itself. A
/// node needs one connection for its session and a few for transfers of images and streams.
const CONNECTIONS: usize = 128;
/// Open connections without a certificate, of all addresses together. One more ends the oldest, so that none has to wait.
const STRANGERS: usize = 2_048;
/// Longest life of a connection without a certificate: it is for a call or two.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// Calls without a certificate at once, after a pause.
const CALLS: u32 = 128;
/// Time after which one more call is allowed.
const CALL_EVERY: Duration = Duration::from_millis(100);
/// Join tokens that an address may get wrong at once, after a pause. A token has 128 random bits, so nobody guesses
/// one; this keeps the log short and shows who tries.
const WRONG_TOKENS: u32 = 10;
/// Time after which an address may get one more token wrong.
const WRONG_TOKEN_EVERY: Duration = Duration::from_secs(30);
/// Number of callers from which those without any trace are forgotten.
const KNOWN: usize = 4_096;

/// What is counted, each with its own bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Handshakes in progress with this address or network.
    Handshakes(IpAddr),
    /// Connections and calls of this address or network without a certificate.
    Strangers(IpAddr),
    /// Join tokens of this address or network.
    Tokens(IpAddr),
    /// Connections with the certificate of this node.
    Node(NodeId),
    /// Connections with the certificate of a user that has this key.
    User(String),
}

impl Source {
    /// Handshakes with this address.
    pub(crate) fn handshakes(address: IpAddr) -> Self {
        Self::Handshakes(network(address))
    }

    /// Connections of this address without a certificate.
    pub(crate) fn strangers(address: IpAddr) -> Self {
        Self::Strangers(network(address))
    }
}

#[derive(Debug)]
struct Count {
    /// Number of places that are taken.
    open: usize,
    /// When all calls of the past are made up for.
    even_at: Instant,
}

impl Count {
    fn is_idle(&self, now: Instant) -> bool {
        self.open == 0 && self.even_at <= now
    }
}

/// The sources that hold something open or have made calls. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Mutex<HashMap<Source, Count>>>, Open, Strangers);

/// For each node and user that has connected, what tells its open connections to end by being dropped.
type Open = Arc<Mutex<HashMap<Source, watch::Sender<()>>>>;

/// For each open connection without a certificate, the oldest first, what tells it to end by being dropped.
type Strangers = Arc<Mutex<VecDeque<watch::Sender<()>>>>;

/// A place that a source takes up; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    sources: Sources,
    source: Source,
    /// `None` for handshakes and tokens.
    open: Option<watch::Receiver<()>>,
}

impl Place {
    /// Returns a future that resolves when the connection must end, and says why: its node or user has lost rights, or it has no
    /// certificate and is old.
    pub(crate) fn ends(&self) -> BoxFuture<'static, &'static str> {
        let Some(mut open) = self.open.clone() else { return Box::pin(std::future::pending()) };
        // Nothing is ever sent.
        let told = async move { while open.changed().await.is_ok() {} };
        if !matches!(self.source, Source::Strangers(_)) {
            return Box::pin(async move {
                told.await;
                "the node or user has lost rights"
            });
        }
        Box::pin(async move {
            let _ = tokio::time::timeout(STRANGER_LIFE, told).await;
            "a connection without a certificate ends after a minute, or for others"
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = self.sources.0.lock().expect("no holder panics").get_mut(&self.source) {
            count.open -= 1;
        }
    }
}

/// The address or network that is counted.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => Ipv6Addr::from(u128::from(it) & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Sources {
    fn with<T>(&self, source: Source, act: impl FnOnce(&mut Count, Instant) -> T) -> T {
        let now = Instant::now();
        let mut all = self.0.lock().expect("no holder panics");
        if all.len() >= KNOWN {
            all.retain(|_, count| !count.is_idle(now));
        }
        act(all.entry(source).or_insert(Count { open: 0, even_at: now }), now)
    }

    /// Adds a connection without a certificate, and ends the oldest if there are too many.
    fn add_stranger(&self) -> watch::Receiver<()> {
        let (sender, receiver) = watch::channel(());
        let mut strangers = self.2.lock().expect("no holder panics");
        strangers.push_back(sender);
        if strangers.len() > STRANGERS {
            strangers.retain(|it| !it.is_closed());
        }
        while strangers.len() > STRANGERS {
            strangers.pop_front();
        }
        receiver
    }

    /// Takes a place for the source; `None` if it has as many as it may.
    pub(crate) fn take(&self, source: Source) -> Option<Place> {
        let taken = self.with(source.clone(), |count, _| {
            let is_free = count.open < CONNECTIONS;
            count.open += usize::from(is_free);
            is_free
        });
        taken.then(|| {
            let open = match &source {
                Source::Node(_) | Source::User(_) => {
                    let mut open = self.1.lock().expect("no holder panics");
                    Some(open.entry(source.clone()).or_insert_with(|| watch::Sender::new(())).subscribe())
                }
                Source::Strangers(_) => Some(self.add_stranger()),
                Source::Handshakes(_) | Source::Tokens(_) => None,
            };
            Place { sources: self.clone(), source, open }
        })
    }

    /// Ends the connections that this node has open, with everything on them. It may connect again.
    ///
    /// # Panics
    /// Panics if another thread has panicked here.
    pub fn end(&self, node: &NodeId) {
        self.1.lock().expect("no holder panics").remove(&Source::Node(node.clone()));
    }

    /// Ends the connections that are open with the certificate of a user that has this key, with everything on them.
    ///
    /// # Panics
    /// Panics if another thread has panicked here.
    pub fn end_user(&self, key: &str) {
        self.1.lock().expect("no holder panics").remove(&Source::User(key.to_owned()));
    }

    /// Whether the address may make a call without a certificate now. It then counts as made.
    pub fn may_call(&self, address: IpAddr) -> bool {
        self.spend(Source::strangers(address), CALL_EVERY, CALLS)
    }

    /// Whether the address may try a join token now. The try then counts as a wrong one until
    /// [`Sources::token_was_not_wrong`] is called, so that tries at the same time are bounded too.
    pub fn may_try_token(&self, address: IpAddr) -> bool {
        self.spend(Source::Tokens(network(address)), WRONG_TOKEN_EVERY, WRONG_TOKENS)
    }

    /// Takes back that a try of this address has counted.
    pub fn token_was_not_wrong(&self, address: IpAddr) {
        self.with(Source::Tokens(network(address)), |count, now| {
            count.even_at = count.even_at.checked_sub(WRONG_TOKEN_EVERY).unwrap_or(now);
        });
    }

    /// Whether the source may do once more what it may do `most` times at once, and once more after each `every`.
    fn spend(&self, source: Source, every: Duration, most: u32) -> bool {
        self.with(source, |count, now| {
            let even_at = count.even_at.max(now) + every;
            let may = even_at <= now + every * most;
            if may {
                count.even_at = even_at;
            }
            may
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("it is an address")
    }

    #[test]
    fn a_source_takes_up_no_more_than_its_places_and_others_have_theirs() {
        let sources = Sources::default();
        let node = |id: &str| Source::Node(id.into());
        let strangers = |text| Source::strangers(address(text));
        let cases = [
            (
                Source::handshakes(address("10.0.0.1")),
                Source::handshakes(address("::ffff:10.0.0.1")),
                strangers("10.0.0.1"),
            ),
            (strangers("10.0.0.1"), strangers("::ffff:10.0.0.1"), strangers("10.0.0.2")),
            (strangers("fd00::1"), strangers("fd00::2"), strangers("fd00:0:0:1::1")),
            (node("a"), node("a"), node("b")),
        ];
        for (source, same, other) in cases {
            let mut places: Vec<_> =
                (0..CONNECTIONS).map(|_| sources.take(source.clone()).expect("it is free")).collect();
            assert!(sources.take(source.clone()).is_none() && sources.take(same).is_none(), "{source:?}");
            assert!(sources.take(other).is_some(), "another than {source:?}");
            places.pop();
            assert!(sources.take(source.clone()).is_some(), "{source:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_a_certificate_are_bounded_in_number_and_time() {
        let sources = Sources::default();
        let take =
            |number: usize| sources.take(Source::strangers(address(&format!("10.{}.{}.1", number >> 8, number & 255))));
        let is_open = |place: &Place| futures::FutureExt::now_or_never(place.ends()).is_none();
        let mut places: Vec<_> = (0..STRANGERS).map(|number| take(number).expect("there is room")).collect();
        assert!(places.iter().all(is_open));
        drop(places.pop());
        places.push(take(STRANGERS).expect("one has ended"));
        assert!(places.iter().all(is_open));
        places.push(take(STRANGERS + 1).expect("nobody waits"));
        assert_eq!(places.iter().position(is_open), Some(1), "the oldest has ended, and no other one");
        let begun = Instant::now();
        places[1].ends().await;
        assert_eq!(begun.elapsed(), STRANGER_LIFE);
    }

    #[tokio::test]
    async fn a_node_that_loses_rights_loses_its_connections_and_may_connect_again() {
        let sources = Sources::default();
        let take = |id: &str| sources.take(Source::Node(id.into())).expect("it is free");
        let (first, second, other) = (take("a"), take("a"), take("b"));
        let is_open = |place: &Place| futures::FutureExt::now_or_never(place.ends()).is_none();
        assert!([&first, &second, &other].into_iter().all(is_open));
        sources.end(&"a".into());
        assert!(!is_open(&first) && !is_open(&second) && is_open(&other));
        assert!(is_open(&take("a")), "it connects again");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_made_up_for_with_time() {
        let sources = Sources::default();
        let calls = |most: u32| (0..most).filter(|_| sources.may_call(address("10.0.0.1"))).count();
        assert_eq!(calls(1_000), CALLS as usize);
        assert!(sources.may_call(address("10.0.0.2")));
        tokio::time::advance(CALL_EVERY * 3).await;
        assert_eq!(calls(1_000), 3);
        tokio::time::advance(CALL_EVERY * 1_000).await;
        assert_eq!(calls(1_000), CALLS as usize, "no more than at first");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_gets_a_few_tokens_wrong_and_any_number_right() {
        let (sources, guesser) = (Sources::default(), address("10.0.0.1"));
        for _ in 0..WRONG_TOKENS * 3 {
            assert!(sources.may_try_token(guesser));
            sources.token_was_not_wrong(guesser);
        }
        assert_eq!((0..100).filter(|_| sources.may_try_token(guesser)).count(), WRONG_TOKENS as usize);
        assert!(sources.may_try_token(address("10.0.0.2")), "others may");
        assert!(sources.may_call(guesser), "other calls of the same address are counted by themselves");
        tokio::time::advance(WRONG_TOKEN_EVERY).await;
        assert_eq!((0..100).filter(|_| sources.may_try_token(guesser)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_without_a_trace_are_forgotten() {
        let sources = Sources::default();
        let kept = Source::strangers(address("10.0.0.1"));
        let place = sources.take(kept.clone());
        let known = || sources.0.lock().expect("no holder panics").len();
        for number in 0..10 * u32::try_from(KNOWN).expect("it is small") {
            assert!(sources.may_call(IpAddr::from(number.to_be_bytes())));
            tokio::time::advance(CALL_EVERY).await;
        }
        assert!(known() <= KNOWN, "{}", known());
        assert!(sources.0.lock().expect("no holder panics").contains_key(&kept));
        drop(place);
    }
}
