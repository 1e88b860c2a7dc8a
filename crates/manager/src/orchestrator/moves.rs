//! Moves the tasks of a service off nodes that are drained or no longer meet its constraints. As in an update, the new task is prepared (it has a node, and
//! its image is there) before the old one is stopped, and no second serving task is stopped before the first one's
//! successor serves. A task for which there is no room elsewhere stays where it is.

use std::time::Duration;

use flota_api::model::{Availability, Node, NodeState, Task};
use flota_api::state::TaskState;
use flota_raft_store::Tables;

use super::slot::Slot;

/// The pause between two looks at a service whose moves are held up.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A step of the moves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Make a successor for the task of this slot and prepare it.
    Prepare(u64),
    /// Stop the task of this slot; its successor runs once it has ended.
    Replace(u64),
    /// Look again after [`LOOK_AFTER`]: a slot that does not serve holds up the others. The end of that is no change of a slot
    /// that moves, so nothing else would continue the moves.
    Look,
}

/// Whether the task is on a node that is drained, or no longer meets the constraints of its service, and that can still stop
/// it in order.
pub(super) fn is_leaving(task: &Task, view: &Tables) -> bool {
    let constraints = view.service(&task.service_id).map(|it| it.spec.constraints.as_slice()).unwrap_or_default();
    let may_stay = |node: &Node| {
        node.spec.availability != Availability::Drain && constraints.iter().all(|constraint| node.satisfies(constraint))
    };
    view.node_of(task).is_some_and(|node| node.state != NodeState::Down && !may_stay(node))
}

/// Returns the next steps, given the slots of a service in the order of their numbers. Tasks of another version than
/// `spec_version` are left to the update, which replaces them anyway.
pub(super) fn next_steps<'a>(
    spec_version: u64,
    slots: impl Iterator<Item = (&'a u64, &'a Slot)> + Clone,
    view: &Tables,
) -> Vec<Move> {
    let mut is_short = slots.clone().any(|(_, slot)| does_not_serve(slot));
    let (mut steps, mut is_held_up) = (Vec::new(), false);
    for (number, slot) in slots {
        let Some(current) = slot.current() else { continue };
        if current.spec_version != spec_version || !is_leaving(current, view) {
            continue;
        }
        match slot.successor() {
            None => steps.push(Move::Prepare(*number)),
            Some(successor) if successor.status.state != TaskState::Ready => {}
            // Nothing is lost with a task that does not serve.
            Some(_) if !current.is_serving() => steps.push(Move::Replace(*number)),
            Some(_) if !is_short => {
                steps.push(Move::Replace(*number));
                is_short = true;
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
    slot.current().map_or(slot.successor().is_some(), |task| !task.is_serving())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::model::{NodeSpec, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::DesiredState;
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
        next_steps(1, slots.iter(), &view)
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
}
