//! Writes a node's report that it has dropped a removed volume to the store. A node is believed about itself alone.

use flota_api::id::NodeId;
use flota_api::model::Volume;
use flota_api::object::Kind;
use flota_raft_store::{ProposeError, Tables, WriteTx};

use crate::replica::Replica;

/// Returns the reports of a batch that change something. The others cost the leader no round to its followers.
pub(super) fn of_use<'a>(view: &Tables, node_id: &NodeId, dropped: &'a [String]) -> Vec<&'a str> {
    dropped.iter().map(String::as_str).filter(|id| after(view, node_id, id).is_some()).collect()
}

/// Records that a node has no data of a removed volume any more. The volume goes with the last such report.
///
/// # Errors
/// This manager can't commit it.
pub(super) async fn write(replica: &Replica, node_id: &NodeId, id: &str) -> Result<(), ProposeError> {
    let written = replica.write_if_needed(|view| {
        let volume = after(&view, node_id, id)?;
        let mut tx = WriteTx::new(view, None);
        if volume.places.is_empty() {
            tx.remove(Kind::Volume, &volume.id);
        } else {
            tx.update(volume);
        }
        Some((tx.finish(), ()))
    });
    written.await.map(drop)
}

/// Returns the removed volume without the node; `None` if it does not count on the node.
fn after(view: &Tables, node_id: &NodeId, id: &str) -> Option<Volume> {
    view.volume(id).filter(|volume| volume.is_removed)?.without_node(node_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::VolumePlace;
    use flota_api::object::StoreObject;

    #[test]
    fn a_node_speaks_for_itself_and_only_of_volumes_that_were_removed() {
        let mut view = Tables::default();
        for (id, is_removed) in [("removed", true), ("kept", false)] {
            let places = ["a", "b"].map(|node| VolumePlace { slot: None, node_id: node.into() }).into();
            view.put(Volume { id: id.into(), places, is_removed, ..Volume::default() }.into_object());
        }
        let dropped = ["removed", "kept", "unknown"].map(str::to_owned);
        assert_eq!(of_use(&view, &"a".into(), &dropped), ["removed"]);
        assert_eq!(of_use(&view, &"c".into(), &dropped), [] as [&str; 0]);
        let left = after(&view, &"a".into(), "removed").expect("it changes");
        assert_eq!(left.places, [VolumePlace { slot: None, node_id: "b".into() }]);
    }
}
