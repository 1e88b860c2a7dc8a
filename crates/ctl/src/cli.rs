//! What can be typed: nouns and their verbs.

use clap::{Parser, Subcommand};

use crate::commands::{exec, image, node, registry, service, stack, swarm, system, task};
use crate::sandbox;

/// Flota: a container cluster in two commands
#[derive(Debug, Parser)]
#[command(name = "ctl", version = flota_api::VERSION, propagate_version = false, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Manager to talk to, unix://PATH; may be repeated: asked in turn until one answers
    #[arg(short = 'H', long = "host", env = "FLOTA_HOST", value_delimiter = ',', global = true)]
    pub(crate) hosts: Vec<String>,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// This node's cluster: begin it, join it, leave it
    #[command(subcommand)]
    Swarm(swarm::Swarm),
    /// Machines of the cluster
    #[command(subcommand)]
    Node(node::Node),
    /// What shall run
    #[command(subcommand)]
    Service(Box<service::Service>),
    /// What runs
    #[command(subcommand)]
    Task(task::Task),
    /// Run a command in a task, on any node
    Exec(exec::Exec),
    /// Services from one file
    #[command(subcommand)]
    Stack(stack::Stack),
    /// The cluster's own images
    #[command(subcommand)]
    Image(image::Image),
    /// Credentials of registries
    #[command(subcommand)]
    Registry(registry::Registry),
    /// A whole cluster on this machine
    #[command(subcommand)]
    Sandbox(sandbox::Sandbox),
    /// This machine
    #[command(subcommand)]
    System(system::System),
    /// The version of ctl, and of the node that it talks to
    Version,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_two_flags_of_a_command_are_spelled_alike() {
        super::Cli::command().debug_assert();
    }
}
