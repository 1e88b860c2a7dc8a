//! When an ended task is started again, by the worker on its node or by a manager on another one.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::Serialize;

use super::{seconds, seconds_or_zero};
use crate::defaults::{CRASH_LOOP_RESTARTS, RESTART_DELAY, RESTART_DELAY_MOST};
use crate::resources::number_or_zero;
use crate::state::states;

states! {
    /// The ways of ending after which a task is started again.
    RestartCondition {
        /// After every end.
        Any = "any",
        /// After a failure only.
        OnFailure = "on-failure",
        /// After none.
        None = "none",
    }
}

/// How an ended task is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartPolicy {
    /// The ways of ending that cause a restart.
    pub condition: RestartCondition,
    /// Delay before the second restart in a row; each further restart doubles it.
    #[serde(serialize_with = "seconds")]
    pub delay: Duration,
    /// Largest number of restarts of one slot; `None` for no limit.
    #[serde(serialize_with = "number_or_zero")]
    pub max_attempts: Option<NonZeroU64>,
    /// Restarts longer ago than this do not count; `None` if all count.
    #[serde(serialize_with = "seconds_or_zero")]
    pub window: Option<Duration>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay: RESTART_DELAY, max_attempts: None, window: None }
    }
}

impl RestartPolicy {
    /// Returns the delay before the next start of a slot that was restarted so often in a row: none before the first, then
    /// that of the policy, doubled each time up to [`RestartPolicy::longest_delay`].
    pub fn delay_after(&self, restarts: u64) -> Duration {
        let Some(doublings) = restarts.checked_sub(1) else { return Duration::ZERO };
        let factor = 2u32.saturating_pow(u32::try_from(doublings).unwrap_or(u32::MAX));
        self.delay.saturating_mul(factor).min(self.longest_delay())
    }

    /// Whether a task is in a crash loop whose next start is the `attempt`th, and waits for so long: its programs have ended
    /// again and again, each too soon to count as healthy.
    pub fn is_crash_loop(&self, attempt: u32, wait: Duration) -> bool {
        attempt > CRASH_LOOP_RESTARTS && !wait.is_zero() && wait >= self.delay_after(CRASH_LOOP_RESTARTS.into())
    }

    /// Returns the longest delay of the policy: a minute, or the first one if that is longer. A start that is due later than
    /// that was dated by a wrong clock.
    pub fn longest_delay(&self) -> Duration {
        if self.delay.is_zero() { Duration::ZERO } else { RESTART_DELAY_MOST.max(self.delay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute_or_the_first_one_if_that_is_longer() {
        let delays = |delay: Duration, restarts: [u64; 6]| {
            let policy = RestartPolicy { delay, ..RestartPolicy::default() };
            restarts.map(|restarts| policy.delay_after(restarts).as_millis())
        };
        let restarts = [0, 1, 2, 9, 10, u64::MAX];
        assert_eq!(delays(Duration::from_millis(200), restarts), [0, 200, 400, 51_200, 60_000, 60_000]);
        assert_eq!(delays(Duration::from_secs(300), restarts), [0, 300_000, 300_000, 300_000, 300_000, 300_000]);
        assert_eq!(delays(Duration::ZERO, restarts), [0; 6]);
    }

    #[test]
    fn what_ends_again_and_again_is_a_crash_loop_and_what_ends_now_and_then_is_not() {
        let is_loop = |delay: u64, attempt, wait: u64| {
            let policy = RestartPolicy { delay: Duration::from_millis(delay), ..RestartPolicy::default() };
            policy.is_crash_loop(attempt, Duration::from_millis(wait))
        };
        for (attempt, wait, expected) in
            [(1, 0, false), (4, 800, false), (5, 1_599, false), (5, 1_600, true), (9, 60_000, true), (90, 200, false)]
        {
            assert_eq!(is_loop(200, attempt, wait), expected, "attempt {attempt} after {wait} ms");
        }
        assert!(!is_loop(300_000, 4, 300_000) && is_loop(300_000, 5, 300_000));
        assert!(!is_loop(0, 90, 0), "it does not wait");
    }
}
