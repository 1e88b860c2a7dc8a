//! One file for each noun; each verb a function. A command sees parsed values and a client, never the environment.

pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod logs;
pub(crate) mod node;
mod privilege_flags;
pub(crate) mod registry;
pub(crate) mod service;
mod spec_flags;
pub(crate) mod stack;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod task;

use crate::cli::{Cli, Noun};
use crate::client::Client;
use crate::{printer, sandbox};

/// Runs what was typed; the exit code.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<u8> {
    let client = |stale| Client::new(&cli.hosts, stale);
    match cli.noun {
        Noun::Swarm(verb) => swarm::run(verb, &client(false)?).await?,
        Noun::Node(verb) => node::run(verb, client).await?,
        Noun::Service(verb) => service::run(*verb, client).await?,
        Noun::Task(verb) => task::run(verb, client).await?,
        Noun::Exec(it) => return exec::run(it, &client(false)?).await,
        Noun::Stack(verb) => stack::run(verb, client).await?,
        Noun::Image(verb) => image::run(verb, client).await?,
        Noun::Registry(verb) => registry::run(verb, client).await?,
        Noun::Sandbox(verb) => return sandbox::run(verb).await,
        Noun::System(verb) => system::run(verb, &client(false)?).await?,
        Noun::Version => {
            printer::line(&format!("ctl {}", flota_api::VERSION));
            if let Ok((_, info)) = client(false)?.any_node().await {
                printer::line(&format!("flotad {}", info.version));
            }
        }
    }
    Ok(0)
}
