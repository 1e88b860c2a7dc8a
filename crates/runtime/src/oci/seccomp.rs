//! `linux.seccomp` (config-linux.md, "Seccomp").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::or_default;

/// What may be called. Names and actions are strings here: what is not known is judged where the filter is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    /// `SCMP_ACT_…`, for what no rule names.
    pub default_action: String,
    /// Of the default action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_…`; the machine's own is always there.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_…`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Unix socket to which the descriptor of `SCMP_ACT_NOTIFY` goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<PathBuf>,
    /// Goes there with it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    /// Rules.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<SyscallRule>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyscallRule {
    /// One that the architecture does not have is left out.
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// `SCMP_ACT_…`.
    pub action: String,
    /// Of that action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// All of them have to hold.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Argument {
    /// 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// The value of `SCMP_CMP_MASKED_EQ`.
    #[serde(skip_serializing_if = "is_zero")]
    pub value_two: u64,
    /// `SCMP_CMP_…`.
    pub op: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
