//! The flags of `ctl service create` and `update` for autoscaling.

use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;

use flota_api::model::{RequestCounter, RequestTarget, ScalePolicy, ServiceSpec};

use crate::error::Usage;
use crate::parse;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct ScaleFlags {
    /// Smallest number of tasks that follows the load (default: 1)
    #[arg(long, value_name = "COUNT")]
    scale_min: Option<NonZeroU64>,
    /// Largest number of tasks that follows the load; with it, the number of tasks is no longer that of --replicas
    #[arg(long, value_name = "COUNT")]
    scale_max: Option<NonZeroU64>,
    /// CPUs that a task is to use on average, such as 0.5; 0 means no target
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    scale_cpu: Option<u64>,
    /// Memory that a task is to use on average, such as 256m; 0 means no target
    #[arg(long, value_name = "SIZE", value_parser = parse::bytes)]
    scale_memory: Option<u64>,
    /// Requests a second that a task is to serve on average; 0 means no target
    #[arg(long, value_name = "COUNT")]
    scale_requests: Option<u64>,
    /// Counter of a task's requests in the format of Prometheus, http://:PORT/PATH#METRIC
    #[arg(long, value_name = "COUNTER")]
    scale_requests_from: Option<RequestCounter>,
    /// Time for which the load must need more tasks before autoscaling starts them (default: 0s)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    scale_up_window: Option<Duration>,
    /// Time for which fewer tasks must be enough before autoscaling stops some (default: 5m)
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    scale_down_window: Option<Duration>,
}

/// The flag that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct ScaleRemoval {
    /// End autoscaling: the service has the number of tasks again that was set last
    #[arg(long)]
    no_scale: bool,
}

impl ScaleFlags {
    fn is_given(&self) -> bool {
        let Self { scale_min, scale_max, scale_cpu, scale_memory, scale_requests, scale_requests_from, .. } = self;
        scale_min.is_some()
            || scale_max.is_some()
            || scale_cpu.is_some()
            || scale_memory.is_some()
            || scale_requests.is_some()
            || scale_requests_from.is_some()
            || self.scale_up_window.is_some()
            || self.scale_down_window.is_some()
    }

    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        if !self.is_given() {
            return Ok(());
        }
        let known = spec.scale.take();
        let (min, max) = known.as_ref().map_or((NonZeroU64::MIN, None), |it| (it.min, Some(it.max)));
        let max = self.scale_max.or(max).ok_or_else(|| Usage("autoscaling needs --scale-max".into()))?;
        let mut policy = ScalePolicy { max, ..known.unwrap_or_else(|| ScalePolicy::between(min, max)) };
        policy.min = self.scale_min.unwrap_or(min);
        let target = |given: Option<u64>, before| given.map_or(before, NonZeroU64::new);
        policy.nano_cpus = target(self.scale_cpu, policy.nano_cpus);
        policy.memory_bytes = target(self.scale_memory, policy.memory_bytes);
        policy.requests = self.requests(policy.requests)?;
        policy.up_window = self.scale_up_window.unwrap_or(policy.up_window);
        policy.down_window = self.scale_down_window.unwrap_or(policy.down_window);
        spec.scale = Some(policy);
        Ok(())
    }

    fn requests(&self, before: Option<RequestTarget>) -> Result<Option<RequestTarget>, Usage> {
        let (count, from) = before.map(|it| (it.per_second, it.from)).unzip();
        let count = self.scale_requests.map_or(count, NonZeroU64::new);
        match (count, self.scale_requests_from.clone().or(from)) {
            (Some(per_second), Some(from)) => Ok(Some(RequestTarget { per_second, from })),
            (Some(_), None) => Err(Usage("--scale-requests needs --scale-requests-from".into())),
            (None, _) if self.scale_requests_from.is_some() => {
                Err(Usage("--scale-requests-from needs --scale-requests".into()))
            }
            (None, _) => Ok(None),
        }
    }
}

impl ScaleRemoval {
    /// Ends autoscaling if the flag is given.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        if self.no_scale {
            spec.scale = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: ScaleFlags,
        #[command(flatten)]
        removal: ScaleRemoval,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.removal.apply(&mut spec);
        update.flags.apply(&mut spec).map_err(|error| error.0)?;
        Ok(spec)
    }

    fn shown(spec: &ServiceSpec) -> String {
        let Some(it) = &spec.scale else { return "none".into() };
        let number = |it: Option<NonZeroU64>| it.map_or(0, NonZeroU64::get);
        let requests = it.requests.as_ref().map_or("none".into(), |it| format!("{} of {}", it.per_second, it.from));
        let (cpu, memory) = (number(it.nano_cpus), number(it.memory_bytes));
        format!("{}-{} {cpu} {memory} {requests} {:?} {:?}", it.min, it.max, it.up_window, it.down_window)
    }

    #[test]
    fn each_flag_changes_its_part_of_the_policy() {
        let mut spec = ServiceSpec::default();
        for (flags, expected) in [
            ("", "none"),
            ("--scale-max 9 --scale-cpu 0.5", "1-9 500000000 0 none 0ns 300s"),
            ("--scale-min 2 --scale-memory 1m --scale-up-window 30s", "2-9 500000000 1048576 none 30s 300s"),
            (
                "--scale-cpu 0 --scale-requests 50 --scale-requests-from http://:80/m#r",
                "2-9 0 1048576 50 of http://:80/m#r 30s 300s",
            ),
            ("--scale-requests 60 --scale-down-window 1m", "2-9 0 1048576 60 of http://:80/m#r 30s 60s"),
            ("--scale-requests 0", "2-9 0 1048576 none 30s 60s"),
            ("", "2-9 0 1048576 none 30s 60s"),
            ("--no-scale", "none"),
        ] {
            spec = updated(&spec, flags).unwrap_or_else(|error| panic!("{flags}: {error}"));
            assert_eq!(shown(&spec), expected, "{flags}");
        }
    }

    #[test]
    fn what_is_missing_or_no_number_is_named() {
        for (flags, expected) in [
            ("--scale-cpu 1", "autoscaling needs --scale-max"),
            ("--scale-max 0", "zero"),
            ("--scale-max 3 --scale-requests 5", "--scale-requests needs --scale-requests-from"),
            ("--scale-max 3 --scale-requests-from http://:80/m#r", "--scale-requests-from needs --scale-requests"),
            ("--scale-max 3 --scale-requests 5 --scale-requests-from http://:80/m", "is not a counter such as"),
            ("--scale-max 3 --scale-cpu much", "much"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(flags);
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }
}
