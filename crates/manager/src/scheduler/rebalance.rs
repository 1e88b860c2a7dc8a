//! Tells tasks to move from nodes with many tasks to nodes that have come, or have come back: when a user asks for it, or
//! by itself if the cluster is set so. The orchestrator moves them, as it does from a drained node.
//!
//! A task moves only if that makes the cluster more even: its service has at least two tasks more in its group or on its
//! node than in or on the other one, or one more there and the node at least two more in all. So the sum of the squares
//! of the counts falls with each move, and a rebalance comes to an end. Moves are begun in batches, and a batch only when
//! nothing moves, so that every count is exact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults::REBALANCE_LIMIT;
use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{
    Availability, Cluster, Node, NodeState, PlacementStrategy, Service, ServiceMode, Task, UpdateOrder,
};
use flota_api::object::Object;
use flota_api::state::DesiredState;
use flota_api::version::Timestamp;
use flota_raft_store::{Event, Tables};

use super::candidate::{Candidate, count_failures};
use super::filters::{self, Demand};
use crate::control_loop::{ControlLoop, Key};
use crate::dependencies;
use crate::plan::{Plan, PlanContext};

/// Largest number of tasks that move at once.
const BATCH: usize = 20;

/// Largest number of nodes from which a move of a service that is spread over groups is tried in one look.
const SOURCES: usize = 16;

/// The pause between two looks while tasks move.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// The pause between two looks of a cluster that rebalances by itself, and how long a node has to be ready before it gets
/// tasks of others that way: a node that comes and goes makes nothing move.
const SETTLES_AFTER: Duration = Duration::from_secs(60);

/// The control loop; its one key is the cluster.
#[derive(Debug, Default)]
pub(crate) struct Rebalance;

impl ControlLoop for Rebalance {
    fn name(&self) -> &'static str {
        "rebalance"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.cluster().map(|it| Key::of(&it.id)).into_iter().collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let is_news = match event {
            Event::Created(Object::Cluster(new)) => is_on(new),
            Event::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } => is_on(new) && !is_on(old),
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                takes_tasks(new) && !(takes_tasks(old) && old.spec == new.spec)
            }
            _ => false,
        };
        if is_news { self.all(view) } else { Vec::new() }
    }

    fn plan(&mut self, _: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(cluster) = view.cluster().filter(|it| is_on(it)) else { return plan };
        let asked = cluster.rebalance.filter(|it| it.ended_at.is_none());
        let is_over = asked.is_some_and(|it| it.begun_at.until(cx.now) >= REBALANCE_LIMIT);
        if !is_over && is_under_way(view) {
            plan.retry_at(cx.now + LOOK_AFTER);
            return plan;
        }
        // The cluster object takes one of the changes.
        if !is_over && cx.room < 2 {
            plan.retry_at(cx.now + LOOK_AFTER);
            return plan;
        }
        let has_settled =
            |node: &Node| asked.is_some() || node.state_since.until(cx.now) >= SETTLES_AFTER && node.flaps(cx.now) == 0;
        let tasks = if is_over { Vec::new() } else { next_moves(view, has_settled, BATCH.min(cx.room - 1), cx.now) };
        if let Some(mut asked) = asked {
            asked.moved += tasks.len() as u64;
            asked.ended_at = tasks.is_empty().then_some(cx.now);
            plan.put(Cluster { rebalance: Some(asked), ..cluster.as_ref().clone() });
        }
        for task in &tasks {
            plan.put(Task { relocates: true, ..task.as_ref().clone() });
        }
        if cluster.auto_rebalance || !tasks.is_empty() {
            plan.retry_at(cx.now + if tasks.is_empty() { SETTLES_AFTER } else { LOOK_AFTER });
        }
        plan
    }
}

fn is_on(cluster: &Cluster) -> bool {
    cluster.auto_rebalance || cluster.rebalance.is_some_and(|it| it.ended_at.is_none())
}

fn takes_tasks(node: &Node) -> bool {
    node.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Whether tasks move, for whatever reason, so that nodes have tasks that will soon not be there.
fn is_under_way(view: &Tables) -> bool {
    // One of an earlier spec is left to an update, which may be paused.
    let is_told = |task: &Task| {
        task.relocates && view.service(&task.service_id).is_some_and(|it| it.spec_version == task.spec_version)
    };
    let moves = |task: &Arc<Task>| {
        let is_second =
            task.desired_state == DesiredState::Ready || task.replaces.is_some() && task.served_at.is_none();
        task.is_live() && (is_told(task) || task.node_id.is_some() && is_second)
    };
    // One that waits for others may wait for a user's decision.
    let is_updating =
        |service: &Arc<Service>| service.update.is_active() && dependencies::update_waits(service, view).is_empty();
    view.services().any(is_updating) || view.tasks().any(moves)
}

/// Returns the tasks that are to move next, at most this many.
fn next_moves(view: &Tables, has_settled: impl Fn(&Node) -> bool, most: usize, now: Timestamp) -> Vec<Arc<Task>> {
    let takers: Vec<&Arc<Node>> = view.takers().filter(|node| has_settled(node)).collect();
    let mut counts = Counts { view, of_node: BTreeMap::new(), of_service: BTreeMap::new() };
    let mut moves = Vec::new();
    for service in view.services().filter(|service| may_move(service, view)) {
        let room = most - moves.len();
        moves.extend(moves_of(service, &takers, &mut counts, (room, now)));
        if moves.len() >= most {
            break;
        }
    }
    moves
}

/// Whether tasks of the service may move although nothing is wrong with their nodes. The data of volumes does not move, and
/// neither does what others run beside.
fn may_move(service: &Service, view: &Tables) -> bool {
    let spec = &service.spec;
    matches!(spec.mode, ServiceMode::Replicated { .. })
        && !spec.stopped
        && !spec.keep_on_node_loss
        && !service.update.is_paused()
        && !service.update.is_active()
        && spec.volumes().all(|name| view.volume_by_name(name).is_some_and(|it| it.spec.file_system.is_some()))
        && spec.strategy == PlacementStrategy::Spread
        && view.affine_to(&spec.name).next().is_none()
}

/// Tasks on nodes, with the moves of this plan.
struct Counts<'a> {
    view: &'a Tables,
    of_node: BTreeMap<NodeId, i64>,
    of_service: BTreeMap<(ServiceId, NodeId), i64>,
}

impl Counts<'_> {
    fn of_node(&self, node: &NodeId) -> i64 {
        self.view.load(node).live as i64 + self.of_node.get(node).copied().unwrap_or_default()
    }

    fn of_service(&self, service: &ServiceId, node: &NodeId) -> i64 {
        let shift = self.of_service.get(&(service.clone(), node.clone())).copied().unwrap_or_default();
        self.view.live_tasks(service, node) as i64 + shift
    }

    fn shift(&mut self, service: &ServiceId, node: &NodeId, by: i64) {
        *self.of_node.entry(node.clone()).or_default() += by;
        *self.of_service.entry((service.clone(), node.clone())).or_default() += by;
    }
}

/// The counts of a node, level by level: for each level of the service's spread the group and the tasks of the service in
/// it, then the tasks of the service on the node, then all tasks of the node.
type Weight = (Vec<(i64, String)>, i64, i64);

/// Whether a task that moves from one node to the other makes the cluster more even.
fn is_better(from: &Weight, to: &Weight) -> bool {
    let groups = from.0.iter().zip(&to.0).find(|((_, from), (_, to))| from != to);
    match groups {
        Some(((from, _), (to, _))) => from - to >= 2,
        None => from.1 - to.1 >= 2 || from.1 - to.1 == 1 && from.2 - to.2 >= 2,
    }
}

/// Returns the next moves of a service, at most this many and as its update policy allows.
fn moves_of(
    service: &Service,
    takers: &[&Arc<Node>],
    counts: &mut Counts,
    (room, now): (usize, Timestamp),
) -> Vec<Arc<Task>> {
    let view = counts.view;
    if service.spec.spread_over.is_empty() && is_level(service, view) {
        return Vec::new();
    }
    let mut movable: Vec<&Arc<Task>> = movable(service, view);
    let Some(any) = movable.first() else { return Vec::new() };
    // The scheduler prefers every other node to those on which the spec has failed.
    let failures = count_failures(any, view, now);
    let takers: Vec<&Arc<Node>> = takers.iter().copied().filter(|node| !failures.contains_key(&node.id)).collect();
    let mut moves = Vec::new();
    let most = room.min(at_once(service, view));
    while moves.len() < most {
        let groups = groups_of(service, counts);
        let weigh = |node: &Node| weight(service, node, &groups, counts);
        let on_nodes: BTreeMap<&NodeId, usize> =
            movable.iter().enumerate().filter_map(|(index, task)| Some((task.node_id.as_ref()?, index))).collect();
        let weighed = on_nodes.into_iter().filter_map(|(id, index)| Some((weigh(view.node(id)?), id, index)));
        // The heaviest node comes first. Without a spread, no other one has a better reason.
        let sources = if service.spec.spread_over.is_empty() {
            Vec::from_iter(weighed.max())
        } else {
            let mut sources: Vec<_> = weighed.collect();
            sources.sort_by(|left, right| right.cmp(left));
            sources
        };
        let found = sources.into_iter().take(SOURCES).find_map(|(_, _, index)| {
            let from = view.node_of(movable[index])?;
            let to = best_for(service, from, &takers, weigh, view)?;
            Some((index, from.id.clone(), to.id.clone()))
        });
        let Some((index, from, to)) = found else { break };
        counts.shift(&service.id, &from, -1);
        counts.shift(&service.id, &to, 1);
        moves.push(Arc::clone(movable.remove(index)));
    }
    moves
}

/// Returns how many tasks of the service may move at once now. Where a move stops the old task first, slots that do not
/// serve and will not soon, as in a crash loop, count: they would hold up a move, and that those of all other services.
fn at_once(service: &Service, view: &Tables) -> usize {
    let policy = &service.spec.update;
    if policy.order == UpdateOrder::StartFirst {
        return policy.at_once();
    }
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let is_short = |slot: &&[&Arc<Task>]| {
        let newest = slot.iter().max_by_key(|task| task.meta.order());
        !slot.iter().any(|task| task.is_serving()) && newest.is_some_and(|task| has_trouble(task))
    };
    let slots = tasks.chunk_by(|left, right| left.slot == right.slot);
    policy.at_once().saturating_sub(slots.filter(is_short).count())
}

/// Whether something has failed in the slot of a task that is to serve and does not, or keeps it from beginning. A slot whose
/// last task has ended for good holds up nothing.
fn has_trouble(task: &Task) -> bool {
    let has_failed = task.status.attempt > 1 || task.restart_history.in_a_row > 0;
    task.is_live() && (has_failed || task.pending_reason.is_some())
}

/// Whether every node that takes tasks has the same number of the service's.
fn is_level(service: &Service, view: &Tables) -> bool {
    view.live_task_levels(&service.id).nth(1).is_none()
}

/// Returns the tasks of the service that serve, alone in their slots, on nodes where they could stay. A slot in which
/// something has failed since its task began is left alone.
fn movable<'a>(service: &Service, view: &'a Tables) -> Vec<&'a Arc<Task>> {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let newest = tasks.chunk_by(|left, right| left.slot == right.slot).filter_map(|slot| {
        let newest = slot.iter().copied().max_by_key(|task| task.meta.order())?;
        let is_alone = slot.iter().all(|task| task.id == newest.id || task.status.state.is_terminal());
        is_alone.then_some(newest)
    });
    let stays = |task: &&Arc<Task>| {
        task.is_serving()
            && task.desired_state == DesiredState::Running
            && task.spec_version == service.spec_version
            && !task.paused
            && view.node_of(task).is_some_and(|node| takes_tasks(node))
    };
    newest.filter(stays).collect()
}

/// Tasks of the service in each group of nodes of its spread, by the values of the first levels.
fn groups_of(service: &Service, counts: &Counts) -> BTreeMap<Vec<String>, i64> {
    let mut groups = BTreeMap::new();
    if service.spec.spread_over.is_empty() {
        return groups;
    }
    for node in counts.view.nodes() {
        let values = values_of(service, node);
        for level in 1..=values.len() {
            *groups.entry(values[..level].to_vec()).or_default() += counts.of_service(&service.id, &node.id);
        }
    }
    groups
}

/// The values of a node for the levels of the service's spread.
fn values_of(service: &Service, node: &Node) -> Vec<String> {
    service.spec.spread_over.iter().map(|key| node.property(key).unwrap_or_default().to_owned()).collect()
}

fn weight(service: &Service, node: &Node, groups: &BTreeMap<Vec<String>, i64>, counts: &Counts) -> Weight {
    let values = values_of(service, node);
    let count = |level: usize| groups.get(&values[..=level]).copied().unwrap_or_default();
    let levels = (0..values.len()).map(|level| (count(level), values[level].clone())).collect();
    (levels, counts.of_service(&service.id, &node.id), counts.of_node(&node.id))
}

/// Whether the node has room for one more task of the service, by its present spec.
fn fits(service: &Service, node: &Arc<Node>, view: &Tables) -> bool {
    let task = Demand::of_present(service);
    // The room of a node for which a task waits is for that one.
    view.claims_on(&node.id).next().is_none()
        && filters::refuses(&task, &Candidate::new(node, &service.id, view), view).is_none()
}

/// Returns the node to which a task of the service moves best from this one; `None` if it should stay.
fn best_for<'a>(
    service: &Service,
    from: &Node,
    takers: &[&'a Arc<Node>],
    weigh: impl Fn(&Node) -> Weight,
    view: &Tables,
) -> Option<&'a Arc<Node>> {
    let weight = weigh(from);
    if service.spec.spread_over.is_empty() {
        // What a look at every node would find: none has fewer tasks of the service, or fewer in all.
        let fewest = view.live_task_levels(&service.id).next().map_or(0, |(level, _)| level as i64);
        let lightest = takers.first().map(|node| view.load(&node.id).live as i64)?;
        if fewest >= weight.1 || fewest == weight.1 - 1 && lightest > weight.2 - 2 {
            return None;
        }
    }
    let mut best: Option<(Weight, &Arc<Node>)> = None;
    for node in takers {
        let to = weigh(node);
        let is_best = best.as_ref().is_none_or(|(best, _)| to < *best);
        if is_best && is_better(&weight, &to) && fits(service, node, view) {
            best = Some((to, node));
        }
    }
    best.map(|(_, node)| node)
}

#[cfg(test)]
mod tests;
