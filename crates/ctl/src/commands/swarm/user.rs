//! `ctl swarm user …` manages who may use the cluster from outside. The key of a user is made here, and never leaves the file
//! that this writes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use flota_api::proto::control::{CreateUserRequest, RemoveRequest, RenewUserRequest, UserGrant};
use flota_api::proto::objects;
use flota_api::proto::types::UserRole as WireRole;
use flota_api::version::Timestamp;
use flota_identity::KeyPair;

use super::millis;
use crate::client::{Client, request_id};
use crate::context::Credentials;
use crate::error::{Usage, named};
use crate::new_file::NewFile;
use crate::parse;
use crate::printer::{self, ListOptions, line};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum UserRole {
    Viewer,
    Operator,
    Admin,
}

impl From<UserRole> for WireRole {
    fn from(role: UserRole) -> Self {
        match role {
            UserRole::Viewer => Self::Viewer,
            UserRole::Operator => Self::Operator,
            UserRole::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Add a user, and write a file that `ctl context create` takes
    Add {
        /// Name of the user
        name: String,
        /// Role of the user: viewer (reads), operator (also changes what runs) or admin (changes everything)
        #[arg(long)]
        role: UserRole,
        /// Limit the user to objects whose names begin with this; may be repeated (default: everything)
        #[arg(long = "prefix", value_name = "PREFIX")]
        prefixes: Vec<String>,
        /// Validity of the certificate (default 365 days)
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        expiry: Option<Duration>,
        /// File to write, with the user's key (default: NAME.context.json)
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Give a user another certificate: another user, whose present one then ends, or without a name that of the context in use
    Renew {
        /// Name of the user (default: that of the context in use, whose file is replaced)
        name: Option<String>,
        /// Validity of the certificate (default 365 days)
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        expiry: Option<Duration>,
        /// File to write, with the user's key (default: NAME.context.json)
        #[arg(long, value_name = "FILE", requires = "name")]
        out: Option<PathBuf>,
    },
    /// List users
    Ls(ListOptions),
    /// Remove users, and end what they have open
    Rm {
        /// Names of the users
        names: Vec<String>,
    },
}

pub(super) async fn run(client: &Client, verb: User) -> anyhow::Result<()> {
    match verb {
        User::Add { name, role, prefixes, expiry, out } => {
            let (out, key) = (UserFile::create(&name, out)?, KeyPair::generate()?);
            let request = CreateUserRequest {
                request_id: request_id(),
                name,
                role: WireRole::from(role).into(),
                prefixes,
                csr_der: key.signing_request()?.into(),
                life_ms: expiry.map(millis),
            };
            let grant = client
                .change(request, |mut control, request| async move { control.create_user(request).await })
                .await?;
            out.finish(&grant, &key)
        }
        User::Renew { name: Some(name), expiry, out } => {
            let (out, key) = (UserFile::create(&name, out)?, KeyPair::generate()?);
            let grant = renew(client, name, expiry, &key).await?;
            out.finish(&grant, &key)
        }
        User::Renew { name: None, expiry, .. } => {
            let (path, _) = client.context()?.ok_or_else(|| Usage("no context is in use: name the user".into()))?;
            let key = KeyPair::generate()?;
            let grant = renew(client, String::new(), expiry, &key).await?;
            // The present certificate is good until it expires, so nothing is lost if this fails.
            Credentials::granted(&grant, &key.to_der())?.write(&path)?;
            line(&format!("The certificate in `{}` is valid until {}.", path.display(), expires_at(&grant)?));
            Ok(())
        }
        User::Ls(options) => ls(client, &options).await,
        User::Rm { names } => {
            named(&names)?;
            for name in names {
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force: false };
                client
                    .change(request, |mut control, request| async move { control.remove_user(request).await })
                    .await?;
                line(&name);
            }
            Ok(())
        }
    }
}

async fn renew(client: &Client, name: String, expiry: Option<Duration>, key: &KeyPair) -> anyhow::Result<UserGrant> {
    let csr_der = key.signing_request()?.into();
    let request = RenewUserRequest { request_id: request_id(), name, csr_der, life_ms: expiry.map(millis) };
    client.change(request, |mut control, request| async move { control.renew_user(request).await }).await
}

fn expires_at(grant: &UserGrant) -> anyhow::Result<Timestamp> {
    let certificates = grant.user.as_ref().map(|user| &user.certificates);
    let newest = certificates.and_then(|it| it.last()).context("the manager's answer names no certificate")?;
    Ok(Timestamp(newest.expires_at))
}

/// The file for a user's credentials. It is created before the manager is asked, because the certificate that the user had ends
/// with the request.
struct UserFile {
    file: NewFile,
    path: PathBuf,
}

impl UserFile {
    fn create(name: &str, path: Option<PathBuf>) -> anyhow::Result<Self> {
        flota_api::naming::check(name).map_err(|error| Usage(format!("name: {error}")))?;
        let path = path.unwrap_or_else(|| PathBuf::from(format!("{name}.context.json")));
        Ok(Self { file: NewFile::create(&path)?, path })
    }

    fn finish(mut self, grant: &UserGrant, key: &KeyPair) -> anyhow::Result<()> {
        let credentials = Credentials::granted(grant, &key.to_der())?;
        let user = &credentials.user;
        let written =
            credentials.to_text().and_then(|text| self.file.write(text.as_bytes())).and_then(|()| self.file.finish());
        written.with_context(|| {
            format!("failed to write the file of user {user}, whose new certificate is in use already; if it is missing, `ctl swarm user renew {user}` makes another")
        })?;
        line(&format!(
            "User {user}, until {}. To use the cluster from another machine, run there:\n",
            expires_at(grant)?
        ));
        line(&format!("    ctl context create NAME --from {}\n    ctl context use NAME\n", self.path.display()));
        line("The file has the user's key: whoever has it is the user.");
        Ok(())
    }
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let all = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_users(request).await },
            |whole, page| whole.users.extend(page.users),
        )
        .await?;
    printer::age(all.header);
    let row = |it: objects::User| {
        let role = flota_api::model::UserRole::from(it.role()).to_string();
        let expires = it.certificates.last().map(|it| Timestamp(it.expires_at).to_string()).unwrap_or_default();
        let created = Timestamp(it.meta.as_ref().map(|it| it.created_at).unwrap_or_default()).to_string();
        let prefixes = it.prefixes.join(" ");
        let object = json!({
            "id": it.id, "name": it.name, "role": role, "prefixes": it.prefixes, "expiresAt": expires, "createdAt": created,
            "createdBy": it.created_by,
        });
        (object, vec![it.name, role, prefixes, expires, it.created_by])
    };
    let headings = ["NAME", "ROLE", "PREFIXES", "EXPIRES", "CREATED BY"];
    printer::rows(&options.rows, &headings, all.users.into_iter().map(row).collect());
    Ok(())
}
