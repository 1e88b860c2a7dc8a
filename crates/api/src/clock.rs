//! The wall clock and the source of random numbers, as values that are passed in.
//!
//! Code that decides never reads the system's clock or random source itself. A whole cluster can therefore run in one
//! process with clocks that differ, and a run can be repeated from its seed. Monotonic time is tokio's, which tests
//! pause; it stands still while a machine is suspended.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::version::Timestamp;

/// A wall clock. Clones read the same clock. It may be wrong, and may step forwards and backwards.
#[derive(Clone)]
pub struct Clock {
    read: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    suspended: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Clock {
    /// Returns the clock of this machine.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn system() -> Self {
        Self::new(|| Timestamp::from_system(SystemTime::now())).with_suspension(suspended)
    }

    /// Returns a clock that shows what `read` returns, of a machine that is never suspended.
    pub fn new(read: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), suspended: Arc::new(|| Duration::ZERO) }
    }

    /// Makes [`Clock::suspended`] return what `suspended` returns.
    #[must_use]
    pub fn with_suspension(self, suspended: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { suspended: Arc::new(suspended), ..self }
    }

    /// Time for which the machine was suspended since it booted. Monotonic time does not include it.
    pub fn suspended(&self) -> Duration {
        (self.suspended)()
    }

    /// Returns the time that the clock shows.
    pub fn now(&self) -> Timestamp {
        (self.read)()
    }
}

/// The difference of the clocks that count the time of a suspension and that do not (clock_gettime(2)).
fn suspended() -> Duration {
    let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
    // In this order, the result is never negative.
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// A source of random numbers. Clones draw from the same sequence.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Returns a source that is seeded by the operating system.
    #[allow(clippy::disallowed_methods, reason = "the one place that seeds from the system")]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_os_rng())))
    }

    /// Returns the sequence that belongs to `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Calls `draw` with the generator. `draw` must not use the same source again.
    ///
    /// # Panics
    /// Panics if an earlier `draw` panicked.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().expect("no holder panics"))
    }

    /// Returns a new generator that is seeded from this source.
    pub fn fork(&self) -> StdRng {
        self.draw(StdRng::from_rng)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
