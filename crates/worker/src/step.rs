//! What a task runner does next. Pure: the same status, wish and facts give the same step. `task_runner.rs` gathers the
//! facts, carries out the step, and asks again.

use flota_api::model::TaskStatus;
use flota_api::state::TaskState;

use crate::order::Wanted;

/// What is known of a task beside its status and what the leader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The task's container.
    pub(crate) container: Presence,
    /// Whether the status is from an earlier boot of the machine, and a container was started in that boot.
    pub(crate) rebooted: bool,
    /// Whether a start is allowed: the leader has named the task in this boot, or the service does not ask.
    pub(crate) allowed: bool,
    /// Whether the time of the next start has come.
    pub(crate) due: bool,
    /// Whether no manager was heard for as long as the service bears.
    pub(crate) cut_off: bool,
    /// Whether everything is here that the next start needs.
    pub(crate) prepared: bool,
}

/// A task's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Absent,
    Runs,
    /// It has ended, and nobody has judged that.
    Ended,
}

/// What a task runner does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing any more: the task has ended.
    Rest,
    /// Nothing before a fact changes.
    Wait,
    /// Report that the node has the task.
    Accept,
    /// Begin the next attempt: the container is gone with the last boot.
    StartOver,
    /// Report that a container runs that this runner did not start.
    Adopt,
    /// Stop the container for good.
    Stop,
    /// Stop the container until a manager is heard again.
    Suspend,
    /// Report the task as stopped; it has no container.
    Finish,
    /// Let the restart policy decide what follows the container's end.
    Judge,
    /// Bring everything here that a container needs.
    Prepare,
    /// Report that the task waits for its turn.
    Hold,
    /// Start a container.
    Start,
}

/// Decides what a task runner does next.
pub(crate) fn step(status: &TaskStatus, wanted: Wanted, facts: &Facts) -> Step {
    let state = status.state;
    let stops = wanted == Wanted::Stop;
    match facts.container {
        _ if state.is_terminal() => Step::Rest,
        _ if state < TaskState::Accepted => Step::Accept,
        Presence::Runs if stops => Step::Stop,
        Presence::Runs if facts.cut_off => Step::Suspend,
        Presence::Runs if state != TaskState::Running => Step::Adopt,
        Presence::Runs => Step::Wait,
        _ if facts.rebooted => Step::StartOver,
        // Below `starting` the attempt has no container of its own yet: the end is that of the attempt before.
        Presence::Ended if state >= TaskState::Starting => Step::Judge,
        _ if stops => Step::Finish,
        _ if !facts.allowed || !facts.due || facts.cut_off => Step::Wait,
        _ if !facts.prepared => Step::Prepare,
        _ if wanted == Wanted::Ready && state == TaskState::Ready => Step::Wait,
        _ if wanted == Wanted::Ready => Step::Hold,
        _ => Step::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskState::*;
    use Wanted::{Ready as WaitReady, Run, Stop};

    /// A fresh start is allowed, due and prepared.
    const GOOD: Facts = Facts {
        container: Presence::Absent,
        rebooted: false,
        allowed: true,
        due: true,
        cut_off: false,
        prepared: true,
    };
    const RUNS: Facts = Facts { container: Presence::Runs, ..GOOD };
    const ENDED: Facts = Facts { container: Presence::Ended, ..GOOD };
    const STATES: [TaskState; 13] = [
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed, Rejected,
        Orphaned,
    ];

    fn next(state: TaskState, wanted: Wanted, facts: Facts) -> Step {
        step(&TaskStatus { state, ..TaskStatus::default() }, wanted, &facts)
    }

    #[test]
    fn each_situation_has_its_step() {
        let unprepared = Facts { prepared: false, ..GOOD };
        let table = [
            // A task from its assignment to its end.
            (Assigned, Run, unprepared, Step::Accept),
            (Accepted, Run, unprepared, Step::Prepare),
            (Preparing, Run, unprepared, Step::Prepare),
            (Preparing, Run, GOOD, Step::Start),
            (Starting, Run, RUNS, Step::Adopt),
            (Running, Run, RUNS, Step::Wait),
            (Running, Run, ENDED, Step::Judge),
            (Failed, Run, GOOD, Step::Rest),
            // One that is to be ready only.
            (Accepted, WaitReady, unprepared, Step::Prepare),
            (Preparing, WaitReady, GOOD, Step::Hold),
            (Ready, WaitReady, GOOD, Step::Wait),
            (Ready, Run, GOOD, Step::Start),
            (Running, WaitReady, RUNS, Step::Wait),
            // What a start waits for.
            (Ready, Run, Facts { due: false, ..unprepared }, Step::Wait),
            (Ready, Run, Facts { allowed: false, ..unprepared }, Step::Wait),
            (Ready, Run, Facts { cut_off: true, ..unprepared }, Step::Wait),
            (Preparing, Run, Facts { cut_off: true, ..GOOD }, Step::Wait),
            // Told to stop.
            (Assigned, Stop, unprepared, Step::Accept),
            (Accepted, Stop, unprepared, Step::Finish),
            (Preparing, Stop, GOOD, Step::Finish),
            (Ready, Stop, Facts { due: false, ..unprepared }, Step::Finish),
            (Running, Stop, RUNS, Step::Stop),
            (Running, Stop, ENDED, Step::Judge),
            (Starting, Stop, RUNS, Step::Stop),
            // No manager is heard.
            (Running, Run, Facts { cut_off: true, ..RUNS }, Step::Suspend),
            (Running, Stop, Facts { cut_off: true, ..RUNS }, Step::Stop),
            // A daemon that was killed in the middle.
            (Starting, Run, unprepared, Step::Prepare),
            (Ready, Run, Facts { prepared: false, ..ENDED }, Step::Prepare),
            (Accepted, Run, RUNS, Step::Adopt),
            // A machine that was booted.
            (Running, Run, Facts { rebooted: true, allowed: false, ..unprepared }, Step::StartOver),
            (Running, Run, Facts { rebooted: true, ..ENDED }, Step::StartOver),
            (Complete, Run, Facts { rebooted: true, ..GOOD }, Step::Rest),
        ];
        for (state, wanted, facts, expected) in table {
            assert_eq!(next(state, wanted, facts), expected, "{state} {wanted:?} {facts:?}");
        }
    }

    /// Every combination of state, wish and facts.
    fn all() -> impl Iterator<Item = (TaskState, Wanted, Facts)> {
        let of_state = |state| [WaitReady, Run, Stop].map(|wanted| (state, wanted));
        let facts = |(state, wanted)| {
            let of_bits = move |bits: u32| {
                let is_set = |bit: u32| bits & (1 << bit) != 0;
                [Presence::Absent, Presence::Runs, Presence::Ended].map(|container| Facts {
                    container,
                    rebooted: is_set(0),
                    allowed: is_set(1),
                    due: is_set(2),
                    cut_off: is_set(3),
                    prepared: is_set(4),
                })
            };
            (0..32).flat_map(of_bits).map(move |facts| (state, wanted, facts))
        };
        STATES.into_iter().flat_map(of_state).flat_map(facts)
    }

    /// Whether the condition holds whenever this step is decided, and it is decided at all.
    fn always(step: Step, holds: impl Fn(TaskState, Wanted, &Facts) -> bool) -> bool {
        let mut cases = all().filter(|(state, wanted, facts)| next(*state, *wanted, *facts) == step).peekable();
        cases.peek().is_some() && cases.all(|(state, wanted, facts)| holds(state, wanted, &facts))
    }

    #[test]
    fn in_every_combination_a_step_has_its_conditions() {
        let is_free = |facts: &Facts| facts.allowed && facts.due && !facts.cut_off && !facts.rebooted;
        assert!(always(Step::Rest, |state, _, _| state.is_terminal()));
        assert!(always(Step::Accept, |state, _, _| state < Accepted));
        assert!(always(Step::Start, |state, wanted, facts| {
            wanted == Run && is_free(facts) && facts.prepared && facts.container != Presence::Runs && state >= Accepted
        }));
        assert!(always(Step::Prepare, |_, wanted, facts| {
            wanted != Stop && is_free(facts) && !facts.prepared && facts.container != Presence::Runs
        }));
        assert!(always(Step::Hold, |state, wanted, facts| wanted == WaitReady && state != Ready && facts.prepared));
        assert!(always(Step::Stop, |_, wanted, facts| wanted == Stop && facts.container == Presence::Runs));
        assert!(always(Step::Suspend, |_, wanted, facts| {
            wanted != Stop && facts.cut_off && facts.container == Presence::Runs
        }));
        assert!(always(Step::Finish, |_, wanted, facts| wanted == Stop && facts.container != Presence::Runs));
        assert!(always(Step::Judge, |state, _, facts| state >= Starting && facts.container == Presence::Ended));
        assert!(always(Step::Adopt, |state, _, facts| state != Running && facts.container == Presence::Runs));
        assert!(always(Step::StartOver, |_, _, facts| facts.rebooted && facts.container != Presence::Runs));
        assert!(always(Step::Wait, |state, wanted, _| !state.is_terminal() && wanted != Stop));
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
