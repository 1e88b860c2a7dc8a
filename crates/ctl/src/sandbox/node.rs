//! One node of a sandbox: its namespaces, its network link and its daemon.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use flota_network::{Connection, Namespace, Veth};
use flota_runtime::cgroup::{self, Groups};
use flota_runtime::state::start_time;

use super::init::{EnterSpec, InitSpec, call};
use super::state::{NodeState, SandboxState, dir, run_dir};

pub(crate) const BRIDGE: &str = "br0";
/// The bridge of the nodes on the other side of a partition.
pub(crate) const CUT_OFF: &str = "br1";
const CARD: &str = "eth0";
const PREFIX: u8 = 24;
/// The longest wait for processes to end after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Returns the node's cgroup in each hierarchy.
pub(crate) fn cgroups(sandbox: &str, node: &str) -> anyhow::Result<Groups> {
    let hierarchies = cgroup::hierarchies().context("failed to find the cgroup hierarchies")?;
    Ok(Groups::below(&hierarchies, &Path::new("flota-sandbox").join(sandbox), node))
}

/// Creates the parent of the nodes' cgroups, with every controller that the nodes use.
pub(crate) fn prepare_cgroups(sandbox: &str) -> anyhow::Result<()> {
    let hierarchies = cgroup::hierarchies().context("failed to find the cgroup hierarchies")?;
    Ok(cgroup::prepare(&hierarchies, &Path::new("flota-sandbox").join(sandbox))?)
}

/// Starts the node's PID 1 and connects the node to the bridge.
pub(crate) fn boot(sandbox: &SandboxState, node: &mut NodeState) -> anyhow::Result<()> {
    let (data, run) = (dir(&sandbox.name).join(&node.name).join("data"), run_dir(&sandbox.name).join(&node.name));
    // Whatever was in memory is lost when a machine goes down.
    let _ = std::fs::remove_dir_all(&run);
    fs_err::create_dir_all(&data)?;
    fs_err::create_dir_all(&run)?;
    let spec = InitSpec { hostname: node.name.clone(), cgroups: cgroups(&sandbox.name, &node.name)?, data, run };
    let output = call(&spec)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("failed to start node {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    node.pid = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    node.start_time = start_time(node.pid).unwrap_or(0);
    node.paused = false;
    let address = IpNet::new(node.address.into(), PREFIX)?;
    let veth = Veth { port: node.name.clone(), interface: CARD.into(), address };
    let mut network = Connection::open(&Namespace::at(&sandbox.network()))?;
    // The link of the node's previous start stays as long as the kernel keeps a connection over it (tcp(7), orphans).
    network.remove_link(&node.name)?;
    network
        .add_veth(BRIDGE, &Namespace::of(node.pid), &veth)
        .with_context(|| format!("failed to connect node {}", node.name))
}

/// Returns the path of the settings file of a node's `flotad`, which need not exist.
pub(crate) fn settings(sandbox: &str, node: &str) -> PathBuf {
    dir(sandbox).join(node).join("flotad.toml")
}

/// Starts `flotad` in the node.
pub(crate) fn start_daemon(sandbox: &str, node: &mut NodeState) -> anyhow::Result<()> {
    let flotad = std::env::current_exe()?.with_file_name("flotad");
    let listen = format!("{}:{}", node.address, flota_api::defaults::PORT);
    let mut command = vec![flotad.display().to_string(), "--listen".into(), listen];
    let settings = settings(sandbox, &node.name);
    if settings.exists() {
        command.extend(["--config".into(), settings.display().to_string()]);
    }
    let log = dir(sandbox).join(&node.name).join("flotad.log");
    let spec = EnterSpec { pid: node.pid, cgroups: cgroups(sandbox, &node.name)?, command, log: Some(log) };
    let output = call(&spec)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("failed to start flotad on {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let inside = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let found = processes(sandbox, &node.name)?.into_iter().find(|pid| id_inside(*pid).as_ref() == Some(&inside));
    node.daemon = found.with_context(|| format!("flotad on {} ended at once", node.name))?.as_raw();
    node.daemon_start_time = start_time(node.daemon).unwrap_or(0);
    Ok(())
}

/// Returns every process of the node, found by its cgroups.
pub(crate) fn processes(sandbox: &str, node: &str) -> anyhow::Result<Vec<Pid>> {
    Ok(cgroups(sandbox, node)?.processes()?.into_iter().map(Pid::from_raw).collect())
}

/// Returns a process's id in the innermost of its namespaces (proc_pid_status(5), NSpid).
fn id_inside(pid: Pid) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last().map(str::to_owned)
}

/// Kills PID 1 and thereby every process of the node. Returns when they are gone and the cgroups are removed.
pub(crate) fn destroy(sandbox: &str, node: &NodeState) -> anyhow::Result<()> {
    if node.runs() {
        let _ = kill(Pid::from_raw(node.pid), Signal::SIGKILL);
    }
    let until = Instant::now() + KILL_WAIT;
    loop {
        let left = processes(sandbox, &node.name)?;
        // A process that has left its cgroup may still be exiting.
        if left.is_empty() && !node.runs() {
            break;
        }
        if Instant::now() > until {
            bail!("{} processes of node {} do not end", left.len(), node.name);
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        pause();
    }
    Ok(cgroups(sandbox, &node.name)?.remove()?)
}

/// Sleeps shortly, for loops with a bound of their own.
pub(crate) fn pause() {
    let _ = nix::poll::poll(&mut [], 2u8);
}
