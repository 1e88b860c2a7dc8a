//! Conversion of what autoscaling needs: policies, decisions, and what tasks use.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Malformed, millis};
use crate::model::{
    Measured, NodeUsage, RequestCounter, RequestTarget, ScaleDecision, ScalePolicy, ScaleStatus, TaskUsage,
};
use crate::proto::{dispatcher as pd, objects as po, specs as ps};
use crate::version::Timestamp;

impl From<&ScalePolicy> for ps::ScalePolicy {
    fn from(it: &ScalePolicy) -> Self {
        let number = |it: Option<NonZeroU64>| it.map_or(0, NonZeroU64::get);
        Self {
            min: it.min.get(),
            max: it.max.get(),
            nano_cpus: number(it.nano_cpus),
            memory_bytes: number(it.memory_bytes),
            requests: it.requests.as_ref().map_or(0, |it| it.per_second.get()),
            requests_from: it.requests.as_ref().map(|it| it.from.to_string()).unwrap_or_default(),
            up_window_ms: millis(it.up_window),
            down_window_ms: millis(it.down_window),
        }
    }
}

impl TryFrom<ps::ScalePolicy> for ScalePolicy {
    type Error = Malformed;
    fn try_from(it: ps::ScalePolicy) -> Result<Self, Malformed> {
        let bound = |field, number| NonZeroU64::new(number).ok_or_else(|| Malformed::new(field, "is zero"));
        let requests = match (NonZeroU64::new(it.requests), it.requests_from.as_str()) {
            (None, "") => None,
            (Some(per_second), from) => Some(RequestTarget { per_second, from: counter(from)? }),
            (None, _) => return Err(Malformed::new("scale.requests", "is zero")),
        };
        Ok(Self {
            min: bound("scale.min", it.min)?,
            max: bound("scale.max", it.max)?,
            nano_cpus: NonZeroU64::new(it.nano_cpus),
            memory_bytes: NonZeroU64::new(it.memory_bytes),
            requests,
            up_window: Duration::from_millis(it.up_window_ms),
            down_window: Duration::from_millis(it.down_window_ms),
        })
    }
}

fn counter(text: &str) -> Result<RequestCounter, Malformed> {
    text.parse().map_err(|error| Malformed::new("scale.requests_from", format!("can't be used: {error}")))
}

impl From<&ScaleStatus> for po::ScaleStatus {
    fn from(it: &ScaleStatus) -> Self {
        let decision =
            |it: &ScaleDecision| po::ScaleDecision { at: it.at.0, from: it.from, to: it.to, reason: it.reason.clone() };
        Self { replicas: it.replicas, decisions: it.decisions.iter().map(decision).collect() }
    }
}

impl From<po::ScaleStatus> for ScaleStatus {
    fn from(it: po::ScaleStatus) -> Self {
        let decision =
            |it: po::ScaleDecision| ScaleDecision { at: Timestamp(it.at), from: it.from, to: it.to, reason: it.reason };
        Self { replicas: it.replicas, decisions: it.decisions.into_iter().map(decision).collect() }
    }
}

impl From<&Measured> for pd::Measured {
    fn from(it: &Measured) -> Self {
        Self { requests_from: it.requests.as_ref().map(ToString::to_string).unwrap_or_default() }
    }
}

impl TryFrom<pd::Measured> for Measured {
    type Error = Malformed;
    fn try_from(it: pd::Measured) -> Result<Self, Malformed> {
        let text = Some(it.requests_from).filter(|it| !it.is_empty());
        Ok(Self { requests: text.map(|it| counter(&it)).transpose()? })
    }
}

impl From<TaskUsage> for pd::TaskUsage {
    fn from(it: TaskUsage) -> Self {
        let TaskUsage { task, nano_cpus, memory_bytes, milli_requests } = it;
        Self { task_id: task.into(), nano_cpus, memory_bytes, milli_requests }
    }
}

impl From<pd::TaskUsage> for TaskUsage {
    fn from(it: pd::TaskUsage) -> Self {
        let pd::TaskUsage { task_id, nano_cpus, memory_bytes, milli_requests } = it;
        Self { task: task_id.into(), nano_cpus, memory_bytes, milli_requests }
    }
}

impl From<NodeUsage> for pd::NodeUsage {
    fn from(it: NodeUsage) -> Self {
        Self { cpu: it.cpu, memory: it.memory }
    }
}

impl From<pd::NodeUsage> for NodeUsage {
    fn from(it: pd::NodeUsage) -> Self {
        Self { cpu: it.cpu, memory: it.memory }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Assignment, Service, ServiceSpec};

    fn policy() -> ScalePolicy {
        let number = |it| NonZeroU64::new(it).expect("it is not zero");
        let from = "http://:80/metrics#requests_total".parse().expect("a good counter");
        ScalePolicy {
            nano_cpus: NonZeroU64::new(5),
            memory_bytes: NonZeroU64::new(6),
            requests: Some(RequestTarget { per_second: number(7), from }),
            up_window: Duration::from_secs(8),
            down_window: Duration::from_secs(9),
            ..ScalePolicy::between(number(2), number(4))
        }
    }

    #[test]
    fn a_policy_and_its_decisions_survive_the_way_to_the_wire_and_back() {
        let decision = ScaleDecision { at: Timestamp(4), from: 2, to: 3, reason: "why".into() };
        let scale = ScaleStatus { replicas: Some(3), decisions: vec![decision] };
        let spec = Arc::new(ServiceSpec { scale: Some(policy()), ..ServiceSpec::default() });
        let service = Service { spec, scale, spec_set_at: Some(Timestamp(1)), ..Service::default() };
        assert_eq!(Service::try_from(po::Service::from(&service)), Ok(service));
        assert_eq!(po::Service::from(&Service::default()).scale, None);
        assert_eq!(ps::ServiceSpec::from(&ServiceSpec::default()).scale, None);
    }

    #[test]
    fn what_is_measured_survives_the_way_to_the_node_and_its_disk() {
        let requests = policy().requests.map(|it| it.from);
        for measured in [None, Some(Measured::default()), Some(Measured { requests })] {
            let assignment = Assignment { measured, ..Assignment::default() };
            assert_eq!(Assignment::decode(&assignment.encode()), Ok(assignment));
        }
        let usage = TaskUsage { task: "t".into(), nano_cpus: Some(1), memory_bytes: None, milli_requests: Some(0) };
        assert_eq!(TaskUsage::from(pd::TaskUsage::from(usage.clone())), usage);
        let node = NodeUsage { cpu: 1, memory: 2 };
        assert_eq!(NodeUsage::from(pd::NodeUsage::from(node)), node);
    }

    #[test]
    fn a_policy_that_says_nothing_clear_is_refused() {
        let wire = ps::ScalePolicy::from(&policy());
        for (broken, field) in [
            (ps::ScalePolicy { min: 0, ..wire.clone() }, "scale.min"),
            (ps::ScalePolicy { max: 0, ..wire.clone() }, "scale.max"),
            (ps::ScalePolicy { requests: 0, ..wire.clone() }, "scale.requests"),
            (ps::ScalePolicy { requests_from: "x".into(), ..wire }, "scale.requests_from"),
        ] {
            assert_eq!(ScalePolicy::try_from(broken).expect_err(field).field, field);
        }
    }
}
