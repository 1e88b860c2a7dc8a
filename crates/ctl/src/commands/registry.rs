//! `ctl registry …` manages the credentials of registries.

mod docker;

use std::io::Read;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use flota_api::defaults::REGISTRY_PASSWORD;
use flota_api::proto::control::{PutRegistryRequest, RemoveRequest};

use crate::client::{Client, request_id};
use crate::error::Usage;
use crate::printer::{self, ListOptions};
use docker::Login;

#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Keep credentials for the images of a registry
    Login {
        /// User name at the registry
        #[arg(short, long, required_unless_present = "from_docker", conflicts_with = "from_docker")]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Take the logins of `docker login` on this machine: that to HOST, or all
        #[arg(long, conflicts_with = "password_stdin")]
        from_docker: bool,
        /// Registry: HOST or HOST:PORT
        #[arg(required_unless_present = "from_docker")]
        host: Option<String>,
    },
    /// Forget credentials
    Logout {
        /// Registry: HOST or HOST:PORT
        host: String,
    },
    /// List the registries with credentials
    Ls(ListOptions),
}

/// Reads the password from standard input.
pub(super) fn password() -> anyhow::Result<String> {
    password_from(std::io::stdin())
}

/// Reads a password to the end and strips the end of its last line.
fn password_from(input: impl Read) -> anyhow::Result<String> {
    // The ends of lines after it do not count.
    const BOUND: usize = REGISTRY_PASSWORD + 2;
    let mut text = String::new();
    input.take(BOUND as u64 + 1).read_to_string(&mut text).context("failed to read the password")?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.len() > REGISTRY_PASSWORD || text.len() > BOUND {
        anyhow::bail!(Usage(format!("the password has more than {REGISTRY_PASSWORD} bytes")));
    }
    Ok(password.to_owned())
}

/// Stores a login in the cluster.
async fn put(client: &Client, login: Login) -> anyhow::Result<()> {
    let Login { host, username, password } = login;
    let request = PutRegistryRequest { request_id: request_id(), host: host.clone(), username, password };
    client.change(request, |mut control, request| async move { control.put_registry(request).await }).await?;
    printer::line(&host);
    Ok(())
}

pub(crate) async fn run(verb: Registry, client: &Client) -> anyhow::Result<()> {
    match verb {
        Registry::Login { from_docker: true, host, .. } => {
            for login in docker::logins(&docker::config_path()?, host.as_deref())? {
                put(client, login).await?;
            }
        }
        Registry::Login { username, password_stdin, host, .. } => {
            if !password_stdin {
                anyhow::bail!(Usage("give the password on standard input, with --password-stdin".into()));
            }
            let (host, username) = (host.unwrap_or_default(), username.unwrap_or_default());
            put(client, Login { host, username, password: password()? }).await?;
        }
        Registry::Logout { host } => {
            let request = RemoveRequest { request_id: request_id(), name: host.clone(), force: false };
            client
                .change(request, |mut control, request| async move { control.remove_registry(request).await })
                .await?;
            printer::line(&host);
        }
        Registry::Ls(options) => {
            let all = client
                .list(
                    options.request(),
                    |mut control, request| async move { control.list_registries(request).await },
                    |whole, page| whole.registries.extend(page.registries),
                )
                .await?;
            printer::age(all.header);
            let row = |it: flota_api::proto::control::RegistryRow| {
                (
                    json!({ "id": it.host, "host": it.host, "username": it.username }),
                    vec![it.host.clone(), it.username.clone()],
                )
            };
            printer::rows(&options.rows, &["HOST", "USERNAME"], all.registries.into_iter().map(row).collect());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_all_of_the_input_without_the_end_of_its_last_line() {
        let read = |text: &str| password_from(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(read("secret\r\n"), Ok("secret".into()));
        assert_eq!(read("{\n  \"key\": 1\n}\n"), Ok("{\n  \"key\": 1\n}".into()), "a file of keys has many lines");
        let longest = "x".repeat(REGISTRY_PASSWORD);
        assert_eq!(read(&format!("{longest}\r\n")), Ok(longest.clone()));
        let refused = password_from(format!("{longest}x").as_bytes()).expect_err("it is too long");
        assert_eq!(crate::error::code(&refused), 2, "{refused}");
    }
}
