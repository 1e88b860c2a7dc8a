//! Decides what follows the end of a container: whether and when it is started again here, or the final state of its
//! task, and what its status says. Pure. Delay and budget are those of `flota_api::model::RestartPolicy`, as for managers.

use std::time::Duration;

use flota_api::model::{Assignment, RestartCondition, RestartHistory, RestartPolicy};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_runtime::{ExitStatus, OomVictim};

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

/// The end of a container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramEnd {
    /// The exit code.
    pub(crate) code: i32,
    /// How long it ran.
    pub(crate) ran: Duration,
    /// When it ended, by a clock that does not step.
    pub(crate) at: Timestamp,
}

/// Decides what follows the end of a container, and records the restart, if there is one. If `may_leave`, the task ends
/// after too many restarts in a row, so that a manager tries another node.
pub(crate) fn after_end(
    policy: &RestartPolicy,
    history: &mut RestartHistory,
    end: ProgramEnd,
    may_leave: bool,
) -> Decision {
    history.record_run(end.ran);
    let failed = end.code != 0;
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => failed,
        RestartCondition::None => false,
    };
    if !wanted || !policy.has_budget(history, end.at) || may_leave && history.leaves_node() {
        return Decision::End(if failed { TaskState::Failed } else { TaskState::Complete });
    }
    Decision::Restart(policy.restart(history, end.at))
}

/// Whether another node could do what the task does: it has no data here, no task belongs to each node, and it need not wait
/// for its node.
pub(crate) fn can_move(task: &Assignment) -> bool {
    let has_data_here = |name: &str| !task.volumes.iter().any(|it| it.name == name && it.file_system.is_some());
    let spec = &task.spec;
    !spec.mode.is_global() && !spec.keep_on_node_loss && !spec.volumes().any(has_data_here)
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

    fn after(policy: &RestartPolicy, history: &mut RestartHistory, code: i32, ran: Duration) -> Decision {
        after_end(policy, history, ProgramEnd { code, ran, at: Timestamp(0) }, false)
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
            assert_eq!(after(&policy, &mut RestartHistory::default(), code, SECOND), expected, "{condition} {code}");
        }
    }

    #[test]
    fn delays_double_up_to_a_minute_and_a_healthy_run_resets_them() {
        let (policy, mut history) = (RestartPolicy::default(), RestartHistory::default());
        let mut delay = |ran| match after(&policy, &mut history, 1, ran) {
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
    fn the_budget_of_a_slot_ends_here_too() {
        let policy = RestartPolicy { max_attempts: NonZeroU64::new(3), ..RestartPolicy::default() };
        let mut history = RestartHistory { count: 2, ..RestartHistory::default() };
        assert_eq!(after(&policy, &mut history, 1, SECOND), NOW_AGAIN);
        assert_eq!(after(&policy, &mut history, 1, SECOND), Decision::End(TaskState::Failed));
        assert_eq!(after(&policy, &mut history, 0, SECOND), Decision::End(TaskState::Complete));
    }

    #[test]
    fn after_restarts_in_a_row_the_task_ends_so_that_another_node_is_tried_if_one_can_be() {
        let policy = RestartPolicy::default();
        let tries = |may_leave, ran| {
            let mut history = RestartHistory::default();
            let ends = |_: &u32| {
                let end = ProgramEnd { code: 1, ran, at: Timestamp(0) };
                matches!(after_end(&policy, &mut history, end, may_leave), Decision::End(_))
            };
            (1..100).find(ends)
        };
        assert_eq!(tries(true, SECOND), Some(7), "a start and six restarts");
        assert_eq!(tries(false, SECOND), None);
        assert_eq!(tries(true, 31 * SECOND), None, "they are not in a row");
    }

    #[test]
    fn a_task_with_data_or_a_node_of_its_own_is_not_tried_elsewhere() {
        use flota_api::model::{FileSystem, Mount, MountSource, ServiceMode, ServiceSpec, TaskVolume, VolumeMount};
        let plain = ServiceSpec::default();
        let can_move = |spec: ServiceSpec, volumes: Vec<TaskVolume>| {
            can_move(&Assignment { spec: spec.into(), volumes, ..Assignment::default() })
        };
        assert!(can_move(plain.clone(), vec![]));
        assert!(!can_move(ServiceSpec { mode: ServiceMode::Global {}, ..plain.clone() }, vec![]));
        assert!(!can_move(ServiceSpec { keep_on_node_loss: true, ..plain.clone() }, vec![]));
        let source = MountSource::Volume(VolumeMount { name: Some("data".into()), ..VolumeMount::default() });
        let mounts = vec![Mount { target: "/data".into(), read_only: false, source }];
        let with_volume = ServiceSpec { mounts, ..plain };
        let volume = |file_system| TaskVolume { name: "data".into(), file_system, ..TaskVolume::default() };
        assert!(!can_move(with_volume.clone(), vec![volume(None)]));
        let share = FileSystem::of("nfs", "nas:/srv", "").expect("a good one");
        assert!(can_move(with_volume, vec![volume(Some(share))]), "every node can mount it");
    }
}
