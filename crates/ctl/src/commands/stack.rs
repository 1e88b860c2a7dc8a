//! `ctl stack …` manages stacks.

mod removal;

use std::collections::BTreeMap;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use flota_api::model;
use flota_api::proto::control::{
    DeployStackRequest, GetRequest, RemoveStackRequest, ResolveImage, ServiceName, StackChange, StackRow,
};
use flota_api::reason::Reason;

use crate::client::{Client, request_id};
use crate::commands::service;
use crate::error::{named, reason};
use crate::printer::{self, ListOptions};
use crate::progress::{self, Awaited, WaitOptions};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Resolve {
    /// All services
    Always,
    /// Those that are new or get another image
    Changed,
    /// None; each node asks by itself
    Never,
}

impl From<Resolve> for ResolveImage {
    fn from(when: Resolve) -> Self {
        match when {
            Resolve::Always => Self::Always,
            Resolve::Changed => Self::Changed,
            Resolve::Never => Self::Never,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Stack {
    /// Make, change and remove services to match a file
    Deploy {
        /// Compose file to read; - means standard input
        #[arg(short = 'c', long = "compose-file")]
        file: std::path::PathBuf,
        /// Services for which the registry is asked for the image's digest
        #[arg(long, value_name = "WHEN", default_value = "always")]
        resolve_image: Resolve,
        /// Remove services that the stack has and the file no longer has
        #[arg(long)]
        prune: bool,
        #[command(flatten)]
        wait: WaitOptions,
        /// Name of the stack
        name: String,
    },
    /// List the stacks
    Ls(ListOptions),
    /// Remove stacks with their services, networks, secrets and configs, and wait until they are gone
    Rm {
        /// Also remove the volumes of the stacks, with their data
        #[arg(long)]
        volumes: bool,
        /// Names of stacks
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

pub(crate) async fn run(verb: Stack, client: &Client) -> anyhow::Result<()> {
    match verb {
        Stack::Deploy { file, resolve_image, prune, wait, name } => {
            let (spec, values) = flota_stack::load(&file, &name)?;
            let request = DeployStackRequest {
                request_id: request_id(),
                spec: None,
                resolve_image: ResolveImage::from(resolve_image).into(),
                prune,
                values: values.iter().map(Into::into).collect(),
            };
            deploy(client, &spec, request, &wait).await
        }
        Stack::Ls(options) => ls(client, &options).await,
        Stack::Rm { volumes, names, wait } => rm(client, &names, volumes, &wait).await,
    }
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let stacks = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_stacks(request).await },
            |whole, page| whole.stacks.extend(page.stacks),
        )
        .await?;
    printer::age(stacks.header);
    let mut rows = Vec::new();
    for row in stacks.stacks {
        let stack = parsed(row)?.0;
        let value = json!({ "id": stack.id, "name": stack.spec.name, "services": stack.spec.services.len() });
        rows.push((value, vec![stack.spec.name.clone(), stack.spec.services.len().to_string()]));
    }
    printer::rows(&options.rows, &["NAME", "SERVICES"], rows);
    Ok(())
}

/// The id and name of a service.
type Named = (String, String);

/// Returns the stack and the services that it has now.
fn parsed(row: StackRow) -> anyhow::Result<(model::Stack, Vec<Named>)> {
    let stack = row.stack.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a stack"))?;
    let services = row.services.into_iter().map(|ServiceName { id, name }| (id, name));
    Ok((stack.try_into()?, services.collect()))
}

async fn get(client: &Client, name: &str) -> anyhow::Result<(model::Stack, Vec<Named>)> {
    let request = GetRequest { name: name.to_owned() };
    parsed(client.read(request, |mut control, request| async move { control.get_stack(request).await }).await?)
}

async fn deploy(
    client: &Client,
    spec: &model::StackSpec,
    request: DeployStackRequest,
    wait: &WaitOptions,
) -> anyhow::Result<()> {
    let before = match get(client, &spec.name).await {
        Ok((stack, services)) if stack.spec.name == spec.name => services,
        Ok(_) => Vec::new(),
        Err(error) if matches!(reason(&error), Some(Reason::NotFound | Reason::Ambiguous)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let request = DeployStackRequest { spec: Some(spec.into()), ..request };
    let deployed = client.change(request, |mut control, request| async move { control.deploy_stack(request).await });
    let StackChange { stack, warnings } = deployed.await?;
    printer::warnings(&warnings);
    printer::line(&spec.name);
    if wait.detach {
        return Ok(());
    }
    let (_, all) = parsed(stack.unwrap_or_default())?;
    // Services that the file no longer has are waited for, too, until they are removed.
    let gone: Vec<_> = before.into_iter().filter(|it| !all.contains(it)).map(removed).collect();
    let mut targets = Vec::new();
    for service in in_order(&spec.services, all) {
        targets.push(deployed_service(client, service).await?);
    }
    targets.extend(gone);
    progress::services(client, &targets, wait).await
}

/// Returns those of the services that the file has, each after those on which it depends: what fails first is then said
/// first.
fn in_order(specs: &[model::ServiceSpec], mut all: Vec<Named>) -> Vec<Named> {
    let mut ordered = Vec::new();
    let mut left: Vec<&model::ServiceSpec> = specs.iter().collect();
    while !left.is_empty() {
        let waits = |it: &model::ServiceSpec| {
            it.depends_on.iter().any(|on| left.iter().any(|other| other.name == on.service && other.name != it.name))
        };
        // The manager refuses circles.
        let next = left.iter().position(|it| !waits(it)).unwrap_or_default();
        let spec = left.remove(next);
        ordered.extend(all.iter().position(|(_, name)| *name == spec.name).map(|index| all.swap_remove(index)));
    }
    ordered
}

/// Returns what is waited for of a service that was just deployed. If it is, or was, brought back to an earlier spec
/// already, that is the end of an earlier deployment: a new task takes longer to fail.
async fn deployed_service(client: &Client, (id, name): Named) -> anyhow::Result<Awaited> {
    let begins_update = match service::get(client, &id).await {
        Ok(service) => !service.update.is_rollback(),
        Err(error) if reason(&error) == Some(Reason::NotFound) => false,
        Err(error) => return Err(error),
    };
    Ok(Awaited { id, name, begins_update })
}

/// Returns what is waited for of a service that is removed.
fn removed((id, name): Named) -> Awaited {
    Awaited { id, name, begins_update: false }
}

async fn rm(client: &Client, names: &[String], volumes: bool, wait: &WaitOptions) -> anyhow::Result<()> {
    named(names)?;
    let (mut gone, mut stacks) = (Vec::new(), BTreeMap::new());
    for name in names {
        let (stack, services) = get(client, name).await?;
        gone.extend(services.into_iter().map(removed));
        // The request names the id, so a retry can't affect another stack of the same name.
        let request = RemoveStackRequest { request_id: request_id(), name: stack.id.to_string(), volumes };
        client.change(request, |mut control, request| async move { control.remove_stack(request).await }).await?;
        printer::line(name);
        stacks.insert(stack.id.to_string(), stack.spec.name);
    }
    progress::services(client, &gone, wait).await?;
    removal::wait(client, &stacks, wait).await
}

#[cfg(test)]
mod tests {
    use flota_api::model::{Dependency, DependencyCondition, ServiceSpec};

    use super::*;

    #[test]
    fn services_are_waited_for_in_the_order_in_which_they_start() {
        let spec = |name: &str, depends_on: &[&str]| {
            let condition = DependencyCondition::Started;
            let on = depends_on.iter().map(|it| Dependency { service: (*it).into(), condition, required: true });
            ServiceSpec { name: name.into(), depends_on: on.collect(), ..ServiceSpec::default() }
        };
        let specs = [spec("app", &["web", "none"]), spec("db", &[]), spec("job", &["db"]), spec("web", &["db", "job"])];
        let all = ["app", "db", "job", "old", "web"].map(|name| (format!("id of {name}"), name.to_owned()));
        let names: Vec<String> = in_order(&specs, all.into()).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["db", "job", "web", "app"], "and not one that the file does not have");
    }
}
