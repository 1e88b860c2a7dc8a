//! One node of a sandbox: its namespaces, its network link and its daemon.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use flota_network::{Connection, Namespace, Veth};

use super::hidden::call;
use super::init::{EnterSpec, InitSpec};
use super::state::{NodeState, Process, SandboxState, dir, run_dir};
use super::{cable, groups};

const CARD: &str = "eth0";
const PREFIX: u8 = 24;

/// Starts the node's PID 1 and connects the node to the bridge.
pub(crate) fn boot(sandbox: &SandboxState, node: &mut NodeState) -> anyhow::Result<()> {
    let (data, run) = (dir(&sandbox.name).join(&node.name).join("data"), run_dir(&sandbox.name).join(&node.name));
    // Whatever was in memory is lost when a machine goes down.
    let _ = std::fs::remove_dir_all(&run);
    fs_err::create_dir_all(&data)?;
    fs_err::create_dir_all(&run)?;
    let spec = InitSpec { hostname: node.name.clone(), cgroups: groups::below(&sandbox.name, &node.name)?, data, run };
    let output = call(&spec)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("failed to start node {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    node.init = Process::of(pid);
    node.paused = false;
    let address = IpNet::new(node.address.into(), PREFIX)?;
    let veth = Veth { port: node.name.clone(), interface: CARD.into(), address };
    let mut network = Connection::open(&Namespace::at(&sandbox.network()))?;
    // The link of the node's previous start stays as long as the kernel keeps a connection over it (tcp(7), orphans).
    network.remove_link(&node.name)?;
    network
        .add_veth(cable::end(node), &Namespace::of(pid), &veth)
        .map_err(anyhow::Error::from)
        .and_then(|()| cable::connect(sandbox, node))
        .with_context(|| format!("failed to connect node {}", node.name))
}

/// Returns the path of the settings file of a node's `flotad`, which need not exist.
pub(crate) fn settings(sandbox: &str, node: &str) -> PathBuf {
    dir(sandbox).join(node).join("flotad.toml")
}

/// Starts `flotad` in the node.
pub(crate) fn start_daemon(sandbox: &str, node: &mut NodeState) -> anyhow::Result<()> {
    let flotad = std::env::current_exe()?.with_file_name("flotad");
    let mut command = vec![flotad.display().to_string()];
    let settings = settings(sandbox, &node.name);
    if settings.exists() {
        command.extend(["--config".into(), settings.display().to_string()]);
    }
    let log = dir(sandbox).join(&node.name).join("flotad.log");
    let pid = node.pid().with_context(|| format!("node {} does not run", node.name))?;
    let spec = EnterSpec { pid, cgroups: groups::below(sandbox, &node.name)?, command, log: Some(log) };
    let output = call(&spec)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("failed to start flotad on {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    let inside = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let found = processes(sandbox, &node.name)?.into_iter().find(|pid| id_inside(*pid).as_ref() == Some(&inside));
    node.daemon = found.and_then(|pid| Process::of(pid.as_raw()));
    node.daemon.map(drop).with_context(|| format!("flotad on {} ended at once", node.name))
}

/// Returns every process of the node, found by its cgroups.
pub(crate) fn processes(sandbox: &str, node: &str) -> anyhow::Result<Vec<Pid>> {
    groups::processes(&groups::below(sandbox, node)?)
}

/// Returns a process's id in the innermost of its namespaces (proc_pid_status(5), NSpid).
fn id_inside(pid: Pid) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last().map(str::to_owned)
}

/// Kills PID 1 and thereby every process of the node, and ends its cable. Returns when they are gone and the control groups
/// are removed.
pub(crate) fn destroy(sandbox: &str, node: &NodeState) -> anyhow::Result<()> {
    if let Some(pid) = node.pid() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    groups::end(&groups::below(sandbox, &node.name)?, &format!("node {}", node.name), || node.runs())?;
    cable::end_forwarder(sandbox, node)
}
