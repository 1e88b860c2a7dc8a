//! The clock for a manager's decisions: it runs evenly while one manager leads, and is never behind the times in the
//! store.
//!
//! The wall clock is read once, when leadership begins. Later steps of the wall clock change no delay, and a leader
//! whose clock is behind its predecessor's continues from the time of the last entry. Entries are stamped with this
//! clock too, so no time in the tables is later than the time that a planner is given.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::version::Timestamp;
use flota_raft_store::faults::{self, Fault};

/// The clock of a term. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct TermClock {
    wall: Clock,
    base: Arc<Mutex<(Timestamp, Instant)>>,
}

impl TermClock {
    /// Creates a clock that starts at the present time of `wall` and runs on until the first term begins.
    pub fn new(wall: Clock) -> Self {
        let base = (wall.now(), Instant::now());
        Self { wall, base: Arc::new(Mutex::new(base)) }
    }

    /// Begins a term at the time of the wall clock, or at `last`, the time of the last entry, if that is later.
    pub(crate) fn begin(&self, last: Timestamp) {
        let earliest = if faults::is_on(Fault::OrderByClock) { Timestamp::default() } else { last };
        *self.base.lock().expect("no holder panics") = (self.wall.now().max(earliest), Instant::now());
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        let (base, begun) = *self.base.lock().expect("no holder panics");
        base + begun.elapsed()
    }

    /// The wall clock, for times that are compared with other machines' clocks: certificates and grants.
    pub(crate) fn wall(&self) -> &Clock {
        &self.wall
    }

    /// Returns this clock as a [`Clock`]; the Raft node stamps its entries with it.
    pub fn as_clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    const HOUR: u64 = 3_600_000;

    /// A wall clock that a test sets.
    fn settable(start: u64) -> (Clock, Arc<AtomicU64>) {
        let hand = Arc::new(AtomicU64::new(start));
        let shown = Arc::clone(&hand);
        (Clock::new(move || Timestamp(shown.load(Ordering::Relaxed))), hand)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_steps_within_a_term_changes_no_delay() {
        for stepped in [9 * HOUR, 11 * HOUR] {
            let (wall, hand) = settable(10 * HOUR);
            let clock = TermClock::new(wall);
            clock.begin(Timestamp(0));
            hand.store(stepped, Ordering::Relaxed);
            tokio::time::advance(Duration::from_secs(2)).await;
            assert_eq!(clock.now(), Timestamp(10 * HOUR + 2_000));
            assert_eq!(clock.as_clock().now(), clock.now());
            assert_eq!(clock.wall().now(), Timestamp(stepped));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_begins_at_the_wall_clock_and_never_before_the_last_entry() {
        let (wall, hand) = settable(10 * HOUR);
        let clock = TermClock::new(wall);
        clock.begin(Timestamp(11 * HOUR));
        assert_eq!(clock.now(), Timestamp(11 * HOUR), "its predecessor was an hour ahead");
        hand.store(12 * HOUR, Ordering::Relaxed);
        clock.begin(Timestamp(11 * HOUR));
        assert_eq!(clock.now(), Timestamp(12 * HOUR));
    }
}
