//! The domain types: what the program thinks in. One file for each noun.

mod allowance;
mod assignment;
mod cluster;
mod device;
mod image;
mod node;
mod service;
mod stack;
mod task;

pub use allowance::{Allowance, Refusal};
pub use assignment::{Assignment, Grant, ImageSource, NodeAddress, RegistryCredentials};
pub use cluster::{Cluster, Registry, Revoked, Secret};
pub use device::{
    DEVICE_PERMISSIONS, DeviceError, DeviceId, DeviceMapping, GenericResource, GenericResourceError, NodeDevice,
};
pub use image::{Image, ImageHolder};
pub use node::{Availability, Node, NodeDescription, NodeSpec, NodeState, Role};
pub use service::{OnPartition, RestartCondition, RestartPolicy, Service, ServiceSpec};
pub use stack::{Stack, StackSpec};
pub use task::{Task, TaskStatus};
