//! Stacks: services that are deployed from one file, with their networks and volumes.

use serde::Serialize;

use super::{NetworkSpec, ServiceSpec, VolumeSpec};
use crate::id::StackId;
use crate::version::Meta;

/// The content of a stack file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StackSpec {
    /// The stack's name; its services are called `<stack>_<service>`.
    pub name: String,
    /// Its services, with their full names.
    pub services: Vec<ServiceSpec>,
    /// Its networks, with their full names.
    pub networks: Vec<NetworkSpec>,
    /// Its volumes, with their full names.
    pub volumes: Vec<VolumeSpec>,
}

/// A stack as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stack {
    /// Identifier of the stack.
    pub id: StackId,
    /// Times and version.
    pub meta: Meta,
    /// The content of the file.
    pub spec: StackSpec,
}
