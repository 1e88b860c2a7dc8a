//! `ctl volume …` manages volumes.

use std::io::BufRead;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use flota_api::model::{Volume as Object, VolumeSpec};
use flota_api::proto::control::{CreateVolumeRequest, GetRequest, ListRequest, RemoveRequest, VolumeRow};
use flota_api::reason::Reason;

use crate::client::{Client, request_id};
use crate::error::{Usage, named, reason};
use crate::printer::{self, ListOptions};
use crate::{parse, terminal};

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume; a node gets its data with the first task that uses it
    Create(CreateVolume),
    /// List the volumes
    Ls(ListOptions),
    /// Print everything about volumes, with the nodes that have their data and the services that use them
    Inspect {
        /// Volumes: name, id, or beginning of an id
        volumes: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Remove volumes that no service uses, with their data; that of a file system stays
    Rm {
        /// Volumes: name, id, or beginning of an id
        volumes: Vec<String>,
    },
    /// Remove all volumes that no service uses and that have no data
    Prune {
        /// Also remove those that have data
        #[arg(short, long)]
        all: bool,
        /// Do not ask for confirmation
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateVolume {
    /// Label, KEY=VALUE; may be repeated
    #[arg(long, value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Keep data of its own for each slot of a service
    #[arg(long)]
    per_slot: bool,
    /// Driver; there is one
    #[arg(short, long, value_parser = ["local"], default_value = "local", hide_default_value = true)]
    driver: String,
    /// Option that makes it a file system which each task mounts, as with Docker's driver local: type=TYPE, device=DEVICE or
    /// o=OPTION[,OPTION…]; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse::assignment)]
    opt: Vec<(String, String)>,
    /// Name of the volume
    name: String,
}

pub(crate) async fn run(verb: Volume, client: &Client) -> anyhow::Result<()> {
    match verb {
        Volume::Create(CreateVolume { label, per_slot, driver: _, opt, name }) => {
            let file_system = flota_stack::mount::file_system(&opt).map_err(|why| Usage(format!("--opt: {why}")))?;
            let spec = VolumeSpec { name: name.clone(), labels: label.into_iter().collect(), per_slot, file_system };
            let request = CreateVolumeRequest { request_id: request_id(), spec: Some((&spec).into()) };
            client.change(request, |mut control, request| async move { control.create_volume(request).await }).await?;
            printer::line(&name);
            Ok(())
        }
        Volume::Ls(options) => ls(client, &options).await,
        Volume::Inspect { volumes, pretty } => {
            named(&volumes)?;
            let mut found = Vec::new();
            for name in volumes {
                let request = GetRequest { name };
                let read =
                    client.read(request, |mut control, request| async move { control.get_volume(request).await });
                found.push(whole(read.await?)?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Volume::Rm { volumes } => {
            named(&volumes)?;
            for name in volumes {
                remove(client, &name).await?;
                printer::line(&name);
            }
            Ok(())
        }
        Volume::Prune { all, force } => prune(client, all, force).await,
    }
}

async fn remove(client: &Client, name: &str) -> anyhow::Result<()> {
    let request = RemoveRequest { request_id: request_id(), name: name.to_owned(), force: false };
    client.change(request, |mut control, request| async move { control.remove_volume(request).await }).await?;
    Ok(())
}

fn parsed(row: &VolumeRow) -> anyhow::Result<Object> {
    let volume = row.volume.clone().ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a volume"))?;
    Ok(Object::try_from(volume)?)
}

fn whole(row: VolumeRow) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(parsed(&row)?)?;
    value["nodes"] = json!(row.nodes);
    value["services"] = json!(row.services);
    Ok(value)
}

async fn list(client: &Client, request: ListRequest) -> anyhow::Result<flota_api::proto::control::Volumes> {
    let listed = client.list(
        request,
        |mut control, request| async move { control.list_volumes(request).await },
        |whole, page| whole.volumes.extend(page.volumes),
    );
    listed.await
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let volumes = list(client, options.request()).await?;
    printer::age(volumes.header);
    let mut rows = Vec::new();
    for row in volumes.volumes {
        let volume = parsed(&row)?;
        let value = json!({
            "id": volume.id, "name": volume.spec.name, "perSlot": volume.spec.per_slot, "fileSystem": volume.spec.file_system,
            "labels": volume.spec.labels,
            "nodes": row.nodes, "services": row.services,
        });
        let cells =
            vec![volume.spec.name.clone(), data(&volume.spec).to_owned(), row.nodes.join(" "), row.services.join(" ")];
        rows.push((value, cells));
    }
    rows.sort_by(|left, right| left.1[0].cmp(&right.1[0]));
    printer::rows(&options.rows, &["NAME", "DATA PER", "NODES", "SERVICES"], rows);
    Ok(())
}

/// Returns the text of the column DATA PER: whether the whole volume or each slot has one set of data, or the type of the file
/// system that the volume is.
fn data(spec: &VolumeSpec) -> &str {
    match &spec.file_system {
        Some(it) => &it.kind,
        None if spec.per_slot => "slot",
        None => "volume",
    }
}

/// Returns whether `prune` removes the volume. One that is a file system has data, wherever that is.
fn is_pruned(row: &VolumeRow, all: bool) -> bool {
    let is_file_system = row.volume.as_ref().and_then(|it| it.spec.as_ref()).is_some_and(|it| it.file_system.is_some());
    row.services.is_empty() && (all || row.nodes.is_empty() && !is_file_system)
}

async fn prune(client: &Client, all: bool, force: bool) -> anyhow::Result<()> {
    if !force && !terminal::is_there() {
        return Err(
            Usage("`prune` asks before it removes anything, and there is no terminal: give --force".into()).into()
        );
    }
    let volumes = list(client, ListRequest::default()).await?.volumes;
    let mut unused = volumes.iter().filter(|row| is_pruned(row, all)).map(parsed).collect::<Result<Vec<_>, _>>()?;
    unused.sort_by(|left, right| left.spec.name.cmp(&right.spec.name));
    if unused.is_empty() {
        return Ok(());
    }
    if !force && !is_confirmed(&unused)? {
        return Ok(());
    }
    for volume in unused {
        // The request names the id, so another volume of the same name stays.
        match remove(client, volume.id.as_str()).await {
            Ok(()) => printer::line(&volume.spec.name),
            // A service has begun to use it, or somebody else has removed it.
            Err(error) if matches!(reason(&error), Some(Reason::InUse | Reason::NotFound)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Asks whether these volumes are to be removed.
fn is_confirmed(volumes: &[Object]) -> anyhow::Result<bool> {
    for volume in volumes {
        printer::message(&volume.spec.name);
    }
    printer::message("Remove these volumes with their data (that of file systems stays)? [y/N]");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prune_takes_data_only_when_it_is_asked_to_and_never_what_a_service_uses() {
        let row = |nodes: &[&str], services: &[&str]| VolumeRow {
            volume: None,
            nodes: nodes.iter().map(|it| (*it).to_owned()).collect(),
            services: services.iter().map(|it| (*it).to_owned()).collect(),
        };
        for (nodes, services, expected) in [
            (&[][..], &[][..], [true, true]),
            (&["w1"], &[], [false, true]),
            (&[], &["web"], [false, false]),
            (&["w1"], &["web"], [false, false]),
        ] {
            let row = row(nodes, services);
            assert_eq!([is_pruned(&row, false), is_pruned(&row, true)], expected, "{row:?}");
        }
        let file_system = flota_stack::mount::file_system(&[("type".to_owned(), "tmpfs".to_owned())]).expect("good");
        let spec = VolumeSpec { name: "db".into(), file_system, ..VolumeSpec::default() };
        let volume = Object { spec, ..Object::default() };
        let row = VolumeRow { volume: Some((&volume).into()), ..VolumeRow::default() };
        assert_eq!([is_pruned(&row, false), is_pruned(&row, true)], [false, true]);
    }
}
