//! The filters of the scheduler. If several refuse a node, the first of them is counted and shown to users.

use flota_api::id::ServiceId;
use flota_api::model::{
    Availability, Filter, NodeDescription, NodeState, PinnedImage, Platform, Refusal, Service, ServiceSpec, VolumeSpec,
};
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::candidate::Candidate;
use crate::affinity;

/// What a task asks of its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand<'a> {
    pub(super) spec: &'a ServiceSpec,
    /// The platforms of its image; empty if they are not known.
    pub(super) platforms: &'a [Platform],
    /// The images that it mounts, as far as they are known.
    pub(super) mounted: &'a [PinnedImage],
}

impl<'a> Demand<'a> {
    /// The demand of the tasks of a service that are made from this version of its spec; `None` if that is not kept.
    pub(super) fn of(service: &ServiceId, version: u64, view: &'a Tables) -> Option<Self> {
        let service_now = view.service(service);
        let platforms = service_now.map_or(&[][..], |it| it.platforms_of_version(version));
        let mounted = service_now.map_or(&[][..], |it| it.mounted_images_of_version(version));
        Some(Self { spec: view.spec_version(service, version)?, platforms, mounted })
    }

    /// The demand of the tasks that are made from the present spec of the service.
    pub(super) fn of_present(service: &'a Service) -> Self {
        Self { spec: &service.spec, platforms: &service.image_platforms, mounted: &service.mounted_images }
    }

    /// The demand of tasks of whose images nothing is known.
    #[cfg(test)]
    pub(super) fn of_spec(spec: &'a ServiceSpec) -> Self {
        Self { spec, platforms: &[], mounted: &[] }
    }

    /// The platforms of each image that the task runs or mounts.
    fn images(&self) -> impl Iterator<Item = &'a [Platform]> {
        std::iter::once(self.platforms).chain(self.mounted.iter().map(|it| it.platforms.as_slice()))
    }

    /// Whether the node can run the task's image, and has its own part of each one that the task mounts.
    fn fits_platform(&self, node: &NodeDescription) -> bool {
        self.images().all(|platforms| node.has_platform_of(platforms))
    }

    /// The platforms of the image that is made for the fewest, for users who ask why the task runs nowhere.
    pub(super) fn scarcest_platforms(&self) -> &'a [Platform] {
        let known = self.images().filter(|platforms| !platforms.is_empty());
        known.min_by_key(|platforms| platforms.len()).unwrap_or_default()
    }
}

/// Whether a task can't run on the node.
type Refuses = fn(&Demand, &Candidate, &Tables) -> bool;

/// Every filter, in the order in which they are applied.
///
/// `Filter::Volume` is not among them: it depends on the slot of a task, and `volumes.rs` judges it.
const FILTERS: [(Filter, Refuses); Filter::ALL.len() - 1] = [
    (Filter::NotReady, |_, it, _| it.node.state != NodeState::Ready),
    (Filter::Drained, |_, it, _| it.node.spec.availability == Availability::Drain),
    (Filter::Paused, |_, it, _| it.node.spec.availability == Availability::Pause),
    (Filter::Constraint, |task, it, _| !task.spec.constraints.iter().all(|constraint| it.node.satisfies(constraint))),
    (Filter::Platform, |task, it, _| !task.fits_platform(&it.node.description)),
    (Filter::Outdated, |task, it, view| feature_level(task.spec, view) > it.node.description.feature_level),
    (Filter::Cpu, |task, it, _| task.spec.reservations.nano_cpus > it.free().nano_cpus),
    (Filter::Memory, |task, it, _| task.spec.reservations.memory_bytes > it.free().memory_bytes),
    (Filter::Runtime, |task, it, _| {
        task.spec.runtime.as_ref().is_some_and(|name| !it.node.description.has_runtime(name))
    }),
    (Filter::Privileged, |task, it, _| matches!(refusal(task.spec, it), Some(Refusal::Privileged))),
    (Filter::Capability, |task, it, _| matches!(refusal(task.spec, it), Some(Refusal::Capability(_)))),
    (Filter::BindMount, |task, it, view| {
        matches!(refusal(task.spec, it), Some(Refusal::BindMount(_)))
            || refusals_of_volumes(task.spec, it, view).any(|it| matches!(it, Refusal::BindMount(_)))
    }),
    (Filter::FileSystem, |task, it, view| refusals_of_volumes(task.spec, it, view).next().is_some()),
    (Filter::Device, |task, it, _| matches!(refusal(task.spec, it), Some(Refusal::Device(_)))),
    (Filter::CdiDevice, |task, it, _| {
        !task.spec.cdi_devices.iter().all(|name| it.node.description.has_cdi_device(name))
    }),
    (Filter::UserNamespace, |task, it, _| task.spec.user_namespace && !it.node.description.user_namespaces),
    (Filter::Encryption, |task, it, view| is_encrypted(task.spec, view) && !it.node.description.can_encrypt()),
    (Filter::MaxReplicas, |task, it, _| {
        let most = task.spec.max_replicas_per_node.filter(|_| !faults::is_on(Fault::CrowdedNode));
        most.is_some_and(|most| it.slots_of_service() >= most.get())
    }),
    (Filter::Affinity, |task, it, view| {
        !task.spec.affinity.iter().all(|name| affinity::has_task_of(name, it.node, view))
    }),
    (Filter::AntiAffinity, |task, it, view| affinity::is_kept_apart(task.spec, it.node, view)),
    (Filter::Port, |task, it, view| it.has_port_taken(task.spec, view)),
    (Filter::GenericResource, |task, it, view| it.choose_devices(&task.spec.generic_resources, view).is_none()),
];

/// Returns what the node's owner does not allow. The worker uses the same function.
fn refusal(spec: &ServiceSpec, it: &Candidate) -> Option<Refusal> {
    it.node.description.allow.refusal(spec)
}

/// Returns the volumes of the spec.
fn volumes<'a>(spec: &'a ServiceSpec, view: &'a Tables) -> impl Iterator<Item = &'a VolumeSpec> {
    spec.volumes().filter_map(|name| Some(&view.volume_by_name(name)?.spec))
}

/// Returns what the node's owner does not allow of the volumes of the spec.
fn refusals_of_volumes<'a>(
    spec: &'a ServiceSpec,
    it: &'a Candidate,
    view: &'a Tables,
) -> impl Iterator<Item = Refusal> {
    volumes(spec, view).filter_map(|volume| it.node.description.allow.refusal_of_volume(volume.file_system.as_ref()?))
}

/// The lowest feature level of a node that knows all of the spec and of its volumes.
fn feature_level(spec: &ServiceSpec, view: &Tables) -> u32 {
    volumes(spec, view).map(VolumeSpec::feature_level).fold(spec.feature_level(), u32::max)
}

/// Whether a network of the spec is encrypted.
fn is_encrypted(spec: &ServiceSpec, view: &Tables) -> bool {
    spec.networks.iter().filter_map(|it| view.network(it.network.as_str())).any(|it| it.spec.encrypted)
}

/// Returns the first filter that refuses the node; `None` if the task can run there.
pub(super) fn refuses(task: &Demand, it: &Candidate, view: &Tables) -> Option<Filter> {
    FILTERS.iter().find(|(_, refuses)| refuses(task, it, view)).map(|(filter, _)| *filter)
}
