//! The set of tasks and images that one worker is assigned, and how it differs from the set that was last sent. It is
//! pure; `assignment_stream.rs` sends it.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{NodeState, Task};
use flota_api::proto::dispatcher::{AssignedSpec, Assignments, ImageSource, Peer, RegistryCredentials, TaskAssignment};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_identity::GrantKey;
use flota_raft_store::Tables;

/// The complete assignments of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AssignmentSet {
    tasks: BTreeMap<String, TaskAssignment>,
    images: Vec<ImageSource>,
    /// Digests of images that the node holds and the cluster does not need.
    dropped: Vec<String>,
}

/// Signs the grants of the set.
pub(super) struct Granter<'a> {
    pub(super) key: Option<&'a GrantKey>,
    pub(super) expires: Timestamp,
}

impl Granter<'_> {
    /// When grants that are made now expire. It is rounded to a quarter of their lifetime, so that sets made shortly
    /// after each other are equal.
    pub(super) fn expiry(now: Timestamp) -> Timestamp {
        let quarter = u64::try_from(GRANT_LIFE.as_millis() / 4).expect("it is an hour");
        Timestamp((now.0 / quarter + 4) * quarter)
    }
}

impl AssignmentSet {
    /// Returns the set of `node` in `view`. `held`: images that the node is known to have; the assigned images are
    /// added to it.
    pub(super) fn of(node: &NodeId, view: &Tables, granter: &Granter<'_>, held: &mut BTreeSet<String>) -> Self {
        let wanted =
            |task: &&std::sync::Arc<Task>| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
        let tasks = view.tasks_of_node(node).filter(wanted);
        let tasks = tasks.filter_map(|task| Some((task.id.to_string(), assignment(task, node, view, granter)?)));
        let holds =
            |image: &&std::sync::Arc<flota_api::model::Image>| image.holders.iter().any(|it| it.node_id == *node);
        let images: Vec<_> =
            view.images().filter(holds).map(|image| source(&image.digest, node, view, granter)).collect();
        // An image object exists while the image has a name or a task uses it. Without the object, no copy is needed.
        let dropped = held.iter().filter(|digest| view.image_by_digest(digest).is_none()).cloned().collect();
        held.extend(images.iter().map(|image| image.digest.clone()));
        Self { tasks: tasks.collect(), images, dropped }
    }

    /// Returns the whole set as a message.
    pub(super) fn full(&self, epoch: u64, version: u64) -> Assignments {
        Assignments {
            epoch,
            version,
            full: true,
            tasks: self.tasks.values().cloned().collect(),
            images: self.images.clone(),
            dropped_images: self.dropped.clone(),
            ..Assignments::default()
        }
    }

    /// Returns the difference from `before`; `None` if there is none.
    pub(super) fn difference(&self, before: &Self, epoch: u64, version: u64) -> Option<Assignments> {
        // `status` repeats the worker's own reports, so a change of it alone is not sent.
        let same = |old: &TaskAssignment, new: &TaskAssignment| {
            TaskAssignment { status: None, ..old.clone() } == TaskAssignment { status: None, ..new.clone() }
        };
        let changed =
            |(id, task): &(&String, &TaskAssignment)| !before.tasks.get(*id).is_some_and(|old| same(old, task));
        let tasks: Vec<_> = self.tasks.iter().filter(changed).map(|(_, task)| task.clone()).collect();
        let removed: Vec<_> = before.tasks.keys().filter(|id| !self.tasks.contains_key(*id)).cloned().collect();
        let dropped: Vec<_> = self.dropped.iter().filter(|it| !before.dropped.contains(it)).cloned().collect();
        if tasks.is_empty() && removed.is_empty() && dropped.is_empty() && self.images == before.images {
            return None;
        }
        Some(Assignments {
            epoch,
            version,
            full: false,
            tasks,
            removed_tasks: removed,
            images: self.images.clone(),
            dropped_images: dropped,
            ..Assignments::default()
        })
    }
}

/// Bytes of one part of a set: far below the limit of a message, so that heartbeats are sent in between.
const PART: usize = 1 << 20;

/// Splits a set into messages within the size limit; each contains the specs of its tasks once. Only the last is marked
/// as the last.
pub(super) fn cut(mut whole: Assignments) -> Vec<Assignments> {
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
    for mut task in tasks {
        let spec = task.spec.take();
        let (task_size, spec_size) = (task.encoded_len(), spec.as_ref().map_or(0, Message::encoded_len));
        room(&mut part, &mut size, task_size + spec_size, &mut parts);
        let named = |it: &AssignedSpec| it.service_id == task.service_id && it.spec_version == task.spec_version;
        if part.specs.iter().any(named) {
            size -= spec_size;
        } else {
            part.specs.push(AssignedSpec {
                service_id: task.service_id.clone(),
                spec_version: task.spec_version,
                spec,
            });
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

fn assignment(task: &Task, node: &NodeId, view: &Tables, granter: &Granter<'_>) -> Option<TaskAssignment> {
    let spec = view.spec_of(task)?;
    let image = task.image_digest.as_ref().map(|digest| source(digest, node, view, granter));
    let credentials = match &image {
        None => credentials(&spec.image, view),
        Some(_) => None,
    };
    Some(TaskAssignment {
        task_id: task.id.to_string(),
        service_id: task.service_id.to_string(),
        service_name: spec.name.clone(),
        slot: task.slot,
        desired_state: flota_api::proto::types::DesiredState::from(task.desired_state).into(),
        spec_version: task.spec_version,
        spec: Some(spec.as_ref().into()),
        status: Some((&task.status).into()),
        // The worker counts against the restart budget, and moves between nodes do not count against it.
        inherited_restarts: task.inherited_restarts - task.moves.min(task.inherited_restarts),
        not_before: task.not_before.0,
        image,
        credentials,
        paused: task.paused,
        device_ids: task.device_ids.iter().map(Into::into).collect(),
    })
}

/// Returns the nodes that have the image's blobs, and the grant with which this node may fetch them.
fn source(digest: &str, node: &NodeId, view: &Tables, granter: &Granter<'_>) -> ImageSource {
    let confirmed = view.image_by_digest(digest).into_iter().flat_map(|image| image.confirmed());
    let holders = confirmed
        .filter_map(|id| view.node(id.as_str()))
        .filter(|holder| holder.id != *node && holder.state != NodeState::Down)
        .map(|holder| Peer { node_id: holder.id.to_string(), address: holder.address.clone() });
    ImageSource {
        digest: digest.to_owned(),
        holders: holders.collect(),
        grant: granter.key.map(|key| key.sign(digest, node.as_str(), granter.expires)),
    }
}

fn credentials(reference: &str, view: &Tables) -> Option<RegistryCredentials> {
    let reference = ImageRef::parse(reference).ok()?;
    let registry = view.registry_by_host(&reference.registry)?;
    Some(RegistryCredentials {
        host: registry.host.clone(),
        username: registry.username.clone(),
        password: registry.password.as_text().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{DeviceId, Image, ImageHolder, Node, Service, ServiceSpec, TaskStatus};
    use flota_api::object::{Kind, StoreObject};
    use flota_api::state::DesiredState;

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

    #[test]
    fn a_set_holds_what_is_assigned_and_has_not_ended_and_differs_by_what_changed() {
        let granter = Granter { key: None, expires: Timestamp(0) };
        let set = |states: &[_]| AssignmentSet::of(&"n".into(), &view(states), &granter, &mut BTreeSet::new());
        use DesiredState::{Running as Run, Shutdown as Stop};
        let first =
            set(&[("a", TaskState::Assigned, Run), ("b", TaskState::Failed, Run), ("c", TaskState::Pending, Run)]);
        assert_eq!(first.full(1, 7).tasks.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), ["a"]);
        let reported = set(&[("a", TaskState::Running, Run)]);
        assert_eq!(reported.difference(&first, 1, 8), None, "its own report is no news to a worker");
        let stopped = set(&[("a", TaskState::Running, Stop), ("d", TaskState::Assigned, Run)]);
        let difference = stopped.difference(&reported, 1, 9).expect("two tasks changed");
        assert_eq!(difference.tasks.len(), 2);
        let ended = set(&[("d", TaskState::Assigned, Run)]);
        assert_eq!(ended.difference(&stopped, 1, 10).expect("one went").removed_tasks, ["a"]);
    }

    #[test]
    fn a_worker_is_told_which_of_its_devices_a_task_has() {
        let granter = Granter { key: None, expires: Timestamp(0) };
        let mut view = view(&[("a", TaskState::Assigned, DesiredState::Running)]);
        let gpu = DeviceId { kind: "gpu".into(), id: "nvidia1".into() };
        let task = view.tasks().next().expect("one task").as_ref().clone();
        view.put(Task { device_ids: vec![gpu.clone()], ..task }.into_object());
        let set = AssignmentSet::of(&"n".into(), &view, &granter, &mut BTreeSet::new()).full(1, 1);
        assert_eq!(set.tasks[0].device_ids, [(&gpu).into()]);
    }

    #[test]
    fn a_large_set_comes_in_parts_with_each_spec_once_in_a_part_and_nothing_missing() {
        let spec = ServiceSpec { env: vec!["x".repeat(300 << 10)], ..ServiceSpec::default() };
        let task = |number: u64| TaskAssignment {
            task_id: number.to_string(),
            service_id: (number % 7).to_string(),
            spec: Some((&spec).into()),
            ..TaskAssignment::default()
        };
        let removed_tasks = vec!["gone".to_owned()];
        let whole =
            Assignments { tasks: (0..500).map(task).collect(), removed_tasks, version: 3, ..Default::default() };
        let parts = cut(whole);
        assert!(parts.len() > 2, "seven specs of 300 KiB do not fit into one part");
        for (index, part) in parts.iter().enumerate() {
            assert!(part.encoded_len() < 2 * PART);
            assert_eq!((part.more, part.version), (index + 1 < parts.len(), 3));
            let known = |task: &TaskAssignment| part.specs.iter().any(|it| it.service_id == task.service_id);
            assert!(part.tasks.iter().all(|task| task.spec.is_none() && known(task)), "each part stands by itself");
        }
        assert_eq!(parts.iter().map(|part| part.tasks.len()).sum::<usize>(), 500);
        assert_eq!(parts.iter().map(|part| part.removed_tasks.len()).sum::<usize>(), 1);
        assert_eq!(cut(Assignments::default()).len(), 1, "an empty set is a message too");
    }

    #[test]
    fn an_image_that_no_object_stands_for_may_be_dropped_and_no_other() {
        let granter = Granter { key: None, expires: Timestamp(0) };
        let mut view = view(&[]);
        let holders = vec![ImageHolder { node_id: "n".into(), confirmed: true }];
        view.put(Image { id: "i".into(), digest: "sha256:kept".into(), holders, ..Image::default() }.into_object());
        let mut held = BTreeSet::from(["sha256:kept".to_owned(), "sha256:old".to_owned()]);
        let first = AssignmentSet::of(&"n".into(), &view, &granter, &mut held);
        assert_eq!(first.full(1, 1).dropped_images, ["sha256:old"]);
        view.remove(Kind::Image, "i");
        let second = AssignmentSet::of(&"n".into(), &view, &granter, &mut held);
        assert_eq!(second.difference(&first, 1, 2).expect("it went").dropped_images, ["sha256:kept"]);
    }
}
