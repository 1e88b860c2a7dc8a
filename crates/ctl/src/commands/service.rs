//! `ctl service …` manages services.

use clap::Subcommand;
use serde_json::json;

use flota_api::constraint::Constraint;
use flota_api::model::{self, ServiceMode, ServiceSpec};
use flota_api::proto::control::{
    CreateServiceRequest, GetRequest, ListTasksRequest, RemoveRequest, ResolveImage, ServiceChange, ServiceRow,
    UpdateServiceRequest,
};

use crate::client::{Client, request_id};
use crate::commands::network;
use crate::commands::network_flags::NetworkRemovals;
use crate::commands::privilege_flags::PrivilegeRemovals;
use crate::commands::spec_flags::SpecFlags;
use crate::commands::{logs, task};
use crate::error::{Usage, named};
use crate::printer::{self, ListOptions};
use crate::progress::{self, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Run a new service
    Create {
        /// Name of the service (default: that of the image)
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        flags: Box<SpecFlags>,
        /// Do not ask the registry for the image's digest; each node then asks by itself
        #[arg(long)]
        no_resolve_image: bool,
        #[command(flatten)]
        wait: WaitOptions,
        /// Image to run
        image: String,
        /// Arguments of the program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// List the services
    Ls(ListOptions),
    /// List the tasks of services
    Ps {
        /// Services: name, id, or beginning of an id (default: all)
        services: Vec<String>,
        #[command(flatten)]
        options: ListOptions,
    },
    /// Print everything about services
    Inspect {
        /// Services: name, id, or beginning of an id
        services: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Print what the tasks of a service have written
    Logs(logs::Logs),
    /// Change how many tasks run
    Scale {
        /// Service and its number of tasks: SERVICE=REPLICAS
        targets: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
    /// Change a service; its tasks are replaced one after the other
    Update {
        #[command(flatten)]
        flags: Box<SpecFlags>,
        /// Image to run from now on; a name stands for what its registry has now, also if the service has it already
        #[arg(long)]
        image: Option<String>,
        /// Do not ask the registry for the image's digest; each node then asks by itself
        #[arg(long)]
        no_resolve_image: bool,
        /// Arguments of the program, separated by blanks
        #[arg(long)]
        args: Option<String>,
        /// Variable to remove
        #[arg(long, value_name = "NAME")]
        env_rm: Vec<String>,
        /// Label to remove
        #[arg(long, value_name = "KEY")]
        label_rm: Vec<String>,
        /// Constraint to remove
        #[arg(long, value_name = "CONSTRAINT")]
        constraint_rm: Vec<String>,
        #[command(flatten)]
        removals: PrivilegeRemovals,
        #[command(flatten)]
        network_removals: Box<NetworkRemovals>,
        /// Replace the tasks even if nothing has changed
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: WaitOptions,
        /// Service: name, id, or beginning of an id
        service: String,
    },
    /// Remove services with their tasks
    Rm {
        /// Services: name, id, or beginning of an id
        services: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

pub(crate) async fn run(verb: Service, client: &Client) -> anyhow::Result<()> {
    match verb {
        Service::Create { name, flags, no_resolve_image, wait, image, args } => {
            let name = name.unwrap_or_else(|| default_name(&image));
            let mut spec = ServiceSpec { name, image, command: args, ..ServiceSpec::default() };
            flags.apply(&mut spec)?;
            create(client, &spec, resolve_image(true, no_resolve_image), &wait).await
        }
        Service::Ls(options) => ls(client, &options).await,
        Service::Ps { services, options } => ps(client, services, &options).await,
        Service::Inspect { services, pretty } => {
            named(&services)?;
            let mut found = Vec::new();
            for name in services {
                found.push(serde_json::to_value(get(client, &name).await?)?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Service::Logs(it) => logs::run(it, true, client).await,
        Service::Scale { targets, wait } => scale(client, &targets, &wait).await,
        Service::Update {
            flags,
            image,
            no_resolve_image,
            args,
            env_rm,
            label_rm,
            constraint_rm,
            removals,
            network_removals,
            force,
            wait,
            service,
        } => {
            // A spec names networks by their ids.
            let mut left = Vec::new();
            for name in network_removals.networks() {
                left.push(network::id(client, name).await?);
            }
            let resolve_image = resolve_image(image.is_some(), no_resolve_image);
            let change = |spec: &mut ServiceSpec| {
                spec.env.retain(|it| !env_rm.iter().any(|name| it.split('=').next() == Some(name)));
                spec.labels.retain(|key, _| !label_rm.contains(key));
                for text in &constraint_rm {
                    let removed = Constraint::parse(text)?;
                    spec.constraints.retain(|it| *it != removed);
                }
                spec.image = image.clone().unwrap_or_else(|| spec.image.clone());
                if let Some(args) = &args {
                    spec.command = args.split_whitespace().map(str::to_owned).collect();
                }
                spec.force += u64::from(force);
                removals.apply(spec)?;
                network_removals.apply(spec, &left)?;
                flags.apply(spec)
            };
            let (id, name) = update(client, &service, resolve_image, change).await?;
            progress::service(client, &id, &name, &wait).await
        }
        Service::Rm { services, wait } => rm(client, &services, &wait).await,
    }
}

/// Returns the default name of a service: `registry/team/web:1` gives `web`.
fn default_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last).to_owned()
}

/// Returns for which services the image is resolved; `is_given`: the user names the image.
fn resolve_image(is_given: bool, is_unwanted: bool) -> ResolveImage {
    match (is_given, is_unwanted) {
        (_, true) => ResolveImage::Never,
        (true, false) => ResolveImage::Always,
        (false, false) => ResolveImage::Changed,
    }
}

async fn create(
    client: &Client,
    spec: &ServiceSpec,
    resolve_image: ResolveImage,
    wait: &WaitOptions,
) -> anyhow::Result<()> {
    let request =
        CreateServiceRequest { request_id: request_id(), spec: Some(spec.into()), resolve_image: resolve_image.into() };
    let created = client.change(request, |mut control, request| async move { control.create_service(request).await });
    let ServiceChange { service, warnings } = created.await?;
    printer::warnings(&warnings);
    let service = service.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a service"))?;
    printer::line(&service.id);
    progress::service(client, &service.id, &spec.name, wait).await
}

fn parsed(row: ServiceRow) -> anyhow::Result<(model::Service, u64)> {
    let service = row.service.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a service"))?;
    Ok((model::Service::try_from(service)?, row.running))
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let services = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_services(request).await },
            |whole, page| whole.services.extend(page.services),
        )
        .await?;
    options.print_age(services.header);
    let mut rows = Vec::new();
    for row in services.services {
        let (service, running) = parsed(row)?;
        let spec = &service.spec;
        let wanted = spec.wanted_tasks();
        let value = json!({
            "id": service.id, "name": spec.name, "mode": spec.mode.as_str(),
            "replicas": { "running": running, "desired": wanted }, "image": spec.image, "ports": service.ports,
        });
        let cells = vec![
            printer::short_id(service.id.as_str(), &options.rows),
            spec.name.clone(),
            spec.mode.as_str().into(),
            format!("{running}/{wanted}"),
            spec.image.clone(),
            published(&service),
        ];
        rows.push((value, cells));
    }
    rows.sort_by(|left, right| left.1[1].cmp(&right.1[1]));
    printer::rows(&options.rows, &["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"], rows);
    Ok(())
}

/// Returns the ports of a service as users write them.
fn published(service: &model::Service) -> String {
    let on_nodes = service.spec.host_ports().chain(service.ports.iter().copied());
    let port = |it: model::PublishedPort| format!("{}:{}/{}", it.published.unwrap_or_default(), it.target, it.protocol);
    on_nodes.map(port).collect::<Vec<_>>().join(" ")
}

async fn get(client: &Client, name: &str) -> anyhow::Result<model::Service> {
    let request = GetRequest { name: name.to_owned() };
    let row = client.read(request, |mut control, request| async move { control.get_service(request).await }).await?;
    Ok(parsed(row)?.0)
}

async fn ps(client: &Client, services: Vec<String>, options: &ListOptions) -> anyhow::Result<()> {
    task::ls(client, ListTasksRequest { services, ..ListTasksRequest::default() }, options).await
}

async fn update(
    client: &Client,
    name: &str,
    resolve_image: ResolveImage,
    change: impl FnOnce(&mut ServiceSpec) -> anyhow::Result<()>,
) -> anyhow::Result<(String, String)> {
    let service = get(client, name).await?;
    let mut spec = service.spec.as_ref().clone();
    change(&mut spec)?;
    let request = UpdateServiceRequest {
        request_id: request_id(),
        service: service.id.to_string(),
        version: service.meta.version,
        spec: Some((&spec).into()),
        resolve_image: resolve_image.into(),
    };
    let updated = client.change(request, |mut control, request| async move { control.update_service(request).await });
    printer::warnings(&updated.await?.warnings);
    printer::line(name);
    Ok((service.id.to_string(), spec.name))
}

async fn scale(client: &Client, targets: &[String], wait: &WaitOptions) -> anyhow::Result<()> {
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
        let change = |spec: &mut ServiceSpec| {
            spec.mode = ServiceMode::Replicated { replicas };
            Ok(())
        };
        changed.push(update(client, &name, ResolveImage::Changed, change).await?);
    }
    progress::services(client, &changed, wait).await
}

async fn rm(client: &Client, names: &[String], wait: &WaitOptions) -> anyhow::Result<()> {
    named(names)?;
    let mut gone = Vec::new();
    for name in names {
        // The request names the id, so a retry can't affect another service of the same name.
        let service = get(client, name).await?;
        let request = RemoveRequest { request_id: request_id(), name: service.id.to_string(), force: false };
        client.change(request, |mut control, request| async move { control.remove_service(request).await }).await?;
        printer::line(name);
        gone.push((service.id.to_string(), name.clone()));
    }
    progress::services(client, &gone, wait).await
}
