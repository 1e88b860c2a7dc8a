//! Nodes: the machines of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::allowance::Allowance;
use super::cdi::CdiName;
use super::certificate::{NodeCertificate, known_certificates};
use super::device::NodeDevice;
use super::network::{Attachment, NodePort, Protocol};
use super::platform::Platform;
use super::text_or_empty;
use super::tunnel::TunnelKey;
use crate::clock_offset::ClockOffset;
use crate::constraint::{Constraint, NodeProperty};
use crate::defaults::{EMBEDDED_RUNTIME, NODE_LOSSES_COUNT, NODE_LOSSES_KEPT};
use crate::id::{NodeId, TaskId};
use crate::naming;
use crate::resources::{Resources, number_or_zero};
use crate::state::states;
use crate::version::{Meta, Timestamp};

states! {
    /// The role of a node in the cluster; the organisational unit in its certificate.
    Role {
        /// Runs tasks.
        Worker = "worker",
        /// Holds a replica of the store and may lead; also runs tasks unless it is drained.
        Manager = "manager",
    }
}
states! {
    /// How far a node is from its role.
    RoleChange {
        /// It is to be a manager, and does not vote yet.
        Promoting = "promoting",
        /// It is to be a worker, and still votes or has the keys of a manager.
        Demoting = "demoting",
    }
}
states! {
    /// What spreads the connections of tasks to virtual IPs.
    Balancer {
        /// Programs of BPF at the control group of all tasks.
        Bpf = "bpf",
        /// Rules of the packet filter in the namespace of each task.
        Nftables = "nftables",
    }
}
states! {
    /// Whether the scheduler may place tasks on a node.
    Availability {
        /// New tasks may be placed there.
        Active = "active",
        /// Tasks that run there stay; no new ones are placed there.
        Pause = "pause",
        /// Tasks that run there are moved to other nodes.
        Drain = "drain",
    }
}
states! {
    /// The state of a node's session, as the leader last knew it.
    NodeState {
        /// A heartbeat is late, or the session broke a moment ago.
        Unknown = "unknown",
        /// Its heartbeats arrive.
        Ready = "ready",
        /// It has been silent for so long that its tasks are replaced.
        Down = "down",
    }
}

states! {
    /// Why a node is in its state.
    NodeStateReason {
        /// It has a certificate and has not registered yet.
        Joining = "joining",
        /// A heartbeat is late.
        MissedHeartbeat = "it missed a heartbeat",
        /// Several heartbeats in a row are late.
        HeartbeatsStopped = "its heartbeats stopped",
        /// The connection of its session ended.
        SessionBroke = "its session broke",
        /// Its daemon announced a restart, so its tasks stay for a while.
        Restarting = "restarting",
        /// Its daemon announced a restart and did not return in time.
        DidNotReturn = "it did not come back",
        /// Its machine announced its shutdown.
        ShutDown = "shut down",
        /// It left the cluster and does not return under its id.
        Left = "left",
    }
}

/// The settings of a node, which users change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Labels, to which placement constraints refer.
    pub labels: BTreeMap<String, String>,
    /// Whether the scheduler may place tasks on it.
    pub availability: Availability,
    /// Whether it may become a manager by itself, in the place of one that is dead.
    pub manager_candidate: bool,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), availability: Availability::Active, manager_candidate: false }
    }
}

/// A task with the network `host` that listens on a port of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListeningTask {
    /// The port.
    pub port: NodePort,
    /// The task.
    pub task: TaskId,
}

impl From<(NodePort, TaskId)> for ListeningTask {
    fn from((port, task): (NodePort, TaskId)) -> Self {
        Self { port, task }
    }
}

/// The description that a node sends when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDescription {
    /// Hostname of the machine.
    pub hostname: String,
    /// Operating system, as images spell it (`linux`).
    pub os: String,
    /// Architecture, as images spell it (`amd64`).
    pub architecture: String,
    /// Newest variant of the architecture that it has, as images spell it (`v3`); empty if it is not known.
    pub variant: String,
    /// Total resources of the machine.
    pub resources: Resources,
    /// Version of its `flotad`.
    pub program_version: String,
    /// The newest feature level that it supports.
    pub feature_level: u32,
    /// Identifies the boot; it changes when the machine restarts.
    pub boot_id: String,
    /// Runtime classes that tasks may name.
    pub runtimes: Vec<String>,
    /// Devices that it gives to tasks by id.
    pub devices: Vec<NodeDevice>,
    /// CDI devices that its files describe, sorted.
    pub cdi_devices: Vec<CdiName>,
    /// The rights that its owner allows tasks to use.
    pub allow: Allowance,
    /// Address of its overlay traffic; that of its listener if `None`.
    #[serde(serialize_with = "text_or_empty")]
    pub data_address: Option<IpAddr>,
    /// Destinations of its routes, without the default route. No network gets a subnet that meets one of them.
    pub routes: Vec<IpNet>,
    /// Ports on which its own programs listen. They can't be published.
    pub listeners: Vec<NodePort>,
    /// The tasks with the network `host` among these programs.
    pub listening_tasks: Vec<ListeningTask>,
    /// The kind of balancer that spreads connections to virtual IPs on it.
    #[serde(serialize_with = "text_or_empty")]
    pub balancer: Option<Balancer>,
    /// The public keys by which it takes part in encrypted networks, oldest first. None if its kernel can't encrypt.
    pub tunnel_keys: Vec<TunnelKey>,
    /// Whether tasks can have user and group ids of their own.
    pub user_namespaces: bool,
    /// Profile of AppArmor that tasks run with; `None` if they run with none.
    #[serde(serialize_with = "text_or_empty")]
    pub app_armor: Option<String>,
    /// Labels that its owner has set.
    pub labels: BTreeMap<String, String>,
}

impl NodeDescription {
    /// Returns whether the node has one of the platforms of an image. Of an image whose platforms are not known, every node
    /// may have one.
    pub fn has_platform_of(&self, image: &[Platform]) -> bool {
        // Nodes spell their platforms as images do, so most comparisons end here.
        let is_plain =
            |it: &Platform| it.variant.is_none() && (&it.os, &it.architecture) == (&self.os, &self.architecture);
        let own = (self.os.as_str(), self.architecture.as_str(), self.variant.as_str());
        image.is_empty() || image.iter().any(|it| is_plain(it) || it.runs_on(own))
    }

    /// Largest number of entries of each list that has a bound; real machines have far fewer.
    pub const ENTRIES_BOUND: usize = 4_096;
    /// Largest size on the wire in bytes, so that the store and each message with all nodes stay small.
    pub const BYTES_BOUND: usize = 64 << 10;
    /// Longest value of a label, in bytes.
    pub const LABEL_BOUND: usize = 4_096;
    /// Largest number of keys of a node: the one that it sends with, and the one that it will send with.
    pub const TUNNEL_KEYS_BOUND: usize = 2;

    /// Returns whether tasks in encrypted networks can run on the node.
    pub fn can_encrypt(&self) -> bool {
        !self.tunnel_keys.is_empty()
    }

    /// Returns whether tasks of this runtime class can run on the node.
    pub fn has_runtime(&self, name: &str) -> bool {
        name == EMBEDDED_RUNTIME || self.runtimes.iter().any(|it| it == name)
    }

    /// Returns whether the node has this CDI device.
    pub fn has_cdi_device(&self, name: &CdiName) -> bool {
        self.cdi_devices.contains(name)
    }

    /// Returns the task with the network `host` that listens on the port, if it is one.
    pub fn task_on(&self, port: NodePort) -> Option<&TaskId> {
        self.listening_tasks.iter().find(|it| it.port == port).map(|it| &it.task)
    }

    /// Returns whether a program of the node itself listens on the port.
    pub fn listens_on(&self, protocol: Protocol, number: u16) -> bool {
        self.listeners.contains(&NodePort { protocol, number })
    }

    /// Checks what the node offers to tasks.
    ///
    /// # Errors
    /// An entry breaks a rule; the text names both.
    pub fn check_offers(&self) -> Result<(), String> {
        let lists = [self.runtimes.len(), self.devices.len(), self.listeners.len(), self.listening_tasks.len()];
        let counts = lists.into_iter().chain([
            self.allow.devices.len(),
            self.allow.capabilities.len(),
            self.allow.bind_mounts.len(),
            self.allow.file_systems.len(),
            self.cdi_devices.len(),
        ]);
        if self.tunnel_keys.len() > Self::TUNNEL_KEYS_BOUND {
            return Err(format!("tunnel_keys: there are more than {}", Self::TUNNEL_KEYS_BOUND));
        }
        if counts.chain(self.devices.iter().map(|it| it.paths.len())).any(|it| it > Self::ENTRIES_BOUND) {
            return Err(format!("a list has more than {} entries", Self::ENTRIES_BOUND));
        }
        if self.labels.len() > Self::ENTRIES_BOUND {
            return Err(format!("labels: there are more than {}", Self::ENTRIES_BOUND));
        }
        for (key, value) in &self.labels {
            naming::check(key).map_err(|error| format!("labels: {error}"))?;
            if value.len() > Self::LABEL_BOUND || value.contains(char::is_control) {
                let most = Self::LABEL_BOUND;
                return Err(format!("labels: {key}: the value has at most {most} bytes and no control characters"));
            }
        }
        for name in &self.runtimes {
            naming::check(name).map_err(|error| format!("runtimes: {error}"))?;
        }
        let mut known = BTreeSet::new();
        for device in &self.devices {
            let id = device.device_id();
            naming::check(&id.kind).map_err(|error| format!("devices: kind: {error}"))?;
            let is_cdi = device.cdi_name().is_some();
            naming::check(&id.id)
                .or_else(|error| if is_cdi { Ok(()) } else { Err(format!("devices: id: {error}")) })?;
            if device.paths.is_empty() && !is_cdi {
                return Err(format!("devices: {id}: it has no paths"));
            }
            for path in &device.paths {
                naming::check_path(path).map_err(|error| format!("devices: {id}: {error}"))?;
            }
            if !known.insert(id.clone()) {
                return Err(format!("devices: {id}: it is there twice"));
            }
        }
        self.allow.check().map_err(|why| format!("allow.{why}"))
    }
}

/// A machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Identifier of the node; the common name of its certificate.
    pub id: NodeId,
    /// Times and version.
    pub meta: Meta,
    /// The part that a user decides.
    pub spec: NodeSpec,
    /// Role of the node.
    pub role: Role,
    /// The description that the node sent when it registered.
    pub description: NodeDescription,
    /// `host:port` of its listener.
    pub address: String,
    /// Whether the node is connected, as the leader last wrote it to the store.
    pub state: NodeState,
    /// Reason of the state; `None` if the node is ready.
    #[serde(serialize_with = "text_or_empty")]
    pub state_reason: Option<NodeStateReason>,
    /// When it entered this state, by the clock of the leader.
    pub state_since: Timestamp,
    /// How far its clock is off, compared with the leader's, in seconds.
    pub clock_offset: ClockOffset,
    /// The Raft id of a manager, also after it has left; `None` until it has asked for one. In JSON, 0 stands for none.
    #[serde(serialize_with = "number_or_zero")]
    pub raft_id: Option<u64>,
    /// Its addresses in the network `ingress`.
    pub attachments: Vec<Attachment>,
    /// When it was lost lately, by the clock of the leader, oldest first.
    pub losses: Vec<Timestamp>,
    /// The certificates with whose keys it may renew, the newest last: the one that it has used last, and after a renewal
    /// also the new one, whose answer may have been lost. None if a build without renewals has issued its certificate. In
    /// JSON, only the known ones.
    #[serde(serialize_with = "known_certificates")]
    pub certificates: Vec<NodeCertificate>,
    /// SHA-256 of the certificates of the CAs that it trusts, the one that has signed its own certificate first, as it has
    /// confirmed last, or got when it joined. `None` if a build that replaces no CA has let it join.
    #[serde(serialize_with = "text_or_empty")]
    pub trusts: Option<String>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            id: NodeId::default(),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            role: Role::Worker,
            description: NodeDescription::default(),
            address: String::new(),
            state: NodeState::Unknown,
            state_reason: None,
            state_since: Timestamp::default(),
            clock_offset: ClockOffset::default(),
            raft_id: None,
            attachments: Vec::new(),
            losses: Vec::new(),
            certificates: Vec::new(),
            trusts: None,
        }
    }
}

impl Node {
    /// Returns whether the constraint holds for this node.
    pub fn satisfies(&self, constraint: &Constraint) -> bool {
        constraint.accepts(self.property(constraint.key()))
    }

    /// Returns this property of the node; `None` if it does not have the label.
    pub fn property(&self, key: &NodeProperty) -> Option<&str> {
        match key {
            NodeProperty::Id => Some(self.id.as_str()),
            NodeProperty::Hostname => Some(self.description.hostname.as_str()),
            NodeProperty::Ip => Some(self.address.as_str()),
            NodeProperty::Role => Some(self.role.as_str()),
            NodeProperty::Os => Some(self.description.os.as_str()),
            NodeProperty::Architecture => Some(self.description.architecture.as_str()),
            NodeProperty::Label(label) => self.spec.labels.get(label).map(String::as_str),
            NodeProperty::EngineLabel(label) => self.description.labels.get(label).map(String::as_str),
        }
    }

    /// Returns the address of the node's overlay traffic: the one that it reports, or else that of its listener.
    pub fn data_address(&self) -> Option<IpAddr> {
        let listener = || self.address.parse().ok().map(|address: SocketAddr| address.ip());
        self.description.data_address.or_else(listener)
    }

    /// Records that the node is lost.
    pub fn record_loss(&mut self, now: Timestamp) {
        self.losses.retain(|at| at.until(now) < NODE_LOSSES_COUNT);
        self.losses.push(now);
        let surplus = self.losses.len().saturating_sub(NODE_LOSSES_KEPT);
        self.losses.drain(..surplus);
    }

    /// Returns how often the node was lost lately beyond once, which every machine may be.
    pub fn flaps(&self, now: Timestamp) -> u64 {
        let recent = self.losses.iter().filter(|at| at.until(now) < NODE_LOSSES_COUNT).count() as u64;
        recent.saturating_sub(1)
    }

    /// Returns whether the node has left the cluster.
    pub fn has_left(&self) -> bool {
        self.state_reason == Some(NodeStateReason::Left)
    }

    /// Returns whether the scheduler may place new tasks here.
    pub fn takes_tasks(&self) -> bool {
        self.state == NodeState::Ready && self.spec.availability == Availability::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_offers_are_refused() {
        let device = |id: &str, paths: &[&str]| NodeDevice {
            kind: "gpu".into(),
            id: id.into(),
            paths: paths.iter().map(ToString::to_string).collect(),
        };
        let error = |devices: &[NodeDevice]| {
            let description = NodeDescription { devices: devices.to_vec(), ..NodeDescription::default() };
            description.check_offers().err().unwrap_or_default()
        };
        assert_eq!(error(&[device("a", &["/dev/x"]), device("b", &["/dev/x"])]), "", "devices may share a path");
        assert_eq!(error(&[device("a", &["/dev/x"]), device("a", &["/dev/y"])]), "devices: gpu=a: it is there twice");
        assert_eq!(error(&[device("a", &[])]), "devices: gpu=a: it has no paths");
        assert_eq!(error(&[device("a", &["x"])]), "devices: gpu=a: `x` is not an absolute path");
        assert!(error(&[device("a b", &["/x"])]).starts_with("devices: id: `a b`"));
        assert_eq!(
            error(&[device("v.com/gpu=0", &[]), device("v.com/gpu=1", &["/dev/x"])]),
            "",
            "a CDI device has its own"
        );
        let key = TunnelKey { public: [7; 32], port: 51_820 };
        let keys = |count| NodeDescription { tunnel_keys: vec![key; count], ..NodeDescription::default() };
        assert_eq!(keys(2).check_offers(), Ok(()), "a key is replaced by another");
        assert_eq!(keys(3).check_offers(), Err("tunnel_keys: there are more than 2".into()));
        assert!(keys(1).can_encrypt() && !keys(0).can_encrypt());
        let runtimes = NodeDescription { runtimes: vec!["flota".into(), "runsc".into()], ..NodeDescription::default() };
        assert_eq!(runtimes.check_offers(), Ok(()));
        assert!(runtimes.has_runtime("runsc") && !runtimes.has_runtime("kata"));
        assert!(NodeDescription::default().has_runtime("flota"), "every node has the embedded one");
    }
    #[test]
    fn nodes_satisfy_constraints_by_key_operator_and_value() {
        let mut node = Node::default();
        node.description.hostname = "n1".into();
        node.spec.labels.insert("zone".into(), "A".into());
        let cases = [
            ("node.hostname==n1", true),
            ("node.hostname != n1", false),
            ("node.labels.zone==a", true),
            ("node.labels.Zone==a", false),
            ("node.labels.rack==1", false),
            ("node.labels.rack!=1", true),
            ("node.role==worker", true),
        ];
        for (text, expected) in cases {
            let constraint = Constraint::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(node.satisfies(&constraint), expected, "{text}");
        }
    }

    #[test]
    fn a_node_that_was_lost_several_times_lately_flaps() {
        let mut node = Node::default();
        let at = |minutes: u64| Timestamp(minutes * 60_000);
        node.record_loss(at(0));
        assert_eq!(node.flaps(at(1)), 0, "that may happen to any machine");
        node.record_loss(at(2));
        node.record_loss(at(4));
        assert_eq!((node.flaps(at(5)), node.flaps(at(11)), node.flaps(at(60))), (2, 1, 0));
        (5..60).for_each(|minute| node.record_loss(at(minute)));
        assert_eq!(node.losses.len(), 10);
    }
}
