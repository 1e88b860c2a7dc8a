//! `ctl service …` manages services.

mod explain;
mod history;
mod replicas;
mod runs;
mod update;

use clap::Subcommand;
use serde_json::json;

use flota_api::clock::Clock;
use flota_api::model::{self, ModeName, ServiceSpec};
use flota_api::proto::control::{
    CreateServiceRequest, GetRequest, ListTasksRequest, RemoveRequest, ResolveImage, ServiceChange, ServiceRow,
    UpdateServiceRequest,
};
use flota_api::proto::objects;
use flota_api::reason::Reason;

use crate::client::{Client, request_id};
use crate::commands::spec_flags::SpecFlags;
use crate::commands::{logs, task};
use crate::error::{self, named, reason};
use crate::printer::{self, ListOptions};
use crate::progress::{self, Awaited, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Run a new service
    Create {
        /// Name of the service (default: that of the image)
        #[arg(long)]
        name: Option<String>,
        /// Mode: replicated or global (tasks run on), replicated-job or global-job (tasks end), or cron (a job at set times)
        #[arg(long, default_value = "replicated", value_parser = ModeName::parse)]
        mode: ModeName,
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
    /// Change a service; its tasks are replaced as its flags --update-… say
    Update(Box<update::Update>),
    /// Bring a service back to an earlier spec; its number of tasks stays
    Rollback(history::Rollback),
    /// List the specs that a service has had
    History(history::History),
    /// Say why a service is not as its spec asks
    Explain {
        /// Service: name, id, or beginning of an id
        service: String,
    },
    /// Begin a run of a service of the mode cron now, whatever its schedule
    Run {
        /// Service: name, id, or beginning of an id
        service: String,
    },
    /// Replace all tasks of services, as an update does
    Restart(replicas::ServiceNames),
    /// Stop all tasks of services, which keep their number of tasks
    Stop(replicas::ServiceNames),
    /// Start the tasks of stopped services
    Start(replicas::ServiceNames),
    /// Remove services with their tasks
    Rm {
        /// Services: name, id, or beginning of an id
        services: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

impl Service {
    /// Returns what is wrong with a spec that is given by flags beside those that could not be read. A change of a spec can be
    /// judged only with the help of a manager.
    pub(crate) async fn faults(&self, unread: &[String], client: Option<&Client>) -> Option<String> {
        // What other flags mean depends on these.
        let decisive = ["'--mode", "'--schedule", "'--scale"];
        if unread.iter().any(|text| decisive.iter().any(|flag| text.contains(flag))) {
            return None;
        }
        let found = match self {
            Self::Create { name, mode, flags, image, args, .. } => {
                let name = name.clone().unwrap_or_else(|| default_name(image));
                let (spec, flags) = flags.spec(*mode);
                error::judged(flags, &ServiceSpec { name, image: image.clone(), command: args.clone(), ..spec })
            }
            Self::Update(it) => it.judged(client?).await,
            _ => Ok(()),
        };
        found.err().map(|error| format!("{error:#}"))
    }
}

pub(crate) async fn run(verb: Service, client: &Client) -> anyhow::Result<()> {
    match verb {
        Service::Create { name, mode, flags, no_resolve_image, wait, image, args } => {
            let name = name.unwrap_or_else(|| default_name(&image));
            let (spec, flags) = flags.spec(mode);
            let spec = ServiceSpec { name, image, command: args, ..spec };
            error::all_of_spec(flags, &spec)?;
            create(client, &spec, resolve_image(true, no_resolve_image), &wait).await
        }
        Service::Ls(options) => ls(client, &options).await,
        Service::Ps { services, options } => ps(client, services, &options).await,
        Service::Inspect { services, pretty } => {
            named(&services)?;
            let mut found = Vec::new();
            for name in services {
                found.push(runs::with_next(&get(client, &name).await?, Clock::system().now())?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Service::Logs(it) => logs::run(it, true, client).await,
        Service::Scale { targets, wait } => replicas::scale(client, &targets, &wait).await,
        Service::Update(it) => update::run(*it, client).await,
        Service::Rollback(it) => history::roll_back(it, client).await,
        Service::History(it) => history::list(it, client).await,
        Service::Explain { service } => explain::run(service, client).await,
        Service::Run { service } => runs::begin(client, &service).await,
        Service::Restart(it) => replicas::restart(it, client).await,
        Service::Stop(it) => replicas::set_stopped(it, true, client).await,
        Service::Start(it) => replicas::set_stopped(it, false, client).await,
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
    let id = service.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a service"))?.id;
    printer::line(&id);
    progress::service(client, &Awaited { id, name: spec.name.clone(), begins_update: false }, wait).await
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let services = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_services(request).await },
            |whole, page| whole.services.extend(page.services),
        )
        .await?;
    printer::age(services.header);
    let mut rows = Vec::new();
    for row in services.services {
        let ServiceRow { service, running, desired, done, waits } = row;
        let service = answered(service)?;
        let spec = &service.spec;
        let replicas = match (done, spec.stopped) {
            _ if let Some(text) = runs::column(&service, running, desired, done, Clock::system().now()) => text,
            (Some(done), false) => format!("{running} ({done}/{desired} done)"),
            (Some(done), true) => format!("{running} ({done}/{desired} done, stopped)"),
            (None, true) => format!("{running}/{} (stopped)", service.replicas().unwrap_or_default()),
            (None, false) => format!("{running}/{desired}"),
        };
        let replicas = if waits.is_empty() { replicas } else { format!("{replicas} ({waits})") };
        let value = json!({
            "id": service.id, "name": spec.name, "mode": spec.mode.as_str(),
            "replicas": { "running": running, "desired": desired, "done": done }, "image": spec.image, "ports": service.ports,
            "waits": waits,
        });
        let cells = vec![
            printer::short_id(service.id.as_str(), &options.rows),
            spec.name.clone(),
            spec.mode.as_str().into(),
            replicas,
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

/// Returns the service that a name, an id or the beginning of an id stands for.
pub(crate) async fn get(client: &Client, name: &str) -> anyhow::Result<model::Service> {
    let request = GetRequest { name: name.to_owned() };
    let row = client.read(request, |mut control, request| async move { control.get_service(request).await }).await?;
    answered(row.service)
}

async fn ps(client: &Client, services: Vec<String>, options: &ListOptions) -> anyhow::Result<()> {
    task::ls(client, ListTasksRequest { services, ..ListTasksRequest::default() }, options).await
}

/// Returns the service of an answer.
fn answered(service: Option<objects::Service>) -> anyhow::Result<model::Service> {
    Ok(service.ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a service"))?.try_into()?)
}

/// How often a change is tried because the system has changed something beside the spec meanwhile.
const TRIES: u32 = 10;

/// The settings of an update that are sent beside the new spec.
#[derive(Clone, Copy, Debug)]
struct Replacing {
    resolve_image: ResolveImage,
    /// Whether the user has set the number of tasks.
    sets_replicas: bool,
}

impl From<ResolveImage> for Replacing {
    fn from(resolve_image: ResolveImage) -> Self {
        Self { resolve_image, sets_replicas: false }
    }
}

/// Changes the spec of a service, prints its name, and returns what can be waited for.
async fn change(
    client: &Client,
    name: &str,
    replacing: Replacing,
    change: impl FnOnce(&mut ServiceSpec) -> anyhow::Result<()>,
) -> anyhow::Result<Awaited> {
    let service = get(client, name).await?;
    let mut spec = service.spec.as_ref().clone();
    change(&mut spec)?;
    let target = replace(client, service, &spec, replacing).await?;
    printer::line(name);
    Ok(target)
}

/// Gives the service another spec, unless another user has changed its spec since it was read.
async fn replace(
    client: &Client,
    mut service: model::Service,
    spec: &ServiceSpec,
    replacing: Replacing,
) -> anyhow::Result<Awaited> {
    let mut tries = 1;
    loop {
        match try_replace(client, &service, spec, replacing).await {
            Err(error) if tries < TRIES && reason(&error) == Some(Reason::ChangedMeanwhile) => {
                let now = get(client, service.id.as_str()).await?;
                // The system writes beside the spec, such as how far an update is. A user's change is another matter.
                if now.spec != service.spec {
                    return Err(error);
                }
                (service, tries) = (now, tries + 1);
            }
            replaced => return replaced,
        }
    }
}

/// Gives the service another spec, unless anything has changed it since it was read.
async fn try_replace(
    client: &Client,
    service: &model::Service,
    spec: &ServiceSpec,
    Replacing { resolve_image, sets_replicas }: Replacing,
) -> anyhow::Result<Awaited> {
    let request = UpdateServiceRequest {
        request_id: request_id(),
        service: service.id.to_string(),
        version: service.meta.version,
        spec: Some(spec.into()),
        resolve_image: resolve_image.into(),
        sets_replicas,
    };
    let updated = client.change(request, |mut control, request| async move { control.update_service(request).await });
    let ServiceChange { service: new, warnings } = updated.await?;
    printer::warnings(&warnings);
    let new = answered(new)?;
    // An update may already have been rolled back to the spec before; then it is among the earlier ones.
    let begins_update = (new.spec_version, &new.revisions) != (service.spec_version, &service.revisions);
    Ok(Awaited { id: service.id.to_string(), name: spec.name.clone(), begins_update })
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
        gone.push(Awaited { id: service.id.to_string(), name: name.clone(), begins_update: false });
    }
    progress::services(client, &gone, wait).await
}
