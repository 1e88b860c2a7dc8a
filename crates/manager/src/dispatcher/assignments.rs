//! What one worker has been told of its tasks and images, and what is to be told it next. It is pure;
//! `assignment_stream.rs` sends it.
//!
//! Only the parts of a task that can change are remembered, so a session costs little memory, and grants are signed
//! once for an image and not once for a task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::{NodeId, TaskId};
use flota_api::image_ref::ImageRef;
use flota_api::model::{Node, NodeState, Registry, ServiceSpec, Task};
use flota_api::object::Kind;
use flota_api::proto::dispatcher::{
    AssignedSpec, Assignments, Grant, ImageSource, Peer, RegistryCredentials, TaskAssignment,
};
use flota_api::state::{DesiredState, TaskState};
use flota_api::version::{Timestamp, Version};
use flota_identity::GrantKey;
use flota_raft_store::Tables;

/// What a worker was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    node: NodeId,
    /// Whether the worker has been sent a full set.
    has_begun: bool,
    tasks: BTreeMap<TaskId, ToldTask>,
    /// The images that the node is to fetch or, if it has them already, to report.
    images: Vec<Arc<ImageSource>>,
    /// Sources of the images of its tasks and of those that it is to fetch, by digest.
    sources: Sources,
    /// Digests of images that the node is known to have.
    held: BTreeSet<String>,
    /// Digests of images that the node holds and the cluster does not need.
    dropped: BTreeSet<String>,
}

/// The parts of an assignment that can change while the worker has it. Its status only repeats the worker's reports.
#[derive(Clone, Debug, PartialEq)]
struct ToldTask {
    desired_state: DesiredState,
    paused: bool,
    not_before: Option<Timestamp>,
    image: Option<Arc<ImageSource>>,
    /// Version of the registry's credentials.
    credentials: Option<Version>,
    /// The cluster's default.
    no_new_privileges: bool,
}

type Sources = BTreeMap<String, Arc<ImageSource>>;

/// The spec of each service and version that assignments name.
type Specs = BTreeMap<(String, u64), Arc<ServiceSpec>>;

/// Signs grants.
pub(super) struct Granter<'a> {
    /// The key in DER; without a valid one, there are no grants.
    pub(super) key: &'a [u8],
    pub(super) expires: Timestamp,
}

impl Granter<'_> {
    /// When grants that are made now expire. It is rounded to a quarter of their lifetime, so that sets made shortly
    /// after each other are equal.
    pub(super) fn expiry(now: Timestamp) -> Timestamp {
        let quarter = u64::try_from(GRANT_LIFE.as_millis() / 4).expect("it is an hour");
        Timestamp((now.0 / quarter + 4) * quarter)
    }

    fn sign(&self, digest: &str, node: &NodeId) -> Option<Grant> {
        Some(GrantKey::from_der(self.key)?.sign(digest, node.as_str(), self.expires))
    }
}

impl Told {
    /// Nothing was told yet. `held`: images that the node reported.
    pub(super) fn new(node: NodeId, held: BTreeSet<String>) -> Self {
        Self { node, held, ..Self::default() }
    }

    /// Returns the messages that bring the worker to `view`: the full set at first, then the differences.
    pub(super) fn tell(&mut self, view: &Tables, granter: &Granter<'_>, now: Timestamp) -> Vec<Assignments> {
        let (mut tasks, mut specs, mut told, mut sources) = (Vec::new(), Specs::new(), BTreeMap::new(), Sources::new());
        for task in view.tasks_of_node(&self.node).filter(|task| is_assigned(task)) {
            let Some(spec) = view.spec_of(task) else { continue };
            let image = task.image_digest.as_ref().map(|digest| self.source(digest, view, granter, &mut sources));
            let needs_registry = image.as_ref().is_none_or(|image| image.holders.is_empty());
            let registry = if needs_registry { registry(&spec.image, view) } else { None };
            let now = ToldTask {
                desired_state: task.desired_state,
                paused: task.paused,
                not_before: task.not_before,
                image,
                credentials: registry.map(|registry| registry.meta.version),
                no_new_privileges: view.cluster().is_some_and(|cluster| cluster.no_new_privileges),
            };
            if self.tasks.get(&task.id) != Some(&now) {
                let task = assignment(task, spec, &now, registry);
                specs.entry((task.service_id.clone(), task.spec_version)).or_insert_with(|| Arc::clone(spec));
                tasks.push(task);
            }
            told.insert(task.id.clone(), now);
        }
        let wanted = view.images_of_node(&self.node).filter(|image| !image.confirmed().any(|id| *id == self.node));
        let images: Vec<_> = wanted.map(|image| self.source(&image.digest, view, granter, &mut sources)).collect();
        // An image object exists while the image has a name or a task uses it. Without the object, no copy is needed.
        let dropped: BTreeSet<_> =
            self.held.iter().filter(|digest| view.image_by_digest(digest).is_none()).cloned().collect();
        self.held.extend(view.images_of_node(&self.node).map(|image| image.digest.clone()));
        let removed_tasks: Vec<_> =
            self.tasks.keys().filter(|id| !told.contains_key(*id)).map(ToString::to_string).collect();
        let dropped_images: Vec<_> = dropped.difference(&self.dropped).cloned().collect();
        let is_news = !tasks.is_empty() || !removed_tasks.is_empty() || !dropped_images.is_empty();
        let whole = Assignments {
            epoch: view.cluster().map_or(0, |cluster| cluster.epoch),
            version: view.version,
            full: !self.has_begun,
            now: now.0,
            tasks,
            removed_tasks,
            images: images.iter().map(|image| image.as_ref().clone()).collect(),
            dropped_images,
            ..Assignments::default()
        };
        let is_needed = is_news || whole.full || images != self.images;
        (self.has_begun, self.tasks, self.images) = (true, told, images);
        (self.sources, self.dropped) = (sources, dropped);
        if is_needed { cut(whole, &specs) } else { Vec::new() }
    }

    /// Returns the nodes that have the image's blobs for this node's architecture, and the grant with which it may fetch
    /// them. `sources` are those that were found in this view.
    fn source(&self, digest: &str, view: &Tables, granter: &Granter<'_>, sources: &mut Sources) -> Arc<ImageSource> {
        if let Some(source) = sources.get(digest) {
            return Arc::clone(source);
        }
        let confirmed = view.image_by_digest(digest).into_iter().flat_map(|image| image.confirmed());
        let architecture = view.node(self.node.as_str()).map(|node| &node.description.architecture);
        let fits = |holder: &&Arc<Node>| Some(&holder.description.architecture) == architecture;
        let holders: Vec<_> = confirmed
            .filter_map(|id| view.node(id))
            .filter(|holder| holder.id != self.node && holder.state != NodeState::Down)
            .filter(fits)
            .map(|holder| Peer { node_id: holder.id.to_string(), address: holder.address.clone() })
            .collect();
        let is_current = |grant: &Grant| grant.expires_at == granter.expires.0;
        let source = match self.sources.get(digest) {
            Some(known) if known.holders == holders && known.grant.as_ref().is_none_or(is_current) => Arc::clone(known),
            _ => Arc::new(ImageSource { digest: digest.to_owned(), holders, grant: granter.sign(digest, &self.node) }),
        };
        sources.insert(digest.to_owned(), Arc::clone(&source));
        source
    }
}

fn is_assigned(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

fn assignment(task: &Task, spec: &ServiceSpec, told: &ToldTask, registry: Option<&Arc<Registry>>) -> TaskAssignment {
    TaskAssignment {
        task_id: task.id.to_string(),
        service_id: task.service_id.to_string(),
        service_name: spec.name.clone(),
        slot: task.slot,
        desired_state: flota_api::proto::types::DesiredState::from(task.desired_state).into(),
        spec_version: task.spec_version,
        spec: None,
        status: Some((&task.status).into()),
        // The worker counts against the restart budget, and moves between nodes do not count against it.
        inherited_restarts: task.inherited_restarts - task.moves.min(task.inherited_restarts),
        not_before: task.not_before.map(|it| it.0),
        image: told.image.as_ref().map(|image| image.as_ref().clone()),
        credentials: registry.map(|registry| RegistryCredentials {
            host: registry.host.clone(),
            username: registry.username.clone(),
            password: registry.password.as_text().to_owned(),
        }),
        paused: task.paused,
        no_new_privileges: told.no_new_privileges,
        device_ids: task.device_ids.iter().map(Into::into).collect(),
    }
}

/// The credentials of the registry that the reference names.
fn registry<'a>(reference: &str, view: &'a Tables) -> Option<&'a Arc<Registry>> {
    if view.count(Kind::Registry) == 0 {
        return None;
    }
    view.registry_by_host(&ImageRef::parse(reference).ok()?.registry)
}

/// Bytes of one part of a set: far below the limit of a message, so that heartbeats are sent in between.
const PART: usize = 1 << 20;

/// Splits a set into messages within the size limit; each contains the specs of its tasks once. Only the last is marked
/// as the last.
fn cut(mut whole: Assignments, specs: &Specs) -> Vec<Assignments> {
    let tasks = std::mem::take(&mut whole.tasks);
    let images = std::mem::take(&mut whole.images);
    let empty = Assignments { removed_tasks: Vec::new(), dropped_images: Vec::new(), ..whole.clone() };
    let (mut parts, mut part, mut size) = (Vec::new(), whole, 0);
    let room = |part: &mut Assignments, size: &mut usize, more: usize, parts: &mut Vec<Assignments>| {
        if *size > 0 && *size + more > PART {
            parts.push(Assignments { more: true, ..std::mem::replace(part, empty.clone()) });
            *size = 0;
        }
        *size += more;
    };
    let specs: BTreeMap<_, _> = specs.iter().map(|(key, spec)| (key, assigned_spec(key, spec))).collect();
    // The part that has each spec.
    let mut placed: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for task in tasks {
        let key = (task.service_id.clone(), task.spec_version);
        let (task_size, spec_size) = (task.encoded_len(), specs.get(&key).map_or(0, Message::encoded_len));
        room(&mut part, &mut size, task_size + spec_size, &mut parts);
        if placed.get(&key) == Some(&parts.len()) {
            size -= spec_size;
        } else {
            part.specs.extend(specs.get(&key).cloned());
            placed.insert(key, parts.len());
        }
        part.tasks.push(task);
    }
    for image in images {
        room(&mut part, &mut size, image.encoded_len(), &mut parts);
        part.images.push(image);
    }
    parts.push(part);
    parts
}

fn assigned_spec((service_id, spec_version): &(String, u64), spec: &ServiceSpec) -> AssignedSpec {
    AssignedSpec { service_id: service_id.clone(), spec_version: *spec_version, spec: Some(spec.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, DeviceId, Image, ImageHolder, Service, TaskStatus};
    use flota_api::object::StoreObject;

    fn view(states: &[(&str, TaskState, DesiredState)]) -> Tables {
        let mut view = Tables::default();
        view.put(Node { id: "n".into(), ..Node::default() }.into_object());
        view.put(Service { id: "s".into(), spec_version: 1, ..Service::default() }.into_object());
        for (id, state, desired_state) in states {
            let status = TaskStatus { state: *state, ..TaskStatus::default() };
            let task = Task {
                id: (*id).into(),
                service_id: "s".into(),
                spec_version: 1,
                node_id: Some("n".into()),
                ..Task::default()
            };
            view.put(Task { status, desired_state: *desired_state, ..task }.into_object());
        }
        view
    }

    /// Tells the worker `n` this view, and returns the one message, if there is one.
    fn tell(told: &mut Told, view: &Tables) -> Option<Assignments> {
        let mut parts = told.tell(view, &Granter { key: &[], expires: Timestamp(0) }, Timestamp(0));
        assert!(parts.len() < 2, "it is small");
        parts.pop()
    }

    fn nothing_told(held: &[&str]) -> Told {
        Told::new("n".into(), held.iter().map(|it| (*it).to_owned()).collect())
    }

    fn ids(assignments: &Assignments) -> Vec<&str> {
        assignments.tasks.iter().map(|it| it.task_id.as_str()).collect()
    }

    #[test]
    fn a_worker_is_told_what_is_assigned_and_has_not_ended_and_then_what_changed() {
        use DesiredState::{Running as Run, Shutdown as Stop};
        let mut told = nothing_told(&[]);
        let states = [("a", TaskState::Assigned, Run), ("b", TaskState::Failed, Run), ("c", TaskState::Pending, Run)];
        let first = tell(&mut told, &view(&states)).expect("the full set");
        assert!(first.full);
        assert_eq!(ids(&first), ["a"]);
        assert_eq!(tell(&mut told, &view(&[("a", TaskState::Running, Run)])), None, "its own report is no news");
        let stopped = view(&[("a", TaskState::Running, Stop), ("d", TaskState::Assigned, Run)]);
        let difference = tell(&mut told, &stopped).expect("two tasks changed");
        assert!(!difference.full);
        assert_eq!(ids(&difference), ["a", "d"]);
        let ended = tell(&mut told, &view(&[("d", TaskState::Assigned, Run)])).expect("one went");
        assert_eq!((ids(&ended).len(), ended.removed_tasks), (0, vec!["a".to_owned()]));
    }

    #[test]
    fn a_worker_is_told_which_of_its_devices_a_task_has() {
        let mut view = view(&[("a", TaskState::Assigned, DesiredState::Running)]);
        let gpu = DeviceId { kind: "gpu".into(), id: "nvidia1".into() };
        let task = view.tasks().next().expect("one task").as_ref().clone();
        view.put(Task { device_ids: vec![gpu.clone()], ..task }.into_object());
        let set = tell(&mut nothing_told(&[]), &view).expect("the full set");
        assert_eq!(set.tasks[0].device_ids, [(&gpu).into()]);
    }

    #[test]
    fn a_default_of_the_cluster_is_told_when_it_changes() {
        let mut view = view(&[("a", TaskState::Assigned, DesiredState::Running)]);
        let mut told = nothing_told(&[]);
        assert!(!tell(&mut told, &view).expect("the full set").tasks[0].no_new_privileges);
        view.put(Cluster { no_new_privileges: true, ..Cluster::default() }.into_object());
        assert!(tell(&mut told, &view).expect("it has changed").tasks[0].no_new_privileges);
    }

    #[test]
    fn credentials_come_with_an_image_that_no_node_of_the_same_architecture_holds() {
        let mut view = view(&[]);
        let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
        let (node_id, image_digest) = (Some("n".into()), Some("sha256:1".into()));
        let task = Task { id: "a".into(), service_id: "s".into(), spec_version: 1, node_id, ..Task::default() };
        view.put(Task { image_digest, status, ..task }.into_object());
        let spec = Arc::new(ServiceSpec { image: "registry:5000/app".into(), ..ServiceSpec::default() });
        view.put(Service { id: "s".into(), spec_version: 1, spec, ..Service::default() }.into_object());
        view.put(Registry { id: "r".into(), host: "registry:5000".into(), ..Registry::default() }.into_object());
        let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
        view.put(Image { id: "i".into(), digest: "sha256:1".into(), holders, ..Image::default() }.into_object());
        for (architecture, is_held) in [("", true), ("arm64", false)] {
            let mut holder = Node { id: "h".into(), state: NodeState::Ready, ..Node::default() };
            holder.description.architecture = architecture.into();
            view.put(holder.into_object());
            let set = tell(&mut nothing_told(&[]), &view).expect("the full set");
            let image = set.tasks[0].image.as_ref().expect("it has a digest");
            assert_eq!((image.holders.len(), set.tasks[0].credentials.is_none()), (usize::from(is_held), is_held));
        }
    }

    #[test]
    fn a_grant_is_signed_once_until_it_is_renewed_and_told_again_then() {
        let mut view = view(&[]);
        let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
        view.put(Node { id: "h".into(), state: NodeState::Ready, ..Node::default() }.into_object());
        view.put(Image { id: "i".into(), digest: "sha256:1".into(), holders, ..Image::default() }.into_object());
        let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
        let task = Task { service_id: "s".into(), spec_version: 1, node_id: Some("n".into()), ..Task::default() };
        for id in ["a", "b"] {
            let image_digest = Some("sha256:1".into());
            view.put(Task { id: id.into(), image_digest, status: status.clone(), ..task.clone() }.into_object());
        }
        let key = GrantKey::generate();
        let granter = |expires| Granter { key: &key, expires: Timestamp(expires) };
        let mut told = nothing_told(&[]);
        let first = told.tell(&view, &granter(1), Timestamp(0));
        let grants = |parts: &[Assignments]| -> Vec<Option<Grant>> {
            parts[0].tasks.iter().map(|task| task.image.as_ref().and_then(|image| image.grant.clone())).collect()
        };
        assert!(grants(&first)[0].is_some() && grants(&first)[0] == grants(&first)[1]);
        assert!(told.tell(&view, &granter(1), Timestamp(0)).is_empty(), "nothing has changed");
        let renewed = told.tell(&view, &granter(2), Timestamp(0));
        assert!(grants(&renewed).iter().flatten().all(|grant| grant.expires_at == 2));
        assert_eq!(renewed[0].tasks.len(), 2);
    }

    #[test]
    fn a_large_set_comes_in_parts_with_each_spec_once_in_a_part_and_nothing_missing() {
        let spec = ServiceSpec { env: vec!["x".repeat(300 << 10)], ..ServiceSpec::default() };
        let task = |number: u64| TaskAssignment {
            task_id: number.to_string(),
            service_id: (number % 7).to_string(),
            ..TaskAssignment::default()
        };
        let spec = Arc::new(spec);
        let specs = (0..7).map(|number| ((number.to_string(), 0), Arc::clone(&spec))).collect();
        let removed_tasks = vec!["gone".to_owned()];
        let whole =
            Assignments { tasks: (0..500).map(task).collect(), removed_tasks, version: 3, ..Default::default() };
        let parts = cut(whole, &specs);
        assert!(parts.len() > 2, "seven specs of 300 KiB do not fit into one part");
        for (index, part) in parts.iter().enumerate() {
            assert!(part.encoded_len() < 2 * PART);
            assert_eq!((part.more, part.version), (index + 1 < parts.len(), 3));
            let known = |task: &TaskAssignment| part.specs.iter().any(|it| it.service_id == task.service_id);
            assert!(part.tasks.iter().all(|task| task.spec.is_none() && known(task)), "each part stands by itself");
        }
        assert_eq!(parts.iter().map(|part| part.tasks.len()).sum::<usize>(), 500);
        assert_eq!(parts.iter().map(|part| part.removed_tasks.len()).sum::<usize>(), 1);
        assert_eq!(cut(Assignments::default(), &Specs::new()).len(), 1, "an empty set is a message too");
    }

    #[test]
    fn a_node_is_asked_for_the_images_that_it_is_not_known_to_have() {
        let mut view = view(&[]);
        let image = |digest: &str, confirmed| Image {
            id: digest.into(),
            digest: digest.into(),
            holders: vec![ImageHolder { node_id: "n".into(), confirmed }],
            ..Image::default()
        };
        view.put(image("sha256:here", true).into_object());
        view.put(image("sha256:new", false).into_object());
        let mut told = nothing_told(&[]);
        let asked = |set: Assignments| set.images.into_iter().map(|it| it.digest).collect::<Vec<_>>();
        assert_eq!(asked(tell(&mut told, &view).expect("the full set")), ["sha256:new"]);
        view.remove(Kind::Image, "sha256:here");
        assert_eq!(tell(&mut told, &view).expect("it went").dropped_images, ["sha256:here"], "it is known to have it");
    }

    #[test]
    fn an_image_that_no_object_stands_for_may_be_dropped_and_no_other() {
        let mut view = view(&[]);
        let holders = vec![ImageHolder { node_id: "n".into(), confirmed: true }];
        view.put(Image { id: "i".into(), digest: "sha256:kept".into(), holders, ..Image::default() }.into_object());
        let mut told = nothing_told(&["sha256:kept", "sha256:old"]);
        assert_eq!(tell(&mut told, &view).expect("the full set").dropped_images, ["sha256:old"]);
        view.remove(Kind::Image, "i");
        assert_eq!(tell(&mut told, &view).expect("it went").dropped_images, ["sha256:kept"]);
    }
}
