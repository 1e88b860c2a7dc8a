//! `ctl stack …`

use clap::Subcommand;
use serde_json::json;

use flota_api::model;
use flota_api::proto::control::{DeployStackRequest, RemoveRequest, Stacks};

use crate::client::{Client, request_id};
use crate::error::named;
use crate::pick::pick;
use crate::printer::{self, ListOptions};
use crate::progress::{self, WaitOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Stack {
    /// Bring what a file describes: new, changed or as it was
    Deploy {
        /// Compose file
        #[arg(short = 'c', long = "compose-file")]
        file: std::path::PathBuf,
        #[command(flatten)]
        wait: WaitOptions,
        name: String,
    },
    /// Every stack
    Ls(ListOptions),
    /// Remove stacks with their services
    Rm {
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitOptions,
    },
}

pub(crate) async fn run(verb: Stack, client: impl Fn(bool) -> anyhow::Result<Client>) -> anyhow::Result<()> {
    match verb {
        Stack::Deploy { file, wait, name } => {
            let spec = flota_stack::load(&file, &name)?;
            deploy(&client(false)?, &spec, &wait).await
        }
        Stack::Ls(options) => {
            options.check(&["id", "name", "services"])?;
            let client = client(options.stale)?;
            let stacks = list(&client).await?;
            options.say_age(stacks.header);
            let mut rows = Vec::new();
            for stack in stacks.stacks {
                let stack = model::Stack::try_from(stack)?;
                let value = json!({ "id": stack.id, "name": stack.spec.name, "services": stack.spec.services.len() });
                if options.passes(&value) {
                    let cells = vec![stack.spec.name.clone(), stack.spec.services.len().to_string()];
                    rows.push((value, cells));
                }
            }
            printer::rows(&options, &["NAME", "SERVICES"], rows);
            Ok(())
        }
        Stack::Rm { names, wait } => rm(&client(false)?, &names, &wait).await,
    }
}

async fn list(client: &Client) -> anyhow::Result<Stacks> {
    client
        .list(
            |mut control, request| async move { control.list_stacks(request).await },
            |whole, page| whole.stacks.extend(page.stacks),
        )
        .await
}

async fn services(client: &Client, stack: &str) -> anyhow::Result<Vec<(String, String)>> {
    let all = client
        .list(
            |mut control, request| async move { control.list_services(request).await },
            |whole, page| whole.services.extend(page.services),
        )
        .await?;
    let of_stack = |row: flota_api::proto::control::ServiceRow| {
        let service = row.service?;
        (service.stack_id.as_deref() == Some(stack))
            .then(|| (service.id, service.spec.map(|spec| spec.name).unwrap_or_default()))
    };
    Ok(all.services.into_iter().filter_map(of_stack).collect())
}

async fn deploy(client: &Client, spec: &model::StackSpec, wait: &WaitOptions) -> anyhow::Result<()> {
    let before = match find(client, &spec.name).await {
        Ok(id) => services(client, &id).await?,
        Err(error) if crate::error::code(&error) == crate::error::NOT_FOUND => Vec::new(),
        Err(error) => return Err(error),
    };
    let request = DeployStackRequest { request_id: request_id(), spec: Some(spec.into()) };
    let stack =
        client.change(request, |mut control, request| async move { control.deploy_stack(request).await }).await?;
    printer::line(&spec.name);
    let mut all = services(client, &stack.id).await?;
    // What the file has lost is waited for as well, until it is gone.
    let gone: Vec<_> = before.into_iter().filter(|it| !all.contains(it)).collect();
    all.extend(gone);
    progress::services(client, &all, wait).await
}

async fn find(client: &Client, name: &str) -> anyhow::Result<String> {
    let stacks = list(client).await?.stacks;
    let spec_name = |it: &flota_api::proto::objects::Stack| it.spec.as_ref().map(|spec| spec.name.clone());
    Ok(pick("stack", name, stacks, |it| it.id.clone(), |it| spec_name(it).unwrap_or_default())?.id)
}

async fn rm(client: &Client, names: &[String], wait: &WaitOptions) -> anyhow::Result<()> {
    named(names)?;
    let mut gone = Vec::new();
    for name in names {
        let id = find(client, name).await?;
        gone.extend(services(client, &id).await?);
        let request = RemoveRequest { request_id: request_id(), name: id, force: false, shrink: false };
        client.change(request, |mut control, request| async move { control.remove_stack(request).await }).await?;
        printer::line(name);
    }
    progress::services(client, &gone, wait).await
}
