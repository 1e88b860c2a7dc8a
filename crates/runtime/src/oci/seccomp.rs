//! The `linux.seccomp` section (config-linux.md, "Seccomp").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::or_default;

/// A profile of system calls. Names and actions are strings here; unknown ones are handled where the filter is
/// compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// Action for calls that no rule names, as `SCMP_ACT_…`.
    pub default_action: String,
    /// Error number of the default action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Architectures, as `SCMP_ARCH_…`; the machine's own is always included.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Flags, as `SECCOMP_FILTER_FLAG_…`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Unix socket that receives the descriptor of `SCMP_ACT_NOTIFY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<PathBuf>,
    /// Data that is sent to that socket with the descriptor.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    /// Rules for calls.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<SyscallRule>,
}

/// A rule for some calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyscallRule {
    /// Names of calls. A call that the architecture does not have is ignored.
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// Action, as `SCMP_ACT_…`.
    pub action: String,
    /// Error number of that action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Argument {
    /// Index of the argument, 0 to 5.
    pub index: u32,
    /// Value to compare with; for `SCMP_CMP_MASKED_EQ` the mask.
    pub value: u64,
    /// Value to compare with for `SCMP_CMP_MASKED_EQ`.
    #[serde(skip_serializing_if = "is_zero")]
    pub value_two: u64,
    /// Operator, as `SCMP_CMP_…`.
    pub op: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
