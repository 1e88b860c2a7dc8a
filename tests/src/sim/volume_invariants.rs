//! Invariants of volumes: the data that a slot has in a volume is on one node, where all tasks of the slot run. Tasks of one
//! slot can then never use it on two nodes at once, and none begins with an empty folder where there is data elsewhere.
//! No user of a simulation removes a volume or a worker.

use std::collections::BTreeMap;

use flota_api::id::{NodeId, VolumeId};
use flota_raft_store::View;

use super::cluster::SimCluster;
use super::user::VOLUMES;
use super::violation::{Kind, Violation};

/// Where the data of volumes is, from the first time that it was there.
#[derive(Default)]
pub(super) struct VolumeInvariants {
    places: BTreeMap<(VolumeId, Option<u64>), NodeId>,
}

impl VolumeInvariants {
    /// Checks the places of all volumes, and that the tasks of a slot are where its data is.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        for volume in VOLUMES.iter().filter_map(|(_, name)| view.volume_by_name(name)) {
            for place in &volume.places {
                let node = self.places.entry((volume.id.clone(), place.slot)).or_insert(place.node_id.clone());
                if *node != place.node_id {
                    let text = format!("data on {node} has got a second place: {volume:?}");
                    return Err(Kind::VolumeTwice.because(text));
                }
            }
        }
        for (name, volume) in VOLUMES {
            let Some((service, volume)) = view.service_by_name(name).zip(view.volume_by_name(volume)) else { continue };
            for task in view.tasks_of_service(&service.id).filter(|task| task.holds_resources()) {
                let data = (volume.id.clone(), volume.data_slot(false, task.slot));
                if task.node_id.is_some() && task.node_id.as_ref() != self.places.get(&data) {
                    let text = format!("task {} is on {:?}, not where its data is: {volume:?}", task.id, task.node_id);
                    return Err(Kind::VolumeTwice.because(text));
                }
            }
        }
        Ok(())
    }

    /// Checks that no two machines have the same data, whatever the store says of its place. The volume of a global service
    /// has data on each node.
    pub(super) fn check_machines(&self, cluster: &SimCluster) -> Result<(), Violation> {
        let mut holders = BTreeMap::new();
        for worker in &cluster.workers {
            let is_ours =
                |data: &(String, Option<u64>)| self.places.keys().any(|(volume, _)| volume.as_str() == data.0);
            for data in worker.machine.volumes().into_iter().filter(is_ours) {
                if let Some(other) = holders.insert(data.clone(), worker.host) {
                    let text = format!("{other} and {} have the data of volume and slot {data:?}", worker.host);
                    return Err(Kind::VolumeTwice.because(text));
                }
            }
        }
        Ok(())
    }
}
