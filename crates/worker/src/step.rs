//! Decides the next step of a task runner. Pure: the same status, order and facts give the same step. `task_runner.rs`
//! gathers the facts, carries out the step, and asks again.

use flota_api::model::TaskStatus;
use flota_api::state::TaskState;

use crate::order::Instruction;

/// The facts about a task besides its status and what the leader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The task's container.
    pub(crate) container: Presence,
    /// Whether the container that the status tells of is lost, with the last boot or for another reason.
    pub(crate) is_lost: bool,
    /// Whether a start is allowed: the leader has named the task in this boot, or the service does not require it.
    pub(crate) allowed: bool,
    /// Whether the next start is due.
    pub(crate) due: bool,
    /// Whether the node had no contact with a manager for as long as the service tolerates.
    pub(crate) cut_off: bool,
    /// Whether the container has a health check of which none has succeeded yet.
    pub(crate) awaits_health: bool,
    /// Whether the container is unhealthy and may be stopped, because it gets no more connections.
    pub(crate) is_unfit: bool,
    /// Whether the next start is fully prepared.
    pub(crate) prepared: bool,
}

/// The state of a task's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    Runs,
    /// It has ended, and the end is not judged yet.
    Ended,
}

/// The next step of a task runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Do nothing any more: the task has ended.
    Rest,
    /// Do nothing before a fact changes.
    Wait,
    /// Report that the node has accepted the task.
    Accept,
    /// Begin the next attempt, because the container is lost.
    StartOver,
    /// Report that a container runs that this runner did not start, or that has become healthy.
    Adopt,
    /// Stop the container because it is unhealthy; its end is judged by the restart policy.
    StopUnhealthy,
    /// Stop the container permanently.
    Stop,
    /// Stop the container until the node is in contact with a manager again.
    Suspend,
    /// Report the task, which has no container, as stopped.
    Finish,
    /// Apply the restart policy to the end of the container.
    Judge,
    /// Prepare everything that a container needs.
    Prepare,
    /// Report that the task waits for its start.
    Hold,
    /// Start a container.
    Start,
}

/// Decides the next step of a task runner.
pub(crate) fn step(status: &TaskStatus, instruction: Instruction, facts: &Facts) -> Step {
    let state = status.state;
    let stops = instruction == Instruction::Stop;
    match facts.container {
        _ if state.is_terminal() => Step::Rest,
        _ if state < TaskState::Accepted => Step::Accept,
        Presence::Runs if stops => Step::Stop,
        Presence::Runs if facts.cut_off => Step::Suspend,
        Presence::Runs if facts.is_unfit => Step::StopUnhealthy,
        Presence::Runs if facts.awaits_health && state == TaskState::Starting => Step::Wait,
        Presence::Runs if state != TaskState::Running => Step::Adopt,
        Presence::Runs => Step::Wait,
        _ if facts.is_lost => Step::StartOver,
        // Before `starting`, the attempt has no container of its own, so this end belongs to the previous attempt.
        Presence::Ended if state >= TaskState::Starting => Step::Judge,
        _ if stops => Step::Finish,
        _ if !facts.allowed || !facts.due || facts.cut_off => Step::Wait,
        _ if !facts.prepared => Step::Prepare,
        _ if instruction == Instruction::Ready && state == TaskState::Ready => Step::Wait,
        _ if instruction == Instruction::Ready => Step::Hold,
        _ => Step::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Instruction::{Ready as WaitReady, Run, Stop};
    use TaskState::*;

    /// The facts of a start that is allowed, due and prepared.
    const GOOD: Facts = Facts {
        container: Presence::Absent,
        is_lost: false,
        allowed: true,
        due: true,
        cut_off: false,
        awaits_health: false,
        is_unfit: false,
        prepared: true,
    };
    const RUNS: Facts = Facts { container: Presence::Runs, ..GOOD };
    const ENDED: Facts = Facts { container: Presence::Ended, ..GOOD };
    const STATES: [TaskState; 13] = [
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed, Rejected,
        Orphaned,
    ];

    fn next(state: TaskState, instruction: Instruction, facts: Facts) -> Step {
        step(&TaskStatus { state, ..TaskStatus::default() }, instruction, &facts)
    }

    #[test]
    fn each_situation_has_its_step() {
        let unprepared = Facts { prepared: false, ..GOOD };
        let table = [
            // A task runs from its assignment to its end.
            (Assigned, Run, unprepared, Step::Accept),
            (Accepted, Run, unprepared, Step::Prepare),
            (Preparing, Run, unprepared, Step::Prepare),
            (Preparing, Run, GOOD, Step::Start),
            (Starting, Run, RUNS, Step::Adopt),
            (Running, Run, RUNS, Step::Wait),
            (Running, Run, ENDED, Step::Judge),
            (Failed, Run, GOOD, Step::Rest),
            // A task is only to become ready.
            (Accepted, WaitReady, unprepared, Step::Prepare),
            (Preparing, WaitReady, GOOD, Step::Hold),
            (Ready, WaitReady, GOOD, Step::Wait),
            (Ready, Run, GOOD, Step::Start),
            (Running, WaitReady, RUNS, Step::Wait),
            // A start waits for these conditions.
            (Ready, Run, Facts { due: false, ..unprepared }, Step::Wait),
            (Ready, Run, Facts { allowed: false, ..unprepared }, Step::Wait),
            (Ready, Run, Facts { cut_off: true, ..unprepared }, Step::Wait),
            (Preparing, Run, Facts { cut_off: true, ..GOOD }, Step::Wait),
            // The task is to stop.
            (Assigned, Stop, unprepared, Step::Accept),
            (Accepted, Stop, unprepared, Step::Finish),
            (Preparing, Stop, GOOD, Step::Finish),
            (Ready, Stop, Facts { due: false, ..unprepared }, Step::Finish),
            (Running, Stop, RUNS, Step::Stop),
            (Running, Stop, ENDED, Step::Judge),
            (Starting, Stop, RUNS, Step::Stop),
            // No manager can be reached.
            (Running, Run, Facts { cut_off: true, ..RUNS }, Step::Suspend),
            (Running, Stop, Facts { cut_off: true, ..RUNS }, Step::Stop),
            // The container has a health check.
            (Starting, Run, Facts { awaits_health: true, ..RUNS }, Step::Wait),
            (Accepted, Run, Facts { awaits_health: true, ..RUNS }, Step::Adopt),
            (Starting, Stop, Facts { awaits_health: true, ..RUNS }, Step::Stop),
            (Running, Run, Facts { is_unfit: true, ..RUNS }, Step::StopUnhealthy),
            (Starting, Run, Facts { is_unfit: true, ..RUNS }, Step::StopUnhealthy),
            (Running, Stop, Facts { is_unfit: true, ..RUNS }, Step::Stop),
            (Running, Run, Facts { is_unfit: true, ..ENDED }, Step::Judge),
            // The previous daemon was killed midway.
            (Starting, Run, unprepared, Step::Prepare),
            (Ready, Run, Facts { prepared: false, ..ENDED }, Step::Prepare),
            (Accepted, Run, RUNS, Step::Adopt),
            // The machine was rebooted.
            (Running, Run, Facts { is_lost: true, allowed: false, ..unprepared }, Step::StartOver),
            (Running, Run, Facts { is_lost: true, ..ENDED }, Step::StartOver),
            (Complete, Run, Facts { is_lost: true, ..GOOD }, Step::Rest),
        ];
        for (state, instruction, facts, expected) in table {
            assert_eq!(next(state, instruction, facts), expected, "{state} {instruction:?} {facts:?}");
        }
    }

    /// Returns every combination of state, order and facts.
    fn all() -> impl Iterator<Item = (TaskState, Instruction, Facts)> {
        let of_state = |state| [WaitReady, Run, Stop].map(|instruction| (state, instruction));
        let facts = |(state, instruction)| {
            let of_bits = move |bits: u32| {
                let is_set = |bit: u32| bits & (1 << bit) != 0;
                [Presence::Absent, Presence::Runs, Presence::Ended].map(|container| Facts {
                    container,
                    is_lost: is_set(0),
                    allowed: is_set(1),
                    due: is_set(2),
                    cut_off: is_set(3),
                    prepared: is_set(4),
                    awaits_health: is_set(5),
                    is_unfit: is_set(6),
                })
            };
            (0..128).flat_map(of_bits).map(move |facts| (state, instruction, facts))
        };
        STATES.into_iter().flat_map(of_state).flat_map(facts)
    }

    /// Returns whether the condition holds whenever this step is decided, and the step is decided at least once.
    fn always(step: Step, holds: impl Fn(TaskState, Instruction, &Facts) -> bool) -> bool {
        let mut cases =
            all().filter(|(state, instruction, facts)| next(*state, *instruction, *facts) == step).peekable();
        cases.peek().is_some() && cases.all(|(state, instruction, facts)| holds(state, instruction, &facts))
    }

    #[test]
    fn in_every_combination_a_step_has_its_conditions() {
        let is_free = |facts: &Facts| facts.allowed && facts.due && !facts.cut_off && !facts.is_lost;
        assert!(always(Step::Rest, |state, _, _| state.is_terminal()));
        assert!(always(Step::Accept, |state, _, _| state < Accepted));
        assert!(always(Step::Start, |state, instruction, facts| {
            instruction == Run
                && is_free(facts)
                && facts.prepared
                && facts.container != Presence::Runs
                && state >= Accepted
        }));
        assert!(always(Step::Prepare, |_, instruction, facts| {
            instruction != Stop && is_free(facts) && !facts.prepared && facts.container != Presence::Runs
        }));
        assert!(always(Step::Hold, |state, instruction, facts| instruction == WaitReady
            && state != Ready
            && facts.prepared));
        assert!(always(Step::Stop, |_, instruction, facts| instruction == Stop && facts.container == Presence::Runs));
        assert!(always(Step::Suspend, |_, instruction, facts| {
            instruction != Stop && facts.cut_off && facts.container == Presence::Runs
        }));
        assert!(always(Step::Finish, |_, instruction, facts| instruction == Stop && facts.container != Presence::Runs));
        assert!(always(Step::Judge, |state, _, facts| state >= Starting && facts.container == Presence::Ended));
        assert!(always(Step::Adopt, |state, _, facts| state != Running && facts.container == Presence::Runs));
        assert!(always(Step::StopUnhealthy, |_, instruction, facts| {
            instruction != Stop && facts.is_unfit && facts.container == Presence::Runs
        }));
        assert!(always(Step::StartOver, |_, _, facts| facts.is_lost && facts.container != Presence::Runs));
        assert!(always(Step::Wait, |state, instruction, _| !state.is_terminal() && instruction != Stop));
    }

    #[test]
    fn in_every_combination_a_task_that_is_told_to_stop_comes_to_its_end() {
        for (state, _, facts) in all() {
            let step = next(state, Stop, facts);
            let ends = [Step::Rest, Step::Accept, Step::Stop, Step::Finish, Step::Judge, Step::StartOver];
            assert!(ends.contains(&step), "{state} {facts:?}: {step:?}");
        }
    }
}
