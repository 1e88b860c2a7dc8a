//! Measures what tasks use whose service is scaled by its load, and keeps the result for the session with the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::TaskId;
use flota_api::model::{Measured, TaskUsage};

use crate::executor::{Counters, Executor};
use crate::task_pool::TaskPool;

/// Number of tasks that are read at once.
const AT_ONCE: usize = 64;

/// What was read of a task at the last look.
type Seen = BTreeMap<TaskId, (Instant, Counters)>;

/// Measures at each interval for as long as somebody asks for the result. The result has all tasks that are measured.
pub(crate) async fn measure(executor: Arc<dyn Executor>, pool: TaskPool, result: watch::Sender<Vec<TaskUsage>>) {
    let mut seen = Seen::new();
    let mut looks = tokio::time::interval(MEASURE_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = result.closed() => return,
            _ = looks.tick() => {}
        }
        let read = read_all(&executor, pool.measured()).await;
        if read.is_empty() && seen.is_empty() {
            continue;
        }
        let usages = read.iter().map(|(task, now)| used(task, seen.get(task), now)).collect();
        seen = read;
        result.send_replace(usages);
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

/// Returns what a task has used since the last look. A counter that has fallen is that of another start of the task.
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
