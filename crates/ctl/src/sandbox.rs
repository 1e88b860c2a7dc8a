//! Runs a whole cluster on this machine: real daemons, each in namespaces and cgroups of its own, connected by a
//! bridge in a separate namespace. The machine's own network is not changed.

mod cable;
mod forwarder;
mod groups;
mod hidden;
mod init;
mod lifecycle;
mod line;
mod links;
mod node;
mod settings;
mod state;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::printer::{self, RowOptions};
use forwarder::ForwarderSpec;
use hidden::Hidden;
use init::{EnterSpec, InitSpec};
use lifecycle::Running;
use settings::LinkSettings;
use state::NodeState;

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Name {
    /// Name of the sandbox (default: the only one)
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sandbox {
    /// Start a sandbox
    Up {
        /// Name of the sandbox
        #[arg(long, default_value = "default")]
        name: String,
        /// Number of managers
        #[arg(long, default_value_t = 3)]
        managers: u32,
        /// Number of workers
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Settings file for the flotad of each node; it is copied to /var/lib/flota-sandbox/NAME/NODE/flotad.toml and may
        /// be changed there before a restart
        #[arg(long)]
        config: Option<std::path::PathBuf>,
    },
    /// List the nodes of sandboxes
    Ls {
        /// List only this sandbox
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        options: RowOptions,
    },
    /// Print the variable that points ctl at the sandbox, for eval "$(ctl sandbox env)"
    Env {
        #[command(flatten)]
        name: Name,
        /// Point ctl at this node only
        #[arg(long)]
        node: Option<String>,
    },
    /// Run a command on a node
    Exec {
        #[command(flatten)]
        name: Name,
        /// Node, such as w1
        node: String,
        /// Command with its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Print the log of a node's flotad
    Logs {
        #[command(flatten)]
        name: Name,
        /// Node, such as w1
        node: String,
    },
    /// Cut a node's link silently, then kill everything on it
    Kill {
        #[command(flatten)]
        name: Name,
        /// Send SIGKILL to flotad only; containers keep running
        #[arg(long)]
        daemon_only: bool,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
    },
    /// Shut nodes down in order
    Stop {
        #[command(flatten)]
        name: Name,
        /// Send SIGTERM to flotad only; containers keep running
        #[arg(long)]
        daemon_only: bool,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
    },
    /// Send SIGSTOP to everything on a node
    Pause {
        #[command(flatten)]
        name: Name,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
    },
    /// Start nodes that were killed, stopped or paused
    Start {
        #[command(flatten)]
        name: Name,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
    },
    /// Shut nodes down in order and start them
    Restart {
        #[command(flatten)]
        name: Name,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
    },
    /// Cut nodes off from the others, such as m1,w1
    Partition {
        #[command(flatten)]
        name: Name,
        /// Nodes, separated by commas or blanks
        #[arg(value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// Make the cables of nodes slow or lossy until they are healed, in both directions
    ///
    /// The settings replace all earlier ones of the cable: what is not given is perfect, so without any option the cable
    /// is a good one again. They stay when the node is restarted.
    Link {
        #[command(flatten)]
        name: Name,
        /// Nodes, such as m1 or w1
        nodes: Vec<String>,
        #[command(flatten)]
        settings: LinkSettings,
    },
    /// Undo all partitions and make all cables good
    Heal {
        #[command(flatten)]
        name: Name,
    },
    /// Remove a sandbox and everything that belongs to it
    Down {
        #[command(flatten)]
        name: Name,
    },
}

/// Runs a command and returns the exit code.
pub(crate) async fn run(verb: Sandbox) -> anyhow::Result<u8> {
    let open = |name: Name| Running::open(name.name.as_deref());
    let alone = |name: Name| Running::open_alone(name.name.as_deref());
    match verb {
        Sandbox::Up { name, managers, workers, config } => {
            lifecycle::up(&name, managers, workers, config.as_deref()).await?;
        }
        Sandbox::Ls { name, options } => ls(name.as_deref(), &options)?,
        Sandbox::Env { name, node } => printer::line(&open(name)?.env(node.as_deref())?),
        Sandbox::Exec { name, node, command } => return open(name)?.exec(&node, &command),
        Sandbox::Logs { name, node } => printer::bytes(1, &open(name)?.logs(&node)?),
        Sandbox::Kill { name, daemon_only, nodes } => {
            let mut sandbox = alone(name)?;
            sandbox.each(
                &nodes,
                |sandbox, node| if daemon_only { sandbox.kill_daemon(node) } else { sandbox.kill(node) },
            )?;
        }
        Sandbox::Stop { name, daemon_only, nodes } => alone(name)?.stop(&nodes, daemon_only).await?,
        Sandbox::Pause { name, nodes } => alone(name)?.each(&nodes, Running::pause)?,
        Sandbox::Start { name, nodes } => alone(name)?.each(&nodes, Running::start)?,
        Sandbox::Restart { name, nodes } => {
            let mut sandbox = alone(name)?;
            sandbox.stop(&nodes, false).await?;
            sandbox.each(&nodes, Running::start)?;
        }
        Sandbox::Partition { name, nodes } => alone(name)?.partition(&nodes)?,
        Sandbox::Link { name, nodes, settings } => alone(name)?.link(&nodes, settings)?,
        Sandbox::Heal { name } => alone(name)?.heal()?,
        Sandbox::Down { name } => {
            let name = match name.name {
                Some(name) => name,
                None => match state::names().as_slice() {
                    [] => return Ok(0),
                    _ => open(Name::default())?.state.name,
                },
            };
            // The name becomes part of paths that are removed.
            flota_api::naming::check(&name).map_err(|error| crate::error::Usage(format!("--name: {error}")))?;
            lifecycle::down(&name)?;
        }
    }
    Ok(0)
}

/// The fields by which rows can be filtered.
const FIELDS: [&str; 6] = ["sandbox", "name", "status", "address", "cutOff", "pid"];

fn ls(only: Option<&str>, options: &RowOptions) -> anyhow::Result<()> {
    options.check_filters(&FIELDS)?;
    let mut rows = Vec::new();
    let all = only.map_or_else(state::names, |name| vec![name.to_owned()]);
    for name in all {
        let sandbox = Running::open(Some(&name))?;
        for node in &sandbox.state.nodes {
            let (status, broken) = (node.status(), node.runs() && !cable::is_whole(&sandbox.state, node));
            let value = json!({
                "id": format!("{name}/{}", node.name), "sandbox": name, "name": node.name, "status": status,
                "address": node.address, "pid": node.pid(), "cutOff": node.cut_off, "linkBroken": broken,
                "link": node.link.map(LinkSettings::to_json),
            });
            if options.passes(&value) {
                let cells = [&name, &node.name, status, &node.address.to_string(), &link(node, broken)];
                rows.push((value, cells.map(str::to_owned).to_vec()));
            }
        }
    }
    printer::rows(options, &["SANDBOX", "NODE", "STATUS", "ADDRESS", "LINK"], rows);
    Ok(())
}

/// Describes a node's cable.
fn link(node: &NodeState, broken: bool) -> String {
    let claims = [(broken, "broken".to_owned()), (node.cut_off, "cut off".to_owned())];
    let claims = claims.into_iter().filter_map(|(holds, claim)| holds.then_some(claim));
    claims.chain(node.link.map(|it| it.to_string())).collect::<Vec<_>>().join(", ")
}

/// Runs a hidden entry, if the arguments name one.
pub(crate) fn run_hidden() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (entry, spec) = (arguments.next()?, arguments.next().unwrap_or_default());
    let result = match entry.as_str() {
        InitSpec::ENTRY => hidden::run::<InitSpec>(&spec),
        EnterSpec::ENTRY => hidden::run::<EnterSpec>(&spec),
        ForwarderSpec::ENTRY => hidden::run::<ForwarderSpec>(&spec),
        _ => return None,
    };
    Some(result.map_or_else(
        |error| {
            printer::message(&format!("{error:#}"));
            ExitCode::FAILURE
        },
        ExitCode::from,
    ))
}
