//! The cable of a node: what connects it to the sandbox's bridge, made to match the node's state.
//!
//! ```text
//!  a good cable   node's eth0 ──veth── w1 ─ br0
//!  a bad cable    node's eth0 ──veth── w1 ─ bridge-w1 ─ near-w1 ══ forwarder ══ far-w1 ─ br0
//! ```
//!
//! All but eth0 is in the sandbox's namespace. `near-w1` and `far-w1` are TAP devices, which are gone when the forwarder
//! is: then the node is cut off. A node that is cut off on purpose is at the bridge `br1` instead of `br0`.

use std::process::Stdio;

use anyhow::bail;

use flota_network::{Connection, Namespace};
use flota_runtime::cgroup::Groups;

use super::forwarder::ForwarderSpec;
use super::groups;
use super::hidden::call;
use super::settings::LinkSettings;
use super::state::{NodeState, SandboxState};

/// The bridge of the nodes.
pub(crate) const BRIDGE: &str = "br0";
/// The bridge of the nodes on the other side of a partition.
pub(crate) const CUT_OFF: &str = "br1";

/// The links of a bad cable.
struct Parts {
    bridge: String,
    near: String,
    far: String,
}

impl Parts {
    fn of(node: &NodeState) -> Self {
        let named = |part| format!("{part}-{}", node.name);
        Self { bridge: named("bridge"), near: named("near"), far: named("far") }
    }
}

/// Returns the bridge at which the node's cable ends.
pub(crate) fn end(node: &NodeState) -> &'static str {
    if node.cut_off { CUT_OFF } else { BRIDGE }
}

/// Makes a running node's cable what its state says.
pub(crate) fn connect(sandbox: &SandboxState, node: &NodeState) -> anyhow::Result<()> {
    end_forwarder(&sandbox.name, node)?;
    let mut network = Connection::open(&Namespace::at(&sandbox.network()))?;
    let parts = Parts::of(node);
    // A process may leave its control groups before the kernel has closed its files.
    network.remove_link(&parts.near)?;
    network.remove_link(&parts.far)?;
    match node.link {
        None => {
            network.move_to_bridge(&node.name, end(node))?;
            network.remove_link(&parts.bridge)?;
        }
        Some(settings) => {
            start_forwarder(sandbox, node, settings)?;
            network.remove_link(&parts.bridge)?;
            network.add_bridge(&parts.bridge)?;
            for (port, bridge) in [(&parts.far, end(node)), (&parts.near, &parts.bridge), (&node.name, &parts.bridge)] {
                network.move_to_bridge(port, bridge)?;
                network.bring_up(port)?;
            }
        }
    }
    Ok(network.bring_up(&node.name)?)
}

/// Whether a running node's cable is what its state says. It is not when its forwarder has died, or when a command was
/// killed halfway.
pub(crate) fn is_whole(sandbox: &SandboxState, node: &NodeState) -> bool {
    let Ok(mut network) = Connection::open(&Namespace::at(&sandbox.network())) else { return false };
    let mut joins = |port: &str, bridge: &str| network.bridge_of(port).is_ok_and(|it| it.as_deref() == Some(bridge));
    let parts = Parts::of(node);
    match node.link {
        None => joins(&node.name, end(node)),
        Some(_) => {
            joins(&node.name, &parts.bridge) && joins(&parts.near, &parts.bridge) && joins(&parts.far, end(node))
        }
    }
}

/// Ends the forwarder in a node's cable, also one that no state knows of, and removes its control groups.
pub(crate) fn end_forwarder(sandbox: &str, node: &NodeState) -> anyhow::Result<()> {
    groups::end(&forwarder_groups(sandbox, node)?, &format!("the forwarder of {}", node.name), || false)
}

fn start_forwarder(sandbox: &SandboxState, node: &NodeState, settings: LinkSettings) -> anyhow::Result<()> {
    let Parts { near, far, .. } = Parts::of(node);
    let spec = ForwarderSpec {
        network: sandbox.network(),
        devices: [near, far],
        settings,
        // Each direction of each cable has a seed of its own.
        seed: u64::from(u32::from(node.address)) * 2,
        cgroups: forwarder_groups(&sandbox.name, node)?,
        command: std::process::id(),
    };
    let output = call(&spec)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("failed to start the forwarder of {}: {}", node.name, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Returns the control groups of a node's forwarder, which are not below the node's: a node that is paused is still at a
/// cable that works.
fn forwarder_groups(sandbox: &str, node: &NodeState) -> anyhow::Result<Groups> {
    groups::below(sandbox, &format!("forwarder-{}", node.name))
}
