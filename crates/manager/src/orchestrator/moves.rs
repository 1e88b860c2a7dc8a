//! Moves the tasks of a service off nodes that are drained, that no longer meet its constraints, or that have too many
//! tasks. If the updates of the service start the new task first, a move does that too: the old task is stopped once the
//! new one serves. Else the new task is prepared (it has a node, and its image is there) before the old one is stopped. No
//! more slots are without a serving task at once, or have two, than the update policy allows. A task for which there is no
//! room elsewhere stays where it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::model::{Availability, Node, NodeState, Service, Task, UpdateOrder};
use flota_api::state::{DesiredState, TaskState};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::after_end::{AfterEnd, after_end, delayed};
use super::slot::Slot;
use super::task_factory;
use crate::affinity;
use crate::plan::{Plan, PlanContext};

/// The pause between two looks at a service whose moves are held up.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A step of the moves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Make a successor for the task of this slot and prepare it.
    Prepare(u64),
    /// Make a task that runs beside the task of this slot.
    Start(u64),
    /// Run the prepared successor of the task of this slot beside it: that task has begun to serve meanwhile.
    StartPrepared(u64),
    /// Stop the task of this slot; its successor runs once it has ended.
    Replace(u64),
    /// Look again after [`LOOK_AFTER`]: a slot that does not serve holds up the others. When it serves
    /// again, no slot that moves changes, so no event continues the moves.
    Look,
}

/// Whether the task has to leave its node: a user has moved it, the node is drained, it does not meet the constraints of the
/// service, or it has tasks of another service that must be on other nodes. A task on a node that is down is replaced
/// instead.
pub(super) fn is_leaving(task: &Task, view: &Tables) -> bool {
    let service = view.service(&task.service_id);
    let suits = |service: &Arc<Service>, node: &Node| {
        let is_jumpy = faults::is_on(Fault::JumpyMoves) && node.spec.labels.contains_key("rack");
        service.spec.constraints.iter().all(|constraint| node.satisfies(constraint) && !is_jumpy)
            && !affinity::must_part(service, node, view)
    };
    let may_stay = |node: &Node| {
        !task.relocates
            && node.spec.availability != Availability::Drain
            && service.is_none_or(|service| suits(service, node))
    };
    view.node_of(task).is_some_and(|node| node.state != NodeState::Down && !may_stay(node))
}

/// Returns the task of the slot that was told to move to a better node and does not: the one that was made for that has no
/// node, has got the same one, or has failed.
pub(super) fn given_up(slot: &Slot) -> Option<&Arc<Task>> {
    let relocates = slot.live().find(|task| task.relocates)?;
    let newest = slot.newest().filter(|newest| newest.id != relocates.id)?;
    let goes_nowhere = newest.pending_reason.is_some()
        || newest.status.state.is_terminal()
        || newest.status.attempt > 1 && !newest.is_serving()
        || newest.node_id.is_some() && newest.node_id == relocates.node_id;
    goes_nowhere.then_some(relocates)
}

/// Returns the next steps, given the slots of a service in the order of their numbers. Tasks of another version than that of
/// the service are left to the update, which replaces them anyway.
pub(super) fn next_steps<'a>(
    service: &Service,
    slots: impl Iterator<Item = (&'a u64, &'a Slot)> + Clone,
    view: &Tables,
) -> Vec<Move> {
    let at_once = service.spec.update.at_once();
    let starts_first = service.spec.update.order == UpdateOrder::StartFirst && !service.spec.mode.is_job();
    let mut short = slots.clone().filter(|(_, slot)| does_not_serve(slot) || is_being_updated(slot)).count();
    let mut doubled = slots.clone().filter(|(_, slot)| slot.predecessor().is_some()).count();
    let (mut steps, mut is_held_up) = (Vec::new(), false);
    for (number, slot) in slots {
        let Some(current) = slot.current() else { continue };
        if current.spec_version != service.spec_version || !is_leaving(current, view) {
            continue;
        }
        match slot.successor() {
            successor if starts_first && current.is_serving() => {
                // A slot has two tasks at most: the one before may still serve until this one has settled.
                if doubled < at_once && slot.predecessor().is_none() {
                    steps.push(if successor.is_some() { Move::StartPrepared(*number) } else { Move::Start(*number) });
                    doubled += 1;
                } else {
                    is_held_up = true;
                }
            }
            None => steps.push(Move::Prepare(*number)),
            Some(successor) if successor.status.state != TaskState::Ready => {}
            // Nothing is lost with a task that does not serve.
            Some(_) if !current.is_serving() => steps.push(Move::Replace(*number)),
            Some(_) if short < at_once => {
                steps.push(Move::Replace(*number));
                short += 1;
            }
            Some(_) => is_held_up = true,
        }
    }
    if is_held_up {
        steps.push(Move::Look);
    }
    steps
}

/// Whether the slot should have a serving task and has none.
fn does_not_serve(slot: &Slot) -> bool {
    match slot.current() {
        Some(_) => !slot.live().any(|task| task.is_serving()),
        None => slot.successor().is_some(),
    }
}

/// Whether an update has begun with the slot: it stops the task that serves once the new one is prepared, whatever moves.
fn is_being_updated(slot: &Slot) -> bool {
    slot.successor().is_some() && slot.current().is_some_and(|task| !slot.is_present(task))
}

/// Takes the next steps of the moves, given the slots of a service that stay.
pub(super) fn advance(
    service: &Service,
    kept: &BTreeMap<u64, &Slot>,
    view: &Tables,
    plan: &mut Plan,
    cx: &mut PlanContext,
) {
    for step in next_steps(service, kept.iter().map(|(number, slot)| (number, *slot)), view) {
        if plan.is_full(cx) {
            return;
        }
        let slot = |number: &u64| kept.get(number).copied().map(|slot| (*number, slot));
        match step {
            Move::Look => plan.retry_at(cx.now + LOOK_AFTER),
            Move::Replace(number) => {
                if let Some(task) = slot(&number).and_then(|(_, slot)| slot.current()) {
                    plan.set_desired(task, DesiredState::Shutdown);
                }
            }
            Move::Prepare(number) => {
                if let Some(task) = slot(&number).and_then(|slot| next_task(service, slot, view, cx)) {
                    plan.put(Task { desired_state: DesiredState::Ready, ..task });
                }
            }
            Move::StartPrepared(number) => {
                if let Some((slot, successor)) = slot(&number).and_then(|(_, slot)| Some((slot, slot.successor()?))) {
                    let replaces = slot.current().map(|task| task.id.clone());
                    plan.put(Task { desired_state: DesiredState::Running, replaces, ..successor.as_ref().clone() });
                }
            }
            Move::Start(number) => {
                if let Some(task) = slot(&number).and_then(|slot| next_task(service, slot, view, cx)) {
                    let replaces = kept.get(&number).and_then(|slot| slot.current()).map(|task| task.id.clone());
                    plan.put(Task { replaces, ..task });
                }
            }
        }
    }
}

/// Makes a task for a slot that leaves its node; after one that has failed, with the delay of the restart policy.
fn next_task(service: &Service, (number, slot): (u64, &Slot), view: &Tables, cx: &mut PlanContext) -> Option<Task> {
    let failed = slot.newest().filter(|task| !task.is_live());
    let not_before = match failed.map(|task| (task, after_end(service, task))) {
        Some((_, AfterEnd::Stay)) => return None,
        Some((task, AfterEnd::ReplaceLater)) => Some(delayed(service, task)),
        Some((_, AfterEnd::Replace)) | None => None,
    };
    Some(task_factory::make(service, number, slot.newest(), not_before, view, cx))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use flota_api::model::{NodeSpec, PendingReason, ServiceSpec, TaskStatus, UpdatePolicy};
    use flota_api::object::StoreObject;
    use flota_api::version::Meta;

    fn task(id: &str, slot: u64, node: &str, desired_state: DesiredState, state: TaskState) -> Arc<Task> {
        let status = TaskStatus { state, ..TaskStatus::default() };
        let meta = Meta { created: slot, ..Meta::default() };
        let node_id = Some(node.into());
        Arc::new(Task { id: id.into(), slot, spec_version: 1, node_id, desired_state, status, meta, ..Task::default() })
    }

    fn running(id: &str, slot: u64, node: &str) -> Arc<Task> {
        task(id, slot, node, DesiredState::Running, TaskState::Running)
    }

    fn successor(id: &str, slot: u64, state: TaskState) -> Arc<Task> {
        task(id, slot, "free", DesiredState::Ready, state)
    }

    /// The steps for a service with these tasks, some of which are on the drained node.
    fn steps(tasks: &[Arc<Task>]) -> Vec<Move> {
        steps_by(UpdatePolicy::default(), tasks)
    }

    fn steps_by(update: UpdatePolicy, tasks: &[Arc<Task>]) -> Vec<Move> {
        let mut view = Tables::default();
        let spec = NodeSpec { availability: Availability::Drain, ..NodeSpec::default() };
        view.put(
            Node { id: "drained".into(), state: NodeState::Ready, spec: spec.clone(), ..Node::default() }.into_object(),
        );
        view.put(Node { id: "dead".into(), state: NodeState::Down, spec, ..Node::default() }.into_object());
        view.put(Node { id: "free".into(), state: NodeState::Ready, ..Node::default() }.into_object());
        let slots: std::collections::BTreeMap<u64, Slot> = tasks
            .chunk_by(|left, right| left.slot == right.slot)
            .map(|tasks| (tasks[0].slot, Slot::new(tasks.iter(), 1)))
            .collect();
        let spec = Arc::new(ServiceSpec { update, ..ServiceSpec::default() });
        next_steps(&Service { spec, spec_version: 1, ..Service::default() }, slots.iter(), &view)
    }

    #[test]
    fn each_task_of_a_drained_node_gets_a_successor_first() {
        let tasks = [running("a", 1, "drained"), running("b", 2, "free"), running("c", 3, "drained")];
        assert_eq!(steps(&tasks), [Move::Prepare(1), Move::Prepare(3)]);
        assert_eq!(steps(&[running("a", 1, "dead")]), [], "it is lost, and nothing can be waited for");
        let older = Arc::new(Task { spec_version: 0, ..running("a", 1, "drained").as_ref().clone() });
        assert_eq!(steps(&[older]), [], "the update replaces it");
    }

    #[test]
    fn serving_tasks_are_stopped_one_after_the_other_once_their_successors_are_ready() {
        let preparing = [running("a", 1, "drained"), successor("a2", 1, TaskState::Preparing)];
        assert_eq!(steps(&preparing), []);
        let ready = |first: Arc<Task>| {
            let second = [running("b", 2, "drained"), successor("b2", 2, TaskState::Ready)];
            steps(&[&[first, successor("a2", 1, TaskState::Ready)], &second[..]].concat())
        };
        assert_eq!(ready(running("a", 1, "drained")), [Move::Replace(1), Move::Look]);
        let stopping = task("a", 1, "drained", DesiredState::Shutdown, TaskState::Running);
        assert_eq!(ready(stopping), [Move::Look], "the first one's successor does not serve yet");
        let starting = task("a", 1, "drained", DesiredState::Running, TaskState::Starting);
        assert_eq!(ready(starting), [Move::Replace(1), Move::Look], "one that does not serve goes at once");
    }

    #[test]
    fn a_slot_that_ended_for_good_holds_nothing_up() {
        let ended = task("a", 1, "free", DesiredState::Running, TaskState::Complete);
        let ready = [ended, running("b", 2, "drained"), successor("b2", 2, TaskState::Ready)];
        assert_eq!(steps(&ready), [Move::Replace(2)]);
    }

    #[test]
    fn as_many_slots_are_without_a_serving_task_as_the_update_policy_allows() {
        let two = UpdatePolicy { parallelism: NonZeroU64::new(2), ..UpdatePolicy::default() };
        let slot = |number| {
            let [old, new] = ["a", "b"].map(|id| format!("{id}{number}"));
            [running(&old, number, "drained"), successor(&new, number, TaskState::Ready)]
        };
        let tasks = [slot(1), slot(2), slot(3)].concat();
        assert_eq!(steps_by(two, &tasks), [Move::Replace(1), Move::Replace(2), Move::Look]);
    }

    #[test]
    fn a_service_whose_updates_start_first_moves_that_way_too() {
        let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
        let (a, b) = (running("a", 1, "drained"), running("b", 2, "drained"));
        assert_eq!(steps_by(policy, &[a.clone(), b.clone()]), [Move::Start(1), Move::Look]);
        let new = |state| {
            let new = task("a2", 1, "free", DesiredState::Running, state);
            Arc::new(Task { replaces: Some("a".into()), ..new.as_ref().clone() })
        };
        for state in [TaskState::Pending, TaskState::Preparing, TaskState::Running] {
            let tasks = [a.clone(), new(state), b.clone()];
            assert_eq!(steps_by(policy, &tasks), [Move::Look], "the first still has two: {state}");
        }
        let failed = [a.clone(), new(TaskState::Failed), b.clone()];
        assert_eq!(steps_by(policy, &failed), [Move::Start(1), Move::Look], "it is tried again");
        let stopping = task("a", 1, "drained", DesiredState::Shutdown, TaskState::Running);
        assert_eq!(steps_by(policy, &[stopping, new(TaskState::Running), b]), [Move::Start(2)]);
        let starting = task("a", 1, "drained", DesiredState::Running, TaskState::Starting);
        assert_eq!(steps_by(policy, &[starting]), [Move::Prepare(1)], "nothing is lost with it");
    }

    #[test]
    fn a_task_that_serves_once_its_successor_is_prepared_is_not_stopped_first_where_updates_start_first() {
        let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
        let moved =
            |state| [task("a", 1, "drained", DesiredState::Running, state), successor("a2", 1, TaskState::Ready)];
        assert_eq!(steps_by(policy, &moved(TaskState::Starting)), [Move::Replace(1)], "nothing is lost with it");
        assert_eq!(steps_by(policy, &moved(TaskState::Running)), [Move::StartPrepared(1)]);
        let other = [running("b", 2, "drained"), successor("b2", 2, TaskState::Preparing)];
        let both = [moved(TaskState::Running), other].concat();
        assert_eq!(steps_by(policy, &both), [Move::StartPrepared(1), Move::Look], "one slot at a time has two");
    }

    #[test]
    fn a_move_to_a_better_node_is_given_up_if_there_is_none() {
        let told = Arc::new(Task { relocates: true, ..running("a", 1, "free").as_ref().clone() });
        let is_given_up = |tasks: &[Arc<Task>]| given_up(&Slot::new(tasks.iter(), 1)).is_some();
        let with = |change: fn(&mut Task)| {
            let mut new = Task { meta: Meta { created: 2, ..Meta::default() }, ..Task::default() };
            new.id = "b".into();
            change(&mut new);
            is_given_up(&[told.clone(), Arc::new(new)])
        };
        assert!(!is_given_up(std::slice::from_ref(&told)), "it has just begun");
        assert!(!with(|_| {}), "the scheduler has not looked yet");
        assert!(!with(|new| new.node_id = Some("other".into())));
        assert!(with(|new| new.node_id = Some("free".into())));
        assert!(with(|new| new.pending_reason = Some(Box::new(PendingReason::NoNode))));
        assert!(with(|new| new.status.state = TaskState::Rejected));
    }

    #[test]
    fn slots_that_an_update_has_begun_with_count_too() {
        let earlier = |task: Arc<Task>| Arc::new(Task { spec_version: 0, ..task.as_ref().clone() });
        let ready = [running("b", 2, "drained"), successor("b2", 2, TaskState::Ready)];
        let begun = [earlier(running("a", 1, "free")), successor("a2", 1, TaskState::Preparing)];
        assert_eq!(steps(&[&begun[..], &ready].concat()), [Move::Look], "the update stops its old task next");
        let alone = [earlier(running("a", 1, "free")), running("b", 2, "drained")];
        assert_eq!(steps(&alone), [Move::Prepare(2)], "it has not begun with that slot");
        let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
        let starting = task("a2", 1, "free", DesiredState::Running, TaskState::Starting);
        let doubled = [earlier(running("a", 1, "free")), starting, running("b", 2, "drained")];
        assert_eq!(steps_by(policy, &doubled), [Move::Look], "the slot has two tasks");
    }

    #[test]
    fn a_slot_that_has_two_tasks_does_not_move_yet() {
        let policy = UpdatePolicy { order: UpdateOrder::StartFirst, ..UpdatePolicy::default() };
        let old = Arc::new(Task { spec_version: 0, ..running("a0", 1, "free").as_ref().clone() });
        let both = [old, running("a", 1, "drained")];
        assert_eq!(steps_by(policy, &both), [Move::Look], "the update has not let the old one go");
        assert_eq!(steps_by(policy, &both[1..]), [Move::Start(1)]);
    }
}
