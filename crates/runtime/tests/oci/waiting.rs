//! How long a test waits, and for what.

use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

/// Twenty times as long as the slowest call takes on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// Calls `condition` until it returns a value. Panics with `what` after [`DEADLINE`].
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < until, "waited {DEADLINE:?} in vain: {what}");
        let _ = poll(&mut [], PollTimeout::from(2_u8));
    }
}
