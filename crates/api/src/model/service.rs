//! Services: what users want to run.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::cdi::CdiName;
use super::cron::CronStatus;
use super::dependency::Dependency;
use super::device::{DeviceMapping, GenericResource};
use super::health::HealthSpec;
use super::mode::ServiceMode;
use super::mount::Mount;
use super::network::{DnsConfig, EndpointMode, HostEntry, NetworkAttachment, PublishMode, PublishedPort, VirtualIp};
use super::pinned_image::PinnedImage;
use super::placement::PlacementStrategy;
use super::platform::Platform;
use super::restart::{RestartCondition, RestartPolicy};
use super::scale::{ScalePolicy, ScaleStatus};
use super::setting::{Bound, LogSpec, PullPolicy, Ulimit, bound_or_zero};
use super::update::{Revision, UpdatePolicy, UpdateStatus};
use super::value::ValueKind;
use super::value_use::{PinnedValue, ValueUse};
use super::{seconds, text_or_empty};
use crate::constraint::{Constraint, NodeProperty};
use crate::defaults;
use crate::id::{ServiceId, StackId};
use crate::resources::{Limits, Resources, number_or_zero};
use crate::version::{Meta, Timestamp};

/// The treatment of a task while its worker is connected to no manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnPartition {
    /// It keeps the task running.
    Run,
    /// It stops the task after this time.
    #[serde(serialize_with = "seconds")]
    Stop(Duration),
}

/// The specification of a service, which users write. The system never changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Name, unique in the cluster.
    pub name: String,
    /// Labels of the service, for people and tools.
    pub labels: BTreeMap<String, String>,
    /// Reference of the image.
    pub image: String,
    /// Replaces the image's entrypoint unless it is empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command unless it is empty.
    pub command: Vec<String>,
    /// Variables as `NAME=value`, added to the image's own; values may hold templates. `NAME` alone removes the variable.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    #[serde(serialize_with = "text_or_empty")]
    pub working_dir: Option<String>,
    /// Replaces the image's `user[:group]`.
    #[serde(serialize_with = "text_or_empty")]
    pub user: Option<String>,
    /// Replaces the task's name as its hostname.
    #[serde(serialize_with = "text_or_empty")]
    pub hostname: Option<String>,
    /// How many tasks the service wants, and where.
    #[serde(flatten)]
    pub mode: ServiceMode,
    /// Whether the service is stopped: it keeps its number of tasks, and has none.
    pub stopped: bool,
    /// Resources that a task can't exceed.
    pub limits: Limits,
    /// Resources that the scheduler reserves for each task on its node.
    pub reservations: Resources,
    /// How an ended task is started again.
    pub restart: RestartPolicy,
    /// How tasks are replaced when this spec takes the place of another.
    pub update: UpdatePolicy,
    /// How tasks are replaced when this spec is set again because a later one has failed.
    pub rollback: UpdatePolicy,
    /// Time between the stop signal and SIGKILL.
    #[serde(serialize_with = "seconds")]
    pub stop_grace: Duration,
    /// Signal that asks the program to stop; if `None`, that of the image, else SIGTERM.
    #[serde(serialize_with = "text_or_empty")]
    pub stop_signal: Option<String>,
    /// How the health of a task is found out, as far as the image does not say it, or says something else.
    pub healthcheck: HealthSpec,
    /// Conditions on the nodes that may run a task.
    pub constraints: Vec<Constraint>,
    /// Properties of nodes over whose values the tasks are spread evenly, the first before the second. Nodes without a label
    /// are a group of their own.
    pub spread_over: Vec<NodeProperty>,
    /// Largest number of its tasks on one node; `None` for no limit.
    #[serde(serialize_with = "number_or_zero")]
    pub max_replicas_per_node: Option<NonZeroU64>,
    /// Names of services: its tasks are placed only on nodes that have tasks of all of them.
    pub affinity: Vec<String>,
    /// Names of services: its tasks and theirs are never placed on the same node.
    pub anti_affinity: Vec<String>,
    /// Which of the nodes that fit a task gets.
    pub strategy: PlacementStrategy,
    /// How important its tasks are: those of a higher priority are placed first, and tasks of a lower one are stopped if
    /// there is no room for them otherwise.
    pub priority: i32,
    /// The treatment of a task while its worker is connected to no manager.
    pub on_partition: OnPartition,
    /// Whether tasks wait for their node if it is lost, and start there at boot without a manager.
    pub keep_on_node_loss: bool,
    /// A counter that a user raises to replace all tasks without any other change.
    pub force: u64,
    /// Runtime class; `None` for the embedded one.
    #[serde(serialize_with = "text_or_empty")]
    pub runtime: Option<String>,
    /// Whether PID 1 is an init that reaps zombies.
    pub init: bool,
    /// Gives all capabilities and all devices of the node, whatever the other fields say.
    pub privileged: bool,
    /// Whether programs can't gain privileges, as by setuid (PR_SET_NO_NEW_PRIVS(2const)); if `None`, the node decides, or
    /// else the cluster.
    pub no_new_privileges: Option<bool>,
    /// Whether each task has user and group ids of its own on its node (user_namespaces(7)), so that its root has no rights
    /// there.
    pub user_namespace: bool,
    /// Capabilities in addition to the default ones; `ALL` stands for every one.
    pub cap_add: Vec<String>,
    /// Capabilities to remove from the default ones; `ALL` stands for every one.
    pub cap_drop: Vec<String>,
    /// Devices of the node, by path.
    pub devices: Vec<DeviceMapping>,
    /// CDI devices of the node, by name.
    pub cdi_devices: Vec<CdiName>,
    /// Devices of the node, by kind and count; the scheduler chooses which.
    pub generic_resources: Vec<GenericResource>,
    /// Networks that the tasks join, in the order of their interfaces.
    pub networks: Vec<NetworkAttachment>,
    /// Ports that are reached from outside.
    pub ports: Vec<PublishedPort>,
    /// The kind of address to which the name of the service resolves.
    pub endpoint_mode: EndpointMode,
    /// How the programs of a task resolve names.
    pub dns: DnsConfig,
    /// Further lines of a task's `/etc/hosts`.
    pub hosts: Vec<HostEntry>,
    /// What the tasks see at paths of their own, besides the image.
    pub mounts: Vec<Mount>,
    /// Secrets that the tasks use.
    pub secrets: Vec<ValueUse>,
    /// Configs that the tasks use.
    pub configs: Vec<ValueUse>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether the program runs at a terminal.
    pub tty: bool,
    /// Size of `/dev/shm` in bytes; `None` for 64 MiB.
    #[serde(serialize_with = "number_or_zero")]
    pub shm_size: Option<NonZeroU64>,
    /// Limits of each process; those that are not here are the node's.
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of the task's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Supplementary groups of the program, by number, or by name in the image's `/etc/group`.
    pub groups: Vec<String>,
    /// Labels of the tasks' containers, for people and tools.
    pub container_labels: BTreeMap<String, String>,
    /// Bytes of memory and swap together that a task can't exceed; if `None`, it has no swap.
    #[serde(serialize_with = "bound_or_zero")]
    pub memory_swap: Option<Bound>,
    /// Adjustment of the programs' OOM score (proc_pid_oom_score_adj(5)); `None` for that of the daemon.
    pub oom_score_adj: Option<i32>,
    /// How the output of a task is kept.
    pub log: LogSpec,
    /// When the digest of the image is resolved.
    pub pull: PullPolicy,
    /// Services before which it neither starts nor is updated, and after which it does not stop.
    pub depends_on: Vec<Dependency>,
    /// How the number of tasks of a replicated service follows their load; `None` if it is that of the mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScalePolicy>,
}

impl Default for ServiceSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            labels: BTreeMap::new(),
            image: String::new(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            user: None,
            hostname: None,
            mode: ServiceMode::default(),
            stopped: false,
            limits: Limits::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            update: UpdatePolicy::default(),
            rollback: UpdatePolicy::default(),
            stop_grace: defaults::STOP_GRACE,
            stop_signal: None,
            healthcheck: HealthSpec::default(),
            constraints: Vec::new(),
            spread_over: Vec::new(),
            max_replicas_per_node: None,
            affinity: Vec::new(),
            anti_affinity: Vec::new(),
            strategy: PlacementStrategy::Spread,
            priority: 0,
            on_partition: OnPartition::Run,
            keep_on_node_loss: false,
            force: 0,
            runtime: None,
            init: false,
            privileged: false,
            no_new_privileges: None,
            user_namespace: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            devices: Vec::new(),
            cdi_devices: Vec::new(),
            generic_resources: Vec::new(),
            networks: Vec::new(),
            ports: Vec::new(),
            endpoint_mode: EndpointMode::Vip,
            dns: DnsConfig::default(),
            hosts: Vec::new(),
            mounts: Vec::new(),
            secrets: Vec::new(),
            configs: Vec::new(),
            read_only: false,
            tty: false,
            shm_size: None,
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            groups: Vec::new(),
            container_labels: BTreeMap::new(),
            memory_swap: None,
            oom_score_adj: None,
            log: LogSpec::default(),
            pull: PullPolicy::Missing,
            depends_on: Vec::new(),
            scale: None,
        }
    }
}

impl ServiceSpec {
    /// Returns the default spec of a service of this mode. Tasks of a job are not started again once they have ended well.
    pub fn of_mode(mode: ServiceMode) -> Self {
        let condition = if mode.is_job() { RestartCondition::OnFailure } else { RestartCondition::Any };
        Self { mode, restart: RestartPolicy { condition, ..RestartPolicy::default() }, ..Self::default() }
    }

    /// Returns whether tasks made from `self` also satisfy `newer`, which is so if only the number of tasks, how it follows
    /// their load, their nodes and priority, the labels of the service and of volumes that it creates, how its tasks are
    /// replaced, when its image is looked up, what it depends on, or what its name and its ports on every node stand for
    /// differ.
    pub fn same_task(&self, newer: &Self) -> bool {
        let plain = |spec: &Self| Self {
            mode: ServiceMode::default(),
            stopped: false,
            update: UpdatePolicy::default(),
            rollback: UpdatePolicy::default(),
            labels: BTreeMap::new(),
            constraints: Vec::new(),
            spread_over: Vec::new(),
            max_replicas_per_node: None,
            affinity: Vec::new(),
            anti_affinity: Vec::new(),
            strategy: PlacementStrategy::Spread,
            priority: 0,
            pull: PullPolicy::Missing,
            depends_on: Vec::new(),
            scale: None,
            endpoint_mode: EndpointMode::Vip,
            ports: spec.host_ports().collect(),
            mounts: spec.mounts.iter().map(Mount::as_tasks_see_it).collect(),
            ..spec.clone()
        };
        self.is_in_ingress() == newer.is_in_ingress() && plain(self) == plain(newer)
    }

    /// Returns whether the work of the service can be done, so that others can wait for that.
    pub fn can_complete(&self) -> bool {
        self.mode.is_job() || !self.mode.is_global() && self.restart.condition != RestartCondition::Any
    }

    /// Returns the ports on which the node of a task answers.
    pub fn host_ports(&self) -> impl Iterator<Item = PublishedPort> {
        self.ports.iter().copied().filter(|port| port.mode == PublishMode::Host)
    }

    /// Returns the secrets that the tasks use, and then the configs.
    pub fn values(&self) -> impl Iterator<Item = (ValueKind, &ValueUse)> {
        let secrets = self.secrets.iter().map(|it| (ValueKind::Secret, it));
        secrets.chain(self.configs.iter().map(|it| (ValueKind::Config, it)))
    }

    /// Returns the names of the volumes that the tasks use, in the order of the mounts.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.mounts.iter().filter_map(Mount::volume)
    }

    /// Returns the references of the images that the tasks mount, each once and in order.
    pub fn mounted_images(&self) -> BTreeSet<&str> {
        self.mounts.iter().filter_map(Mount::image).collect()
    }

    /// Returns whether every node answers on a port of the service, for which its tasks join the network `ingress`.
    pub fn is_in_ingress(&self) -> bool {
        self.ports.iter().any(|port| port.mode == PublishMode::Ingress)
    }
}

/// A service as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Identifier of the service.
    pub id: ServiceId,
    /// Times and version.
    pub meta: Meta,
    /// The spec that the user set.
    pub spec: Arc<ServiceSpec>,
    /// Number of the spec. It changes when the tasks must be replaced, and an earlier spec has its earlier number again.
    pub spec_version: u64,
    /// When the spec with this number was set; `None` if an older build set it, which did not note that.
    pub spec_set_at: Option<Timestamp>,
    /// The specs before, of which the last is the one that was in place last.
    pub revisions: Vec<Revision>,
    /// Digest for which the spec's image reference stood when a user set it, so that all tasks run one image; `None` if
    /// it is not known. It may be that of an index, from which each node takes the manifest for its platform.
    #[serde(serialize_with = "text_or_empty")]
    pub image_digest: Option<String>,
    /// The platforms of that image, which decide where its tasks can run; empty if they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_platforms: Vec<Platform>,
    /// The images that its tasks mount, as far as it is known what their references stood for when a user set them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounted_images: Vec<PinnedImage>,
    /// The versions of the secrets and configs of its spec, in the order of [`ServiceSpec::values`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<PinnedValue>,
    /// The stack that it belongs to, if any.
    #[serde(serialize_with = "text_or_empty")]
    pub stack_id: Option<StackId>,
    /// How far its tasks have been brought to its newest spec.
    #[serde(rename = "updateStatus")]
    pub update: UpdateStatus,
    /// Its virtual IPs.
    pub virtual_ips: Vec<VirtualIp>,
    /// The ports on which every node answers, all with a published port.
    pub ports: Vec<PublishedPort>,
    /// Number of a job's present run; `None` if the service is not a job, or has the mode cron, which numbers its runs itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_run: Option<NonZeroU64>,
    /// The runs of a service of the mode cron, and which times of its schedule have been handled.
    #[serde(skip_serializing_if = "CronStatus::is_unused")]
    pub cron: CronStatus,
    /// The number of tasks that their load has led to.
    #[serde(rename = "scaleStatus", skip_serializing_if = "ScaleStatus::is_unused")]
    pub scale: ScaleStatus,
}

impl Service {
    /// Returns the number of tasks that the service has in all unless it is stopped, or that of one run of the mode cron;
    /// `None` if it has one on each node.
    pub fn replicas(&self) -> Option<u64> {
        let replicas = self.spec.mode.replicas()?;
        Some(match &self.spec.scale {
            Some(policy) => policy.bounded(self.scale.replicas.unwrap_or(replicas)),
            None => replicas,
        })
    }

    /// Returns the platforms of the image that the spec with this number stands for; empty if they are not known.
    pub fn platforms_of_version(&self, version: u64) -> &[Platform] {
        if version == self.spec_version {
            return &self.image_platforms;
        }
        let revision = self.revisions.iter().find(|it| it.version == version);
        revision.map_or(&[], |it| &it.image_platforms)
    }

    /// Returns the images that the tasks of the spec with this number mount, as far as they are known.
    pub fn mounted_images_of_version(&self, version: u64) -> &[PinnedImage] {
        if version == self.spec_version {
            return &self.mounted_images;
        }
        let revision = self.revisions.iter().find(|it| it.version == version);
        revision.map_or(&[], |it| &it.mounted_images)
    }

    /// Returns the digests of the images that its specs, the present one and those that are kept, stand for: that of the
    /// tasks' own image, and those of the images that they mount.
    pub fn image_digests(&self) -> impl Iterator<Item = &str> {
        let own = self.image_digest.iter().chain(self.revisions.iter().filter_map(|it| it.image_digest.as_ref()));
        let mounted = self.mounted_images.iter().chain(self.revisions.iter().flat_map(|it| &it.mounted_images));
        own.chain(mounted.map(|it| &it.digest)).map(String::as_str)
    }
}
