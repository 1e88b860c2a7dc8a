//! What nodes use, and the tasks of services that are scaled by their load, as the nodes say it. The leader keeps it in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::{NodeId, TaskId};
use flota_api::model::{NodeUsage, TaskUsage};

/// The last report of each node. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage(Arc<Mutex<BTreeMap<NodeId, Report>>>);

#[derive(Debug)]
struct Report {
    at: Instant,
    tasks: BTreeMap<TaskId, TaskUsage>,
    node: Option<NodeUsage>,
}

impl Usage {
    /// Forgets everything: a term begins.
    pub(crate) fn begin(&self) {
        self.0.lock().expect("no holder panics").clear();
    }

    /// Replaces what the node has reported before with its usage of now, which lists all of its measured tasks.
    pub(crate) fn record(&self, node: &NodeId, tasks: Vec<TaskUsage>, usage: Option<NodeUsage>) {
        let tasks: BTreeMap<_, _> = tasks.into_iter().map(|it| (it.task.clone(), it)).collect();
        let report = Report { at: Instant::now(), tasks, node: usage };
        self.0.lock().expect("no holder panics").insert(node.clone(), report);
    }

    /// Forgets the node, whose session has ended.
    pub(crate) fn ended(&self, node: &NodeId) {
        self.0.lock().expect("no holder panics").remove(node);
    }

    /// Returns the task's usage by the last report of this node; `None` if the report does not list it, or is too old.
    pub(crate) fn of(&self, node: &NodeId, task: &TaskId) -> Option<TaskUsage> {
        let reports = self.0.lock().expect("no holder panics");
        let report = reports.get(node).filter(|report| report.at.elapsed() < MEASURE_INTERVAL * 3)?;
        report.tasks.get(task).cloned()
    }

    /// Returns how much of the node is in use. A node reports it when it changes, for as long as it has a session.
    pub(crate) fn of_node(&self, node: &NodeId) -> Option<NodeUsage> {
        self.0.lock().expect("no holder panics").get(node)?.node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_last_report_of_a_node_counts_and_not_for_long() {
        let usage = Usage::default();
        let of = |task: &str| TaskUsage { task: task.into(), nano_cpus: Some(1), ..TaskUsage::default() };
        let used = NodeUsage { cpu: 1, memory: 2 };
        usage.record(&"n".into(), vec![of("a"), of("b")], None);
        usage.record(&"n".into(), vec![of("b")], Some(used));
        assert_eq!(usage.of(&"n".into(), &"a".into()), None, "the node has it no more");
        assert_eq!(usage.of(&"n".into(), &"b".into()), Some(of("b")));
        assert_eq!(usage.of(&"m".into(), &"b".into()), None, "it is not on that node");
        tokio::time::advance(MEASURE_INTERVAL * 3).await;
        assert_eq!(usage.of(&"n".into(), &"b".into()), None, "it is old");
        assert_eq!(usage.of_node(&"n".into()), Some(used), "a node reports it when it changes");
        usage.record(&"n".into(), vec![of("b")], None);
        assert_eq!(usage.of_node(&"n".into()), None);
        usage.ended(&"n".into());
        assert_eq!(usage.of(&"n".into(), &"b".into()), None);
    }
}
