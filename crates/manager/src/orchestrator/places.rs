//! Which slots a service keeps, which it gives up, and which it lacks, by its mode.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::id::NodeId;
use flota_api::model::{Node, Service, ServiceMode, ServiceSpec};
use flota_raft_store::Tables;

use super::keep_order::keep_order;
use super::slot::Slot;
use crate::wanted::Eligibility;

/// The slots of a service, in view of what its spec asks for.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// Those that stay.
    pub(super) kept: BTreeMap<u64, &'a Slot>,
    /// Those whose tasks are to be removed.
    pub(super) surplus: Vec<&'a Slot>,
    /// The numbers of those that the service lacks, with their nodes if it has one on each.
    pub(super) missing: Vec<(u64, Option<NodeId>)>,
}

/// Compares the slots of a service with what its spec asks for.
pub(super) fn places<'a>(service: &Service, slots: &'a BTreeMap<u64, Slot>, view: &Tables) -> Places<'a> {
    let counted = slots.iter().filter(|(_, slot)| slot.counts()).map(|(number, slot)| (*number, slot));
    let (mode, count) = (&service.spec.mode, service.replicas().unwrap_or_default());
    let (kept, surplus) = match mode {
        // A stopped job keeps its results, so that its work is not done again after a start.
        _ if service.spec.stopped => counted.partition(|(_, slot)| mode.is_job() && slot.is_done()),
        // Not called for the mode cron, whose slots belong to runs.
        ServiceMode::Replicated { .. } | ServiceMode::ReplicatedJob { .. } | ServiceMode::Cron { .. } => {
            most_useful(&service.spec, counted, count, view)
        }
        ServiceMode::Global {} | ServiceMode::GlobalJob {} => on_their_nodes(service, counted, view),
    };
    let kept: BTreeMap<u64, &Slot> = kept.into_iter().collect();
    let nodes: Vec<Option<NodeId>> = match mode {
        _ if service.spec.stopped => Vec::new(),
        ServiceMode::Replicated { .. } | ServiceMode::ReplicatedJob { .. } | ServiceMode::Cron { .. } => {
            vec![None; usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(kept.len())]
        }
        ServiceMode::Global {} | ServiceMode::GlobalJob {} => {
            // The task that leaves a node has ended before the next one begins there.
            let stopping = slots.values().filter(|slot| slot.is_stopping());
            let served: BTreeSet<&NodeId> =
                kept.values().copied().chain(stopping).filter_map(|slot| slot.pinned_to()).collect();
            let eligible = Eligibility::of(service, view);
            let lacks = |node: &&Arc<Node>| eligible.takes(node) && !served.contains(&node.id);
            view.nodes().filter(lacks).map(|node| Some(node.id.clone())).collect()
        }
    };
    let missing = (1..).filter(|number| !slots.contains_key(number)).zip(nodes).collect();
    Places { kept, surplus: surplus.into_iter().map(|(_, slot)| slot).collect(), missing }
}

type Numbered<'a> = Vec<(u64, &'a Slot)>;

/// Divides the slots into so many that stay and the others. What a job has done stays.
fn most_useful<'a>(
    spec: &ServiceSpec,
    slots: impl Iterator<Item = (u64, &'a Slot)>,
    count: u64,
    view: &Tables,
) -> (Numbered<'a>, Numbered<'a>) {
    let (slots, count): (Numbered, _) = (slots.collect(), usize::try_from(count).unwrap_or(usize::MAX));
    if slots.len() <= count {
        return (slots, Vec::new());
    }
    let mut kept = keep_order(spec, slots.into_iter(), view);
    kept.sort_by_key(|(_, slot)| !(spec.mode.is_job() && slot.is_done()));
    let surplus = kept.split_off(count);
    (kept, surplus)
}

/// Divides the slots into those whose node has, or has done, the task of the service, and the others.
fn on_their_nodes<'a>(
    service: &Service,
    slots: impl Iterator<Item = (u64, &'a Slot)>,
    view: &Tables,
) -> (Numbered<'a>, Numbered<'a>) {
    let (is_job, eligible) = (service.spec.mode.is_job(), Eligibility::of(service, view));
    let mut nodes = BTreeSet::new();
    slots.partition(|(_, slot)| {
        let keeps = |node: &Node| eligible.keeps(node) || is_job && slot.is_done();
        slot.pinned_to().and_then(|id| view.node(id)).is_some_and(|node| keeps(node) && nodes.insert(node.id.clone()))
    })
}
