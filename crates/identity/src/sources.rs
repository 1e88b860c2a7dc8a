//! Bounds on what one address may take up before it has shown a certificate, so that a stranger keeps no node from being
//! heard. An IPv6 address counts as its /64 network, which one machine usually has to itself.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// Handshakes in progress and, apart from them, open connections without a certificate.
const CONNECTIONS: usize = 128;
/// Calls without a certificate at once, after a pause.
const CALLS: u32 = 128;
/// Time after which one more call is allowed.
const CALL_EVERY: Duration = Duration::from_millis(100);
/// Number of addresses from which those without any trace are forgotten.
const KNOWN: usize = 4_096;

/// A kind of connection that an address holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A handshake in progress.
    Handshake,
    /// A connection without a certificate.
    Stranger,
}

#[derive(Debug)]
struct Source {
    handshakes: usize,
    strangers: usize,
    /// When all calls of the past are made up for.
    even_at: Instant,
}

impl Source {
    fn count(&mut self, held: Held) -> &mut usize {
        match held {
            Held::Handshake => &mut self.handshakes,
            Held::Stranger => &mut self.strangers,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.handshakes == 0 && self.strangers == 0 && self.even_at <= now
    }
}

/// The addresses that hold something open or have made calls. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Mutex<HashMap<IpAddr, Source>>>);

/// A place that an address takes up; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    sources: Sources,
    source: IpAddr,
    held: Held,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(source) = self.sources.0.lock().expect("no holder panics").get_mut(&self.source) {
            *source.count(self.held) -= 1;
        }
    }
}

/// The address or network that is counted.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => Ipv6Addr::from(u128::from(it) & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Sources {
    fn with<T>(&self, address: IpAddr, act: impl FnOnce(&mut Source, Instant) -> T) -> T {
        let now = Instant::now();
        let mut all = self.0.lock().expect("no holder panics");
        if all.len() >= KNOWN {
            all.retain(|_, source| !source.is_idle(now));
        }
        act(all.entry(source(address)).or_insert(Source { handshakes: 0, strangers: 0, even_at: now }), now)
    }

    /// Takes a place for the address; `None` if it has as many as it may.
    pub(crate) fn take(&self, address: IpAddr, held: Held) -> Option<Place> {
        let taken = self.with(address, |source, _| {
            let count = source.count(held);
            let is_free = *count < CONNECTIONS;
            *count += usize::from(is_free);
            is_free
        });
        taken.then(|| Place { sources: self.clone(), source: source(address), held })
    }

    /// Whether the address may make a call without a certificate now. It then counts as made.
    pub fn may_call(&self, address: IpAddr) -> bool {
        self.with(address, |source, now| {
            let even_at = source.even_at.max(now) + CALL_EVERY;
            let may = even_at <= now + CALL_EVERY * CALLS;
            if may {
                source.even_at = even_at;
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
    fn an_address_takes_up_no_more_than_its_places_and_others_have_theirs() {
        let sources = Sources::default();
        for held in [Held::Handshake, Held::Stranger] {
            let mut places: Vec<_> =
                (0..CONNECTIONS).map(|_| sources.take(address("10.0.0.1"), held).expect("it is free")).collect();
            assert!(sources.take(address("10.0.0.1"), held).is_none());
            assert!(sources.take(address("::ffff:10.0.0.1"), held).is_none(), "it is the same address");
            assert!(sources.take(address("10.0.0.2"), held).is_some());
            places.pop();
            assert!(sources.take(address("10.0.0.1"), held).is_some());
        }
        let _places: Vec<_> =
            (0..CONNECTIONS).map(|_| sources.take(address("fd00::1"), Held::Stranger).expect("it is free")).collect();
        assert!(sources.take(address("fd00::2"), Held::Stranger).is_none(), "it is in the same network");
        assert!(sources.take(address("fd00:0:0:1::1"), Held::Stranger).is_some());
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
    async fn addresses_without_a_trace_are_forgotten() {
        let sources = Sources::default();
        let place = sources.take(address("10.0.0.1"), Held::Stranger);
        let known = || sources.0.lock().expect("no holder panics").len();
        for number in 0..10 * u32::try_from(KNOWN).expect("it is small") {
            assert!(sources.may_call(IpAddr::from(number.to_be_bytes())));
            tokio::time::advance(CALL_EVERY).await;
        }
        assert!(known() <= KNOWN, "{}", known());
        assert!(sources.0.lock().expect("no holder panics").contains_key(&address("10.0.0.1")));
        drop(place);
    }
}
