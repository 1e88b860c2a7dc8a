//! What holds at every moment of the services that a user rolls out, however updates, rollbacks and drains meet: no
//! more slots are without a serving task, or have two, than the policy allows, and no node has more of them than it may
//! have.
//!
//! What counts is what the leader does, by what it knows. A slot is taken from the service when its last serving task
//! is told to stop, and is given back when one serves again. A fault excuses the slot that it has hit and no other: a
//! task that was not told to stop, but failed, was started again, or was on a node that was lost. A status changes no
//! version, so what a leader decides may be by the one before: a start counts as serving once the leader has known it for
//! some entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId, TaskId};
use flota_api::model::{NodeState, Service, Task, UpdateOrder, UpdatePolicy};
use flota_api::state::DesiredState;
use flota_api::version::Version;
use flota_raft_store::View;

use super::user::ROLLED_OUT;
use super::violation::{Kind, Violation};
use updates::UpdateSeen;

mod updates;

/// State from earlier checks, for comparison with later ones.
#[derive(Default)]
pub(super) struct RolloutInvariants {
    services: BTreeMap<ServiceId, Rollout>,
    updates: BTreeMap<ServiceId, UpdateSeen>,
    /// The nodes that were lost, with the last version of the store in which they were.
    lost: BTreeMap<NodeId, Version>,
}

/// For so many entries, what a leader does may be because of a node that is not lost any more, or a task that has begun to
/// serve.
const DECIDED_BEFORE: Version = 10;

/// What a check has seen of the slots of a service.
#[derive(Default)]
struct Rollout {
    /// The tasks that serve, with their attempts, of each slot that has some, and since which version of the store.
    serving: BTreeMap<u64, BTreeMap<(TaskId, u32), Version>>,
    /// The slots that were taken from the service.
    taken: BTreeSet<u64>,
    /// The slots that have two tasks which are to run.
    doubled: BTreeSet<u64>,
    /// The tasks that are to run.
    started: BTreeSet<TaskId>,
}

impl RolloutInvariants {
    /// Checks what a newer version of the store has.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        let lost = view.nodes().filter(|it| it.state == NodeState::Down).map(|it| (it.id.clone(), view.version));
        self.lost.extend(lost);
        self.lost.retain(|_, version| *version + DECIDED_BEFORE >= view.version);
        let lost = self.lost.keys().cloned().collect();
        for service in ROLLED_OUT.iter().filter_map(|it| view.service_by_name(it.name)) {
            let slots = slots(service, view);
            if let Some(before) = self.updates.remove(&service.id) {
                before.check(service, &slots, &lost)?;
            }
            self.updates.insert(service.id.clone(), UpdateSeen::of(service, &slots));
            let before = self.services.remove(&service.id).unwrap_or_default();
            if service.spec.stopped {
                check_stopped(service, &slots)?;
                continue;
            }
            let now = before.next(service, &slots, &lost, view.version)?;
            self.services.insert(service.id.clone(), now);
            check_nodes(service, &slots)?;
        }
        Ok(())
    }
}

/// Returns the tasks of the slots that count, the oldest first.
fn slots<'a>(service: &Service, view: &'a View) -> BTreeMap<u64, Vec<&'a Arc<Task>>> {
    let mut slots: BTreeMap<u64, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        slots.entry(task.slot).or_default().push(task);
    }
    slots.retain(|_, tasks| tasks.iter().any(|task| task.desired_state != DesiredState::Remove));
    slots.values_mut().for_each(|tasks| tasks.sort_by_key(|task| task.meta.order()));
    slots
}

impl Rollout {
    /// Returns what is there now, after this.
    fn next(
        &self,
        service: &Service,
        slots: &BTreeMap<u64, Vec<&Arc<Task>>>,
        lost: &BTreeSet<NodeId>,
        version: Version,
    ) -> Result<Self, Violation> {
        let mut now = Self::default();
        for (number, tasks) in slots {
            let known = self.serving.get(number);
            let since = |start: &(TaskId, u32)| known.and_then(|it| it.get(start)).copied().unwrap_or(version);
            let serving = tasks.iter().filter(|task| task.is_serving()).map(|task| start(task));
            let serving: BTreeMap<_, _> = serving.map(|start| (start.clone(), since(&start))).collect();
            if !serving.is_empty() {
                now.serving.insert(*number, serving);
            } else if self.is_taken(service, *number, tasks, lost, version) {
                now.taken.insert(*number);
            }
            let running: Vec<&Arc<Task>> = tasks.iter().copied().filter(|task| is_to_run(task)).collect();
            if running.len() > 1 {
                now.doubled.insert(*number);
            }
            for task in running {
                self.check_start(service, task, tasks, lost)?;
                now.started.insert(task.id.clone());
            }
        }
        let fewest = most(service, UpdateOrder::StopFirst);
        if now.taken.len() > fewest && !now.taken.is_subset(&self.taken) {
            let tasks: Vec<_> = now.taken.iter().map(|slot| &slots[slot]).collect();
            let text =
                format!("slots {:?} of {} are taken, and {fewest} may be: {tasks:?}", now.taken, service.spec.name);
            return Err(Kind::TooFewTasks.because(text));
        }
        let most = most(service, UpdateOrder::StartFirst);
        if now.doubled.len() > most && !now.doubled.is_subset(&self.doubled) {
            let text = format!("slots {:?} of {} have two tasks, and {most} may", now.doubled, service.spec.name);
            return Err(Kind::TooManyTasks.because(text));
        }
        Ok(now)
    }

    /// Whether a slot without a serving task is taken from the service, by no fault.
    fn is_taken(
        &self,
        service: &Service,
        number: u64,
        tasks: &[&Arc<Task>],
        lost: &BTreeSet<NodeId>,
        version: Version,
    ) -> bool {
        let is_lost = |task: &Task| task.node_id.as_ref().is_some_and(|node| lost.contains(node));
        match self.serving.get(&number) {
            Some(served) => {
                // Of one that was started again since, the leader may have known that it did not serve.
                let was_restarted =
                    |task: &Task| served.keys().any(|(id, attempt)| *id == task.id && *attempt != task.status.attempt);
                let is_new = |since: Version| since + DECIDED_BEFORE >= version;
                let mut same = tasks.iter().filter_map(|task| Some((task, *served.get(&start(task))?)));
                let is_told = |(task, since): (&&Arc<Task>, Version)| {
                    task.desired_state.is_stopping() && task.preempted_by.is_none() && !is_lost(task) && !is_new(since)
                };
                // The same holds for one that has begun to serve and fallen between two looks.
                let has_fallen = |task: &Task| {
                    task.served_at.is_some() && !task.desired_state.is_stopping() && task.status.attempt > 1
                };
                !tasks.iter().any(|task| was_restarted(task) || has_fallen(task)) && same.all(is_told)
            }
            None => {
                let has_failed = |task: &Task| {
                    let has_ended = task.status.state.is_terminal() && !task.desired_state.is_stopping();
                    has_ended || task.status.attempt > 1 || task.preempted_by.is_some() || is_lost(task)
                };
                let is_known = service.update.failed_slots.contains(&number);
                self.taken.contains(&number) && !is_known && !tasks.last().is_some_and(|task| has_failed(task))
            }
        }
    }

    /// A task that takes the place of another one begins to run once that has ended, unless the new one comes first.
    fn check_start(
        &self,
        service: &Service,
        task: &Task,
        tasks: &[&Arc<Task>],
        lost: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let may_still_run = |other: &&&Arc<Task>| {
            other.desired_state.is_stopping()
                && !other.status.state.is_terminal()
                && other.node_id.as_ref().is_some_and(|node| !lost.contains(node))
        };
        let is_first = policies(service).any(|policy| policy.order == UpdateOrder::StartFirst);
        match tasks.iter().find(may_still_run) {
            Some(other) if !is_first && !self.started.contains(&task.id) => {
                let text = format!("{} starts, and {} of its slot has not ended: {other:?}", task.id, other.id);
                Err(Kind::TooManyTasks.because(text))
            }
            _ => Ok(()),
        }
    }
}

/// A start of a task.
fn start(task: &Task) -> (TaskId, u32) {
    (task.id.clone(), task.status.attempt)
}

/// A service that is stopped begins with no task.
fn check_stopped(service: &Service, slots: &BTreeMap<u64, Vec<&Arc<Task>>>) -> Result<(), Violation> {
    let is_new = |task: &&&Arc<Task>| is_to_run(task) && task.meta.created > service.meta.version;
    match slots.values().flatten().find(is_new) {
        Some(task) => {
            Err(Kind::TooManyTasks.because(format!("{} is stopped, and begins with {task:?}", service.spec.name)))
        }
        None => Ok(()),
    }
}

/// Whether the task is to run, and may.
fn is_to_run(task: &Task) -> bool {
    task.is_live() && task.desired_state != DesiredState::Ready
}

/// Returns the policies by which tasks are replaced now: that of updates holds for moves too, also during a rollback.
fn policies(service: &Service) -> impl Iterator<Item = &UpdatePolicy> {
    let rollback = service.update.is_rollback().then_some(&service.spec.rollback);
    [&service.spec.update].into_iter().chain(rollback)
}

/// Returns how many slots may be replaced at once in this order.
fn most(service: &Service, order: UpdateOrder) -> usize {
    policies(service).filter(|policy| policy.order == order).map(UpdatePolicy::at_once).max().unwrap_or(0)
}

/// No node has the newest task of more slots than may be on one. The task before it may be there until that serves, and
/// after that was stopped; others may have been placed on the node just before.
fn check_nodes(service: &Service, slots: &BTreeMap<u64, Vec<&Arc<Task>>>) -> Result<(), Violation> {
    let Some(most) = service.spec.max_replicas_per_node else { return Ok(()) };
    let mut on_node: BTreeMap<&NodeId, Vec<(u64, &Task, Version)>> = BTreeMap::new();
    for (number, tasks) in slots {
        let is_counted = |task: &&&Arc<Task>| task.is_live() && task.node_id.is_some();
        let newest = tasks.iter().rev().find(is_counted);
        // Until then, the slot had a newer task elsewhere. An even newer one may have no node yet.
        let newer = tasks.iter().rev().take_while(|task| !is_counted(task));
        let since = newer.filter(|task| !task.is_live()).map(|task| task.meta.version).max();
        if let Some((task, node)) = newest.and_then(|task| Some((task, task.node_id.as_ref()?))) {
            on_node.entry(node).or_default().push((*number, task, since.unwrap_or_default()));
        }
    }
    let counted = on_node.into_iter().map(|(node, slots)| {
        let placed = slots.iter().map(|(_, task, _)| task.meta.created).max().unwrap_or_default();
        let is_counted = |since: Version| since == 0 || placed > since + DECIDED_BEFORE;
        (
            node,
            slots.iter().filter(|(_, _, since)| is_counted(*since)).map(|(number, ..)| *number).collect::<Vec<u64>>(),
        )
    });
    match counted.into_iter().find(|(_, slots)| slots.len() as u64 > most.get()) {
        Some((node, slots)) => {
            let text = format!("{} has the slots {slots:?} on node {node}, and {most} may be", service.spec.name);
            Err(Kind::TooManyOnNode.because(text))
        }
        None => Ok(()),
    }
}
