//! `process` (config.md, "Process").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::or_default;

/// What is run, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether its standard descriptors are a terminal.
    #[serde(deserialize_with = "or_default")]
    pub terminal: bool,
    /// Of that terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Numbers, not names.
    #[serde(deserialize_with = "or_default")]
    pub user: User,
    /// Program and arguments.
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Absolute, in the container.
    pub cwd: PathBuf,
    /// Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// getrlimit(2).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS(2const).
    #[serde(deserialize_with = "or_default")]
    pub no_new_privileges: bool,
    /// Name of a loaded profile.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    /// proc_pid_oom_score_adj(5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Label of the process.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
    /// ioprio_set(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// sched_setattr(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// CPUs of an exec'ed process.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// In characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Numbers as the container sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// umask(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// setgroups(2).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// capabilities(7), as names. One that the kernel does not have is warned of and left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// What can ever be had.
    #[serde(deserialize_with = "or_default")]
    pub bounding: Vec<String>,
    /// What is used.
    #[serde(deserialize_with = "or_default")]
    pub effective: Vec<String>,
    /// What a program with file capabilities may take over.
    #[serde(deserialize_with = "or_default")]
    pub inheritable: Vec<String>,
    /// What may be used.
    #[serde(deserialize_with = "or_default")]
    pub permitted: Vec<String>,
    /// What any program takes over.
    #[serde(deserialize_with = "or_default")]
    pub ambient: Vec<String>,
}

/// One limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Ceiling.
    pub hard: u64,
    /// In force.
    pub soft: u64,
}

/// ioprio_set(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `_BE` or `_IDLE`.
    pub class: String,
    /// 0 to 7, 0 the highest.
    #[serde(default)]
    pub priority: i32,
}

/// sched_setattr(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_…`.
    pub policy: String,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: i32,
    /// `SCHED_FLAG_…`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// ns, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Likewise.
    pub deadline: u64,
    /// Likewise.
    pub period: u64,
}

/// Lists of CPUs, `0-3,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuAffinity {
    /// Before it is moved to the container's cgroup.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub initial: String,
    /// After.
    #[serde(rename = "final", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub last: String,
}

impl Process {
    /// Sets a variable, given as `NAME=value`, in the place of what had its name: of two some programs take the first.
    pub fn set_variable(&mut self, variable: &str) {
        let name = variable.split('=').next().unwrap_or_default();
        self.env.retain(|it| it.split('=').next() != Some(name));
        self.env.push(variable.to_owned());
    }
}
