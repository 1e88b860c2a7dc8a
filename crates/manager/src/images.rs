//! Keeps each image of the cluster on enough nodes, so that the loss of one node does not lose an image.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::defaults::IMAGE_HOLDERS;
use flota_api::id::NodeId;
use flota_api::model::{Image, ImageHolder, Node, NodeState};
use flota_api::object::{Kind, Object};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of images.
#[derive(Debug, Default)]
pub(crate) struct Images;

/// Number of nodes that the image should be on: two if two of those that can fetch it are ready, else one.
pub(crate) fn wanted_holders(image: &Image, view: &Tables) -> usize {
    let sources = Sources::of(image, view);
    view.nodes().filter(|node| node.state == NodeState::Ready && sources.suit(node)).take(IMAGE_HOLDERS).count().max(1)
}

/// The architectures of the nodes that hold an image. Each of them has the blobs for its own alone, so only nodes of
/// the same architecture can fetch the image from it. A node of another one pulls its part of an index from the
/// registry when it has a task of that image.
struct Sources<'v>(BTreeSet<&'v str>);

impl<'v> Sources<'v> {
    fn of(image: &Image, view: &'v Tables) -> Self {
        let holders = image.confirmed().filter_map(|id| view.node(id));
        Self(holders.map(|node| node.description.architecture.as_str()).collect())
    }

    /// Whether the node can fetch the image. Before it is known who holds it, any node may.
    fn suit(&self, node: &Node) -> bool {
        self.0.is_empty() || self.0.contains(node.description.architecture.as_str())
    }
}

/// Number of nodes that hold the image and are not down.
pub(crate) fn good_holders(image: &Image, view: &Tables) -> usize {
    image.confirmed().filter(|id| view.node(*id).is_some_and(|node| node.state != NodeState::Down)).count()
}

impl ControlLoop for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.images().map(|image| Key::of(&image.id)).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } if old.state == new.state => Vec::new(),
            Event::Updated { old: Object::Service(old), .. } | Event::Removed(Object::Service(old)) => {
                old.image_digests().flat_map(|digest| nameless(digest, view)).collect()
            }
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => match object {
                Object::Image(image) => vec![Key::of(&image.id)],
                Object::Node(node) => concerned_by(node, view),
                Object::Task(task) if task.status.state.is_terminal() || matches!(event, Event::Removed(_)) => {
                    task.image_digests().flat_map(|digest| nameless(digest, view)).collect()
                }
                _ => Vec::new(),
            },
            Event::Committed(_) | Event::Reset => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, _: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(image) = view.image(key.id) else { return plan };
        if image.references.is_empty() && !is_used(image, view) {
            plan.remove(Kind::Image, &image.id);
            return plan;
        }
        // A holder that is down may come back with its blobs. One that never had them, can't fetch them or was removed is
        // dropped.
        let sources = Sources::of(image, view);
        let keep = |it: &&ImageHolder| match view.node(&it.node_id) {
            None => false,
            Some(node) => it.confirmed || node.state != NodeState::Down && sources.suit(node),
        };
        let mut holders: Vec<ImageHolder> = image.holders.iter().filter(keep).cloned().collect();
        // Without a confirmed holder there is no node to fetch from.
        if holders.iter().any(|holder| holder.confirmed) {
            let new = new_holders(image, &holders, &sources, view);
            holders.extend(new.into_iter().map(|node_id| ImageHolder { node_id, confirmed: false }));
        }
        if holders != image.holders {
            plan.put(Image { holders, ..image.as_ref().clone() });
        }
        plan
    }
}

/// Whether tasks use the image, or a service is pinned to it.
pub(crate) fn is_used(image: &Image, view: &Tables) -> bool {
    view.users_of_image(&image.digest).next().is_some() || view.is_pinned(&image.digest)
}

/// The image with this digest, if nothing but its uses keeps it.
fn nameless(digest: &str, view: &Tables) -> Option<Key> {
    let image = view.image_by_digest(digest).filter(|image| image.references.is_empty());
    image.map(|image| Key::of(&image.id))
}

fn state(holder: &ImageHolder, view: &Tables) -> Option<NodeState> {
    view.node(&holder.node_id).map(|node| node.state)
}

/// Images whose holders may have to change after a change of this node: its own, and those that lack a holder.
fn concerned_by(node: &Node, view: &Tables) -> Vec<Key> {
    let lacking = view.images().filter(|image| missing(image, view) > 0);
    view.images_of_node(&node.id).chain(lacking).map(|image| Key::of(&image.id)).collect()
}

/// Number of nodes that the image should also be on.
fn missing(image: &Image, view: &Tables) -> usize {
    let counts = |it: &&ImageHolder| state(it, view).is_some_and(|state| state != NodeState::Down);
    wanted_holders(image, view).saturating_sub(image.holders.iter().filter(counts).count())
}

/// Number of free nodes among which the holders of an image are chosen.
const CANDIDATES: usize = 16;

/// Returns as many ready nodes that can fetch this image as it lacks holders. Each image considers only a few nodes, so
/// that the loss of a node with many images costs little in a large cluster, and those with the fewest images among them.
/// As the ids of images and of nodes are random, every image begins at another node.
fn new_holders(image: &Image, holders: &[ImageHolder], sources: &Sources, view: &Tables) -> Vec<NodeId> {
    let count = missing(&Image { holders: holders.to_vec(), ..image.clone() }, view);
    let is_holder = |node: &Node| holders.iter().any(|it| it.node_id == node.id);
    let is_free = |node: &&Arc<Node>| node.state == NodeState::Ready && sources.suit(node) && !is_holder(node);
    let free = view.nodes_from(&image.id).filter(is_free).take(if count == 0 { 0 } else { CANDIDATES.max(count) });
    let mut ranked: Vec<_> = free.map(|node| (view.images_of_node(&node.id).count(), &node.id)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(count).map(|(_, id)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{PinnedImage, Service, Task, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::TaskState;
    use flota_api::version::Timestamp;

    use crate::plan::Change;

    fn node(id: String, state: NodeState) -> Node {
        Node { id: id.as_str().into(), state, ..Node::default() }
    }

    fn image(id: &str, holders: &[&str]) -> Image {
        let holder = |id: &&str| ImageHolder { node_id: (*id).into(), confirmed: true };
        let (digest, holders) = (format!("sha256:{id}"), holders.iter().map(holder).collect());
        Image { id: id.into(), references: [id.to_owned()].into(), digest, holders, ..Image::default() }
    }

    /// Returns the holders that the loop gives an image; `None` if it changes nothing.
    fn planned(id: &str, view: &Tables) -> Option<Vec<String>> {
        let plan = Images.plan(&Key::of(id), view, &mut PlanContext::at(Timestamp::default()));
        plan.changes.first().map(|change| match change {
            Change::Put(Object::Image(image)) => image.holders.iter().map(|it| it.node_id.to_string()).collect(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_node_with_the_fewest_images_becomes_a_holder() {
        let mut view = Tables::default();
        let states =
            [("a", NodeState::Ready), ("b", NodeState::Ready), ("c", NodeState::Ready), ("d", NodeState::Down)];
        states.iter().for_each(|(id, state)| view.put(node((*id).to_owned(), *state).into_object()));
        view.put(image("other", &["b", "a"]).into_object());
        view.put(image("lone", &["a"]).into_object());
        assert_eq!(planned("lone", &view).unwrap(), ["a", "c"]);
        assert_eq!(planned("other", &view), None, "two nodes hold it");
        view.put(image("lost", &["d"]).into_object());
        assert_eq!(planned("lost", &view).unwrap(), ["d", "c", "b"], "a node that is down may come back");
        view.put(image("unconfirmed", &[]).into_object());
        assert_eq!(planned("unconfirmed", &view), None, "there is no node to fetch it from");
    }

    #[test]
    fn a_node_of_another_architecture_is_not_asked_to_hold_what_it_can_not_fetch() {
        let mut view = Tables::default();
        for (id, architecture) in [("a", "amd64"), ("b", "arm64"), ("c", "arm64"), ("d", "amd64")] {
            let mut node = node(id.to_owned(), NodeState::Ready);
            node.description.architecture = architecture.into();
            view.put(node.into_object());
        }
        view.put(image("i", &["a"]).into_object());
        assert_eq!(planned("i", &view).unwrap(), ["a", "d"]);
        let asked = |node: &str| ImageHolder { node_id: node.into(), confirmed: false };
        let of_an_older_build = image("i", &["a"]);
        let holders = of_an_older_build.holders.iter().cloned().chain([asked("b")]).collect();
        view.put(Image { holders, ..of_an_older_build }.into_object());
        assert_eq!(planned("i", &view).unwrap(), ["a", "d"], "it has not fetched it, and never will");
        view.put(image("both", &["a", "b"]).into_object());
        assert_eq!(planned("both", &view), None, "an index: each has its own manifest");
        view.put(image("arm", &["b"]).into_object());
        assert_eq!(wanted_holders(view.image("arm").unwrap(), &view), 2);
        view.put(node("c".into(), NodeState::Down).into_object());
        assert_eq!(wanted_holders(view.image("arm").unwrap(), &view), 1);
        assert_eq!(planned("arm", &view), None, "no other node can fetch it");
    }

    #[test]
    fn an_image_without_a_name_is_kept_until_the_last_task_that_mounts_it_has_ended() {
        let mut view = Tables::default();
        view.put(node("a".into(), NodeState::Ready).into_object());
        view.put(Image { references: [].into(), ..image("i", &["a"]) }.into_object());
        let pinned = || PinnedImage { digest: "sha256:i".into(), ..PinnedImage::default() };
        let mounting = |state| {
            let status = TaskStatus { state, ..TaskStatus::default() };
            Task { id: "t".into(), status, mounted_images: vec![pinned()], ..Task::default() }.into_object()
        };
        let service = Service { id: "s".into(), mounted_images: vec![pinned()], ..Service::default() }.into_object();
        let removes = |view: &Tables| {
            let plan = Images.plan(&Key::of("i"), view, &mut PlanContext::at(Timestamp::default()));
            matches!(plan.changes.as_slice(), [Change::Remove(Kind::Image, _)])
        };
        let (old, new) = (mounting(TaskState::Running), mounting(TaskState::Complete));
        view.put(old.clone());
        view.put(service.clone());
        assert!(!removes(&view));
        view.remove(Kind::Service, "s");
        assert_eq!(Images.dirtied_by(&Event::Removed(service), &view), [Key::of("i")]);
        assert!(!removes(&view), "the task needs it");
        view.put(new.clone());
        assert_eq!(Images.dirtied_by(&Event::Updated { old, new }, &view), [Key::of("i")]);
        assert!(removes(&view));
    }

    #[test]
    fn the_images_of_a_lost_node_are_spread_over_a_large_cluster() {
        let mut view = Tables::default();
        let ids = || ('0'..='9').flat_map(|first| ('0'..='9').map(move |second| format!("{first}{second}")));
        ids().for_each(|id| view.put(node(id, NodeState::Ready).into_object()));
        view.put(node("lost".into(), NodeState::Down).into_object());
        ids().for_each(|id| view.put(image(&id, &["lost"]).into_object()));
        for id in ids() {
            let holders = planned(&id, &view).unwrap().split_off(1).into_iter();
            let holders = holders.map(|it| ImageHolder { node_id: it.as_str().into(), confirmed: true }).collect();
            let image = view.image(id.as_str()).unwrap();
            view.put(Image { holders, ..image.as_ref().clone() }.into_object());
        }
        let most = view.nodes().map(|node| view.images_of_node(&node.id).count()).max();
        assert_eq!(most, Some(IMAGE_HOLDERS), "a hundred images on a hundred nodes");
    }
}
