//! Waiting for a condition, with a bound and the reason in the failure.

use std::time::{Duration, Instant};

/// Twenty times what anything here takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Until `condition` holds; panics with `what` and the last thing that was seen.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> Result<(), String>) {
    let until = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(()) => return,
            Err(seen) => assert!(Instant::now() < until, "not in time: {what}; last seen: {seen}"),
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
