//! The filters of the scheduler. If several refuse a node, the first of them is counted and shown to users.

use flota_api::model::{Availability, Filter, LogSpec, NodeState, Refusal, ServiceSpec};
use flota_raft_store::Tables;

use super::candidate::Candidate;
use crate::affinity;

/// Whether a task of the spec can't run on the node.
type Refuses = fn(&ServiceSpec, &Candidate, &Tables) -> bool;

/// Every filter, in the order in which they are applied.
///
/// `Filter::Volume` is not among them: it depends on the slot of a task, and `volumes.rs` judges it.
const FILTERS: [(Filter, Refuses); Filter::ALL.len() - 1] = [
    (Filter::NotReady, |_, it, _| it.node.state != NodeState::Ready),
    (Filter::Drained, |_, it, _| it.node.spec.availability == Availability::Drain),
    (Filter::Paused, |_, it, _| it.node.spec.availability == Availability::Pause),
    (Filter::Constraint, |spec, it, _| !spec.constraints.iter().all(|constraint| it.node.satisfies(constraint))),
    (Filter::Outdated, |spec, it, _| needed_level(spec) > it.node.description.feature_level),
    (Filter::Cpu, |spec, it, _| spec.reservations.nano_cpus > it.free().nano_cpus),
    (Filter::Memory, |spec, it, _| spec.reservations.memory_bytes > it.free().memory_bytes),
    (Filter::Runtime, |spec, it, _| spec.runtime.as_ref().is_some_and(|name| !it.node.description.has_runtime(name))),
    (Filter::Privileged, |spec, it, _| matches!(refusal(spec, it), Some(Refusal::Privileged))),
    (Filter::Capability, |spec, it, _| matches!(refusal(spec, it), Some(Refusal::Capability(_)))),
    (Filter::BindMount, |spec, it, _| matches!(refusal(spec, it), Some(Refusal::BindMount(_)))),
    (Filter::Device, |spec, it, _| matches!(refusal(spec, it), Some(Refusal::Device(_)))),
    (Filter::CdiDevice, |spec, it, _| !spec.cdi_devices.iter().all(|name| it.node.description.has_cdi_device(name))),
    (Filter::Encryption, |spec, it, view| is_encrypted(spec, view) && !it.node.description.can_encrypt()),
    (Filter::MaxReplicas, |spec, it, _| spec.max_replicas_per_node.is_some_and(|most| it.of_service() >= most.get())),
    (Filter::Affinity, |spec, it, view| !spec.affinity.iter().all(|name| affinity::has_task_of(name, it.node, view))),
    (Filter::AntiAffinity, |spec, it, view| affinity::is_kept_apart(spec, it.node, view)),
    (Filter::Port, |spec, it, view| it.has_port_taken(spec, view)),
    (Filter::GenericResource, |spec, it, view| it.choose_devices(&spec.generic_resources, view).is_none()),
];

/// Returns what the node's owner does not allow. The worker uses the same function.
fn refusal(spec: &ServiceSpec, it: &Candidate) -> Option<Refusal> {
    it.node.description.allow.refusal(spec)
}

/// The lowest feature level of a node that knows all of the spec. An older one would start the task without the rest.
fn needed_level(spec: &ServiceSpec) -> u32 {
    let has_settings = spec.read_only
        || spec.tty
        || spec.shm_size.is_some()
        || !spec.ulimits.is_empty()
        || !spec.sysctls.is_empty()
        || !spec.groups.is_empty()
        || spec.memory_swap.is_some()
        || spec.oom_score_adj.is_some()
        || spec.log != LogSpec::default();
    if has_settings || !spec.mounts.is_empty() { 2 } else { 0 }
}

/// Whether a network of the spec is encrypted.
fn is_encrypted(spec: &ServiceSpec, view: &Tables) -> bool {
    spec.networks.iter().filter_map(|it| view.network(it.network.as_str())).any(|it| it.spec.encrypted)
}

/// Returns the first filter that refuses the node; `None` if a task of `spec` can run there.
pub(super) fn refuses(spec: &ServiceSpec, it: &Candidate, view: &Tables) -> Option<Filter> {
    FILTERS.iter().find(|(_, refuses)| refuses(spec, it, view)).map(|(filter, _)| *filter)
}
