//! The commands of `ctl`, as nouns with their verbs, and the function that runs each.

use clap::{Parser, Subcommand};

use flota_api::model::ValueKind;

use crate::client::Client;
use crate::commands::{
    context, events, exec, image, network, node, port_forward, registry, service, stack, swarm, system, task, value,
    volume,
};
use crate::error::Usage;
use crate::{printer, sandbox};

/// Flota: a container cluster in two commands
#[derive(Debug, Parser)]
#[command(name = "ctl", version = flota_api::VERSION, propagate_version = false, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Manager to talk to, unix://PATH or tcp://HOST:PORT; may be repeated: they are asked in turn until one answers
    #[arg(short = 'H', long = "host", env = "FLOTA_HOST", value_delimiter = ',', global = true)]
    pub(crate) hosts: Vec<String>,
    /// Context whose credentials and managers to use (default: the one of `ctl context use`)
    #[arg(long, env = "FLOTA_CONTEXT", value_name = "NAME", global = true)]
    pub(crate) context: Option<String>,
    #[command(subcommand)]
    pub(crate) noun: Noun,
    /// What is wrong with the values that could not be read
    #[arg(skip)]
    pub(crate) unread: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Begin, join and leave a cluster with this node
    #[command(subcommand)]
    Swarm(swarm::Swarm),
    /// Manage what this machine's user talks to clusters with, from outside
    #[command(subcommand)]
    Context(context::Context),
    /// Manage the nodes of the cluster
    #[command(subcommand)]
    Node(node::Node),
    /// Manage services
    #[command(subcommand)]
    Service(Box<service::Service>),
    /// Manage tasks
    #[command(subcommand)]
    Task(task::Task),
    /// Run a command in a task on any node
    Exec(exec::Exec),
    /// Print what changes in the cluster, as it changes
    Events(events::Events),
    /// Forward ports of this machine to a task on any node
    PortForward(port_forward::PortForward),
    /// Manage services from one file
    #[command(subcommand)]
    Stack(stack::Stack),
    /// Manage the images that the cluster keeps
    #[command(subcommand)]
    Image(image::Image),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Manage secrets: values that only the tasks that use them can read
    #[command(subcommand)]
    Secret(value::Value),
    /// Manage configs: values that tasks get as files
    #[command(subcommand)]
    Config(value::Value),
    /// Manage the credentials of registries
    #[command(subcommand)]
    Registry(registry::Registry),
    /// Run a whole cluster on this machine
    #[command(subcommand)]
    Sandbox(sandbox::Sandbox),
    /// Manage this machine
    #[command(subcommand)]
    System(system::System),
    /// Print the version of ctl and of the node that it talks to
    Version,
}

impl Cli {
    /// Runs the parsed command and returns the exit code.
    pub(crate) async fn run(self) -> anyhow::Result<u8> {
        if !self.unread.is_empty() {
            let mut found = self.unread;
            if let Noun::Service(verb) = &self.noun {
                let client = Client::with_context(&self.hosts, self.context.as_deref());
                let others = verb.faults(&found, client.ok().as_ref()).await;
                found.extend(others);
            }
            return Err(Usage(found.join("; ")).into());
        }
        // These are about files of this machine alone, and work although the context in use does not.
        let noun = match self.noun {
            Noun::Context(verb) => return context::run(verb).map(|()| 0),
            Noun::Sandbox(verb) => return sandbox::run(verb).await,
            noun => noun,
        };
        let client = Client::with_context(&self.hosts, self.context.as_deref())?;
        match noun {
            Noun::Swarm(verb) => swarm::run(verb, &client).await?,
            Noun::Node(verb) => node::run(verb, &client).await?,
            Noun::Service(verb) => service::run(*verb, &client).await?,
            Noun::Task(verb) => task::run(verb, &client).await?,
            Noun::Exec(it) => return exec::run(it, &client).await,
            Noun::Events(it) => events::run(it, &client).await?,
            Noun::PortForward(it) => port_forward::run(it, &client).await?,
            Noun::Stack(verb) => stack::run(verb, &client).await?,
            Noun::Image(verb) => image::run(verb, &client).await?,
            Noun::Network(verb) => network::run(verb, &client).await?,
            Noun::Volume(verb) => volume::run(verb, &client).await?,
            Noun::Secret(verb) => value::run(verb, ValueKind::Secret, &client).await?,
            Noun::Config(verb) => value::run(verb, ValueKind::Config, &client).await?,
            Noun::Registry(verb) => registry::run(verb, &client).await?,
            Noun::Context(_) | Noun::Sandbox(_) => {}
            Noun::System(verb) => system::run(verb, &client).await?,
            Noun::Version => version(&client).await,
        }
        Ok(0)
    }
}

async fn version(client: &Client) {
    printer::line(&format!("ctl {}", flota_api::VERSION));
    // Without a daemon there is only one version to print.
    if let Ok((_, info)) = client.any_node().await {
        printer::line(&format!("flotad {}", info.version));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_two_flags_of_a_command_are_spelled_alike() {
        super::Cli::command().debug_assert();
    }

    /// Returns the arguments of a command and of those below it that `--help` does not describe.
    fn undescribed(command: &clap::Command) -> Vec<String> {
        let named = |it: &clap::Arg| format!("{} {}", command.get_name(), it.get_id());
        let own = command.get_arguments().filter(|it| it.get_help().is_none()).map(named);
        own.chain(command.get_subcommands().flat_map(undescribed)).collect()
    }

    #[test]
    fn help_describes_every_argument() {
        assert_eq!(undescribed(&super::Cli::command()), [] as [String; 0]);
    }
}
