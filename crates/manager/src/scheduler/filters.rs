//! The filters of the scheduler. If several refuse a node, the first of them is counted and shown to users.

use flota_api::model::{Availability, Filter, NodeState, Refusal, ServiceSpec};

use super::NodeInfo;

/// Whether a task of the spec can't run on the node.
type Refuses = fn(&ServiceSpec, &NodeInfo) -> bool;

/// Every filter, in the order in which they are applied.
const FILTERS: [(Filter, Refuses); Filter::ALL.len()] = [
    (Filter::NotReady, |_, info| info.node.state != NodeState::Ready),
    (Filter::Drained, |_, info| info.node.spec.availability == Availability::Drain),
    (Filter::Paused, |_, info| info.node.spec.availability == Availability::Pause),
    (Filter::Constraint, |spec, info| !spec.constraints.iter().all(|it| info.node.satisfies(it))),
    (Filter::Cpu, |spec, info| spec.reservations.nano_cpus > info.free.nano_cpus),
    (Filter::Memory, |spec, info| spec.reservations.memory_bytes > info.free.memory_bytes),
    (Filter::Runtime, |spec, info| spec.runtime.as_ref().is_some_and(|it| !info.node.description.has_runtime(it))),
    (Filter::Privileged, |spec, info| matches!(refusal(spec, info), Some(Refusal::Privileged))),
    (Filter::Capability, |spec, info| matches!(refusal(spec, info), Some(Refusal::Capability(_)))),
    (Filter::Device, |spec, info| matches!(refusal(spec, info), Some(Refusal::Device(_)))),
    (Filter::GenericResource, |spec, info| info.devices.choose(&spec.generic_resources).is_none()),
];

/// Returns what the node's owner does not allow. The worker uses the same function.
fn refusal(spec: &ServiceSpec, info: &NodeInfo) -> Option<Refusal> {
    info.node.description.allow.refusal(spec)
}

/// Returns the first filter that refuses the node; `None` if a task of `spec` can run there.
pub(super) fn refuses(spec: &ServiceSpec, info: &NodeInfo) -> Option<Filter> {
    FILTERS.iter().find(|(_, refuses)| refuses(spec, info)).map(|(filter, _)| *filter)
}
