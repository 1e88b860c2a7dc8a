//! Finds the nodes whose assignments a change of the tables concerns, and wakes their sessions. Every other session
//! sleeps on, so a change costs what it touches, however many nodes there are.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use flota_api::id::NodeId;
use flota_api::model::{Cluster, Image, Node, NodeState, Role, Task};
use flota_api::object::Object;
use flota_raft_store::{Event, Tables};

use super::assignments::measured;
use super::networks::{NetworkChange, changed_by};
use super::programmed::Programmed;
use super::sessions::Sessions;
use crate::replica::Replica;

/// The nodes that changes concern.
#[derive(Debug, PartialEq, Eq)]
enum Concern {
    All,
    Only(BTreeSet<NodeId>),
}

impl Concern {
    fn include<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeId>) {
        if let Self::Only(concerned) = self {
            concerned.extend(nodes.into_iter().cloned());
        }
    }
}

/// Wakes sessions as the store changes, until leadership ends.
pub(super) async fn wake_concerned(
    replica: &Replica,
    sessions: &Sessions,
    programmed: &Programmed,
    scope: CancellationToken,
) {
    loop {
        let (view, mut watch) = replica.store.view_and_watch();
        // The changes before this have not been followed.
        programmed.reset(view.version);
        // A view that is held keeps all replaced objects in memory.
        drop(view);
        sessions.wake_all();
        loop {
            let events = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                events = watch.next() => events,
            };
            let Ok(events) = events else { break };
            let view = replica.store.view();
            let mut concern = concern(&events, &view);
            let changes: Vec<NetworkChange> = events.iter().flat_map(|event| changed_by(event, &view)).collect();
            for event in events.iter() {
                match event {
                    Event::Committed(version) => concern.include(&programmed.add(&changes, *version, &view)),
                    Event::Reset => programmed.reset(view.version),
                    _ => {}
                }
            }
            match concern {
                Concern::All => sessions.wake_all(),
                Concern::Only(nodes) => nodes.iter().for_each(|node| sessions.wake(node)),
            }
        }
    }
}

/// Returns the nodes whose assignments may differ after these events.
fn concern(events: &[Event], view: &Tables) -> Concern {
    let mut concern = Concern::Only(BTreeSet::new());
    for event in events {
        match event {
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } if is_only_reported(old, new) => {}
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                let is_down = |node: &Node| node.state == NodeState::Down;
                if old.address != new.address || old.role != new.role || old.raft_id != new.raft_id {
                    include_node(&mut concern, old, view);
                    include_node(&mut concern, new, view);
                } else if is_down(old) != is_down(new) {
                    include_fetchers(&mut concern, new, view);
                }
                if old.description.tunnel_keys != new.description.tunnel_keys {
                    concern.include([&new.id]);
                }
            }
            Event::Updated { old: Object::Image(old), new: Object::Image(new) } => {
                include_image(&mut concern, old, view);
                include_image(&mut concern, new, view);
            }
            Event::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } if told(old) == told(new) => {}
            Event::Updated { old: Object::Service(old), new: Object::Service(new) } => {
                if measured(&old.spec) != measured(&new.spec) || old.values != new.values {
                    concern.include(view.tasks_of_service(&new.id).filter_map(|task| task.node_id.as_ref()));
                }
            }
            Event::Created(object) | Event::Removed(object) | Event::Updated { new: object, .. } => match object {
                Object::Task(task) => concern.include(&task.node_id),
                Object::Node(node) => include_node(&mut concern, node, view),
                Object::Image(image) => include_image(&mut concern, image, view),
                Object::Cluster(_) | Object::Registry(_) => concern = Concern::All,
                Object::Volume(volume) if volume.is_removed => {
                    concern.include(volume.places.iter().map(|place| &place.node_id));
                }
                Object::Service(_)
                | Object::Stack(_)
                | Object::Network(_)
                | Object::Volume(_)
                | Object::StoredSecret(_)
                | Object::StoredConfig(_)
                | Object::ValueData(_)
                | Object::User(_)
                | Object::Audit(_) => {}
            },
            Event::Reset => concern = Concern::All,
            Event::Committed(_) => {}
        }
    }
    concern
}

/// The parts of the cluster object that sessions send to workers.
fn told(cluster: &Cluster) -> impl PartialEq + '_ {
    (cluster.epoch, &cluster.grant_key, cluster.no_new_privileges, &cluster.ca_certificate, &cluster.ca_rotation)
}

/// Whether the change is nothing but a report of the node that has the task, which neither ends it nor withdraws it. The
/// other parts of an assignment never change.
fn is_only_reported(old: &Task, new: &Task) -> bool {
    let status = |task: &Task| (task.status.state.is_terminal(), task.status.is_unhealthy());
    let told = |task: &Task| (task.desired_state, task.paused, task.not_before, status(task));
    old.node_id == new.node_id && told(old) == told(new)
}

/// A node is concerned by its own removal, all nodes by the address of a manager, and some by that of a holder.
fn include_node(concern: &mut Concern, node: &Node, view: &Tables) {
    if node.role == Role::Manager {
        *concern = Concern::All;
    }
    concern.include([&node.id]);
    include_fetchers(concern, node, view);
}

/// Includes the nodes that may fetch an image from this node.
fn include_fetchers(concern: &mut Concern, node: &Node, view: &Tables) {
    view.images_of_node(&node.id).for_each(|image| include_image(concern, image, view));
}

/// Includes the nodes that hold the image, were asked to, or have tasks that use it.
fn include_image(concern: &mut Concern, image: &Image, view: &Tables) {
    concern.include(image.holders.iter().map(|holder| &holder.node_id));
    concern.include(view.users_of_image(&image.digest).flatten());
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use super::*;
    use flota_api::model::{
        Health, HealthState, ImageHolder, PinnedValue, ScalePolicy, Service, ServiceSpec, TaskStatus, TunnelKey,
        Volume, VolumePlace,
    };
    use flota_api::object::StoreObject;
    use flota_api::state::{DesiredState, TaskState};

    const KEY: TunnelKey = TunnelKey { public: [7; 32], port: 51_820 };

    fn node(id: &str, role: Role) -> Node {
        Node { id: id.into(), role, state: NodeState::Ready, ..Node::default() }
    }

    /// Worker `h` holds the image that a task of `u` uses; `o` has nothing to do with it.
    fn view() -> Tables {
        let mut view = Tables::default();
        for (id, role) in [("m", Role::Manager), ("h", Role::Worker), ("u", Role::Worker), ("o", Role::Worker)] {
            view.put(node(id, role).into_object());
        }
        view.put(image().into_object());
        view.put(task().into_object());
        view
    }

    fn image() -> Image {
        let holders = vec![ImageHolder { node_id: "h".into(), confirmed: true }];
        Image { id: "i".into(), digest: "sha256:1".into(), holders, ..Image::default() }
    }

    fn task() -> Task {
        let status = TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() };
        let image_digest = Some("sha256:1".into());
        Task { id: "t".into(), node_id: Some("u".into()), image_digest, status, ..Task::default() }
    }

    fn bounds() -> ScalePolicy {
        ScalePolicy::between(NonZeroU64::MIN, NonZeroU64::MAX)
    }

    /// The service of the task.
    fn service(scale: Option<ScalePolicy>) -> Service {
        Service { spec: Arc::new(ServiceSpec { scale, ..ServiceSpec::default() }), ..Service::default() }
    }

    /// A volume with data on two nodes.
    fn volume(is_removed: bool) -> Object {
        let places = ["h", "o"].map(|node| VolumePlace { slot: None, node_id: node.into() }).into();
        Volume { id: "v".into(), places, is_removed, ..Volume::default() }.into_object()
    }

    fn health(state: HealthState) -> Health {
        Health { state, ..Health::default() }
    }

    fn update<T: StoreObject>(old: T, change: impl FnOnce(&mut T)) -> Event {
        let mut new = old.clone();
        change(&mut new);
        Event::Updated { old: old.into_object(), new: new.into_object() }
    }

    /// The ids of the nodes that the event concerns, or `all`.
    fn concerned(event: Event) -> String {
        match concern(&[event], &view()) {
            Concern::All => "all".into(),
            Concern::Only(nodes) => nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" "),
        }
    }

    #[test]
    fn a_change_wakes_the_nodes_whose_assignments_it_can_change_and_no_other() {
        let worker = || node("o", Role::Worker);
        let holder = || node("h", Role::Worker);
        for (what, event, expected) in [
            ("a new task", Event::Created(task().into_object()), "u"),
            ("its report", update(task(), |it| it.status.state = TaskState::Running), ""),
            (
                "that it is healthy",
                update(task(), |it| it.status.health = Some(Box::new(health(HealthState::Healthy)))),
                "",
            ),
            (
                "that it is not",
                update(task(), |it| it.status.health = Some(Box::new(health(HealthState::Unhealthy)))),
                "u",
            ),
            ("its end", update(task(), |it| it.status.state = TaskState::Failed), "u"),
            ("another desired state", update(task(), |it| it.desired_state = DesiredState::Shutdown), "u"),
            ("a pause", update(task(), |it| it.paused = true), "u"),
            ("a task without a node", Event::Created(Task { node_id: None, ..task() }.into_object()), ""),
            ("a worker that is ready", update(worker(), |it| it.state = NodeState::Unknown), ""),
            ("a worker that is down", update(worker(), |it| it.state = NodeState::Down), ""),
            ("a worker with another key", update(worker(), |it| it.description.tunnel_keys = vec![KEY]), "o"),
            ("a worker that is removed", Event::Removed(worker().into_object()), "o"),
            ("a holder that is down", update(holder(), |it| it.state = NodeState::Down), "h u"),
            ("a holder that moves", update(holder(), |it| it.address = "h:2".into()), "h u"),
            ("a manager that moves", update(node("m", Role::Manager), |it| it.address = "m:2".into()), "all"),
            ("a worker that is promoted", update(worker(), |it| it.role = Role::Manager), "all"),
            ("an image without a holder", update(image(), |it| it.holders.clear()), "h u"),
            ("a name of an image", update(image(), |it| it.references = ["web".into()].into()), "h u"),
            ("a service", Event::Created(Service::default().into_object()), ""),
            ("a service that is measured", update(service(None), |it| *it = service(Some(bounds()))), "u"),
            ("other versions of secrets", update(service(None), |it| it.values = vec![PinnedValue::default()]), "u"),
            ("other bounds", update(service(Some(bounds())), |it| it.scale.replicas = Some(2)), ""),
            ("a count in the cluster", update(Cluster::default(), |it| it.next_raft_id = 9), ""),
            ("a default", update(Cluster::default(), |it| it.no_new_privileges = true), "all"),
            ("a volume", Event::Created(volume(false)), ""),
            ("a volume that is removed", Event::Created(volume(true)), "h o"),
            ("a restore", update(Cluster::default(), |it| it.epoch = 9), "all"),
            ("a snapshot", Event::Reset, "all"),
        ] {
            assert_eq!(concerned(event), expected, "{what}");
        }
    }
}
