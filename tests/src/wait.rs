//! Waits for a condition, with a time limit and the last observation in the failure.

use std::time::{Duration, Instant};

/// Twenty times what any condition takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Calls `condition` every 50 ms until it returns `Ok`.
///
/// # Panics
/// With `what` and the last error, if `condition` fails for 90 s.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> Result<(), String>) {
    let until = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(()) => return,
            Err(seen) => assert!(Instant::now() < until, "timed out: {what}; last seen: {seen}"),
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
