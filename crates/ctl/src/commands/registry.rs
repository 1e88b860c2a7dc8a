//! `ctl registry …`

use std::io::Read;

use clap::Subcommand;
use serde_json::json;

use flota_api::proto::control::{PutRegistryRequest, RemoveRequest};

use crate::client::{Client, request_id};
use crate::printer::{self, ListOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Keep credentials: tasks whose image is there get them
    Login {
        #[arg(short, long)]
        username: String,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
        host: String,
    },
    /// Forget credentials
    Logout { host: String },
    /// Where somebody is logged in
    Ls(ListOptions),
}

/// From standard input, without the end of the line.
pub(super) fn password() -> anyhow::Result<String> {
    let mut password = String::new();
    std::io::stdin().take(4096).read_to_string(&mut password)?;
    Ok(password.trim_end_matches(['\n', '\r']).to_owned())
}

pub(crate) async fn run(verb: Registry, client: impl Fn(bool) -> anyhow::Result<Client>) -> anyhow::Result<()> {
    match verb {
        Registry::Login { username, password_stdin, host } => {
            if !password_stdin {
                anyhow::bail!(crate::error::Usage("give the password on standard input, with --password-stdin".into()));
            }
            let password = password()?;
            let request = PutRegistryRequest { request_id: request_id(), host: host.clone(), username, password };
            client(false)?
                .change(request, |mut control, request| async move { control.put_registry(request).await })
                .await?;
            printer::line(&host);
        }
        Registry::Logout { host } => {
            let request = RemoveRequest { request_id: request_id(), name: host.clone(), force: false, shrink: false };
            client(false)?
                .change(request, |mut control, request| async move { control.remove_registry(request).await })
                .await?;
            printer::line(&host);
        }
        Registry::Ls(options) => {
            options.check(&["host", "username"])?;
            let client = client(options.stale)?;
            let all = client
                .list(
                    |mut control, request| async move { control.list_registries(request).await },
                    |whole, page| whole.registries.extend(page.registries),
                )
                .await?;
            options.say_age(all.header);
            let row = |it: flota_api::proto::control::RegistryRow| {
                (
                    json!({ "id": it.host, "host": it.host, "username": it.username }),
                    vec![it.host.clone(), it.username.clone()],
                )
            };
            let rows: Vec<_> = all.registries.into_iter().map(row).filter(|(value, _)| options.passes(value)).collect();
            printer::rows(&options, &["HOST", "USERNAME"], rows);
        }
    }
    Ok(())
}
