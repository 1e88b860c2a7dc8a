//! How many tasks a load needs, and when the number of tasks follows. The rules are those of the HorizontalPodAutoscaler
//! of Kubernetes (autoscaling/v2, "Algorithm details"), with amounts for each task instead of shares of a reservation.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

use flota_api::model::{ScalePolicy, TaskUsage};
use flota_raft_store::faults::{self, Fault};

/// A load within so many percent of the target changes nothing.
const TOLERANCE: u128 = 10;
/// At one look, the number of tasks at most doubles, or grows by this.
const LEAST_GROWTH: u64 = 4;
/// A window begins anew after so long a gap without a measurement, because the load during the gap is not known.
const GAP: Duration = Duration::from_secs(60);

/// The number of tasks that a load needs, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) replicas: u64,
    /// The measurement that decides, as users read it.
    pub(super) reason: String,
}

/// A target and the use of each task of which it is known.
struct Metric {
    name: &'static str,
    target: u128,
    used: Vec<u128>,
    show: fn(u128) -> String,
}

impl Metric {
    /// Returns what it needs, given the present number of tasks and how many of them serve. Those of which nothing is known
    /// are taken for idle if there are too few tasks, and for busy if there are too many, so that what is not known changes
    /// nothing. Tasks that don't serve carry no load.
    fn needs(&self, current: u64, serving: u64) -> Option<Needs> {
        let (count, wanted) = (self.used.len() as u128, u128::from(current));
        if count == 0 {
            return None;
        }
        let sum: u128 = self.used.iter().sum();
        // An update that starts new tasks first shares the load among more tasks than there will be.
        let load = if count > wanted { sum * wanted / count } else { sum };
        let counted = if faults::is_on(Fault::SilentTasks) { wanted } else { count.min(wanted) };
        let at_target = self.target * counted;
        let off = load.abs_diff(at_target) * 100;
        let replicas = if off <= at_target * TOLERANCE {
            wanted
        } else if load > at_target {
            load.div_ceil(self.target).max(wanted)
        } else {
            let silent = u128::from(serving).min(wanted).saturating_sub(counted);
            (load + silent * self.target).div_ceil(self.target).min(wanted)
        };
        let show = self.show;
        let reason = format!("{} {} of {} a task", self.name, show(sum / count), show(self.target));
        Some(Needs { replicas: u64::try_from(replicas).unwrap_or(u64::MAX), reason })
    }
}

impl Needs {
    /// Returns what the load of the tasks that serve needs; `None` if nothing is known of it. `tasks` has an entry for each
    /// of them, which may say nothing.
    pub(super) fn of(policy: &ScalePolicy, current: u64, tasks: &[TaskUsage]) -> Option<Self> {
        let (metrics, serving) = (metrics(policy, tasks), tasks.len() as u64);
        let needs: Vec<Option<Self>> = metrics.iter().map(|metric| metric.needs(current, serving)).collect();
        let is_partial = needs.iter().any(Option::is_none);
        // The first of those that need the most.
        let most =
            needs.into_iter().flatten().reduce(|most, it| if it.replicas > most.replicas { it } else { most })?;
        // A target of which nothing is known may need all the tasks that there are.
        let least = if is_partial { current } else { 0 };
        let growth = current.saturating_mul(2).max(current.saturating_add(LEAST_GROWTH));
        let replicas = policy.bounded(most.replicas.max(least).min(growth));
        Some(Self { replicas, ..most })
    }
}

fn metrics(policy: &ScalePolicy, tasks: &[TaskUsage]) -> Vec<Metric> {
    let metric = |name, target: NonZeroU64, of: fn(&TaskUsage) -> Option<u64>, show| {
        let used = tasks.iter().filter_map(of).map(u128::from).collect();
        Metric { name, target: u128::from(target.get()), used, show }
    };
    let cpu = |target| metric("CPU", target, |it| it.nano_cpus, |it| format!("{:.2}", it as f64 / 1e9));
    let memory = |target| metric("memory", target, |it| it.memory_bytes, |it| format!("{} MiB", it >> 20));
    let requests =
        |target| metric("requests", target, |it| it.milli_requests, |it| format!("{:.1}/s", it as f64 / 1e3));
    let per_second = policy.requests.as_ref().map(|it| it.per_second);
    let milli = per_second.map(|it| it.saturating_mul(NonZeroU64::new(1_000).expect("it is not zero")));
    policy.nano_cpus.map(cpu).into_iter().chain(policy.memory_bytes.map(memory)).chain(milli.map(requests)).collect()
}

/// What the load of one service has needed of late, with the number of tasks that it has now.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The number of tasks that the service had during the window. When it changes, for whatever reason, a new window
    /// begins.
    replicas: u64,
    /// In the order of their times, without a gap.
    needs: VecDeque<(Instant, Needs)>,
}

impl Window {
    /// Adds what the present number of tasks needs now, and forgets what is older than both windows of the policy.
    pub(super) fn add(&mut self, now: Instant, replicas: u64, needs: Needs, policy: &ScalePolicy) {
        let has_gap = self.needs.back().is_none_or(|(at, _)| now - *at > GAP);
        if has_gap || self.replicas != replicas {
            self.needs.clear();
        }
        self.replicas = replicas;
        self.needs.push_back((now, needs));
        let longest = policy.up_window.max(policy.down_window);
        // The last one that is older says that the window has been whole.
        while self.needs.get(1).is_some_and(|(at, _)| now - *at >= longest) {
            self.needs.pop_front();
        }
    }

    /// Returns the number of tasks that the service should have instead of the present one, and why: more if all of the one
    /// window has needed more, fewer if all of the other one has needed fewer. Without a measurement at this time, nothing
    /// is known.
    pub(super) fn decide(&self, policy: &ScalePolicy, current: u64, now: Instant) -> Option<(u64, String)> {
        self.needs.back().filter(|(at, _)| *at == now && self.replicas == current)?;
        let within = |window: Duration| {
            let is_whole = self.needs.front().is_some_and(|(at, _)| now - *at >= window);
            let seen = self.needs.iter().filter(move |(at, _)| now - *at <= window).map(|(_, needs)| needs);
            is_whole.then_some(seen).into_iter().flatten()
        };
        let up = within(policy.up_window).min_by_key(|needs| needs.replicas).filter(|it| it.replicas > current);
        let down = within(policy.down_window).max_by_key(|needs| needs.replicas).filter(|it| it.replicas < current);
        let needs = up.or(down)?;
        // A user may have changed the bounds since.
        Some((policy.bounded(needs.replicas), needs.reason.clone())).filter(|(to, _)| *to != current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::RequestTarget;

    fn number(it: u64) -> NonZeroU64 {
        NonZeroU64::new(it).expect("it is not zero")
    }

    /// A target of one CPU a task, between 1 and 20 tasks.
    fn policy() -> ScalePolicy {
        ScalePolicy { nano_cpus: Some(number(1_000_000_000)), ..ScalePolicy::between(number(1), number(20)) }
    }

    /// Stands for a task that serves and whose usage is not known.
    const SILENT: u64 = u64::MAX;

    /// Tasks that serve, and use so many tenths of a CPU.
    fn tasks(tenths: &[u64]) -> Vec<TaskUsage> {
        let used = |tenths: u64| (tenths != SILENT).then(|| tenths * 100_000_000);
        tenths.iter().map(|tenths| TaskUsage { nano_cpus: used(*tenths), ..TaskUsage::default() }).collect()
    }

    #[test]
    fn the_number_of_tasks_follows_the_average_use() {
        for (current, tenths, expected, why) in [
            (2, &[10, 10][..], Some(2), "at the target"),
            (2, &[11, 11], Some(2), "within the tolerance"),
            (2, &[9, 9], Some(2), "within the tolerance"),
            (2, &[15, 15], Some(3), "one more is needed"),
            (2, &[12, 12], Some(3), "a part of a task is a task"),
            (4, &[5, 5, 5, 5], Some(2), "half is enough"),
            (4, &[0, 0, 0, 0], Some(1), "never fewer than the least"),
            (2, &[90, 90], Some(6), "at most four more, or twice as many"),
            (8, &[90; 8], Some(16), "at most four more, or twice as many"),
            (15, &[90; 15], Some(20), "never more than the most"),
            (4, &[20, 20, SILENT, SILENT], Some(4), "two that are not known are taken for idle"),
            (4, &[30, 30, SILENT, SILENT], Some(6), "it is too much even if two are idle"),
            (4, &[5, 5, SILENT, SILENT], Some(3), "two that are not known are taken for busy"),
            (20, &[5, 5], Some(1), "those that don't serve carry no load"),
            (20, &[20, 20], Some(20), "those that don't serve yet will carry some"),
            (4, &[SILENT, SILENT], None, "nothing is known"),
            (4, &[], None, "nothing is known"),
            (2, &[5, 5, 10, 10], Some(2), "an update has four for a while, each at 0.75 on average"),
            (2, &[15, 15, 15, 15], Some(3), "an update has four for a while"),
        ] {
            let needs = Needs::of(&policy(), current, &tasks(tenths)).map(|it| it.replicas);
            assert_eq!(needs, expected, "{current} tasks, {tenths:?}: {why}");
        }
    }

    #[test]
    fn of_several_targets_the_one_that_needs_most_decides_and_none_is_forgotten() {
        let from = "http://:80/m#r".parse().expect("a good counter");
        let requests = Some(RequestTarget { per_second: number(10), from });
        let policy = ScalePolicy { memory_bytes: Some(number(100 << 20)), requests, ..policy() };
        let of = |usage: TaskUsage| {
            let tasks = vec![usage; 4];
            Needs::of(&policy, 4, &tasks).map(|it| format!("{}: {}", it.replicas, it.reason))
        };
        let usage = |nano_cpus, memory_bytes, milli_requests| TaskUsage {
            nano_cpus,
            memory_bytes,
            milli_requests,
            ..TaskUsage::default()
        };
        let all = of(usage(Some(500_000_000), Some(25 << 20), Some(15_000)));
        assert_eq!(all.as_deref(), Some("6: requests 15.0/s of 10.0/s a task"));
        let fewer = of(usage(Some(500_000_000), Some(25 << 20), Some(1_000)));
        assert_eq!(fewer.as_deref(), Some("2: CPU 0.50 of 1.00 a task"));
        let unknown = of(usage(Some(500_000_000), Some(25 << 20), None));
        assert_eq!(unknown.as_deref(), Some("4: CPU 0.50 of 1.00 a task"), "nobody knows what the requests need");
        let memory = of(usage(None, Some(300 << 20), None));
        assert_eq!(memory.as_deref(), Some("8: memory 300 MiB of 100 MiB a task"));
    }

    /// Adds needs, each so many seconds after the beginning, and decides at the last.
    fn decided(policy: &ScalePolicy, current: u64, needs: &[(u64, u64)]) -> Option<u64> {
        let (mut window, begin) = (Window::default(), Instant::now());
        let at = |second: u64| begin + Duration::from_secs(second);
        for (second, replicas) in needs {
            window.add(at(*second), current, Needs { replicas: *replicas, reason: String::new() }, policy);
        }
        window.decide(policy, current, at(needs.last()?.0)).map(|(to, _)| to)
    }

    #[test]
    fn the_number_follows_a_load_that_stays_for_a_whole_window() {
        let policy =
            ScalePolicy { up_window: Duration::from_secs(20), down_window: Duration::from_secs(30), ..policy() };
        for (current, needs, expected, why) in [
            (2, &[(0, 5)][..], None, "it has been seen for a moment"),
            (2, &[(0, 5), (10, 4), (20, 6)], Some(4), "all of the window has needed 4"),
            (2, &[(0, 5), (10, 2), (20, 6)], None, "a part of the window has not needed more"),
            (2, &[(0, 2), (10, 4), (20, 6), (30, 6)], Some(4), "what is older does not count"),
            (5, &[(0, 1), (10, 2), (20, 1)], None, "the window is not over"),
            (5, &[(0, 1), (10, 3), (20, 1), (30, 1)], Some(3), "a part of it has needed 3"),
            (5, &[(0, 1), (10, 1), (20, 7), (30, 1)], None, "a part of it has needed more"),
            (5, &[(0, 1), (100, 1)], None, "nobody knows what was needed in the gap"),
            (3, &[(0, 3), (10, 3), (20, 3), (30, 3)], None, "it is right"),
        ] {
            assert_eq!(decided(&policy, current, needs), expected, "{current} tasks, {needs:?}: {why}");
        }
        let at_once = ScalePolicy { up_window: Duration::ZERO, ..policy };
        assert_eq!(decided(&at_once, 2, &[(0, 5)]), Some(5), "a window of no length is always whole");
    }

    #[test]
    fn a_decision_is_within_the_bounds_that_hold_now() {
        let now = Instant::now();
        let mut window = Window::default();
        window.add(now, 4, Needs { replicas: 9, reason: String::new() }, &policy());
        let smaller = ScalePolicy { max: number(4), ..policy() };
        assert_eq!(window.decide(&smaller, 4, now), None, "there are no more");
        assert_eq!(window.decide(&policy(), 4, now).map(|(to, _)| to), Some(9));
    }

    #[test]
    fn nothing_is_decided_of_what_was_measured_earlier_or_with_another_number_of_tasks() {
        let begin = Instant::now();
        let policy = ScalePolicy { down_window: Duration::from_secs(60), ..policy() };
        let needs = |replicas| Needs { replicas, reason: String::new() };
        let at = |second| begin + Duration::from_secs(second);
        let mut window = Window::default();
        (0..=6).for_each(|look| window.add(at(look * 10), 6, needs(2), &policy));
        assert_eq!(window.decide(&policy, 6, at(60)).map(|(to, _)| to), Some(2));
        assert_eq!(window.decide(&policy, 6, at(70)), None, "nobody has measured since");
        assert_eq!(window.decide(&policy, 9, at(60)), None, "a user has set another number");
        window.add(at(70), 9, needs(2), &policy);
        assert_eq!(window.decide(&policy, 9, at(70)), None, "its window begins anew");
        let longer = ScalePolicy { down_window: Duration::from_secs(120), ..policy.clone() };
        (8..=15).for_each(|look| window.add(at(look * 10), 9, needs(2), &policy));
        assert_eq!(window.decide(&longer, 9, at(150)), None, "a longer window has not been whole");
    }
}
