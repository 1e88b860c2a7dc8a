//! Machines.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::allowance::Allowance;
use super::device::NodeDevice;
use crate::defaults::EMBEDDED_RUNTIME;
use crate::id::NodeId;
use crate::naming;
use crate::resources::Resources;
use crate::state::states;
use crate::version::{Meta, Timestamp};

/// The most entries of each list in a description; no machine has more.
const ENTRIES_BOUND: usize = 4_096;

states! {
    /// What a node may do; the unit in its certificate.
    Role {
        /// Runs tasks.
        Worker = "worker",
        /// Keeps the store and decides; runs tasks too unless drained.
        Manager = "manager",
    }
}
states! {
    /// Whether the scheduler may use a node.
    Availability {
        /// Yes.
        Active = "active",
        /// What runs stays; nothing new comes.
        Pause = "pause",
        /// What runs leaves.
        Drain = "drain",
    }
}
states! {
    /// What the leader last knew of a node.
    NodeState {
        /// It missed a heartbeat, or its session broke.
        Unknown = "unknown",
        /// It answers.
        Ready = "ready",
        /// It has been silent for too long: its tasks are replaced.
        Down = "down",
    }
}

/// What a user decides about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// For placement.
    pub labels: BTreeMap<String, String>,
    /// Whether the scheduler may use it.
    pub availability: Availability,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), availability: Availability::Active }
    }
}

/// What a machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDescription {
    /// Its name.
    pub hostname: String,
    /// `linux`.
    pub os: String,
    /// `amd64`, as images spell it.
    pub architecture: String,
    /// What it has.
    pub resources: Resources,
    /// Of `flotad`.
    pub program_version: String,
    /// The newest that it speaks.
    pub feature_level: u32,
    /// Another value is another boot.
    pub boot_id: String,
    /// Runtime classes that tasks may name.
    pub runtimes: Vec<String>,
    /// What it hands out by id.
    pub devices: Vec<NodeDevice>,
    /// What its owner allows to tasks.
    pub allow: Allowance,
}

impl NodeDescription {
    /// Returns whether tasks of this runtime class can run on the node.
    pub fn has_runtime(&self, name: &str) -> bool {
        name.is_empty() || name == EMBEDDED_RUNTIME || self.runtimes.iter().any(|it| it == name)
    }

    /// Checks what the node offers to tasks.
    ///
    /// # Errors
    /// Names the entry that breaks a rule, and the rule.
    pub fn check_offers(&self) -> Result<(), String> {
        let counts = [self.runtimes.len(), self.devices.len(), self.allow.devices.len(), self.allow.capabilities.len()];
        if counts.into_iter().chain(self.devices.iter().map(|it| it.paths.len())).any(|it| it > ENTRIES_BOUND) {
            return Err(format!("a list has more than {ENTRIES_BOUND} entries"));
        }
        for name in &self.runtimes {
            naming::check(name).map_err(|error| format!("runtimes: {error}"))?;
        }
        let mut known = BTreeSet::new();
        for device in &self.devices {
            let id = device.device_id();
            naming::check(&id.kind).map_err(|error| format!("devices: kind: {error}"))?;
            naming::check(&id.id).map_err(|error| format!("devices: id: {error}"))?;
            if device.paths.is_empty() {
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
    /// Of the node; the common name of its certificate.
    pub id: NodeId,
    /// Times and version.
    pub meta: Meta,
    /// What a user decides.
    pub spec: NodeSpec,
    /// What it may do.
    pub role: Role,
    /// What it says of itself.
    pub description: NodeDescription,
    /// `host:port` of its listener.
    pub address: String,
    /// What the leader last knew.
    pub state: NodeState,
    /// Why, where there is more to say (`restarting`).
    pub state_reason: String,
    /// Since when.
    pub state_since: Timestamp,
    /// Of a manager; 0 for others.
    pub raft_id: u64,
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
            state_reason: String::new(),
            state_since: Timestamp::default(),
            raft_id: 0,
        }
    }
}

impl Node {
    /// Whether new tasks may come here.
    pub fn takes_tasks(&self) -> bool {
        self.state == NodeState::Ready && self.spec.availability == Availability::Active
    }

    /// Whether what runs here must be replaced elsewhere.
    pub fn loses_tasks(&self) -> bool {
        self.state == NodeState::Down || self.spec.availability == Availability::Drain
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
        assert_eq!(error(&[device("a", &["x"])]), "devices: gpu=a: `x` is no absolute path");
        assert!(error(&[device("a b", &["/x"])]).starts_with("devices: id: `a b`"));
        let runtimes = NodeDescription { runtimes: vec!["flota".into(), "runsc".into()], ..NodeDescription::default() };
        assert_eq!(runtimes.check_offers(), Ok(()));
        assert!(runtimes.has_runtime("") && runtimes.has_runtime("runsc") && !runtimes.has_runtime("kata"));
        assert!(NodeDescription::default().has_runtime("flota"), "every node has the embedded one");
    }
}
