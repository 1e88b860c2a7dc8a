//! The services that users create: their names, and a spec for each, drawn anew at every change.

use rand::Rng;

use flota_api::proto::specs::mount::Source;
use flota_api::proto::specs::{
    GenericResource, Mount, NetworkAttachment, ServiceMode, ServiceSpec, UpdateOrder, UpdatePolicy, VolumeMount,
};
use flota_api::proto::types::{PublishedPort, Resources, RestartCondition, RestartPolicy};

use super::Client;
use super::networks::SHARED;
use crate::sim::cluster::DEVICE_KIND;

/// Names of the services that users create. Their hyphens keep them from being beginnings of ids, which also name services.
pub const NAMES: [&str; 9] = ["the-web", "the-db", "the-cache", "the-queue", KEPT, GLOBAL, CRON, SHARING, DIVIDED];
/// The service that has a task on each node.
const GLOBAL: &str = "the-agent";
/// The service that runs each minute, one run at a time.
pub(in crate::sim) const CRON: &str = "the-backup";
/// The services that have tasks although users ask for no replicas.
pub(super) const RUNS_ANYWAY: [&str; 2] = [GLOBAL, CRON];
/// The services whose updates start the new task of a slot before the old one is stopped.
pub(in crate::sim) const STARTED_FIRST: [&str; 2] = ["the-web", "the-queue"];
/// The services whose tasks stop if there is no room for those of a more important one, and those that make them stop.
const PRIORITIES: [(&str, i32); 3] = [("the-cache", -5), ("the-queue", 5), (KEPT, 9)];
/// The service whose tasks stay with their nodes when those are lost.
pub(in crate::sim) const KEPT: &str = "the-mail";
/// The service whose tasks share the data of one volume.
const SHARING: &str = "the-ledger";
/// The service of which each slot has data of its own.
const DIVIDED: &str = "the-archive";
/// The services that have a volume, and the names of their volumes.
pub(in crate::sim) const VOLUMES: [(&str, &str); 2] = [(SHARING, "the-accounts"), (DIVIDED, "the-papers")];
/// Label that identifies the change that a service's spec is from.
pub(in crate::sim) const TAG: &str = "tag";

/// Parameters of the services that users create.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Image of all services.
    pub image: &'static str,
    /// Largest number of replicas of a service.
    pub replicas: u64,
    /// Whether one service asks for devices.
    pub devices: bool,
    /// Whether some services have a network and a published port, and users create and remove networks.
    pub networks: bool,
    /// Whether some services have a volume.
    pub volumes: bool,
    /// Whether one more user deploys and removes a stack of services that depend on each other.
    pub chain: bool,
    /// Whether one more user writes all the time, so that it is seen for how long nobody can.
    pub probes: bool,
    /// Whether one more user updates two services, rolls them back and takes tasks from them.
    pub rollouts: bool,
    /// Whether one more user changes jobs.
    pub jobs: bool,
    /// Whether one more user begins runs that overlap, and runs that replace each other.
    pub runs: bool,
    /// Whether one more user changes a service with volumes, and removes both.
    pub vault: bool,
    /// Whether one more user deploys the same stack again and again.
    pub yard: bool,
    /// The service whose number of tasks follows their load, which one more user changes; `None` for none.
    pub scaled: Option<&'static str>,
    /// The only service that the clients change; `None` for all of [`NAMES`].
    pub only: Option<&'static str>,
}

/// Returns the priority that users give to the service of this name.
pub(in crate::sim) fn priority(name: &str) -> i32 {
    PRIORITIES.iter().find(|(service, _)| *service == name).map_or(0, |(_, priority)| *priority)
}

impl Client {
    pub(super) fn spec(&mut self, name: &str, tag: u64) -> ServiceSpec {
        // One service needs devices. A change of the environment replaces every task.
        let devices =
            (self.wishes.devices && name == "the-db").then(|| GenericResource { kind: DEVICE_KIND.into(), count: 1 });
        // Two services have names and virtual IPs, and the first of them is published.
        let has_network = self.wishes.networks && matches!(name, "the-web" | "the-db");
        let is_published = self.wishes.networks && name == "the-web";
        let network = NetworkAttachment { network: SHARED.into(), aliases: Vec::new() };
        let port = PublishedPort { target: 80, ..PublishedPort::default() };
        let order = if STARTED_FIRST.contains(&name) { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let is_divided = name == DIVIDED;
        // If users want no tasks, a change of the spec is no update whose end the cluster notes, so the spec stays the same.
        let is_varied = u64::from(self.wishes.replicas > 0);
        let volume = VOLUMES.iter().find(|(service, _)| self.wishes.volumes && *service == name);
        let mount = |name: &str| Mount {
            target: "/data".into(),
            source: Some(Source::Volume(VolumeMount {
                name: name.to_owned(),
                per_slot: is_divided,
                ..VolumeMount::default()
            })),
            ..Mount::default()
        };
        ServiceSpec {
            mounts: volume.map(|(_, volume)| mount(volume)).into_iter().collect(),
            name: name.to_owned(),
            networks: has_network.then_some(network).into_iter().collect(),
            ports: is_published.then_some(port).into_iter().collect(),
            labels: [(TAG.to_owned(), tag.to_string())].into(),
            image: self.wishes.image.into(),
            mode: match name {
                GLOBAL => ServiceMode::Global,
                CRON => ServiceMode::Cron,
                _ => ServiceMode::Replicated,
            }
            .into(),
            stopped: name != CRON && self.rng.random_bool(0.05),
            schedule: if name == CRON { "* * * * *".into() } else { String::new() },
            replicas: self.rng.random_range(0..=self.wishes.replicas),
            env: vec![format!("RELEASE={}", is_varied * self.rng.random_range(0..3))],
            stop_grace_ms: 1_000,
            priority: priority(name),
            keep_on_node_loss: name == KEPT,
            restart: Some(RestartPolicy {
                delay_ms: 200,
                condition: if name == CRON { RestartCondition::OnFailure } else { RestartCondition::Any }.into(),
                ..RestartPolicy::default()
            }),
            update: Some(UpdatePolicy {
                parallelism: self.rng.random_range(0..=2),
                delay_ms: self.rng.random_range(0..=1) * 500,
                monitor_ms: self.rng.random_range(0..=5) * 1_000,
                order: order.into(),
                ..UpdatePolicy::default()
            }),
            generic_resources: devices.into_iter().collect(),
            // With all services at their largest, nodes have little room for the tasks of an update: for some, CPU is
            // short, and for others memory. One that must have a task on each node, runs when
            // its time comes, or has its data on one node reserves nothing.
            reservations: (![GLOBAL, CRON, SHARING, DIVIDED].contains(&name)).then_some(Resources {
                nano_cpus: (1 + is_varied * self.rng.random_range(0..=1)) * 500_000_000,
                memory_bytes: (1 + is_varied * self.rng.random_range(0..=1)) << 30,
                ..Resources::default()
            }),
            ..ServiceSpec::default()
        }
    }
}
