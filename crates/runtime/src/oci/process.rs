//! The `process` section (config.md, "Process").

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::or_default;

/// A program to run, with its user and settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether its standard descriptors are a terminal.
    #[serde(deserialize_with = "or_default")]
    pub terminal: bool,
    /// Size of that terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Numeric ids of the user.
    #[serde(deserialize_with = "or_default")]
    pub user: User,
    /// Program and its arguments.
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Environment variables, as `NAME=value`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Absolute working directory in the container.
    pub cwd: PathBuf,
    /// Capability sets; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits (getrlimit(2)).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Whether to set PR_SET_NO_NEW_PRIVS(2const).
    #[serde(deserialize_with = "or_default")]
    pub no_new_privileges: bool,
    /// Name of a loaded AppArmor profile.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    /// Adjustment of the OOM score (proc_pid_oom_score_adj(5)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// SELinux label of the process.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
    /// I/O priority (ioprio_set(2)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// Scheduling policy (sched_setattr(2)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// CPUs of a process that `exec` starts.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<CpuAffinity>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Number of lines.
    pub height: u16,
    /// Number of columns.
    pub width: u16,
}

/// Ids as the container sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask (umask(2)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups (setgroups(2)).
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name (capabilities(7)). Names that the kernel does not know cause a warning and are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// The bounding set: capabilities that the process can ever gain.
    #[serde(deserialize_with = "or_default")]
    pub bounding: Vec<String>,
    /// The effective set: capabilities in use.
    #[serde(deserialize_with = "or_default")]
    pub effective: Vec<String>,
    /// The inheritable set: capabilities that a program with file capabilities may inherit.
    #[serde(deserialize_with = "or_default")]
    pub inheritable: Vec<String>,
    /// The permitted set: capabilities that may be used.
    #[serde(deserialize_with = "or_default")]
    pub permitted: Vec<String>,
    /// The ambient set: capabilities that any program inherits.
    #[serde(deserialize_with = "or_default")]
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Name, as `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard limit.
    pub hard: u64,
    /// Soft limit, which is enforced.
    pub soft: u64,
}

/// I/O priority (ioprio_set(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    /// Class: `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// Priority in the class, from 0 (highest) to 7.
    #[serde(default)]
    pub priority: i32,
}

/// Scheduling policy (sched_setattr(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// Policy, as `SCHED_…`.
    pub policy: String,
    /// Nice value for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// Static priority for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: i32,
    /// Flags, as `SCHED_FLAG_…`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Runtime in ns for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Deadline in ns for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Period in ns for `SCHED_DEADLINE`.
    pub period: u64,
}

/// Lists of CPUs, such as `0-3,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuAffinity {
    /// CPUs before the process is moved to the container's cgroup.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub initial: String,
    /// CPUs after the process was moved to the container's cgroup.
    #[serde(rename = "final", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub last: String,
}

impl Process {
    /// Sets a variable, given as `NAME=value`, and replaces one of the same name, because some programs read the first
    /// of two. A name alone removes the variable.
    pub fn set_variable(&mut self, variable: &str) {
        let name = variable.split('=').next().unwrap_or_default();
        self.env.retain(|it| it.split('=').next() != Some(name));
        if name != variable || name.is_empty() {
            self.env.push(variable.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_set_once_and_a_name_alone_removes_it() {
        let mut process = Process { env: vec!["A=1".into(), "B=2".into(), "A=3".into()], ..Process::default() };
        for (variable, left) in
            [("A=4", vec!["B=2", "A=4"]), ("B", vec!["A=4"]), ("C", vec!["A=4"]), ("A=", vec!["A="])]
        {
            process.set_variable(variable);
            assert_eq!(process.env, left, "{variable}");
        }
        process.set_variable("");
        assert_eq!(process.env, ["A=", ""], "what is no variable stays for the check of the whole process");
    }
}
