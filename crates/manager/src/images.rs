//! Keeps each image of the cluster on enough nodes, so that the loss of one node does not lose an image.

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

/// Number of nodes that each image should be on: two if two nodes are ready, else one.
pub(crate) fn wanted_holders(view: &Tables) -> usize {
    view.nodes().filter(|node| node.state == NodeState::Ready).take(IMAGE_HOLDERS).count().max(1)
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
                nameless(old.image_digest.as_deref(), view)
            }
            Event::Created(object) | Event::Updated { new: object, .. } | Event::Removed(object) => match object {
                Object::Image(image) => vec![Key::of(&image.id)],
                Object::Node(node) => concerned_by(node, view),
                Object::Task(task) if task.status.state.is_terminal() => nameless(task.image_digest.as_deref(), view),
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
        // A holder that is down may come back with its blobs. One that never had them or was removed is dropped.
        let keep = |it: &&ImageHolder| match state(it, view) {
            None => false,
            Some(NodeState::Down) => it.confirmed,
            Some(_) => true,
        };
        let mut holders: Vec<ImageHolder> = image.holders.iter().filter(keep).cloned().collect();
        // Without a confirmed holder there is no node to fetch from.
        if holders.iter().any(|holder| holder.confirmed) {
            let new = new_holders(&holders, missing(image, view), view);
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
fn nameless(digest: Option<&str>, view: &Tables) -> Vec<Key> {
    let image = digest.and_then(|digest| view.image_by_digest(digest)).filter(|image| image.references.is_empty());
    image.map(|image| Key::of(&image.id)).into_iter().collect()
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
    wanted_holders(view).saturating_sub(image.holders.iter().filter(counts).count())
}

/// Returns the `count` ready nodes that hold the fewest images and not this one.
fn new_holders(holders: &[ImageHolder], count: usize, view: &Tables) -> Vec<NodeId> {
    if count == 0 {
        return Vec::new();
    }
    let is_free = |node: &&Arc<Node>| node.state == NodeState::Ready && !holders.iter().any(|it| it.node_id == node.id);
    let free = view.nodes().filter(is_free);
    let mut ranked: Vec<_> = free.map(|node| (view.images_of_node(&node.id).count(), &node.id)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(count).map(|(_, id)| id.clone()).collect()
}
