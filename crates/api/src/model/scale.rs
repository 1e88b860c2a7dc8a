//! Autoscaling: how the number of tasks of a service follows their load, and what was decided.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::seconds;
use crate::defaults;
use crate::id::TaskId;
use crate::resources::number_or_zero;
use crate::version::Timestamp;

/// How the number of tasks of a replicated service follows their load. The number is never outside of the bounds, whatever
/// the spec's own number of tasks is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScalePolicy {
    /// Smallest number of tasks. Without a task there is no load that could be measured.
    pub min: NonZeroU64,
    /// Largest number of tasks.
    pub max: NonZeroU64,
    /// CPU that a task is to use on average, in 10^-9 cores.
    #[serde(serialize_with = "number_or_zero")]
    pub nano_cpus: Option<NonZeroU64>,
    /// Memory that a task is to use on average, in bytes.
    #[serde(serialize_with = "number_or_zero")]
    pub memory_bytes: Option<NonZeroU64>,
    /// Requests that a task is to serve on average.
    pub requests: Option<RequestTarget>,
    /// How long more tasks must have been needed before there are more.
    #[serde(serialize_with = "seconds")]
    pub up_window: Duration,
    /// How long fewer tasks must have been enough before there are fewer.
    #[serde(serialize_with = "seconds")]
    pub down_window: Duration,
}

impl ScalePolicy {
    /// Returns a policy with these bounds and no target.
    pub fn between(min: NonZeroU64, max: NonZeroU64) -> Self {
        let (up_window, down_window) = (defaults::SCALE_UP_WINDOW, defaults::SCALE_DOWN_WINDOW);
        Self { min, max, nano_cpus: None, memory_bytes: None, requests: None, up_window, down_window }
    }

    /// Returns this number, or the bound that it exceeds.
    pub fn bounded(&self, replicas: u64) -> u64 {
        replicas.max(self.min.get()).min(self.max.get())
    }
}

/// The requests that a task is to serve on average, and where they are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestTarget {
    /// Requests in a second.
    pub per_second: NonZeroU64,
    /// The counter of requests.
    pub from: RequestCounter,
}

/// A counter of requests on a page that the task itself serves, in the text format of Prometheus. It is written as
/// `http://:PORT/PATH#METRIC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestCounter {
    /// Port in the network namespace of the task.
    pub port: u16,
    /// Path of the request, with its beginning `/`.
    pub path: String,
    /// Name of the metric; its values for all labels are added.
    pub metric: String,
}

impl fmt::Display for RequestCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://:{}{}#{}", self.port, self.path, self.metric)
    }
}

impl Serialize for RequestCounter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for RequestCounter {
    type Err = String;

    /// Parses `http://:PORT/PATH#METRIC`.
    ///
    /// # Errors
    /// The text has another form.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || -> Option<Self> {
            let (address, metric) = text.strip_prefix("http://:")?.split_once('#')?;
            let (port, path) = address.split_at(address.find('/')?);
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let is_path = path.bytes().all(|it| it.is_ascii_graphic());
            (is_path && is_metric(metric)).then(|| Self { port, path: path.to_owned(), metric: metric.to_owned() })
        };
        parsed().ok_or_else(|| {
            format!("`{}` is not a counter such as http://:8080/metrics#http_requests_total", text.escape_debug())
        })
    }
}

/// Whether this is the name of a metric (prometheus.io, "Metric names and labels").
fn is_metric(name: &str) -> bool {
    let is_good = |it: u8| it.is_ascii_alphanumeric() || it == b'_' || it == b':';
    name.bytes().all(is_good) && !name.is_empty() && !name.starts_with(|it: char| it.is_ascii_digit())
}

/// What a worker measures of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The counter of requests, if the service has a target for them.
    pub requests: Option<RequestCounter>,
}

/// What a task has used since its node measured it before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskUsage {
    /// The task.
    pub task: TaskId,
    /// CPU in 10^-9 cores; `None` when it is measured for the first time.
    pub nano_cpus: Option<u64>,
    /// Memory in bytes without the page cache that is not in use.
    pub memory_bytes: Option<u64>,
    /// Requests in a thousand seconds; `None` if its counter can't be read, or it is read for the first time.
    pub milli_requests: Option<u64>,
}

/// How much of a node is in use, by whatever runs there: an average of the last minute, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// The share of its CPUs.
    pub cpu: u32,
    /// The share of its memory, without the page cache that can be given up.
    pub memory: u32,
}

impl NodeUsage {
    /// Returns the share of the resource of which the most is in use.
    pub fn highest(self) -> u32 {
        self.cpu.max(self.memory)
    }
}

/// The number of tasks that the load has led to. It is beside the spec, which the system never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleStatus {
    /// The number of tasks; `None` before the first decision since a user has set a number.
    pub replicas: Option<u64>,
    /// The last decisions, the oldest first.
    pub decisions: Vec<ScaleDecision>,
}

impl ScaleStatus {
    /// Whether there is nothing to say.
    pub fn is_unused(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the status after a decision.
    pub fn decided(&self, decision: ScaleDecision) -> Self {
        let replicas = Some(decision.to);
        let mut decisions = self.decisions.clone();
        decisions.push(decision);
        let surplus = decisions.len().saturating_sub(defaults::SCALE_DECISIONS_KEPT);
        decisions.drain(..surplus);
        Self { replicas, decisions }
    }

    /// Returns the status once a user has set a number of tasks.
    pub fn set_by_user(&self) -> Self {
        Self { replicas: None, ..self.clone() }
    }
}

/// A change of the number of tasks because of their load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDecision {
    /// When it was decided, by the leader's clock.
    pub at: Timestamp,
    /// The number before.
    pub from: u64,
    /// The number afterwards.
    pub to: u64,
    /// What was measured.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_requests_has_a_port_a_path_and_a_metric() {
        for good in ["http://:8080/metrics#http_requests_total", "http://:1/#a:b", "http://:80/x?y=z#_r1"] {
            let parsed: RequestCounter = good.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.to_string(), good);
        }
        for bad in [
            "",
            "http://:8080/metrics",
            "http://:8080#a",
            "http://:0/m#a",
            "http://:70000/m#a",
            "http://host:80/m#a",
            "https://:80/m#a",
            "http://:80/m#",
            "http://:80/m#1a",
            "http://:80/m#a b",
            "http://:80/m n#a",
        ] {
            let error = bad.parse::<RequestCounter>().expect_err(bad);
            assert!(error.contains("is not a counter such as"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_last_decisions_are_kept_and_a_number_that_a_user_sets_holds() {
        let mut status = ScaleStatus::default();
        for to in 1..=30 {
            status = status.decided(ScaleDecision { to, ..ScaleDecision::default() });
        }
        assert_eq!((status.replicas, status.decisions.len()), (Some(30), defaults::SCALE_DECISIONS_KEPT));
        let set = status.set_by_user();
        assert_eq!((set.replicas, set.decisions.last().map(|it| it.to)), (None, Some(30)));
    }

    #[test]
    fn a_number_of_tasks_is_within_the_bounds() {
        let bound = |it| NonZeroU64::new(it).expect("it is not zero");
        let policy = ScalePolicy::between(bound(2), bound(5));
        assert_eq!([0, 2, 4, 9].map(|it| policy.bounded(it)), [2, 2, 4, 5]);
    }
}
