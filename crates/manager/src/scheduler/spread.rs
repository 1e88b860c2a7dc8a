//! The nodes for a service that is spread over groups of them, such as zones and racks: each task goes to the group with the
//! fewest tasks of the service, within that to the group of the next level with the fewest, and there to the best node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use flota_api::constraint::NodeProperty;
use flota_api::id::{NodeId, ServiceId};
use flota_api::model::Node;
use flota_raft_store::Tables;

use super::candidate::{Candidate, Rank};

/// The values of a node's properties, level by level. A node without a label has an empty one.
type Group = Vec<String>;

/// A node's rank, its id, and its place among the nodes that were seen.
type Place = (Rank, NodeId, usize);

/// Nodes by group, best first.
pub(super) struct Spread {
    keys: Vec<NodeProperty>,
    /// Tasks of the service in each group and each group of groups, by the values of the first levels.
    counts: BTreeMap<Group, u64>,
    /// The nodes that do not refuse the spec, by the values of all levels. No group is empty.
    nodes: BTreeMap<Group, BinaryHeap<Reverse<Place>>>,
}

impl Spread {
    /// Counts the tasks of the service on all nodes. `changed` has the nodes that differ from what the tables have.
    pub(super) fn new(keys: &[NodeProperty], changed: &[Candidate], service: &ServiceId, view: &Tables) -> Self {
        let mut it = Self { keys: keys.to_vec(), counts: BTreeMap::new(), nodes: BTreeMap::new() };
        let changed: BTreeMap<&NodeId, u64> = changed.iter().map(|it| (&it.node.id, it.of_service())).collect();
        for node in view.nodes() {
            let count = changed.get(&node.id).copied().unwrap_or_else(|| view.live_tasks(service, &node.id));
            it.add(node, count);
        }
        it
    }

    /// Adds a node with this rank, which has this place among those that were seen.
    pub(super) fn push(&mut self, node: &Candidate, rank: Rank, index: usize) {
        let entry = Reverse((rank, node.node.id.clone(), index));
        self.nodes.entry(self.group(node.node)).or_default().push(entry);
    }

    /// Counts a task that was placed on the node.
    pub(super) fn count(&mut self, node: &Node) {
        self.add(node, 1);
    }

    /// Returns the number of tasks of the service in each group of this node, level by level.
    pub(super) fn counts_of(&self, node: &Node) -> Vec<u64> {
        let group = self.group(node);
        (1..=group.len()).map(|level| self.counts.get(&group[..level]).copied().unwrap_or_default()).collect()
    }

    /// Takes the best node, and returns the rank that it was added with, and its place.
    pub(super) fn pop(&mut self) -> Option<(Rank, usize)> {
        let mut group = Group::new();
        for _ in 0..self.keys.len() {
            let level = group.len();
            let inside = self.nodes.keys().filter(|it| it.starts_with(&group)).map(|it| &it[..=level]);
            let inside: BTreeSet<&[String]> = inside.collect();
            let count = |it: &&[String]| self.counts.get(*it).copied().unwrap_or_default();
            group = inside.into_iter().min_by_key(count)?.to_vec();
        }
        let nodes = self.nodes.get_mut(&group)?;
        let Reverse((rank, _, index)) = nodes.pop()?;
        if nodes.is_empty() {
            self.nodes.remove(&group);
        }
        Some((rank, index))
    }

    fn group(&self, node: &Node) -> Group {
        self.keys.iter().map(|key| node.property(key).unwrap_or_default().to_owned()).collect()
    }

    fn add(&mut self, node: &Node, tasks: u64) {
        let group = self.group(node);
        for level in 1..=group.len() {
            *self.counts.entry(group[..level].to_vec()).or_default() += tasks;
        }
    }
}
