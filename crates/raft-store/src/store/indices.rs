//! Indices over the tables: the tasks of a service, of a slot and of a node, those that wait or have failed, what
//! unfinished tasks use, who holds which image, and which nodes are managers. Those of networks are in `networks.rs`.
//!
//! [`super::Tables::put`] and [`super::Tables::remove`] keep them up to date, so a change costs what it touches. They
//! follow from the objects, so they are neither in the digest nor in a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::groups::{Groups, Tally};
use super::networks::NetworkIndices;
use flota_api::id::{ImageId, NodeId, ServiceId, TaskId};
use flota_api::model::{Image, Node, Role, Service, Task};
use flota_api::resources::Resources;
use flota_api::state::TaskState;
use flota_api::version::Version;

/// The resources that the tasks of a node hold there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Reservations of all tasks that have not ended.
    pub reserved: Resources,
    /// Number of tasks that have not ended.
    pub held: u64,
    /// Number of tasks that have neither ended nor been told to stop.
    pub live: u64,
}

/// Every index. The fields are read by the accessors of the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Indices {
    /// Tasks of a service, by slot.
    pub(super) of_service: Groups<ServiceId, (u64, TaskId)>,
    pub(super) of_node: Groups<NodeId, TaskId>,
    /// Tasks of a service that may run and have no node yet.
    pub(super) waiting: Groups<ServiceId, TaskId>,
    /// Tasks of a service that failed or were rejected.
    pub(super) failed: Groups<ServiceId, TaskId>,
    /// Number of live tasks of a service on each node.
    pub(super) live: Tally<ServiceId, NodeId>,
    /// Number of tasks made from each version of a service's spec.
    pub(super) versions: Tally<ServiceId, u64>,
    /// Number of live tasks made from each version of a service's spec.
    pub(super) live_versions: Tally<ServiceId, u64>,
    /// Number of unfinished tasks with this image digest, by node.
    pub(super) users: Tally<Arc<str>, Option<NodeId>>,
    pub(super) loads: OrdMap<NodeId, Load>,
    /// Nodes that take tasks, by their number of live tasks.
    pub(super) takers: OrdSet<(u64, NodeId)>,
    /// For each service, how many of the nodes that take tasks have this number of its live tasks, if they have any.
    pub(super) levels: Tally<ServiceId, u64>,
    /// Images with this digest; those that have a name come first.
    pub(super) images: Groups<Arc<str>, (bool, ImageId)>,
    /// Services that are pinned to this image digest.
    pub(super) pins: Groups<Arc<str>, ServiceId>,
    /// Images that a node holds or was asked to hold.
    pub(super) images_of_node: Groups<NodeId, ImageId>,
    pub(super) managers: OrdSet<NodeId>,
    pub(super) networks: NetworkIndices,
}

/// Everything about a task that an index depends on.
#[derive(PartialEq)]
struct Facts<'a> {
    task: (&'a ServiceId, u64, u64, &'a TaskId),
    node: Option<&'a NodeId>,
    digest: Option<&'a str>,
    is_waiting: bool,
    has_ended: bool,
    has_failed: bool,
    is_live: bool,
}

impl<'a> Facts<'a> {
    fn of(task: &'a Task) -> Self {
        let state = task.status.state;
        Self {
            task: (&task.service_id, task.slot, task.spec_version, &task.id),
            node: task.node_id.as_ref(),
            digest: task.image_digest.as_deref(),
            is_waiting: task.is_waiting(),
            has_ended: state.is_terminal(),
            has_failed: matches!(state, TaskState::Failed | TaskState::Rejected),
            is_live: task.is_live(),
        }
    }

    fn service(&self) -> ServiceId {
        self.task.0.clone()
    }

    fn id(&self) -> TaskId {
        self.task.3.clone()
    }

    /// The node whose resources the task holds.
    fn host(&self) -> Option<&NodeId> {
        self.node.filter(|_| !self.has_ended)
    }

    /// The service and the node that have the task among their live ones.
    fn live(&self) -> Option<(&ServiceId, &NodeId)> {
        self.node.filter(|_| self.is_live).map(|node| (self.task.0, node))
    }
}

impl Indices {
    /// Follows the change of a task from `old` to `new`, which comes after this version. `reserved` is what its spec
    /// reserves.
    pub(super) fn task(&mut self, old: Option<&Task>, new: Option<&Task>, reserved: &Resources, after: Version) {
        self.networks.task(old, new, after);
        let (old, new) = (old.map(Facts::of), new.map(Facts::of));
        // Most changes are reports of progress, which concern no index.
        if old == new {
            return;
        }
        macro_rules! follow {
            ($index:ident, $fact:expr) => {
                self.$index.update(old.as_ref().and_then($fact), new.as_ref().and_then($fact))
            };
        }
        follow!(of_service, |it: &Facts| Some((it.service(), (it.task.1, it.id()))));
        follow!(versions, |it: &Facts| Some((it.service(), it.task.2)));
        follow!(of_node, |it: &Facts| Some((it.node?.clone(), it.id())));
        follow!(waiting, |it: &Facts| it.is_waiting.then(|| (it.service(), it.id())));
        follow!(failed, |it: &Facts| it.has_failed.then(|| (it.service(), it.id())));
        follow!(live, |it: &Facts| it.live().map(|(service, node)| (service.clone(), node.clone())));
        follow!(live_versions, |it: &Facts| it.is_live.then(|| (it.service(), it.task.2)));
        follow!(users, |it: &Facts| Some((it.digest.filter(|_| !it.has_ended)?.into(), it.node.cloned())));
        if let Some((node, it)) = old.as_ref().and_then(|it| Some((it.host()?, it))) {
            self.unload(node, reserved, it.is_live);
        }
        if let Some((node, it)) = new.as_ref().and_then(|it| Some((it.host()?, it))) {
            let load = self.loads.entry(node.clone()).or_default();
            load.reserved = load.reserved.plus(reserved);
            load.held += 1;
            load.live += u64::from(it.is_live);
        }
        let (was, is) = (old.as_ref().and_then(Facts::live), new.as_ref().and_then(Facts::live));
        if was != is {
            was.into_iter().for_each(|(service, node)| self.rank(service, node, |now| now + 1));
            is.into_iter().for_each(|(service, node)| self.rank(service, node, |now| now - 1));
        }
    }

    /// Ranks the node again, if it takes tasks, after its live tasks of this service have changed by one. `before`
    /// returns what a present number was.
    fn rank(&mut self, service: &ServiceId, node: &NodeId, before: impl Fn(u64) -> u64) {
        let live = self.loads.get(node).map_or(0, |load| load.live);
        if self.takers.remove(&(before(live), node.clone())).is_none() {
            return;
        }
        self.takers.insert((live, node.clone()));
        let count = self.live.count(service, node);
        let level = |count: u64| (count > 0).then(|| (service.clone(), count));
        self.levels.update(level(before(count)), level(count));
    }

    fn unload(&mut self, node: &NodeId, reserved: &Resources, is_live: bool) {
        let Some(load) = self.loads.get_mut(node) else { return };
        load.reserved = load.reserved.minus(reserved);
        load.held -= 1;
        load.live -= u64::from(is_live);
        if load.held == 0 {
            self.loads.remove(node);
        }
    }

    /// Follows the change of a service from `old` to `new`.
    pub(super) fn service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        self.networks.service(old, new);
        let pin = |it: &Service| Some((it.image_digest.as_deref()?.into(), it.id.clone()));
        self.pins.update(old.and_then(pin), new.and_then(pin));
    }

    /// Follows the change of an image from `old` to `new`.
    pub(super) fn image(&mut self, old: Option<&Image>, new: Option<&Image>) {
        let fact = |it: &Image| (Arc::from(it.digest.as_str()), (it.references.is_empty(), it.id.clone()));
        self.images.update(old.map(fact), new.map(fact));
        let holders = |image: Option<&Image>| -> Vec<(NodeId, ImageId)> {
            let holders = image.into_iter().flat_map(|it| it.holders.iter().map(|holder| (holder, it.id.clone())));
            holders.map(|(holder, id)| (holder.node_id.clone(), id)).collect()
        };
        holders(old).into_iter().for_each(|it| self.images_of_node.update(Some(it), None));
        holders(new).into_iter().for_each(|it| self.images_of_node.update(None, Some(it)));
    }

    /// Follows the change of a node from `old` to `new`, which comes after this version. `services` have live tasks on it.
    pub(super) fn node(
        &mut self,
        old: Option<&Node>,
        new: Option<&Node>,
        services: BTreeSet<ServiceId>,
        after: Version,
    ) {
        self.networks.node(old, new, after);
        let taker = |node: Option<&Node>| node.filter(|node| node.takes_tasks()).map(|node| node.id.clone());
        let (was, is) = (taker(old), taker(new));
        if let Some(node) = was.as_ref().or(is.as_ref()).filter(|_| was != is) {
            let place = (self.loads.get(node).map_or(0, |load| load.live), node.clone());
            if is.is_some() {
                self.takers.insert(place);
            } else {
                self.takers.remove(&place);
            }
            for service in services {
                let level = (service.clone(), self.live.count(&service, node));
                self.levels.update(was.is_some().then(|| level.clone()), is.is_some().then_some(level));
            }
        }
        let is_manager = |node: &Node| node.role == Role::Manager;
        if let Some(old) = old.filter(|node| is_manager(node)) {
            self.managers.remove(&old.id);
        }
        if let Some(new) = new.filter(|node| is_manager(node)) {
            self.managers.insert(new.id.clone());
        }
    }

    /// The tasks of one slot.
    pub(super) fn of_slot(&self, service: &ServiceId, slot: u64) -> impl Iterator<Item = &TaskId> {
        // No id is below the empty one.
        let end = slot.saturating_add(1);
        let tasks = self.of_service.range(service, (slot, TaskId::default()), (end, TaskId::default()));
        tasks.map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::store::Tables;
    use flota_api::model::{ImageHolder, NodeState, Service, ServiceSpec, TaskStatus};
    use flota_api::object::{Kind, StoreObject};
    use flota_api::state::DesiredState;

    const NODES: [&str; 3] = ["n0", "n1", "n2"];
    const SERVICES: [&str; 3] = ["s0", "s1", "s2"];
    const STATES: [TaskState; 4] = [TaskState::Pending, TaskState::Running, TaskState::Failed, TaskState::Shutdown];

    fn random_task(rng: &mut StdRng) -> Task {
        let name = |prefix: &str, number: u32| format!("{prefix}{number}");
        Task {
            id: name("t", rng.random_range(0..30)).into(),
            service_id: name("s", rng.random_range(0..3)).into(),
            spec_version: 1,
            slot: rng.random_range(1..4),
            node_id: rng.random_bool(0.8).then(|| name("n", rng.random_range(0..3)).into()),
            desired_state: [DesiredState::Running, DesiredState::Remove][rng.random_range(0..2)],
            status: TaskStatus { state: STATES[rng.random_range(0..4)], ..TaskStatus::default() },
            image_digest: rng.random_bool(0.5).then(|| name("sha256:", rng.random_range(0..2))),
            ..Task::default()
        }
    }

    /// Everything that the accessors say about tasks, from the tasks themselves.
    fn counted(tables: &Tables) -> (BTreeMap<String, Load>, Vec<String>) {
        let (mut loads, mut facts): (BTreeMap<_, Load>, _) = (BTreeMap::new(), Vec::new());
        for task in tables.tasks() {
            let Task { id, service_id, slot, node_id, status, .. } = task.as_ref();
            facts.push(format!("{id} in {service_id}.{slot}"));
            facts.extend(node_id.iter().map(|node| format!("{id} on {node}")));
            facts.extend(task.is_waiting().then(|| format!("{id} waits in {service_id}")));
            let has_failed = matches!(status.state, TaskState::Failed | TaskState::Rejected);
            facts.extend(has_failed.then(|| format!("{id} failed in {service_id}")));
            let digest = task.image_digest.as_ref().filter(|_| !status.state.is_terminal());
            facts.extend(digest.map(|digest| format!("{digest} used on {node_id:?}")));
            if let Some(node) = node_id {
                facts.extend(task.is_live().then(|| format!("{service_id} is live on {node}")));
                if task.holds_resources() {
                    let load = loads.entry(node.to_string()).or_default();
                    load.reserved = load.reserved.plus(&tables.spec_of(task).expect("its service has it").reservations);
                    (load.held, load.live) = (load.held + 1, load.live + u64::from(task.is_live()));
                }
            }
        }
        let takers = tables.nodes().filter(|node| node.takes_tasks()).map(|node| &node.id);
        let live = |node: &NodeId| loads.get(node.as_str()).map_or(0, |load| load.live);
        let mut takers: Vec<_> = takers.map(|node| (live(node), node)).collect();
        takers.sort();
        for service in SERVICES.map(ServiceId::from) {
            let of_service = |node: &NodeId| {
                tables.tasks().filter(|it| it.is_live() && it.service_id == service && it.is_on(node)).count()
            };
            let fewest = takers.iter().map(|(_, node)| of_service(node)).min().unwrap_or_default();
            facts.push(format!("{service} has at least {fewest} on each of {takers:?}"));
        }
        facts.sort();
        facts.dedup();
        (loads, facts)
    }

    fn indexed(tables: &Tables) -> (BTreeMap<String, Load>, Vec<String>) {
        let mut facts = Vec::new();
        for service in tables.services_with_tasks() {
            for slot in 1..4 {
                facts
                    .extend(tables.tasks_of_slot(service, slot).map(|task| format!("{} in {service}.{slot}", task.id)));
            }
            facts.extend(tables.tasks_failed(service).map(|task| format!("{} failed in {service}", task.id)));
        }
        let takers: Vec<_> = tables.takers().map(|node| (tables.load(&node.id).live, &node.id)).collect();
        for service in SERVICES.map(ServiceId::from) {
            facts.push(format!("{service} has at least {} on each of {takers:?}", tables.fewest_live_tasks(&service)));
            let is_live = |node: &&str| tables.live_tasks(&service, &(*node).into()) > 0;
            facts.extend(NODES.into_iter().filter(is_live).map(|node| format!("{service} is live on {node}")));
        }
        for service in tables.services_waiting() {
            facts.extend(tables.tasks_waiting(service).map(|task| format!("{} waits in {service}", task.id)));
        }
        for node in NODES {
            facts.extend(tables.tasks_of_node(&node.into()).map(|task| format!("{} on {node}", task.id)));
        }
        for digest in ["sha256:0", "sha256:1"] {
            facts.extend(tables.users_of_image(digest).map(|node| format!("{digest} used on {:?}", node.cloned())));
        }
        facts.sort();
        let loads = NODES.map(|node| (node.to_owned(), tables.load(&node.into())));
        (loads.into_iter().filter(|(_, load)| load.held > 0).collect(), facts)
    }

    #[test]
    fn the_indices_say_what_the_tasks_say_after_any_changes() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut tables = Tables::default();
        for number in 0..3u64 {
            let reservations = Resources { nano_cpus: number, memory_bytes: 1 };
            let spec = Arc::new(ServiceSpec { name: format!("s{number}"), reservations, ..ServiceSpec::default() });
            let id = format!("s{number}").into();
            tables.put(Service { id, spec, spec_version: 1, ..Service::default() }.into_object());
        }
        for step in 0..3_000 {
            if rng.random_bool(0.1) {
                let state = if rng.random_bool(0.5) { NodeState::Ready } else { NodeState::Unknown };
                let id = NODES[rng.random_range(0..3)].into();
                tables.put(Node { id, state, ..Node::default() }.into_object());
            } else if rng.random_bool(0.02) {
                tables.remove(Kind::Node, NODES[rng.random_range(0..3)]);
            }
            let task = random_task(&mut rng);
            match tables.task(&task.id).cloned() {
                Some(task) if rng.random_bool(0.3) => drop(tables.remove(Kind::Task, task.id.as_str())),
                // The service and the slot of a task never change.
                Some(old) => {
                    tables.put(Task { service_id: old.service_id.clone(), slot: old.slot, ..task }.into_object())
                }
                None => tables.put(task.into_object()),
            }
            assert_eq!(indexed(&tables), counted(&tables), "after {step} steps");
        }
    }

    #[test]
    fn a_pinned_image_is_used_until_its_last_service_lets_go() {
        let mut tables = Tables::default();
        let pinned = |id: &str, digest: Option<&str>| {
            Service { id: id.into(), image_digest: digest.map(str::to_owned), ..Service::default() }.into_object()
        };
        tables.put(pinned("a", Some("sha256:1")));
        tables.put(pinned("b", Some("sha256:1")));
        tables.put(pinned("a", Some("sha256:2")));
        assert!(tables.is_pinned("sha256:1") && tables.is_pinned("sha256:2"));
        tables.remove(Kind::Service, "b");
        tables.put(pinned("a", None));
        assert!(!tables.is_pinned("sha256:1") && !tables.is_pinned("sha256:2"));
    }

    #[test]
    fn images_are_found_by_digest_and_by_holder_and_a_named_one_first() {
        let mut tables = Tables::default();
        let held_by = |node: &str| vec![ImageHolder { node_id: node.into(), confirmed: true }];
        let image = |id: &str, reference: Option<&str>, node: &str| Image {
            id: id.into(),
            references: reference.into_iter().map(Into::into).collect(),
            digest: "sha256:1".into(),
            holders: held_by(node),
            ..Image::default()
        };
        tables.put(image("a", None, "n").into_object());
        tables.put(image("b", Some("web"), "n").into_object());
        let found = |tables: &Tables| tables.image_by_digest("sha256:1").map(|image| image.id.to_string());
        let held = |tables: &Tables, node: &str| tables.images_of_node(&node.into()).count();
        assert_eq!((found(&tables), held(&tables, "n")), (Some("b".into()), 2));
        tables.put(image("b", None, "m").into_object());
        assert_eq!((found(&tables), held(&tables, "n"), held(&tables, "m")), (Some("a".into()), 1, 1));
        tables.remove(Kind::Image, "a");
        tables.remove(Kind::Image, "b");
        assert_eq!((found(&tables), held(&tables, "n"), held(&tables, "m")), (None, 0, 0));
    }

    #[test]
    fn managers_are_the_nodes_of_that_role() {
        let mut tables = Tables::default();
        let node = |role| Node { id: "n".into(), role, ..Node::default() }.into_object();
        for (role, expected) in [(Role::Worker, 0), (Role::Manager, 1), (Role::Worker, 0), (Role::Manager, 1)] {
            tables.put(node(role));
            assert_eq!(tables.managers().count(), expected);
        }
        tables.remove(Kind::Node, "n");
        assert_eq!(tables.managers().count(), 0);
    }
}
