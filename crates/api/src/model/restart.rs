//! When an ended task is started again, by the worker on its node or by a manager on another one. Both compute delay and
//! budget here, from the same history of the slot.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::Serialize;

use super::{seconds, seconds_or_zero};
use crate::defaults::{
    CRASH_LOOP_RESTARTS, RESTART_DELAY, RESTART_DELAY_MOST, RESTART_RESET, RESTARTS_ON_A_NODE, RESTARTS_TIMED,
};
use crate::resources::number_or_zero;
use crate::state::states;
use crate::version::Timestamp;

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
    /// Largest number of restarts of one slot; `None` for no limit. With a window at most [`RESTARTS_TIMED`].
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

    /// Returns whether a slot with this history may be started again after an end at `now`.
    pub fn has_budget(&self, history: &RestartHistory, now: Timestamp) -> bool {
        let Some(most) = self.max_attempts else { return true };
        match self.window {
            None => history.count < most.get(),
            Some(window) => {
                let used = history.times.iter().filter(|at| at.until(now) < window).count();
                used < usize::try_from(most.get()).unwrap_or(usize::MAX).min(RESTARTS_TIMED)
            }
        }
    }

    /// Records a restart after an end at `now`, and returns the delay before it.
    pub fn restart(&self, history: &mut RestartHistory, now: Timestamp) -> Duration {
        let delay = self.delay_after(history.in_a_row);
        // A worker has reported these numbers, so they may be anything.
        history.in_a_row = history.in_a_row.saturating_add(1);
        history.count = history.count.saturating_add(1);
        match self.max_attempts.filter(|_| self.window.is_some()) {
            Some(most) => {
                history.times.push(now);
                history.forget_oldest(usize::try_from(most.get()).unwrap_or(usize::MAX));
            }
            None => history.times.clear(),
        }
        delay
    }

    /// Returns the longest delay of the policy: a minute, or the first one if that is longer. A start that is due later than
    /// that was dated by a wrong clock.
    pub fn longest_delay(&self) -> Duration {
        if self.delay.is_zero() { Duration::ZERO } else { RESTART_DELAY_MOST.max(self.delay) }
    }
}

/// The restarts of a slot that followed the end of its program or a failed start. Starts after a reboot of the node, and
/// moves to another node, do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartHistory {
    /// Number of the last ones between which no run was long enough to count as healthy.
    pub in_a_row: u64,
    /// Number of all.
    pub count: u64,
    /// Times of the newest, the oldest first, as far as the policy counts those in a window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<Timestamp>,
}

impl RestartHistory {
    /// Records that the program has run for so long before it ended.
    pub fn record_run(&mut self, ran: Duration) {
        if ran >= RESTART_RESET {
            self.in_a_row = 0;
        }
    }

    /// Returns whether the slot is in a crash loop: its programs have ended again and again, each too soon to count as
    /// healthy.
    pub fn is_crash_loop(&self) -> bool {
        self.in_a_row > CRASH_LOOP_RESTARTS
    }

    /// Returns whether it is time to try another node: after [`RESTARTS_ON_A_NODE`] restarts in a row, and then each time that
    /// their number has doubled. So a program that fails everywhere moves ever more rarely.
    pub fn leaves_node(&self) -> bool {
        self.in_a_row.is_multiple_of(RESTARTS_ON_A_NODE) && (self.in_a_row / RESTARTS_ON_A_NODE).is_power_of_two()
    }

    /// Forgets the times of all but so many restarts, and of all but the newest [`RESTARTS_TIMED`].
    pub fn forget_oldest(&mut self, kept: usize) {
        self.times.drain(..self.times.len().saturating_sub(kept.min(RESTARTS_TIMED)));
    }

    /// Returns the history by a clock that shows `own` when the present one shows `theirs`.
    #[must_use]
    pub fn by_clock(&self, theirs: Timestamp, own: Timestamp) -> Self {
        let times =
            self.times.iter().map(|at| Timestamp(own.0.saturating_add(at.0).saturating_sub(theirs.0))).collect();
        Self { times, ..*self }
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

    const SECOND: Duration = Duration::from_secs(1);
    const BEGIN: Timestamp = Timestamp(1_700_000_000_000);

    /// Restarts a slot after ends at these seconds, as far as its budget permits it.
    fn restarted(policy: &RestartPolicy, history: &mut RestartHistory, seconds: &[u32]) -> Vec<bool> {
        let restart = |at: &u32| {
            let now = BEGIN + SECOND * *at;
            let may = policy.has_budget(history, now);
            if may {
                policy.restart(history, now);
            }
            may
        };
        seconds.iter().map(restart).collect()
    }

    #[test]
    fn the_budget_of_a_slot_ends_and_without_a_window_no_restart_is_forgotten() {
        let policy = RestartPolicy { max_attempts: NonZeroU64::new(2), ..RestartPolicy::default() };
        let mut history = RestartHistory::default();
        assert_eq!(restarted(&policy, &mut history, &[1, 2, 3, 99_999]), [true, true, false, false]);
        assert_eq!((history.count, history.times.len()), (2, 0), "its times are not needed");
    }

    #[test]
    fn restarts_that_have_left_the_window_are_forgiven() {
        let window = Some(5 * SECOND);
        let policy = RestartPolicy { max_attempts: NonZeroU64::new(2), window, ..RestartPolicy::default() };
        let mut history = RestartHistory::default();
        assert_eq!(restarted(&policy, &mut history, &[1, 4, 5, 7, 8]), [true, true, false, true, false]);
        let times = [4, 7].map(|at| BEGIN + SECOND * at);
        assert_eq!((history.count, history.times.as_slice()), (3, &times[..]), "no more times than are needed");
        let hour = Duration::from_secs(3600);
        let theirs = history.by_clock(BEGIN, BEGIN + hour);
        assert!(!policy.has_budget(&theirs, BEGIN + hour + 8 * SECOND), "by another clock it is as long ago");
        assert!(policy.has_budget(&theirs, BEGIN + hour + 9 * SECOND));
    }

    #[test]
    fn whatever_a_worker_reports_is_counted_on_and_kept_within_bounds() {
        let times = (0..=RESTARTS_TIMED as u64).map(|it| Timestamp(u64::MAX - it)).rev().collect();
        let mut history = RestartHistory { in_a_row: u64::MAX, count: u64::MAX, times };
        history.forget_oldest(usize::MAX);
        assert_eq!(history.times.len(), RESTARTS_TIMED);
        assert_eq!(history.times.last(), Some(&Timestamp(u64::MAX)), "the newest stay");
        let mut history = history.by_clock(BEGIN, BEGIN + SECOND);
        let policy =
            RestartPolicy { max_attempts: NonZeroU64::new(3), window: Some(SECOND), ..RestartPolicy::default() };
        assert_eq!(policy.restart(&mut history, BEGIN), RESTART_DELAY_MOST);
        assert_eq!((history.in_a_row, history.count, history.times.len()), (u64::MAX, u64::MAX, 3));
    }

    #[test]
    fn a_window_counts_a_bounded_number_of_restarts() {
        let (max_attempts, window) = (NonZeroU64::new(u64::MAX), Some(1_000_000 * SECOND));
        let policy = RestartPolicy { max_attempts, window, ..RestartPolicy::default() };
        let mut history = RestartHistory::default();
        let seconds: Vec<u32> = (0..101).collect();
        assert_eq!(restarted(&policy, &mut history, &seconds).iter().filter(|may| **may).count(), RESTARTS_TIMED);
    }

    #[test]
    fn what_ends_again_and_again_is_a_crash_loop_and_a_long_run_ends_it() {
        let mut history = RestartHistory { in_a_row: CRASH_LOOP_RESTARTS, ..RestartHistory::default() };
        assert!(!history.is_crash_loop());
        RestartPolicy::default().restart(&mut history, BEGIN);
        history.record_run(RESTART_RESET - SECOND);
        assert!(history.is_crash_loop());
        history.record_run(RESTART_RESET);
        assert_eq!((history.in_a_row, history.count), (0, 1));
    }

    #[test]
    fn another_node_is_tried_ever_more_rarely() {
        let leaves: Vec<u64> = (0..200)
            .filter(|in_a_row| RestartHistory { in_a_row: *in_a_row, ..Default::default() }.leaves_node())
            .collect();
        assert_eq!(leaves, [6, 12, 24, 48, 96, 192]);
    }
}
