//! `ctl service scale`, `restart`, `stop` and `start` change how many tasks of services run, or replace them.

use clap::Args;

use flota_api::model::ServiceSpec;
use flota_api::proto::control::ResolveImage;

use super::{Replacing, change, get, replace};
use crate::client::Client;
use crate::error::{Usage, named};
use crate::printer;
use crate::progress::{self, Awaited, WaitOptions};

/// The services that a command is for.
#[derive(Debug, Args)]
pub(crate) struct ServiceNames {
    /// Services: name, id, or beginning of an id
    services: Vec<String>,
    #[command(flatten)]
    wait: WaitOptions,
}

/// Changes the spec of a service. If it is stopped, a user who expects tasks of it learns that it stays so.
async fn set(
    client: &Client,
    name: &str,
    replacing: Replacing,
    set: impl FnOnce(&mut ServiceSpec) -> anyhow::Result<()>,
) -> anyhow::Result<Awaited> {
    let mut is_stopped = false;
    let set = |spec: &mut ServiceSpec| {
        set(spec)?;
        is_stopped = spec.stopped;
        Ok(())
    };
    let target = change(client, name, replacing, set).await?;
    if is_stopped {
        printer::message(&format!("note: {name} is stopped, and stays so until `ctl service start {name}`"));
    }
    Ok(target)
}

pub(super) async fn scale(client: &Client, targets: &[String], wait: &WaitOptions) -> anyhow::Result<()> {
    let parse = |target: &String| {
        let (name, replicas) = target.split_once('=')?;
        Some((name.to_owned(), replicas.parse::<u64>().ok()?))
    };
    let mut parsed = Vec::new();
    for target in targets {
        parsed.push(parse(target).ok_or_else(|| Usage(format!("`{target}` does not have the form SERVICE=REPLICAS")))?);
    }
    if parsed.is_empty() {
        anyhow::bail!(Usage("no service is given: give at least one SERVICE=REPLICAS".into()));
    }
    let mut changed = Vec::new();
    for (name, replicas) in parsed {
        // The tasks that are added run the image of the others.
        let set_replicas = |spec: &mut ServiceSpec| {
            spec.mode = spec.mode.with_replicas(replicas).map_err(|why| Usage(format!("{name}: {why}")))?;
            Ok(())
        };
        let replacing = Replacing { resolve_image: ResolveImage::Never, sets_replicas: true };
        changed.push(set(client, &name, replacing, set_replicas).await?);
    }
    progress::services(client, &changed, wait).await
}

/// Replaces all tasks of services.
pub(super) async fn restart(ServiceNames { services, wait }: ServiceNames, client: &Client) -> anyhow::Result<()> {
    named(&services)?;
    let mut changed = Vec::new();
    for name in services {
        let force = |spec: &mut ServiceSpec| {
            if spec.mode.cron().is_some() {
                anyhow::bail!(Usage(format!("{name}: it is of the mode cron: `ctl service run {name}` begins a run")));
            }
            spec.force += 1;
            Ok(())
        };
        changed.push(set(client, &name, ResolveImage::Changed.into(), force).await?);
    }
    progress::services(client, &changed, &wait).await
}

/// Stops services, or starts those that are stopped. One that is as asked already is not changed, so that an update of
/// it that is paused stays so.
pub(super) async fn set_stopped(
    ServiceNames { services, wait }: ServiceNames,
    stopped: bool,
    client: &Client,
) -> anyhow::Result<()> {
    named(&services)?;
    let mut targets = Vec::new();
    for name in services {
        let service = get(client, &name).await?;
        let mut spec = service.spec.as_ref().clone();
        if spec.stopped == stopped {
            targets.push(Awaited { id: service.id.to_string(), name: spec.name, begins_update: false });
        } else {
            spec.stopped = stopped;
            targets.push(replace(client, service, &spec, ResolveImage::Never.into()).await?);
        }
        printer::line(&name);
    }
    progress::services(client, &targets, &wait).await
}
