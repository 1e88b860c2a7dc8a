//! Forgets a removed volume once no node of the cluster can have data of it. Nodes that have some are told to drop it and
//! report that they have (`dispatcher/volume_report.rs`); a node that was removed from the cluster never does.

use flota_api::id::NodeId;
use flota_api::model::Volume;
use flota_api::object::{Kind, Object};
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The control loop; its keys are ids of volumes.
#[derive(Debug, Default)]
pub(crate) struct Volumes;

impl ControlLoop for Volumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.volumes().filter(|volume| volume.is_removed).map(|volume| Key::of(&volume.id)).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            Event::Created(Object::Volume(volume)) | Event::Updated { new: Object::Volume(volume), .. }
                if volume.is_removed =>
            {
                vec![Key::of(&volume.id)]
            }
            Event::Updated { new: Object::Node(node), .. } if !node.has_left() => Vec::new(),
            Event::Removed(Object::Node(node)) | Event::Updated { new: Object::Node(node), .. } => {
                view.removed_volumes_of_node(&node.id).map(Key::of).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, _: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(volume) = view.volume(key.id).filter(|volume| volume.is_removed) else { return plan };
        let is_member = |node: &NodeId| view.node(node).is_some_and(|node| !node.has_left());
        let mut left = Volume::clone(volume);
        left.places.retain(|place| is_member(&place.node_id) && !faults::is_on(Fault::EarlyForget));
        if left.places.is_empty() {
            plan.remove(Kind::Volume, &volume.id);
        } else if left != **volume {
            plan.put(left);
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Change;
    use flota_api::model::{Node, VolumePlace};
    use flota_api::object::StoreObject;
    use flota_api::version::Timestamp;

    fn volume(is_removed: bool, nodes: &[&str]) -> Volume {
        let place = |node: &&str| VolumePlace { slot: None, node_id: (*node).into() };
        Volume { id: "v".into(), is_removed, places: nodes.iter().map(place).collect(), ..Volume::default() }
    }

    /// Returns the nodes that have data after the plan, or `removed` or `nothing` if the plan does that.
    fn planned(volume: Volume) -> String {
        let mut view = Tables::default();
        view.put(Node { id: "a".into(), ..Node::default() }.into_object());
        view.put(volume.into_object());
        let plan = Volumes.plan(&Key::of("v"), &view, &mut PlanContext::at(Timestamp::default()));
        match plan.changes.as_slice() {
            [] => "nothing".into(),
            [Change::Put(Object::Volume(volume))] => volume.places.iter().map(|it| it.node_id.to_string()).collect(),
            [Change::Remove(Kind::Volume, _)] => "removed".into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_removed_volume_goes_when_no_node_of_the_cluster_can_have_its_data() {
        assert_eq!(planned(volume(true, &["a"])), "nothing", "the node has not reported yet");
        assert_eq!(planned(volume(true, &["a", "gone"])), "a");
        assert_eq!(planned(volume(true, &["gone"])), "removed");
        assert_eq!(planned(volume(true, &[])), "removed");
        assert_eq!(planned(volume(false, &["gone"])), "nothing", "nobody has asked for that");
    }
}
