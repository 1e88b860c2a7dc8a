//! The clock that managers decide by: it runs evenly while one manager leads, and never behind what the store knows.
//!
//! The wall clock is read once, when leadership begins. A wall clock that steps changes no delay after that, and a
//! leader whose clock is behind its predecessor's goes on where that one was. The times in entries are this clock's
//! too, so no time in the tables is later than what a planner is given.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::version::Timestamp;

/// The clock of a term. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct TermClock {
    wall: Clock,
    base: Arc<Mutex<(Timestamp, Instant)>>,
}

impl TermClock {
    /// Shows what `wall` shows now, and runs on from there until the first term begins.
    pub fn new(wall: Clock) -> Self {
        let base = (wall.now(), Instant::now());
        Self { wall, base: Arc::new(Mutex::new(base)) }
    }

    /// Begins a term: from the wall clock, or from `last`, the time of the last entry, if that is later.
    pub(crate) fn begin(&self, last: Timestamp) {
        *self.base.lock().expect("no holder panics") = (self.wall.now().max(last), Instant::now());
    }

    /// The time of the term.
    pub fn now(&self) -> Timestamp {
        let (base, begun) = *self.base.lock().expect("no holder panics");
        base + begun.elapsed()
    }

    /// The wall clock, for what is compared with other machines' clocks: certificates and grants.
    pub(crate) fn wall(&self) -> &Clock {
        &self.wall
    }

    /// This clock for those who take any: the Raft node stamps its entries with it.
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
