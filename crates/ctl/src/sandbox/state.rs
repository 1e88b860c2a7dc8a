//! The state of a sandbox, kept in files: it is written after each change, so that any later `ctl` can continue.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::settings::LinkSettings;

const STATE: &str = "/var/lib/flota-sandbox";
const RUN: &str = "/run/flota-sandbox";

/// The state of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) manager: bool,
    pub(crate) address: Ipv4Addr,
    /// Process id of the node's PID 1 in the machine's namespace, with its start time; 0 if the node does not run.
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    /// Process id of `flotad`, with its start time; 0 if it does not run.
    pub(crate) daemon: i32,
    pub(crate) daemon_start_time: u64,
    pub(crate) paused: bool,
    /// Whether the node is on the other side of a partition.
    pub(crate) cut_off: bool,
    /// The faults of the node's cable, until it is healed.
    pub(crate) link: Option<LinkSettings>,
}

impl NodeState {
    /// Returns whether PID 1 is running.
    pub(crate) fn runs(&self) -> bool {
        self.pid > 0 && flota_runtime::state::start_time(self.pid) == Some(self.start_time)
    }

    /// Returns whether `flotad` is running.
    pub(crate) fn daemon_runs(&self) -> bool {
        self.daemon > 0 && flota_runtime::state::start_time(self.daemon) == Some(self.daemon_start_time)
    }

    /// Returns the status as `ctl sandbox ls` prints it.
    pub(crate) fn status(&self) -> &'static str {
        match (self.runs(), self.paused, self.daemon_runs()) {
            (false, ..) => "gone",
            (true, true, _) => "paused",
            (true, false, false) => "without flotad",
            (true, false, true) => "running",
        }
    }
}

/// The state of one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxState {
    pub(crate) name: String,
    pub(crate) nodes: Vec<NodeState>,
}

/// Returns the names of all sandboxes, including incomplete ones.
pub(crate) fn names() -> Vec<String> {
    let entries = std::fs::read_dir(STATE).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

pub(crate) fn dir(name: &str) -> PathBuf {
    PathBuf::from(STATE).join(name)
}

pub(crate) fn run_dir(name: &str) -> PathBuf {
    PathBuf::from(RUN).join(name)
}

/// The lock of one sandbox, held by one command at a time.
pub(crate) type Lock = Flock<File>;

/// Takes the lock and waits for other commands, which may take as long as a shutdown of their nodes.
pub(crate) fn lock(name: &str) -> anyhow::Result<Lock> {
    let file = fs_err::File::create(dir(name).join("lock"))?.into_file();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("failed to lock the sandbox")
}

impl SandboxState {
    pub(crate) fn load(name: &str) -> anyhow::Result<Self> {
        let text = std::fs::read(dir(name).join("state.json"));
        let text = text.with_context(|| {
            format!("there is no sandbox `{name}`, or it was left half made (`ctl sandbox down --name {name}`)")
        })?;
        serde_json::from_slice(&text).context("the sandbox's state is damaged")
    }

    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let path = dir(&self.name).join("state.json");
        fs_err::write(path.with_extension("new"), serde_json::to_vec_pretty(self)?)?;
        Ok(fs_err::rename(path.with_extension("new"), path)?)
    }

    /// Returns the path of the file that holds the bridges' namespace.
    pub(crate) fn network(&self) -> PathBuf {
        run_dir(&self.name).join("network")
    }
}
