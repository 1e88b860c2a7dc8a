//! Invariants of volumes: the data that a slot has in a volume is on one node, where all tasks of the slot run. Tasks of one
//! slot can then never use it on two nodes at once, and none begins with an empty folder where there is data elsewhere. Data
//! goes only when its volume was removed, and while it is there, the store knows where. No worker is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, VolumeId};
use flota_api::model::Volume;
use flota_raft_store::View;

use super::cluster::SimCluster;
use super::host::Host;
use super::user::{VAULT, VOLUMES};
use super::violation::{Kind, Violation};

/// Where the data of volumes is, from the first time that it was there.
#[derive(Default)]
pub(super) struct VolumeInvariants {
    places: BTreeMap<(VolumeId, Option<u64>), NodeId>,
    /// The volumes of the newest version of the store, those that were removed included.
    known: BTreeMap<VolumeId, Arc<Volume>>,
    /// The data that machines had.
    data: BTreeSet<(Host, VolumeId, Option<u64>)>,
    /// The data of which no running manager knows where it is, and since when (ms).
    left: BTreeMap<(Host, VolumeId, Option<u64>), u64>,
    /// The data that has gone although nobody is known to have removed its volume. The next leader knows whether the last
    /// one removed it.
    gone: BTreeSet<(Host, VolumeId, Option<u64>)>,
}

/// Time within which another leader tells the others what was committed by one that has ended, in milliseconds.
const KNOWN_AFTER: u64 = 10_000;

/// The services that have a volume, and the names of their volumes.
fn volumes() -> impl Iterator<Item = (&'static str, &'static str)> {
    VOLUMES.into_iter().chain([VAULT])
}

impl VolumeInvariants {
    /// Checks the places of all volumes, and that the tasks of a slot are where its data is.
    pub(super) fn check_tables(&mut self, view: &View) -> Result<(), Violation> {
        self.known = view.volumes().map(|volume| (volume.id.clone(), Arc::clone(volume))).collect();
        for volume in volumes().filter_map(|(_, name)| view.volume_by_name(name)) {
            for place in &volume.places {
                let node = self.places.entry((volume.id.clone(), place.slot)).or_insert(place.node_id.clone());
                if *node != place.node_id {
                    let text = format!("data on {node} has got a second place: {volume:?}");
                    return Err(Kind::VolumeTwice.because(text));
                }
            }
        }
        for (name, volume) in volumes() {
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
    pub(super) fn check_machines(&mut self, cluster: &SimCluster) -> Result<(), Violation> {
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
        self.check_removals(cluster)
    }

    /// Checks that no data has gone of a volume that is there, and that there is none that nobody knows of.
    fn check_removals(&mut self, cluster: &SimCluster) -> Result<(), Violation> {
        let (before, mut left) = (std::mem::take(&mut self.data), std::mem::take(&mut self.left));
        let now = cluster.world.now();
        for worker in &cluster.workers {
            for (volume, slot) in worker.machine.volumes() {
                let is_there = |it: &&Arc<Volume>| it.nodes_with(slot).any(|node| *node == worker.node_id);
                let volume = VolumeId::from(volume.as_str());
                let known = self.known.get(&volume);
                let data = (worker.host, volume.clone(), slot);
                if known.filter(is_there).is_none() {
                    let since = left.remove(&data).unwrap_or(now);
                    if now >= since + KNOWN_AFTER {
                        let text = format!("{} has data of {volume} and slot {slot:?}: {known:?}", worker.host);
                        return Err(Kind::VolumeLeft.because(text));
                    }
                    self.left.insert(data.clone(), since);
                }
                self.data.insert(data);
            }
        }
        self.gone.extend(before.difference(&self.data).cloned());
        self.gone.retain(|(_, volume, _)| self.known.get(volume).is_some_and(|it| !it.is_removed));
        match self.gone.first().filter(|_| cluster.leader().is_some()) {
            Some(gone) => Err(Kind::VolumeLost.because(format!("nobody has removed what is gone: {gone:?}"))),
            None => Ok(()),
        }
    }
}

/// Whether no volume is left that was removed. What machines have of such ones is checked at every moment.
pub(super) fn converged(view: &View) -> Result<(), String> {
    match view.volumes().find(|volume| volume.is_removed) {
        Some(volume) => Err(format!("a volume was removed, and is there: {volume:?}")),
        None => Ok(()),
    }
}
