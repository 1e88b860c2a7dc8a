//! Virtual time: milliseconds since a simulation began. Each process has a runtime of its own with a paused clock;
//! the world keeps them all within one quantum of each other.

use std::cell::Cell;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

thread_local! {
    static BEGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time of this thread is 0 now. A thread of a simulation begins with its world; others may count from when they
/// like.
pub fn begin() {
    BEGIN.set(Some(Instant::now()));
}

/// The instant that a time is, on the clocks of all processes.
///
/// # Panics
/// When no simulation runs on this thread.
pub fn instant(millis: u64) -> Instant {
    BEGIN.get().expect("a simulation runs on this thread") + Duration::from_millis(millis)
}

/// The time that an instant is.
///
/// # Panics
/// When no simulation runs on this thread.
pub fn millis(instant: Instant) -> u64 {
    let begin = BEGIN.get().expect("a simulation runs on this thread");
    u64::try_from(instant.saturating_duration_since(begin).as_millis()).expect("a run is short")
}

/// The time: of the process that runs now, else of the world.
pub fn now() -> u64 {
    millis(Instant::now())
}

/// Sleeps until this time, in the process that runs now.
pub(super) fn sleep_until(at: u64) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep_until(instant(at)))
}
