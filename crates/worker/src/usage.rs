//! Measures the usage of the tasks whose services are scaled by their load, and that of the node, and keeps the results for the
//! session with the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::TaskId;
use flota_api::model::{Measured, NodeUsage, TaskUsage};

use crate::executor::{Counters, Executor, NodeCounters};
use crate::messages::UsageReport;
use crate::task_pool::TaskPool;

/// Number of tasks that are read at once.
const AT_ONCE: usize = 64;

/// Number of measurements that the average usage of a node covers.
const AVERAGED: f64 = 6.0;
/// Smallest change of the usage of a node that is reported to the leader, in thousandths.
const NOTABLE: u32 = 25;

/// The counters that were read of each task the last time.
type Seen = BTreeMap<TaskId, (Instant, Counters)>;

/// Measures at each interval for as long as somebody asks for the result.
pub(crate) async fn measure(executor: Arc<dyn Executor>, pool: TaskPool, result: watch::Sender<UsageReport>) {
    let (mut seen, mut average) = (Seen::new(), NodeAverage::default());
    let mut looks = tokio::time::interval(MEASURE_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = result.closed() => return,
            _ = looks.tick() => {}
        }
        let read = read_all(&executor, pool.measured()).await;
        let told = result.borrow().node;
        let now = executor.node_counters().and_then(|counters| average.add(counters));
        let node = now.filter(|now| is_notable(told, *now)).or(told);
        if read.is_empty() && seen.is_empty() && node == told {
            continue;
        }
        let tasks = read.iter().map(|(task, now)| used(task, seen.get(task), now)).collect();
        seen = read;
        result.send_replace(UsageReport { tasks, node });
    }
}

/// Whether the use of the node differs enough from what the leader was told last to be reported again.
fn is_notable(told: Option<NodeUsage>, now: NodeUsage) -> bool {
    told.is_none_or(|told| told.cpu.abs_diff(now.cpu).max(told.memory.abs_diff(now.memory)) >= NOTABLE)
}

/// The average share of the node that is in use; later measurements count more.
#[derive(Debug, Default)]
struct NodeAverage {
    last: Option<NodeCounters>,
    /// Average share of the CPU that is in use, in thousandths; `None` before the second measurement.
    cpu: Option<f64>,
}

impl NodeAverage {
    /// Adds a measurement, and returns the usage; `None` at the first one.
    fn add(&mut self, now: NodeCounters) -> Option<NodeUsage> {
        let before = self.last.replace(now)?;
        let (busy, all) = (now.busy.checked_sub(before.busy)?, now.all.checked_sub(before.all)?);
        let share = (u128::from(busy.min(all)) * 1_000).checked_div(u128::from(all))? as f64;
        let cpu = self.cpu.map_or(share, |average| average + (share - average) / AVERAGED);
        self.cpu = Some(cpu);
        // It is between 0 and 1,000.
        Some(NodeUsage { cpu: cpu.round() as u32, memory: now.memory })
    }
}

/// Reads the counters of the tasks, of several at the same time. A task that does not run has none.
async fn read_all(executor: &Arc<dyn Executor>, tasks: Vec<(TaskId, Measured)>) -> Seen {
    let read = |(task, measured): (TaskId, Measured)| async move {
        let counters = executor.counters(&task, &measured).await?;
        Some((task, (Instant::now(), counters)))
    };
    stream::iter(tasks).map(read).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// Returns what a task has used since the last measurement. A counter that has fallen is that of another start of the task.
fn used(task: &TaskId, before: Option<&(Instant, Counters)>, (at, now): &(Instant, Counters)) -> TaskUsage {
    let since = |of: fn(&Counters) -> Option<u64>| -> Option<(u64, Duration)> {
        let (then, before) = before?;
        Some((of(now)?.checked_sub(of(before)?)?, *at - *then)).filter(|(_, time)| !time.is_zero())
    };
    let rate = |(amount, time): (u64, Duration), unit: u128| {
        u64::try_from(u128::from(amount) * unit / time.as_nanos()).unwrap_or(u64::MAX)
    };
    TaskUsage {
        task: task.clone(),
        // A nanosecond of CPU in a nanosecond is a core.
        nano_cpus: since(|it| it.cpu_nanos).map(|it| rate(it, 1_000_000_000)),
        memory_bytes: now.memory_bytes,
        milli_requests: since(|it| it.requests).map(|it| rate(it, 1_000 * 1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_of_a_node_is_an_average_and_only_a_notable_change_is_told() {
        let mut average = NodeAverage::default();
        let mut after = |busy, all| average.add(NodeCounters { busy, all, memory: 70 }).map(|it| (it.cpu, it.memory));
        assert_eq!(after(500, 1_000), None, "nothing to compare with");
        assert_eq!(after(600, 1_200), Some((500, 70)));
        assert_eq!(after(600, 1_400), Some((417, 70)), "idle for one look of six");
        assert_eq!(after(600, 1_400), None, "no time has passed");
        assert_eq!(after(0, 0), None, "the machine was started again");
        let usage = |cpu, memory| NodeUsage { cpu, memory };
        let told = Some(usage(100, 500));
        assert!(is_notable(None, usage(0, 0)));
        assert!(is_notable(told, usage(125, 500)) && is_notable(told, usage(100, 475)));
        assert!(!is_notable(told, usage(124, 476)));
    }

    #[test]
    fn a_rate_is_what_a_counter_has_risen_by_in_the_time_between() {
        let begin = Instant::now();
        let look = |second, cpu_nanos, requests| {
            let counters = Counters { cpu_nanos: Some(cpu_nanos), memory_bytes: Some(7), requests };
            (begin + Duration::from_secs(second), counters)
        };
        let of = |before: Option<&(Instant, Counters)>, now: &(Instant, Counters)| {
            let usage = used(&"t".into(), before, now);
            (usage.nano_cpus, usage.memory_bytes, usage.milli_requests)
        };
        let first = look(10, 1_000_000_000, Some(100));
        assert_eq!(of(None, &first), (None, Some(7), None), "nothing to compare with");
        assert_eq!(of(Some(&first), &look(20, 6_000_000_000, Some(125))), (Some(500_000_000), Some(7), Some(2_500)));
        assert_eq!(of(Some(&first), &look(20, 0, Some(0))), (None, Some(7), None), "it was started again");
        assert_eq!(of(Some(&first), &look(20, 1_000_000_000, None)), (Some(0), Some(7), None), "it did not answer");
        assert_eq!(of(Some(&first), &look(10, 6_000_000_000, Some(125))), (None, Some(7), None), "no time has passed");
    }
}
