//! The control groups of a sandbox: one for each node, and one for each forwarder. The processes of a sandbox are found by
//! them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use flota_runtime::cgroup::{self, Groups, Hierarchy};

/// The longest wait for processes to end after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);

fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    cgroup::hierarchies().context("failed to find the cgroup hierarchies")
}

fn parent(sandbox: &str) -> PathBuf {
    Path::new("flota-sandbox").join(sandbox)
}

/// Returns the groups of this name in each hierarchy or, without a name, those of the whole sandbox.
pub(crate) fn below(sandbox: &str, name: &str) -> anyhow::Result<Groups> {
    Ok(Groups::below(&hierarchies()?, &parent(sandbox), name))
}

/// Creates the parent of all groups of a sandbox, with every controller that the nodes use.
pub(crate) fn prepare(sandbox: &str) -> anyhow::Result<()> {
    Ok(cgroup::prepare(&hierarchies()?, &parent(sandbox))?)
}

/// Returns every process of the groups.
pub(crate) fn processes(groups: &Groups) -> anyhow::Result<Vec<Pid>> {
    Ok(groups.processes()?.into_iter().map(Pid::from_raw).collect())
}

/// Kills every process of the groups. Returns when they are gone, `runs` is false, and the groups are removed.
pub(crate) fn end(groups: &Groups, what: &str, runs: impl Fn() -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + KILL_WAIT;
    loop {
        let left = processes(groups)?;
        // A process that has left its group may still be exiting.
        if left.is_empty() && !runs() {
            break;
        }
        if Instant::now() > until {
            bail!("{} processes of {what} do not end", left.len());
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        pause();
    }
    Ok(groups.remove()?)
}

/// Sleeps shortly, for loops with a bound of their own.
pub(crate) fn pause() {
    let _ = nix::poll::poll(&mut [], 2u8);
}
