//! Which slots a service keeps when it is scaled down: the same order in which the scheduler would fill them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use flota_api::id::NodeId;
use flota_api::model::{PlacementStrategy, ServiceSpec};
use flota_api::state::TaskState;
use flota_raft_store::Tables;

use super::slot::Slot;

/// A slot with its number, and what decides about it.
struct Entry<'a> {
    number: u64,
    slot: &'a Slot,
    /// Whether its task has no node, and whether it does not run, as far as its node can tell. Nothing is lost with such a
    /// task.
    needless: (bool, bool),
    node: Option<NodeId>,
    /// The values of the node for the levels of the spread.
    groups: Vec<String>,
}

/// Returns the slots in the order in which they are kept. Assigned ones come first, then running ones. Of these, the
/// first of each group of the spread comes before the second of any, level by level, and so does the first of each
/// node; to pack, those on the nodes with most of them come first. Then come those on nodes with few tasks in all, and
/// lower numbers.
pub(super) fn keep_order<'a>(
    spec: &ServiceSpec,
    slots: impl Iterator<Item = (u64, &'a Slot)>,
    view: &Tables,
) -> Vec<(u64, &'a Slot)> {
    let mut entries: Vec<Entry> = slots.map(|(number, slot)| entry(spec, number, slot, view)).collect();
    let load = |node: &Option<NodeId>| node.as_ref().map_or(0, |node| view.load(node).live);
    match spec.strategy {
        PlacementStrategy::Spread | PlacementStrategy::LeastUsed => {
            entries.sort_by_cached_key(|it| (it.needless, load(&it.node), it.number));
            take_turns(&mut entries, |it| it.node.clone());
        }
        PlacementStrategy::Binpack => {
            let mut on_node: BTreeMap<Option<NodeId>, usize> = BTreeMap::new();
            entries.iter().for_each(|it| *on_node.entry(it.node.clone()).or_default() += 1);
            let key =
                |it: &Entry| (it.needless, Reverse((on_node[&it.node], load(&it.node))), it.node.clone(), it.number);
            entries.sort_by_cached_key(key);
        }
    }
    // The innermost level comes first, so that the outermost decides in the end.
    for level in (1..=spec.spread_over.len()).rev() {
        take_turns(&mut entries, |it| it.groups[..level].to_vec());
    }
    entries.into_iter().map(|it| (it.number, it.slot)).collect()
}

fn entry<'a>(spec: &ServiceSpec, number: u64, slot: &'a Slot, view: &Tables) -> Entry<'a> {
    let current = slot.current();
    let node = current.and_then(|task| task.node_id.clone());
    let known = node.as_ref().and_then(|node| view.node(node));
    let value = |key| known.and_then(|node| node.property(key)).unwrap_or_default().to_owned();
    let groups = spec.spread_over.iter().map(value).collect();
    let is_running = current.is_some_and(|task| task.status.state == TaskState::Running && !view.is_lost(task));
    Entry { number, slot, needless: (node.is_none(), !is_running), node, groups }
}

/// Puts the first entry of each group before the second of any. Within that, the order stays.
fn take_turns<G: Ord>(entries: &mut Vec<Entry>, group: impl Fn(&Entry) -> G) {
    let mut seen: BTreeMap<G, usize> = BTreeMap::new();
    let mut ranked: Vec<_> = std::mem::take(entries)
        .into_iter()
        .map(|it| {
            let turn = seen.entry(group(&it)).or_default();
            *turn += 1;
            ((it.needless, *turn), it)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    entries.extend(ranked.into_iter().map(|(_, it)| it));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::constraint::NodeProperty;
    use flota_api::model::{Node, NodeSpec, NodeState, Service, Task, TaskStatus};
    use flota_api::object::StoreObject;

    /// The slots of a service whose tasks run on these nodes, in the order in which they are kept.
    fn order(nodes: &[&str], others: &[&str], change: impl Fn(&mut ServiceSpec)) -> Vec<u64> {
        let mut view = Tables::default();
        for (name, zone) in [("a", "east"), ("b", "east"), ("c", "west")] {
            let spec = NodeSpec { labels: [("zone".into(), zone.into())].into(), ..NodeSpec::default() };
            view.put(Node { id: name.into(), spec, ..Node::default() }.into_object());
        }
        view.put(Node { id: "lost".into(), state: NodeState::Down, ..Node::default() }.into_object());
        for service in ["s", "other"] {
            view.put(Service { id: service.into(), spec_version: 1, ..Service::default() }.into_object());
        }
        let mut put = |service: &str, number: u64, node: &str| {
            let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
            let (id, slot, node_id) = (format!("{service}{number}").into(), number, Some(node.into()));
            let service_id = service.into();
            let task = Task { id, service_id, spec_version: 1, slot, node_id, status, ..Task::default() };
            view.put(task.clone().into_object());
            (number, Slot::new([Arc::new(task)].iter(), 1))
        };
        (1..).zip(others).for_each(|(number, node)| drop(put("other", number, node)));
        let slots: Vec<(u64, Slot)> = (1..).zip(nodes).map(|(number, node)| put("s", number, node)).collect();
        let mut spec = ServiceSpec::default();
        change(&mut spec);
        let kept = keep_order(&spec, slots.iter().map(|(number, slot)| (*number, slot)), &view);
        kept.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn the_fullest_node_gives_up_tasks_first_of_the_service_then_of_all() {
        assert_eq!(order(&["a", "a", "b"], &[], |_| {}), [3, 1, 2]);
        assert_eq!(order(&["a", "b", "c"], &["a", "c", "c"], |_| {}), [2, 1, 3]);
    }

    #[test]
    fn what_may_run_on_a_lost_node_goes_before_what_runs() {
        assert_eq!(order(&["lost", "a", "a"], &["a", "a"], |_| {}), [2, 3, 1]);
        assert_eq!(order(&["lost", "lost", "a"], &[], |spec| spec.strategy = PlacementStrategy::Binpack), [3, 1, 2]);
    }

    #[test]
    fn groups_take_turns_before_nodes_do() {
        let zones = |spec: &mut ServiceSpec| {
            spec.spread_over = vec![NodeProperty::parse("node.labels.zone").expect("it is one")];
        };
        assert_eq!(order(&["a", "b", "c", "c"], &[], |_| {}), [1, 2, 3, 4]);
        assert_eq!(order(&["a", "b", "c", "c"], &[], zones), [1, 3, 2, 4], "one in each zone, then two");
    }

    #[test]
    fn a_service_that_is_packed_gives_up_the_emptiest_node_first() {
        let pack = |spec: &mut ServiceSpec| spec.strategy = PlacementStrategy::Binpack;
        assert_eq!(order(&["a", "b", "b", "c"], &["c", "c"], pack), [2, 3, 4, 1]);
    }
}
