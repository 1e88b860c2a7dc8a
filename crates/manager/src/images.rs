//! Keeps each image of the cluster on enough nodes, so that the loss of one node does not lose an image.

use flota_api::defaults::IMAGE_HOLDERS;
use flota_api::model::{Image, ImageHolder, NodeState, Task};
use flota_api::object::Kind;
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, keyed_by};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of images.
#[derive(Debug, Default)]
pub(crate) struct Images;

/// Number of nodes that each image should be on: two if two nodes are ready, else one.
pub(crate) fn wanted_holders(view: &Tables) -> usize {
    view.nodes().filter(|node| node.state == NodeState::Ready).count().clamp(1, IMAGE_HOLDERS)
}

/// Number of nodes that hold the image and are not down.
pub(crate) fn good_holders(image: &Image, view: &Tables) -> usize {
    image.confirmed().filter(|id| view.node(id.as_str()).is_some_and(|node| node.state != NodeState::Down)).count()
}

impl ControlLoop for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn all(&self, view: &Tables) -> Vec<String> {
        view.images().map(|image| image.id.to_string()).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<String> {
        keyed_by!(event,
            Image image => vec![image.id.to_string()],
            Node _node => self.all(view),
            Task task => match task.image_digest.as_ref().and_then(|digest| view.image_by_digest(digest)) {
                Some(image) if image.references.is_empty() && task.status.state.is_terminal() => {
                    vec![image.id.to_string()]
                }
                _ => Vec::new(),
            },
        )
    }

    fn plan(&mut self, key: &str, view: &Tables, _: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(image) = view.image(key) else { return plan };
        let uses = |task: &std::sync::Arc<Task>| {
            task.image_digest.as_ref() == Some(&image.digest) && !task.status.state.is_terminal()
        };
        if image.references.is_empty() && !view.tasks().any(uses) {
            plan.remove(Kind::Image, key);
            return plan;
        }
        let state = |holder: &ImageHolder| view.node(holder.node_id.as_str()).map(|node| node.state);
        // A holder that is down may come back with its blobs. One that never had them or was removed is dropped.
        let keep = |it: &&ImageHolder| match state(it) {
            None => false,
            Some(NodeState::Down) => it.confirmed,
            Some(_) => true,
        };
        let mut holders: Vec<ImageHolder> = image.holders.iter().filter(keep).cloned().collect();
        let counted = holders.iter().filter(|it| state(it) != Some(NodeState::Down)).count();
        let missing = wanted_holders(view).saturating_sub(counted);
        let held =
            |id: &flota_api::id::NodeId| view.images().filter(|it| it.holders.iter().any(|h| h.node_id == *id)).count();
        let mut candidates: Vec<_> = view
            .nodes()
            .filter(|node| node.state == NodeState::Ready && !holders.iter().any(|it| it.node_id == node.id))
            .map(|node| (held(&node.id), node.id.clone()))
            .collect();
        candidates.sort();
        // Without a confirmed holder there is no node to fetch from.
        if holders.iter().any(|holder| holder.confirmed) {
            let new = candidates.into_iter().take(missing);
            holders.extend(new.map(|(_, node_id)| ImageHolder { node_id, confirmed: false }));
        }
        if holders != image.holders {
            plan.put(Image { holders, ..image.as_ref().clone() });
        }
        plan
    }
}
