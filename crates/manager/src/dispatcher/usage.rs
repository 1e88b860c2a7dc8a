//! What tasks use, as their nodes say it. The leader keeps it in memory, and only of services that are scaled by their
//! load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::{NodeId, TaskId};
use flota_api::model::TaskUsage;

/// The last report of each node. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage(Arc<Mutex<BTreeMap<NodeId, Report>>>);

#[derive(Debug)]
struct Report {
    at: Instant,
    tasks: BTreeMap<TaskId, TaskUsage>,
}

impl Usage {
    /// Forgets everything: a term begins.
    pub(super) fn begin(&self) {
        self.0.lock().expect("no holder panics").clear();
    }

    /// Replaces what the node has reported before with its usage of now, which lists all of its measured tasks.
    pub(crate) fn record(&self, node: &NodeId, tasks: Vec<TaskUsage>) {
        let tasks: BTreeMap<_, _> = tasks.into_iter().map(|it| (it.task.clone(), it)).collect();
        let mut reports = self.0.lock().expect("no holder panics");
        match tasks.is_empty() {
            true => drop(reports.remove(node)),
            false => drop(reports.insert(node.clone(), Report { at: Instant::now(), tasks })),
        }
    }

    /// Forgets the node, whose session has ended.
    pub(super) fn ended(&self, node: &NodeId) {
        self.0.lock().expect("no holder panics").remove(node);
    }

    /// Returns the task's usage by the last report of this node; `None` if the report does not list it, or is too old.
    pub(crate) fn of(&self, node: &NodeId, task: &TaskId) -> Option<TaskUsage> {
        let reports = self.0.lock().expect("no holder panics");
        let report = reports.get(node).filter(|report| report.at.elapsed() < MEASURE_INTERVAL * 3)?;
        report.tasks.get(task).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_last_report_of_a_node_counts_and_not_for_long() {
        let usage = Usage::default();
        let of = |task: &str| TaskUsage { task: task.into(), nano_cpus: Some(1), ..TaskUsage::default() };
        usage.record(&"n".into(), vec![of("a"), of("b")]);
        usage.record(&"n".into(), vec![of("b")]);
        assert_eq!(usage.of(&"n".into(), &"a".into()), None, "the node has it no more");
        assert_eq!(usage.of(&"n".into(), &"b".into()), Some(of("b")));
        assert_eq!(usage.of(&"m".into(), &"b".into()), None, "it is not on that node");
        tokio::time::advance(MEASURE_INTERVAL * 3).await;
        assert_eq!(usage.of(&"n".into(), &"b".into()), None, "it is old");
        usage.record(&"n".into(), vec![of("b")]);
        usage.ended(&"n".into());
        assert_eq!(usage.of(&"n".into(), &"b".into()), None);
    }
}
