//! Machines.

use std::collections::BTreeMap;

use serde::Serialize;

use super::allowance::Allowance;
use super::device::NodeDevice;
use crate::id::NodeId;
use crate::resources::Resources;
use crate::state::states;
use crate::version::{Meta, Timestamp};

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
