//! Services: what users want to run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::device::{DeviceMapping, GenericResource};
use crate::defaults;
use crate::id::{ServiceId, StackId};
use crate::resources::Resources;
use crate::state::states;
use crate::version::Meta;

states! {
    /// After which endings a task is started again.
    RestartCondition {
        /// After each.
        Any = "any",
        /// After a failure.
        OnFailure = "on-failure",
        /// After none.
        None = "none",
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{}s", duration.as_secs_f64()))
}

/// How a task that ended is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestartPolicy {
    /// After which endings.
    pub condition: RestartCondition,
    /// Before the second restart in a row; doubled from there on.
    #[serde(serialize_with = "seconds")]
    pub delay: Duration,
    /// Restarts of one slot; 0 = without end.
    pub max_attempts: u64,
    /// Restarts longer ago do not count; zero = all count.
    #[serde(serialize_with = "seconds")]
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: defaults::RESTART_DELAY,
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// What a worker does with a task when it hears from no manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnPartition {
    /// Keeps it running.
    Run,
    /// Stops it after this long.
    #[serde(serialize_with = "seconds")]
    Stop(Duration),
}

/// What a user wants to run. The system never changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Unique in the cluster.
    pub name: String,
    /// For people and tools.
    pub labels: BTreeMap<String, String>,
    /// Reference of the image.
    pub image: String,
    /// Instead of the image's entrypoint, where given.
    pub entrypoint: Vec<String>,
    /// Instead of the image's command, where given.
    pub command: Vec<String>,
    /// `NAME=value`, after the image's own; may hold templates.
    pub env: Vec<String>,
    /// Instead of the image's, where given.
    pub working_dir: String,
    /// `user[:group]` instead of the image's, where given.
    pub user: String,
    /// Instead of the task's name, where given.
    pub hostname: String,
    /// Tasks that shall run.
    pub replicas: u64,
    /// What a task can't exceed.
    pub limits: Resources,
    /// What a node must have free.
    pub reservations: Resources,
    /// How a task that ended is started again.
    pub restart: RestartPolicy,
    /// Between the stop signal and SIGKILL.
    #[serde(serialize_with = "seconds")]
    pub stop_grace: Duration,
    /// What asks the program to end; empty: the image's, else SIGTERM.
    pub stop_signal: String,
    /// What a node must pass.
    pub constraints: Vec<String>,
    /// What happens to a task whose node hears from no manager.
    pub on_partition: OnPartition,
    /// Whether tasks wait for their lost node, and start there at boot without asking.
    pub keep_on_node_loss: bool,
    /// Raised to replace all tasks although nothing else changed.
    pub force: u64,
    /// Runtime class; empty: the embedded one.
    pub runtime: String,
    /// A reaper of zombies is PID 1.
    pub init: bool,
    /// All capabilities and all of the node's devices, whatever else is said of them.
    pub privileged: bool,
    /// Capabilities beyond the default ones; `ALL`: every one.
    pub cap_add: Vec<String>,
    /// Capabilities fewer than the default ones; `ALL`: every one.
    pub cap_drop: Vec<String>,
    /// Of the node, by path.
    pub devices: Vec<DeviceMapping>,
    /// Of the node, by kind: the scheduler says which.
    pub generic_resources: Vec<GenericResource>,
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
            working_dir: String::new(),
            user: String::new(),
            hostname: String::new(),
            replicas: 1,
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            stop_grace: defaults::STOP_GRACE,
            stop_signal: String::new(),
            constraints: Vec::new(),
            on_partition: OnPartition::Run,
            keep_on_node_loss: false,
            force: 0,
            runtime: String::new(),
            init: false,
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            devices: Vec::new(),
            generic_resources: Vec::new(),
        }
    }
}

impl ServiceSpec {
    /// Whether a task made from `self` would do for `newer`: only how many there are and labels of the service differ.
    pub fn same_task(&self, newer: &Self) -> bool {
        let plain = |spec: &Self| Self { replicas: 0, labels: BTreeMap::new(), ..spec.clone() };
        plain(self) == plain(newer)
    }
}

/// A service as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Of the service.
    pub id: ServiceId,
    /// Times and version.
    pub meta: Meta,
    /// What the user wants.
    pub spec: Arc<ServiceSpec>,
    /// Counts the specs; raised when tasks must be replaced.
    pub spec_version: u64,
    /// The stack that it came with; empty: none.
    pub stack_id: StackId,
    /// Why the running update waits for the user; empty while it goes on.
    pub update_paused: String,
}
