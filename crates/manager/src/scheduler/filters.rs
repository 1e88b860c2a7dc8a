//! What keeps a task from a node. Each filter is a claim about the node; the first that holds is counted and shown.

use flota_api::constraint::Constraint;
use flota_api::model::{Availability, NodeState, Refusal, ServiceSpec};

use super::NodeInfo;

type Filter = (&'static str, fn(&ServiceSpec, &NodeInfo) -> bool);

/// In the order in which users want to hear of them.
const FILTERS: [Filter; 11] = [
    ("not ready", |_, info| info.node.state != NodeState::Ready),
    ("drained", |_, info| info.node.spec.availability == Availability::Drain),
    ("paused", |_, info| info.node.spec.availability == Availability::Pause),
    ("excluded by a constraint", |spec, info| {
        // A constraint that can't be read was refused when the service was made.
        !spec.constraints.iter().all(|text| Constraint::parse(text).is_ok_and(|it| it.holds(&info.node)))
    }),
    ("without enough CPU", |spec, info| spec.reservations.nano_cpus > info.free.nano_cpus),
    ("without enough memory", |spec, info| spec.reservations.memory_bytes > info.free.memory_bytes),
    ("without the runtime", |spec, info| !info.node.description.has_runtime(&spec.runtime)),
    ("not allowing privileged tasks", |spec, info| matches!(refusal(spec, info), Some(Refusal::Privileged))),
    ("not allowing a capability", |spec, info| matches!(refusal(spec, info), Some(Refusal::Capability(_)))),
    ("not allowing a device", |spec, info| matches!(refusal(spec, info), Some(Refusal::Device(_)))),
    ("without enough free devices", |spec, info| info.devices.choose(&spec.generic_resources).is_none()),
];

/// What the node's owner does not allow; the worker judges by the same words.
fn refusal(spec: &ServiceSpec, info: &NodeInfo) -> Option<Refusal> {
    info.node.description.allow.refusal(spec)
}

/// Why a task of `spec` can't run there; `None` when it can.
pub(super) fn refuses(spec: &ServiceSpec, info: &NodeInfo) -> Option<&'static str> {
    FILTERS.iter().find(|(_, refuses)| refuses(spec, info)).map(|(reason, _)| *reason)
}
