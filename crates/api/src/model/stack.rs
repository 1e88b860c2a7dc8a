//! Stacks: services that were deployed from one file.

use serde::Serialize;

use super::ServiceSpec;
use crate::id::StackId;
use crate::version::Meta;

/// What a file said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StackSpec {
    /// The stack's name; its services are called `<stack>_<service>`.
    pub name: String,
    /// With whole names.
    pub services: Vec<ServiceSpec>,
}

/// A stack as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stack {
    /// Of the stack.
    pub id: StackId,
    /// Times and version.
    pub meta: Meta,
    /// What the file said.
    pub spec: StackSpec,
}
