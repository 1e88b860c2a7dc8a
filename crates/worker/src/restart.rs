//! A container has ended: is it started again here, when, or what does its task become? Pure. Ages and delays are
//! monotonic: a wall clock that steps changes nothing.

use std::time::Duration;

use flota_api::defaults::{RESTART_DELAY_MOST, RESTART_RESET};
use flota_api::model::{RestartCondition, RestartPolicy};
use flota_api::state::TaskState;
use tokio::time::Instant;

/// What is known of the slot when its container ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// The container's exit code.
    pub(crate) code: i32,
    /// Restarts of the slot that count: those within the policy's window, where it has one.
    pub(crate) restarts: u64,
    /// Restarts in a row, none of which ran long enough to count as healthy.
    pub(crate) in_a_row: u32,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start again after this delay.
    Restart(Duration),
    /// The task has this final state.
    End(TaskState),
}

pub(crate) fn decide(policy: &RestartPolicy, ended: &Ended) -> Decision {
    let failed = ended.code != 0;
    let end = Decision::End(if failed { TaskState::Failed } else { TaskState::Complete });
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => failed,
        RestartCondition::None => false,
    };
    let budget = policy.max_attempts == 0 || ended.restarts < policy.max_attempts;
    if wanted && budget { Decision::Restart(delay(policy, ended.in_a_row)) } else { end }
}

/// Restarts that count now; those that have left the policy's window are forgotten.
pub(crate) fn counted(policy: &RestartPolicy, restarts: &mut Vec<Instant>, now: Instant) -> u64 {
    if !policy.window.is_zero() {
        restarts.retain(|at| now.duration_since(*at) < policy.window);
    }
    u64::try_from(restarts.len()).unwrap_or(u64::MAX)
}

/// Restarts in a row after this ending: a container that ran long enough was healthy.
pub(crate) fn in_a_row(before: u32, ran: Duration) -> u32 {
    if ran >= RESTART_RESET { 0 } else { before }
}

/// The longest delay that the policy can make: a start that is said to be due later is due by a clock that is wrong.
pub(crate) fn most_delay(policy: &RestartPolicy) -> Duration {
    if policy.delay.is_zero() { Duration::ZERO } else { RESTART_DELAY_MOST }
}

/// None for the first, then the policy's, doubled each time.
fn delay(policy: &RestartPolicy, in_a_row: u32) -> Duration {
    match in_a_row {
        0 => Duration::ZERO,
        count => policy.delay.saturating_mul(2u32.saturating_pow(count - 1)).min(RESTART_DELAY_MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, restarts: u64, in_a_row: u32) -> Ended {
        Ended { code, restarts, in_a_row }
    }

    #[test]
    fn the_condition_and_the_code_decide() {
        let policy = |condition| RestartPolicy { condition, ..RestartPolicy::default() };
        let at_once = Decision::Restart(Duration::ZERO);
        let cases = [
            (RestartCondition::Any, 0, at_once),
            (RestartCondition::Any, 1, at_once),
            (RestartCondition::OnFailure, 0, Decision::End(TaskState::Complete)),
            (RestartCondition::OnFailure, 137, at_once),
            (RestartCondition::None, 0, Decision::End(TaskState::Complete)),
            (RestartCondition::None, 1, Decision::End(TaskState::Failed)),
        ];
        for (condition, code, expected) in cases {
            assert_eq!(decide(&policy(condition), &ended(code, 0, 0)), expected, "{condition} {code}");
        }
    }

    #[test]
    fn delays_double_up_to_a_minute_and_a_healthy_run_resets_them() {
        let policy = RestartPolicy::default();
        let delay = |count| match decide(&policy, &ended(1, 0, count)) {
            Decision::Restart(delay) => delay.as_millis(),
            Decision::End(_) => panic!("there is no bound"),
        };
        assert_eq!([0, 1, 2, 3, 4, 30].map(delay), [0, 200, 400, 800, 1_600, 60_000]);
        assert_eq!(most_delay(&policy).as_millis(), delay(30));
        assert_eq!(in_a_row(7, Duration::from_secs(31)), 0);
        assert_eq!(in_a_row(7, Duration::from_secs(29)), 7);
    }

    #[test]
    fn the_slots_budget_ends_and_a_window_forgives() {
        let policy = RestartPolicy { max_attempts: 2, window: Duration::from_secs(5), ..RestartPolicy::default() };
        assert!(matches!(decide(&policy, &ended(1, 1, 0)), Decision::Restart(_)));
        assert_eq!(decide(&policy, &ended(1, 2, 0)), Decision::End(TaskState::Failed));
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut times = vec![at(1_000), at(4_000)];
        assert_eq!(counted(&policy, &mut times, at(5_500)), 2);
        assert_eq!(counted(&policy, &mut times, at(6_500)), 1, "the first is out of the window");
        let endless = RestartPolicy { window: Duration::ZERO, ..policy };
        assert_eq!(counted(&endless, &mut times, at(99_000)), 1, "without a window none is forgotten");
    }
}
