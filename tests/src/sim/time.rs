//! Virtual time in milliseconds since the start of a simulation. Each process has a runtime of its own with a paused
//! clock; the world keeps all of them within one quantum of each other.

use std::cell::Cell;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

thread_local! {
    static BEGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Makes the present the time 0 of this thread. A world calls it when a simulation starts; other threads may call it at
/// any time.
pub fn begin() {
    BEGIN.set(Some(Instant::now()));
}

/// Returns the instant of a time. It is the same on the clocks of all processes.
///
/// # Panics
/// No simulation runs on this thread.
pub fn instant(millis: u64) -> Instant {
    BEGIN.get().expect("a simulation runs on this thread") + Duration::from_millis(millis)
}

/// Returns the time of an instant, in milliseconds.
///
/// # Panics
/// No simulation runs on this thread.
pub fn millis(instant: Instant) -> u64 {
    let begin = BEGIN.get().expect("a simulation runs on this thread");
    u64::try_from(instant.saturating_duration_since(begin).as_millis()).expect("a run is short")
}

/// Current time of the running process, or else of the world.
pub fn now() -> u64 {
    millis(Instant::now())
}

/// Sleeps until this time, in the running process.
pub fn sleep_until(at: u64) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep_until(instant(at)))
}
