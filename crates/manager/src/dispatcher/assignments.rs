//! What one worker shall do, as a set, and how it differs from what it was last told. Pure.

use std::collections::BTreeMap;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{NodeState, Task};
use flota_api::proto::dispatcher::{Assignments, ImageSource, Peer, RegistryCredentials, TaskAssignment};
use flota_api::state::TaskState;
use flota_api::version::Timestamp;
use flota_identity::GrantKey;
use flota_raft_store::Tables;

/// Everything that a worker is to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AssignmentSet {
    tasks: BTreeMap<String, TaskAssignment>,
    images: Vec<ImageSource>,
}

/// Signs what the set grants.
pub(super) struct Granter<'a> {
    pub(super) key: Option<&'a GrantKey>,
    pub(super) expires: Timestamp,
}

impl Granter<'_> {
    /// When grants that are made now end: in whole quarters of their life, so that a set made a moment later is equal.
    pub(super) fn expiry(now: Timestamp) -> Timestamp {
        let quarter = u64::try_from(GRANT_LIFE.as_millis() / 4).expect("it is an hour");
        Timestamp((now.0 / quarter + 4) * quarter)
    }
}

impl AssignmentSet {
    /// The set of `node` in `view`.
    pub(super) fn of(node: &NodeId, view: &Tables, granter: &Granter<'_>) -> Self {
        let wanted =
            |task: &&std::sync::Arc<Task>| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
        let tasks = view.tasks_of_node(node).filter(wanted);
        let tasks = tasks.filter_map(|task| Some((task.id.to_string(), assignment(task, node, view, granter)?)));
        let holds =
            |image: &&std::sync::Arc<flota_api::model::Image>| image.holders.iter().any(|it| it.node_id == *node);
        let images = view.images().filter(holds).map(|image| source(&image.digest, node, view, granter));
        Self { tasks: tasks.collect(), images: images.collect() }
    }

    /// All of it.
    pub(super) fn full(&self, epoch: u64, version: u64) -> Assignments {
        Assignments {
            epoch,
            version,
            full: true,
            tasks: self.tasks.values().cloned().collect(),
            images: self.images.clone(),
            ..Assignments::default()
        }
    }

    /// What is different from `before`; `None` when nothing is.
    pub(super) fn difference(&self, before: &Self, epoch: u64, version: u64) -> Option<Assignments> {
        // A worker's own reports come back in `status`: that alone is no news to it.
        let same = |old: &TaskAssignment, new: &TaskAssignment| {
            TaskAssignment { status: None, ..old.clone() } == TaskAssignment { status: None, ..new.clone() }
        };
        let changed =
            |(id, task): &(&String, &TaskAssignment)| !before.tasks.get(*id).is_some_and(|old| same(old, task));
        let tasks: Vec<_> = self.tasks.iter().filter(changed).map(|(_, task)| task.clone()).collect();
        let removed: Vec<_> = before.tasks.keys().filter(|id| !self.tasks.contains_key(*id)).cloned().collect();
        if tasks.is_empty() && removed.is_empty() && self.images == before.images {
            return None;
        }
        Some(Assignments {
            epoch,
            version,
            full: false,
            tasks,
            removed_tasks: removed,
            images: self.images.clone(),
            ..Assignments::default()
        })
    }
}

fn assignment(task: &Task, node: &NodeId, view: &Tables, granter: &Granter<'_>) -> Option<TaskAssignment> {
    let spec = view.spec_of(task)?;
    let image = (!task.image_digest.is_empty()).then(|| source(&task.image_digest, node, view, granter));
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
        inherited_restarts: task.inherited_restarts,
        not_before: task.not_before.0,
        image,
        credentials,
        paused: task.paused,
    })
}

/// Where the blobs are, and the leader's word that this node may have them.
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
    use flota_api::model::{Node, Service, TaskStatus};
    use flota_api::object::StoreObject;
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
                node_id: "n".into(),
                ..Task::default()
            };
            view.put(Task { status, desired_state: *desired_state, ..task }.into_object());
        }
        view
    }

    #[test]
    fn a_set_holds_what_is_assigned_and_has_not_ended_and_differs_by_what_changed() {
        let granter = Granter { key: None, expires: Timestamp(0) };
        let set = |states: &[_]| AssignmentSet::of(&"n".into(), &view(states), &granter);
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
}
