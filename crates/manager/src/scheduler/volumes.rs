//! Where the data of volumes is. It binds the tasks that use it to a node; the first task that is placed decides which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::{NodeId, VolumeId};
use flota_api::model::{Filter, ServiceSpec, Task, Volume, VolumeAt};
use flota_api::object::{Kind, StoreObject};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use crate::plan::{Change, Plan};

/// The nodes on which a task can run, as far as its volumes decide that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// On any: no volume of the task has data yet.
    Anywhere,
    /// On the node that has all their data.
    On(NodeId, Vec<VolumeAt>),
    /// On none: they are on different nodes, or one of them does not exist.
    Nowhere(Vec<VolumeAt>),
}

/// The volumes as the tables have them, with the places that this plan has chosen.
pub(super) struct VolumePlaces<'a> {
    view: &'a Tables,
    placed: BTreeMap<VolumeId, Volume>,
}

impl<'a> VolumePlaces<'a> {
    pub(super) fn new(view: &'a Tables) -> Self {
        Self { view, placed: BTreeMap::new() }
    }

    fn named(&self, name: &str) -> Option<&Volume> {
        let volume = self.view.volume_by_name(name)?;
        Some(self.placed.get(&volume.id).unwrap_or(volume))
    }

    /// Returns where a task of this spec can run, if no node of its own is given.
    pub(super) fn home(&self, spec: &ServiceSpec, task: &Task) -> Home {
        if faults::is_on(Fault::LostPlaces) {
            return Home::Anywhere;
        }
        let (mut nodes, mut found) = (BTreeSet::new(), Vec::new());
        for name in spec.volumes() {
            let Some(volume) = self.named(name) else { return Home::Nowhere(found) };
            if let Some(node) = volume.nodes_with(volume.data_slot(spec.mode.is_global(), task.slot)).next() {
                nodes.insert(node);
                found.push(self.at(name, node));
            }
        }
        let mut nodes = nodes.into_iter();
        match (nodes.next(), nodes.next()) {
            (None, _) => Home::Anywhere,
            (Some(node), None) => Home::On(node.clone(), found),
            (Some(_), Some(_)) => Home::Nowhere(found),
        }
    }

    fn at(&self, name: &str, node: &NodeId) -> VolumeAt {
        let known = self.view.node(node);
        let hostname = known.map_or_else(|| node.to_string(), |node| node.description.hostname.clone());
        VolumeAt { volume: name.to_owned(), node: hostname, is_gone: known.is_none() }
    }

    /// Returns the counts of the filters for a task whose data is on one node, or on no single one. `own` is the filter
    /// that refuses the one.
    pub(super) fn refusals(&self, own: Option<Filter>) -> BTreeMap<Filter, u64> {
        let others = (self.view.count(Kind::Node) as u64).saturating_sub(u64::from(own.is_some()));
        let others = (Filter::Volume, others);
        own.map(|filter| (filter, 1)).into_iter().chain([others]).filter(|(_, nodes)| *nodes > 0).collect()
    }

    /// Whether a task that is being stopped still uses, on this node, data that the task would use: the one before it in its
    /// slot, or one of a service that was removed. Tasks of other services share a volume because their users want it.
    pub(super) fn is_being_left(&self, spec: &ServiceSpec, task: &Task, node: &NodeId) -> bool {
        if spec.volumes().next().is_none() {
            return false;
        }
        let stops = |it: &&Arc<Task>| it.holds_resources() && it.desired_state.is_stopping();
        self.view.tasks_of_node(node).filter(stops).any(|other| {
            let is_before = other.service_id == task.service_id && other.slot == task.slot;
            let Some(theirs) = self.view.spec_of(other) else { return false };
            let shares = |name: &str| {
                self.named(name).is_some_and(|volume| {
                    let [own, other] = [(spec, task), (theirs.as_ref(), other.as_ref())]
                        .map(|(spec, task)| volume.data_slot(spec.mode.is_global(), task.slot));
                    own == other && theirs.volumes().any(|it| it == name)
                })
            };
            (is_before || self.view.service(&other.service_id).is_none()) && spec.volumes().any(shares)
        })
    }

    /// Adds the places that were chosen to the plan, before the tasks: a part of the plan may be all that is taken of it.
    pub(super) fn record(self, plan: &mut Plan) {
        let places = self.placed.into_values().map(|volume| Change::Put(volume.into_object()));
        plan.changes.splice(0..0, places);
    }

    /// Chooses this node for the data of the task's volumes that have none yet. The plan depends on the others.
    pub(super) fn place(&mut self, spec: &ServiceSpec, task: &Task, node: &NodeId, plan: &mut Plan) {
        for name in spec.volumes() {
            let Some(volume) = self.named(name) else { continue };
            match volume.placed(volume.data_slot(spec.mode.is_global(), task.slot), node) {
                // A file system is mounted on any node.
                _ if volume.spec.file_system.is_some() => plan.expect(Kind::Volume, &volume.id),
                None => plan.expect(Kind::Volume, &volume.id),
                Some(placed) => drop(self.placed.insert(placed.id.clone(), placed)),
            }
        }
    }
}
