//! A whole cluster on this machine: real daemons, each in namespaces and cgroups of its own, joined by a bridge that
//! stands in a namespace of its own. Nothing of the machine's network is touched.

mod init;
mod lifecycle;
mod node;
mod state;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use flota_api::reason::Reason;

use crate::error::Refused;
use crate::printer::{self, RowOptions};
use lifecycle::Running;

pub(crate) use init::run_hidden;

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Name {
    /// Which sandbox; the only one there is, if not said
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sandbox {
    /// Start a cluster on this machine
    Up {
        #[arg(long, default_value = "default")]
        name: String,
        #[arg(long, default_value_t = 3)]
        managers: u32,
        #[arg(long, default_value_t = 2)]
        workers: u32,
        /// Settings file for every node's flotad: copied to /var/lib/flota-sandbox/NAME/NODE/flotad.toml, where it can be
        /// changed before a restart
        #[arg(long)]
        config: Option<std::path::PathBuf>,
    },
    /// Nodes of the sandboxes
    Ls {
        /// Of this sandbox alone
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        options: RowOptions,
    },
    /// Print what points ctl at it: eval "$(ctl sandbox env)"
    Env {
        #[command(flatten)]
        name: Name,
        /// At this node alone
        #[arg(long)]
        node: Option<String>,
    },
    /// Run a command on a node
    Exec {
        #[command(flatten)]
        name: Name,
        node: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// What a node's flotad has logged
    Logs {
        #[command(flatten)]
        name: Name,
        node: String,
    },
    /// The machine is gone: its link goes silent, then everything on it is killed
    Kill {
        #[command(flatten)]
        name: Name,
        /// SIGKILL to flotad alone; the containers stay
        #[arg(long)]
        daemon_only: bool,
        nodes: Vec<String>,
    },
    /// The machine shuts down in order
    Stop {
        #[command(flatten)]
        name: Name,
        /// SIGTERM to flotad alone; the containers stay
        #[arg(long)]
        daemon_only: bool,
        nodes: Vec<String>,
    },
    /// The node hangs: SIGSTOP to everything on it
    Pause {
        #[command(flatten)]
        name: Name,
        nodes: Vec<String>,
    },
    /// Start what was killed, stopped or paused
    Start {
        #[command(flatten)]
        name: Name,
        nodes: Vec<String>,
    },
    /// Stop in order, and start
    Restart {
        #[command(flatten)]
        name: Name,
        nodes: Vec<String>,
    },
    /// Cut these nodes off from the rest: m1,w1
    Partition {
        #[command(flatten)]
        name: Name,
        #[arg(value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// Join everything again
    Heal {
        #[command(flatten)]
        name: Name,
    },
    /// Remove a sandbox with everything of it
    Down {
        #[command(flatten)]
        name: Name,
    },
}

/// Runs a verb; the exit code.
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
        Sandbox::Heal { name } => alone(name)?.heal()?,
        Sandbox::Down { name } => {
            let name = match name.name {
                Some(name) => name,
                None => match state::names().as_slice() {
                    [] => return Ok(0),
                    _ => open(Name::default())?.state.name,
                },
            };
            // It becomes part of paths that are removed.
            flota_api::naming::check(&name).map_err(|error| crate::error::Usage(format!("--name: {error}")))?;
            lifecycle::down(&name)?;
        }
    }
    Ok(0)
}

/// The fields of a row by which it can be filtered.
const FIELDS: [&str; 5] = ["sandbox", "name", "status", "address", "pid"];

fn passes(row: &Value, filters: &[(String, String)]) -> bool {
    filters.iter().all(|(key, value)| match &row[key] {
        Value::String(text) => text == value,
        other => other.to_string() == *value,
    })
}

fn ls(only: Option<&str>, options: &RowOptions) -> anyhow::Result<()> {
    if let Some((key, value)) = options.filters.iter().find(|(key, _)| !FIELDS.contains(&key.as_str())) {
        let text = format!("the filter `{key}={value}` has an unknown key: the keys are {}", FIELDS.join(", "));
        anyhow::bail!(Refused { reason: Reason::UnknownFilter, text });
    }
    let mut rows = Vec::new();
    let all = only.map_or_else(state::names, |name| vec![name.to_owned()]);
    for name in all {
        for node in Running::open(Some(&name))?.state.nodes {
            let status = node.status();
            let value = json!({
                "id": format!("{name}/{}", node.name), "sandbox": name, "name": node.name, "status": status,
                "address": node.address, "pid": node.pid,
            });
            if passes(&value, &options.filters) {
                rows.push((value, vec![name.clone(), node.name.clone(), status.to_owned(), node.address.to_string()]));
            }
        }
    }
    printer::rows(options, &["SANDBOX", "NODE", "STATUS", "ADDRESS"], rows);
    Ok(())
}

/// The hidden entry's result as an exit code.
fn hidden_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
