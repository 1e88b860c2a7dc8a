//! The wall clock of one machine: it has an offset, runs too fast or too slow, and steps at times.

use std::sync::{Arc, Mutex};

use flota_api::clock::Clock;
use flota_api::version::Timestamp;

use super::{system, time};

#[derive(Clone, Copy, Debug)]
struct Error {
    offset_ms: i64,
    /// Milliseconds that it gains in each 1,000 seconds.
    drift: i64,
}

/// A wall clock that can be set; clones are the same clock.
#[derive(Clone, Debug)]
pub struct WallClock(Arc<Mutex<Error>>);

impl WallClock {
    /// Creates a clock that is ahead by `offset_ms` and gains `drift` milliseconds in each 1,000 seconds.
    pub fn new(offset_ms: i64, drift: i64) -> Self {
        Self(Arc::new(Mutex::new(Error { offset_ms, drift })))
    }

    /// Steps the clock forward or back.
    pub fn step(&self, by_ms: i64) {
        self.0.lock().expect("no holder panics").offset_ms += by_ms;
    }

    /// The time that the clock shows.
    pub fn now(&self) -> Timestamp {
        let Error { offset_ms, drift } = *self.0.lock().expect("no holder panics");
        let now = i64::try_from(time::now()).expect("a run is short");
        let begin = i64::try_from(system::WALL * 1_000).expect("it is a date of our time");
        Timestamp(u64::try_from(begin + now + now * drift / 1_000_000 + offset_ms).unwrap_or(0))
    }

    /// Returns this clock as a [`Clock`].
    pub fn as_clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }
}
