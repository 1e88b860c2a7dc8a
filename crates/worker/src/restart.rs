//! Decides what follows the end of a container: whether and when it is started again here, or the final state of its
//! task, and what its status says. Pure. Ages and delays are monotonic, so steps of the wall clock have no effect.

use std::time::Duration;

use flota_api::defaults::RESTART_RESET;
use flota_api::model::{RestartCondition, RestartPolicy};
use flota_api::state::TaskState;
use flota_runtime::{ExitStatus, OomVictim};
use tokio::time::Instant;

/// Largest number of restarts that are remembered, above any budget.
const RESTARTS_KEPT: usize = 1_000;

/// The restart history of a slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Number of consecutive restarts without a run that was long enough to count as healthy.
    in_a_row: u32,
    /// The times of the restarts that count towards the policy's budget.
    restarts: Vec<Instant>,
}

/// The decision after the end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start again after this delay.
    Restart(Duration),
    /// The task has this final state.
    End(TaskState),
}

/// Returns the error of a task whose container ended like this; empty after a success.
pub(crate) fn exit_error(status: &ExitStatus) -> String {
    let code = status.code;
    match (code, status.out_of_memory) {
        (_, Some(OomVictim::Init)) => format!("killed by the out-of-memory killer (exit code {code})"),
        (0, _) => String::new(),
        (_, Some(OomVictim::Other)) => {
            format!("exit code {code}; one of its processes was killed by the out-of-memory killer")
        }
        (_, None) => format!("exit code {code}"),
    }
}

impl History {
    /// Returns the history of a slot that had this many restarts. Their times are unknown, so they count as if they
    /// happened at `now`.
    pub(crate) fn inherited(restarts: u64, now: Instant) -> Self {
        let count = usize::try_from(restarts).unwrap_or(usize::MAX).min(RESTARTS_KEPT);
        Self { in_a_row: 0, restarts: vec![now; count] }
    }

    /// Decides what follows after a container has ended with this code after running for `ran`, and records the
    /// restart, if there is one.
    pub(crate) fn ended(&mut self, policy: &RestartPolicy, code: i32, ran: Duration, now: Instant) -> Decision {
        if ran >= RESTART_RESET {
            self.in_a_row = 0;
        }
        if let Some(window) = policy.window {
            self.restarts.retain(|at| now.duration_since(*at) < window);
        }
        let failed = code != 0;
        let wanted = match policy.condition {
            RestartCondition::Any => true,
            RestartCondition::OnFailure => failed,
            RestartCondition::None => false,
        };
        let used = u64::try_from(self.restarts.len()).unwrap_or(u64::MAX);
        if !wanted || policy.max_attempts.is_some_and(|most| used >= most.get()) {
            return Decision::End(if failed { TaskState::Failed } else { TaskState::Complete });
        }
        let delay = policy.delay_after(self.in_a_row.into());
        self.in_a_row += 1;
        self.restarts.truncate(RESTARTS_KEPT);
        self.restarts.push(now);
        Decision::Restart(delay)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW_AGAIN: Decision = Decision::Restart(Duration::ZERO);

    #[test]
    fn error_names_what_ended_and_is_empty_after_a_success() {
        let error = |code, out_of_memory| exit_error(&ExitStatus { code, out_of_memory, at: 0 });
        assert_eq!(error(137, Some(OomVictim::Init)), "killed by the out-of-memory killer (exit code 137)");
        assert_eq!(error(0, Some(OomVictim::Other)), "", "a child was killed, and the program coped");
        let other = "exit code 1; one of its processes was killed by the out-of-memory killer";
        assert_eq!((error(1, Some(OomVictim::Other)).as_str(), error(1, None).as_str()), (other, "exit code 1"));
        assert_eq!(error(0, None), "");
    }

    #[test]
    fn the_condition_and_the_code_decide() {
        let cases = [
            (RestartCondition::Any, 0, NOW_AGAIN),
            (RestartCondition::Any, 1, NOW_AGAIN),
            (RestartCondition::OnFailure, 0, Decision::End(TaskState::Complete)),
            (RestartCondition::OnFailure, 137, NOW_AGAIN),
            (RestartCondition::None, 0, Decision::End(TaskState::Complete)),
            (RestartCondition::None, 1, Decision::End(TaskState::Failed)),
        ];
        for (condition, code, expected) in cases {
            let policy = RestartPolicy { condition, ..RestartPolicy::default() };
            let decided = History::default().ended(&policy, code, SECOND, Instant::now());
            assert_eq!(decided, expected, "{condition} {code}");
        }
    }

    #[test]
    fn delays_double_up_to_a_minute_and_a_healthy_run_resets_them() {
        let (policy, mut history, now) = (RestartPolicy::default(), History::default(), Instant::now());
        let mut delay = |ran| match history.ended(&policy, 1, ran, now) {
            Decision::Restart(delay) => delay.as_millis(),
            Decision::End(_) => panic!("there is no bound"),
        };
        assert_eq!([(); 5].map(|()| delay(SECOND)), [0, 200, 400, 800, 1_600]);
        for _ in 0..30 {
            delay(SECOND);
        }
        assert_eq!(delay(29 * SECOND), 60_000);
        assert_eq!(policy.longest_delay().as_millis(), 60_000);
        assert_eq!([delay(31 * SECOND), delay(SECOND)], [0, 200]);
    }

    #[test]
    fn the_budget_of_a_slot_ends() {
        let policy = RestartPolicy { max_attempts: NonZeroU64::new(3), ..RestartPolicy::default() };
        let begin = Instant::now();
        let mut history = History::inherited(2, begin);
        let ended = |history: &mut History, at| history.ended(&policy, 1, SECOND, begin + at);
        assert!(matches!(ended(&mut history, SECOND), Decision::Restart(_)));
        assert_eq!(ended(&mut history, 99 * SECOND), Decision::End(TaskState::Failed), "none is forgotten");
    }

    #[test]
    fn restarts_that_have_left_the_window_are_forgiven() {
        let policy =
            RestartPolicy { max_attempts: NonZeroU64::new(2), window: Some(5 * SECOND), ..RestartPolicy::default() };
        let (mut history, begin) = (History::default(), Instant::now());
        let mut restarts = |at| matches!(history.ended(&policy, 1, SECOND, begin + at * SECOND), Decision::Restart(_));
        assert_eq!([1, 4, 5, 7, 8].map(&mut restarts), [true, true, false, true, false]);
    }
}
