//! The nodes for the tasks of one service, best first.
//!
//! The tables have the nodes in the order of their load, and know how many nodes have which number of tasks of a service. A
//! node with the smallest number, found in that order, is the best one, so a few tasks are placed after a look at a few
//! nodes. When those with the two smallest numbers are used up, all others are looked at, once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use flota_api::id::{NodeId, ServiceId};
use flota_api::model::{DeviceId, Filter, Node, PlacementStrategy, Task};
use flota_api::object::Kind;
use flota_api::version::Timestamp;
use flota_raft_store::Tables;

use super::candidate::{Candidate, Rank};
use super::filters::{self, Demand};
use super::spread::Spread;
use crate::plan::{Plan, PlanContext};
use crate::usage::Usage;

/// Every node, in an order that is made as far as it is needed.
pub(super) struct Ranking<'a> {
    service: &'a ServiceId,
    task: Demand<'a>,
    view: &'a Tables,
    /// What is in use on the nodes, if that decides, and the time.
    usage: Option<(Usage, Timestamp)>,
    /// The nodes that were looked at and do not refuse the spec, and all that the plan has changed.
    seen: Vec<Candidate<'a>>,
    /// Those of `seen` that do not refuse the spec, by rank; those with the same rank by id.
    best: BinaryHeap<Reverse<(Rank, NodeId, usize)>>,
    /// The place in `seen` of each node that is there. The walk leaves these out.
    places: BTreeMap<NodeId, usize>,
    /// The number of tasks of the service on the nodes that the walk looks for, and how many of them are still ahead.
    level: (u64, u64),
    /// The level after that.
    further: Option<(u64, u64)>,
    /// The nodes that take tasks, in the order of their load, and the next one of the level that does not refuse the spec.
    walk: Box<dyn Iterator<Item = &'a Arc<Node>> + 'a>,
    next: Option<Candidate<'a>>,
    /// Whether all nodes that do not refuse the spec are in `seen`.
    is_complete: bool,
    /// Takes the place of `best` if the spec asks for a spread over groups of nodes.
    spread: Option<Spread>,
}

impl<'a> Ranking<'a> {
    /// Ranks the nodes for the tasks of a spec of the service. `failures` has the number of recent failures of the spec on
    /// each node, and `used` has the nodes that differ from what the tables have.
    pub(super) fn new(
        service: &'a ServiceId,
        task: Demand<'a>,
        view: &'a Tables,
        failures: &BTreeMap<NodeId, u64>,
        used: Vec<Candidate<'a>>,
        cx: &PlanContext,
    ) -> Self {
        let by_usage = task.spec.strategy == PlacementStrategy::LeastUsed;
        let usage = by_usage.then(|| (cx.usage.clone(), cx.now));
        let mut seen = used;
        let mut places: BTreeMap<NodeId, usize> =
            seen.iter().enumerate().map(|(index, it)| (it.node.id.clone(), index)).collect();
        for id in failures.keys() {
            if let Some(node) = view.node(id)
                && !places.contains_key(id)
            {
                places.insert(id.clone(), seen.len());
                seen.push(Candidate::new(node, service, view));
            }
        }
        for node in &mut seen {
            node.failures = failures.get(&node.node.id).copied().unwrap_or_default();
            if let Some((usage, now)) = &usage {
                node.look_up_usage(usage, view, *now);
            }
        }
        let mut levels = view.live_task_levels(service);
        let (level, further) = (levels.next().unwrap_or_default(), levels.next());
        let walk = Box::new(view.takers());
        let best = BinaryHeap::new();
        let spread =
            (!task.spec.spread_over.is_empty()).then(|| Spread::new(&task.spec.spread_over, &seen, service, view));
        let (next, is_complete) = (None, false);
        let mut it =
            Self { service, task, view, usage, seen, best, places, level, further, walk, next, is_complete, spread };
        (0..it.seen.len()).for_each(|index| it.rank(index));
        it
    }

    /// Returns the nodes that differ from what the tables have.
    pub(super) fn into_used(self) -> Vec<Candidate<'a>> {
        self.seen.into_iter().filter(Candidate::differs).collect()
    }

    /// Before a task of this slot gets a node, `is_released`, the tasks that it replaces no longer count against the number
    /// of slots that a node may have; if it has got none, they count again. Those of other slots do count: their
    /// successors may have to wait.
    pub(super) fn release_slot(&mut self, slot: u64, is_released: bool) {
        if self.task.spec.max_replicas_per_node.is_none() {
            return;
        }
        let replaced = self.tasks_of_slot(slot).filter(|task| task.is_live()).filter_map(|task| task.node_id.as_ref());
        for index in replaced.filter_map(|id| self.places.get(id).copied()).collect::<Vec<_>>() {
            if is_released {
                self.seen[index].release_slot(slot);
                self.rank(index);
            } else {
                self.seen[index].keep_slot(slot);
            }
        }
    }

    /// Gives the best node a task, and returns it with the devices of the task; `None` if every node refuses the spec.
    pub(super) fn take(&mut self, plan: &mut Plan) -> Option<(NodeId, Vec<DeviceId>)> {
        let index = self.choose()?;
        let node = &mut self.seen[index];
        let devices = node.take(self.task.spec, self.view);
        let id = node.node.id.clone();
        plan.expect(Kind::Node, &id);
        if let Some(spread) = &mut self.spread {
            spread.count(node.node);
        }
        self.rank(index);
        Some((id, devices))
    }

    /// Gives this node a task, and returns the devices of the task.
    ///
    /// # Errors
    /// The filter that refuses the node; `None` if there is no such node.
    pub(super) fn take_on(&mut self, id: &NodeId, plan: &mut Plan) -> Result<Vec<DeviceId>, Option<Filter>> {
        let index = self.place_of(id).ok_or(None)?;
        let node = &mut self.seen[index];
        if let Some(filter) = filters::refuses(&self.task, node, self.view) {
            return Err(Some(filter));
        }
        let devices = node.take(self.task.spec, self.view);
        if let Some(spread) = &mut self.spread {
            spread.count(node.node);
        }
        plan.expect(Kind::Node, id);
        Ok(devices)
    }

    /// Returns the place of this node among those that were seen; `None` if there is no such node.
    fn place_of(&mut self, id: &NodeId) -> Option<usize> {
        if let Some(index) = self.places.get(id) {
            return Some(*index);
        }
        let node = self.view.node(id)?;
        let next = self.next.take_if(|next| next.node.id == node.id);
        let index = self.look_at(next.unwrap_or_else(|| self.as_in_tables(node)));
        // From here on the walk leaves it out.
        self.rank(index);
        Some(index)
    }

    /// A node as the tables have it.
    fn as_in_tables(&self, node: &'a Arc<Node>) -> Candidate<'a> {
        let mut candidate = Candidate::new(node, self.service, self.view);
        if let Some((usage, now)) = &self.usage {
            candidate.look_up_usage(usage, self.view, *now);
        }
        candidate
    }

    /// This node as the plan leaves it so far.
    pub(super) fn candidate(&self, node: &'a Arc<Node>) -> Candidate<'a> {
        let known = self.places.get(&node.id).map(|index| self.seen[*index].clone());
        known.unwrap_or_else(|| self.as_in_tables(node))
    }

    /// Keeps room on this node for a task that waits until tasks there have ended: those that were told before, and these.
    pub(super) fn hold(&mut self, id: &NodeId, leaving: &[&Arc<Task>], plan: &mut Plan) {
        let Some(index) = self.place_of(id) else { return };
        let node = &mut self.seen[index];
        node.hold(self.task.spec, leaving);
        if let Some(spread) = &mut self.spread {
            spread.count(node.node);
        }
        plan.expect(Kind::Node, id);
    }

    /// The order of nodes that fit equally well, lower is better: of the groups of the spread, then of the nodes.
    pub(super) fn preference(&self, node: &Candidate) -> (Vec<u64>, Rank) {
        let groups = self.spread.as_ref().map(|spread| spread.counts_of(node.node)).unwrap_or_default();
        (groups, node.rank(self.task.spec.strategy))
    }

    /// The tasks of one slot of the service.
    pub(super) fn tasks_of_slot(&self, slot: u64) -> impl Iterator<Item = &'a Arc<Task>> {
        self.view.tasks_of_slot(self.service, slot)
    }

    pub(super) fn demand(&self) -> Demand<'a> {
        self.task
    }

    /// Takes the best node out of the order.
    fn choose(&mut self) -> Option<usize> {
        if self.looks_at_all() {
            self.complete();
        } else {
            self.look_ahead();
        }
        if self.spread.is_some() {
            while let Some((rank, index)) = self.spread.as_mut().and_then(Spread::pop) {
                match self.outdated(rank, index) {
                    Some(index) => self.rank(index),
                    None => return Some(index),
                }
            }
            return None;
        }
        while let Some(index) = self.best.peek().and_then(|Reverse((rank, _, index))| self.outdated(*rank, *index)) {
            self.best.pop();
            self.rank(index);
        }
        let strategy = self.task.spec.strategy;
        let top = self.best.peek().map(|Reverse((rank, id, _))| (*rank, id));
        if let Some(next) = self.next.take_if(|next| top.is_none_or(|top| (next.rank(strategy), &next.node.id) < top)) {
            return Some(self.look_at(next));
        }
        self.best.pop().map(|Reverse((_, _, index))| index)
    }

    /// A node that was taken out of turn has another rank now, and one that was ranked for a successor of a task there may
    /// refuse others.
    fn outdated(&self, rank: Rank, index: usize) -> Option<usize> {
        let node = &self.seen[index];
        let may_refuse = self.task.spec.max_replicas_per_node.is_some();
        (node.rank(self.task.spec.strategy) != rank || may_refuse && !self.fits(node)).then_some(index)
    }

    /// Keeps a node that is looked at. Returns its place.
    fn look_at(&mut self, node: Candidate<'a>) -> usize {
        self.places.insert(node.node.id.clone(), self.seen.len());
        self.seen.push(node);
        self.seen.len() - 1
    }

    /// Finds the next node of the level, or of the one after it; if there is none, ranks all that are left.
    fn look_ahead(&mut self) {
        while self.next.is_none() && !self.is_complete {
            let (level, ahead) = &mut self.level;
            match self.walk.next().filter(|_| *ahead > 0) {
                Some(node) if self.view.live_tasks(self.service, &node.id) == *level => {
                    *ahead -= 1;
                    self.next = if self.is_known(node) { None } else { self.fitting(node) };
                }
                Some(_) => {}
                None => match self.further.take() {
                    Some(further) => (self.level, self.walk) = (further, Box::new(self.view.takers())),
                    None => self.complete(),
                },
            }
        }
    }

    fn complete(&mut self) {
        if std::mem::replace(&mut self.is_complete, true) {
            return;
        }
        for node in self.view.takers() {
            if !self.is_known(node)
                && let Some(node) = self.fitting(node)
            {
                let index = self.look_at(node);
                self.rank(index);
            }
        }
    }

    /// Whether the best node is not the first of a level in the order of the tables.
    fn looks_at_all(&self) -> bool {
        self.spread.is_some() || self.task.spec.strategy != PlacementStrategy::Spread
    }

    fn is_known(&self, node: &Node) -> bool {
        !self.places.is_empty() && self.places.contains_key(&node.id)
    }

    pub(super) fn fits(&self, node: &Candidate) -> bool {
        filters::refuses(&self.task, node, self.view).is_none()
    }

    fn fitting(&self, node: &'a Arc<Node>) -> Option<Candidate<'a>> {
        Some(self.as_in_tables(node)).filter(|node| self.fits(node))
    }

    /// Puts a node into the order, unless it refuses the spec.
    fn rank(&mut self, index: usize) {
        let node = &self.seen[index];
        if !self.fits(node) {
            return;
        }
        let rank = node.rank(self.task.spec.strategy);
        match &mut self.spread {
            Some(spread) => spread.push(node, rank, index),
            None => self.best.push(Reverse((rank, node.node.id.clone(), index))),
        }
    }

    /// Returns how many nodes each filter refuses.
    pub(super) fn count_refusals(&self) -> BTreeMap<Filter, u64> {
        let used: BTreeMap<&NodeId, &Candidate> = self.seen.iter().map(|it| (&it.node.id, it)).collect();
        let mut refused: BTreeMap<Filter, u64> = BTreeMap::new();
        for node in self.view.nodes() {
            let filter = match used.get(&node.id) {
                Some(node) => filters::refuses(&self.task, node, self.view),
                None => filters::refuses(&self.task, &Candidate::new(node, self.service, self.view), self.view),
            };
            filter.into_iter().for_each(|filter| *refused.entry(filter).or_default() += 1);
        }
        refused
    }

    /// Whether the node of this task has room for the spec once the task has ended.
    pub(super) fn fits_without(&self, task: &Task) -> bool {
        let Some(node) = self.view.node_of(task) else { return false };
        self.fits(&self.candidate(node).without(task, self.view))
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use flota_api::model::{NodeState, Service, ServiceSpec, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::resources::Resources;
    use flota_api::state::TaskState;

    fn put_node(view: &mut Tables, id: &str, state: NodeState, nano_cpus: u64) {
        let mut node = Node { id: id.into(), state, ..Node::default() };
        node.description.resources = Resources { nano_cpus, memory_bytes: 0 };
        view.put(node.into_object());
    }

    fn put_task(view: &mut Tables, id: String, service: &str, node: &str) {
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let (id, node_id) = (id.into(), Some(node.into()));
        let task = Task { id, service_id: service.into(), spec_version: 1, node_id, status, ..Task::default() };
        view.put(task.into_object());
    }

    fn put_services(view: &mut Tables) {
        for (id, nano_cpus) in [("s", 1), ("other", 2)] {
            let reservations = Resources { nano_cpus, memory_bytes: 0 };
            let spec = Arc::new(ServiceSpec { name: id.into(), reservations, ..ServiceSpec::default() });
            view.put(Service { id: id.into(), spec, spec_version: 1, ..Service::default() }.into_object());
        }
    }

    /// Ten nodes, some of which take no tasks, with few resources and any tasks of two services.
    fn random_view(rng: &mut StdRng) -> Tables {
        let mut view = Tables::default();
        put_services(&mut view);
        for number in 0..10 {
            let state = if rng.random_bool(0.8) { NodeState::Ready } else { NodeState::Down };
            put_node(&mut view, &format!("n{number}"), state, rng.random_range(0..12));
        }
        for number in 0..rng.random_range(0..20) {
            let service = ["s", "other"][rng.random_range(0..2)];
            put_task(&mut view, format!("t{number}"), service, &format!("n{}", rng.random_range(0..10)));
        }
        view
    }

    /// The best node for the next task, after a look at all of them.
    fn best(view: &Tables, spec: &ServiceSpec, failures: &BTreeMap<NodeId, u64>) -> Option<NodeId> {
        let service = "s".into();
        let rank = |node: &Arc<Node>| {
            let mut node = Candidate::new(node, &service, view);
            node.failures = failures.get(&node.node.id).copied().unwrap_or_default();
            let fits = filters::refuses(&Demand::of_spec(spec), &node, view).is_none();
            fits.then(|| (node.rank(spec.strategy), node.node.id.clone()))
        };
        view.nodes().filter_map(rank).min().map(|(_, id)| id)
    }

    #[test]
    fn each_task_gets_the_node_that_a_look_at_all_of_them_finds() {
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..300 {
            let mut view = random_view(&mut rng);
            let (base, service) = (view.clone(), ServiceId::from("s"));
            let spec = base.spec_version(&service, 1).expect("it is there");
            let failures = (0..rng.random_range(0..3)).map(|_| (format!("n{}", rng.random_range(0..10)).into(), 1));
            let failures: BTreeMap<NodeId, u64> = failures.collect();
            let (mut used, cx) = (Vec::new(), PlanContext::at(Timestamp::default()));
            for number in 0..30 {
                let mut ranking = Ranking::new(&service, Demand::of_spec(spec), &base, &failures, used, &cx);
                // Several tasks with the same ranking, and one after another.
                for part in 0..rng.random_range(1..4) {
                    let expected = best(&view, spec, &failures);
                    let found = ranking.take(&mut Plan::default()).map(|(id, _)| id);
                    assert_eq!(found, expected, "round {round}, task {number}.{part}");
                    if let Some(node) = found {
                        put_task(&mut view, format!("new{number}.{part}"), "s", node.as_str());
                    }
                }
                used = ranking.into_used();
            }
        }
    }

    #[test]
    fn a_few_tasks_are_placed_after_a_look_at_a_few_nodes() {
        let mut view = Tables::default();
        put_services(&mut view);
        for number in 0..1_000 {
            let node = format!("n{number:04}");
            // One is lost, and with it a task of the service.
            let state = if number == 500 { NodeState::Down } else { NodeState::Ready };
            put_node(&mut view, &node, state, 100);
            if number != 500 {
                put_task(&mut view, format!("a{number}"), "s", &node);
                put_task(&mut view, format!("b{number}"), "other", &node);
            }
        }
        let service = "s".into();
        let spec = view.spec_version(&service, 1).expect("it is there");
        let cx = PlanContext::at(Timestamp::default());
        let mut ranking = Ranking::new(&service, Demand::of_spec(spec), &view, &BTreeMap::new(), Vec::new(), &cx);
        for expected in ["n0000", "n0001", "n0002"] {
            assert_eq!(ranking.take(&mut Plan::default()), Some((expected.into(), Vec::new())));
        }
        assert!(ranking.walk.count() >= 990, "most nodes were not looked at");
    }
}
