//! Autoscaling: lets the number of tasks of a service follow their load, while this manager leads.
//!
//! Workers measure the tasks (`worker/usage.rs`), and the dispatcher has their last reports. [`decide`] says what they
//! mean; the result is written beside the spec, and the orchestrator starts and stops tasks. What was seen before is kept
//! in memory, so a new leader watches for a whole window before it stops a task.

mod decide;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use flota_api::defaults::MEASURE_INTERVAL;
use flota_api::id::ServiceId;
use flota_api::model::{ScaleDecision, Service, Task, TaskUsage};
use flota_api::version::Timestamp;
use flota_raft_store::{Tables, Transaction, View, WriteTx};

use crate::replica::Replica;
use crate::usage::Usage;
use decide::{Needs, Window};

/// How long a task must have served before its use of CPU counts: many programs need more to start than to serve, and more
/// tasks would then call for yet more.
const WARM_UP: Duration = Duration::from_secs(30);

/// Decides at each interval until leadership ends.
pub(crate) async fn run(replica: Replica, usage: Usage, scope: CancellationToken) {
    let mut windows: BTreeMap<ServiceId, Window> = BTreeMap::new();
    let mut looks = tokio::time::interval(MEASURE_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            _ = looks.tick() => {}
        }
        // One time for both: a window of no length has what was seen at this look.
        let (now, at) = (Instant::now(), replica.clock.now());
        look(&replica.store.view(), &usage, &mut windows, (now, at));
        for (id, window) in &windows {
            let write = replica.write_if_needed(|view| decided(view, id, window, (now, at)));
            let written = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                written = write => written,
            };
            if let Err(error) = written {
                tracing::info!(service.id = %id, %error, "a decision of autoscaling was not stored, and is made again");
            }
        }
    }
}

/// Adds what is measured now to the windows, and forgets the services that are not scaled by their load any more.
fn look(view: &Tables, usage: &Usage, windows: &mut BTreeMap<ServiceId, Window>, (now, at): (Instant, Timestamp)) {
    windows.retain(|id, _| view.service(id).is_some_and(is_scaled));
    for service in view.services().filter(|service| is_scaled(service)) {
        let (Some(policy), Some(current)) = (&service.spec.scale, service.replicas()) else { continue };
        let window = windows.entry(service.id.clone()).or_default();
        if let Some(needs) = Needs::of(policy, current, &measured(service, view, usage, at)) {
            window.add(now, current, needs, policy);
        }
    }
}

fn is_scaled(service: &Arc<Service>) -> bool {
    service.spec.scale.is_some() && !service.spec.stopped
}

/// Returns what each task that serves uses, as far as it is known. What a program uses to start is not its load.
fn measured(service: &Service, view: &Tables, usage: &Usage, now: Timestamp) -> Vec<TaskUsage> {
    let of = |task: &Arc<Task>| {
        let known = task.node_id.as_ref().and_then(|node| usage.of(node, &task.id));
        let used = known.unwrap_or_else(|| TaskUsage { task: task.id.clone(), ..TaskUsage::default() });
        let is_warm = task.served_at.is_some_and(|since| since.until(now) >= WARM_UP);
        TaskUsage { nano_cpus: used.nano_cpus.filter(|_| is_warm), ..used }
    };
    view.tasks_of_service(&service.id).filter(|task| task.is_proven()).map(of).collect()
}

/// Returns the transaction that gives the service another number of tasks; `None` if the number stays.
fn decided(view: View, id: &ServiceId, window: &Window, (now, at): (Instant, Timestamp)) -> Option<(Transaction, ())> {
    let service = view.service(id).filter(|service| is_scaled(service))?;
    let (policy, current) = (service.spec.scale.as_ref()?, service.replicas()?);
    let (to, reason) = window.decide(policy, current, now)?;
    // More tasks for which there is no room are of no use, and an update would wait for them.
    if to > current && view.tasks_of_service(id).any(|task| task.is_live() && task.node_id.is_none()) {
        return None;
    }
    tracing::info!(service = service.spec.name, from = current, to, reason, "autoscaling");
    let scale = service.scale.decided(ScaleDecision { at, from: current, to, reason });
    let changed = Service { scale, ..service.as_ref().clone() };
    let mut tx = WriteTx::new(view, None);
    tx.update(changed);
    Some((tx.finish(), ()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use flota_api::model::{Health, HealthState, ScalePolicy, ServiceMode, ServiceSpec, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::TaskState;

    const NOW: Timestamp = Timestamp(1_000_000);

    /// A service with two tasks, between one and nine, that are to use one CPU each.
    fn service() -> Service {
        let [least, most, cpu] = [1, 9, 1_000_000_000].map(|it| NonZeroU64::new(it).expect("it is not zero"));
        let scale = Some(ScalePolicy { nano_cpus: Some(cpu), ..ScalePolicy::between(least, most) });
        let mode = ServiceMode::Replicated { replicas: 2 };
        let spec = Arc::new(ServiceSpec { name: "web".into(), mode, scale, ..ServiceSpec::default() });
        Service { id: "s".into(), spec, spec_version: 1, ..Service::default() }
    }

    /// A task on a node that has served for so many seconds.
    fn task(id: &str, seconds: u64) -> Task {
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let (service_id, node_id) = ("s".into(), Some("n".into()));
        let served_at = Some(Timestamp(NOW.0 - seconds * 1_000));
        Task { id: id.into(), service_id, spec_version: 1, node_id, status, served_at, ..Task::default() }
    }

    fn view(tasks: Vec<Task>) -> Tables {
        let mut view = Tables::default();
        view.put(service().into_object());
        tasks.into_iter().for_each(|task| view.put(task.into_object()));
        view
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_program_uses_to_start_is_not_its_load() {
        let health = Some(Health { state: HealthState::Starting, ..Health::default() });
        let starts = task("starts", 60);
        let starts = Task { status: TaskStatus { health: health.map(Box::new), ..starts.status.clone() }, ..starts };
        let waits = Task { node_id: None, status: TaskStatus::default(), ..task("waits", 0) };
        let view = view(vec![task("new", 10), task("old", 40), task("silent", 40), starts, waits]);
        let usage = Usage::default();
        let used =
            |id: &str| TaskUsage { task: id.into(), nano_cpus: Some(5), memory_bytes: Some(7), milli_requests: None };
        usage.record(&"n".into(), ["new", "old", "starts"].map(used).into(), None);
        let seen: Vec<_> = measured(&service(), &view, &usage, NOW)
            .into_iter()
            .map(|it| (it.task.to_string(), it.nano_cpus, it.memory_bytes))
            .collect();
        let expected = [("new", None, Some(7)), ("old", Some(5), Some(7)), ("silent", None, None)];
        assert_eq!(seen, expected.map(|(id, cpu, memory)| (id.to_owned(), cpu, memory)));
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_task_finds_no_node_there_are_no_more_but_fewer_as_ever() {
        let waits = Task { node_id: None, status: TaskStatus::default(), ..task("waits", 0) };
        let policy = service().spec.scale.clone().expect("it has one");
        let now = Instant::now();
        let decided = |tasks: Vec<Task>, replicas: u64| {
            let mut window = Window::default();
            let needs = |replicas| Needs { replicas, reason: "CPU".into() };
            window.add(now - policy.down_window, 2, needs(replicas), &policy);
            // Without a gap.
            for second in (0..policy.down_window.as_secs()).rev().step_by(10) {
                window.add(now - Duration::from_secs(second), 2, needs(replicas), &policy);
            }
            window.add(now, 2, needs(replicas), &policy);
            let change = decided(Arc::new(view(tasks)), &"s".into(), &window, (now, NOW));
            change.map(|(transaction, ())| transaction.actions.len())
        };
        assert_eq!(decided(vec![task("a", 60)], 4), Some(1));
        assert_eq!(decided(vec![task("a", 60), waits.clone()], 4), None);
        assert_eq!(decided(vec![task("a", 60), waits], 1), Some(1));
        assert_eq!(decided(vec![task("a", 60)], 2), None, "it is right");
    }
}
