//! Credentials for registries. No answer contains a password.

use std::sync::Arc;

use flota_api::Violation;
use flota_api::defaults::REGISTRY_PASSWORD;
use flota_api::id::RegistryId;
use flota_api::image_ref::registry_host;
use flota_api::model::{Registry, Secret};
use flota_api::object::Kind;
use flota_raft_store::WriteTx;

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};

/// Largest length of a host or user name, in bytes.
const TEXT_BOUND: usize = 1024;

/// A registry and the user name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegistrySummary {
    /// Host of the registry.
    pub(crate) host: String,
    /// User name there.
    pub(crate) username: String,
}

const FIELDS: &[Field<RegistrySummary>] =
    &[("host", |row| Some(row.host.clone())), ("username", |row| Some(row.username.clone()))];

fn summary(registry: &Arc<Registry>) -> RegistrySummary {
    RegistrySummary { host: registry.host.clone(), username: registry.username.clone() }
}

fn check(host: &str, username: &str, password: &str) -> Result<(), ControlError> {
    let is_bad = |text: &str| text.is_empty() || text.len() > TEXT_BOUND || text.chars().any(char::is_control);
    // A password may be a file of several lines.
    let is_bad_password = password.is_empty() || password.len() > REGISTRY_PASSWORD || password.contains('\0');
    let printable = format!("it has 1 to {TEXT_BOUND} printable characters");
    let rules = [
        ("host", is_bad(host) || host.contains('/'), format!("{printable}, and no `/`")),
        ("username", is_bad(username), printable),
        ("password", is_bad_password, format!("it has 1 to {REGISTRY_PASSWORD} bytes, and no zero byte")),
    ];
    let broken = rules.into_iter().filter(|(_, is_bad, _)| *is_bad);
    let found: Vec<_> = broken.map(|(field, _, why)| Violation { field: field.into(), why }).collect();
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

impl<M: Member> Control<M> {
    /// Returns the credentials that `reference` identifies.
    pub(crate) async fn get_registry(&self, reference: &str) -> Result<RegistrySummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, registry_host(reference)).map(summary)
    }

    /// Returns the credentials that pass every filter.
    pub(crate) async fn list_registries(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<RegistrySummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        Ok(Listing { rows: filter::keep(view.registries().map(summary), filters, FIELDS)?, age })
    }

    /// Stores these credentials for the host, in place of earlier ones.
    pub(crate) async fn put_registry(
        &self,
        request_id: Option<&str>,
        login: RegistrySummary,
        password: String,
    ) -> Result<(), ControlError> {
        let RegistrySummary { host, username } = login;
        let host = registry_host(&host).to_owned();
        check(&host, &username, &password)?;
        let (new_id, password) = (self.random.draw(RegistryId::random), Secret::from(password));
        let put = self.write_once(request_id, |view| {
            let known = view.registry_by_host(&host).cloned();
            let id = known.as_ref().map_or_else(|| new_id.clone(), |it| it.id.clone());
            let (host, username, password) = (host.clone(), username.clone(), password.clone());
            let registry = Registry { id, host, username, password, ..Registry::default() };
            let mut tx = WriteTx::new(view, request_id);
            match known {
                Some(_) => tx.update(registry),
                None => tx.create(registry),
            }
            Ok((tx.finish(), ()))
        });
        put.await.map(drop)
    }

    /// Removes the credentials that `reference` identifies.
    pub(crate) async fn remove_registry(&self, request_id: Option<&str>, reference: &str) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let id = resolve::<Registry>(&view, registry_host(reference))?.id.clone();
            let mut tx = WriteTx::new(view, request_id);
            tx.remove(Kind::Registry, id.as_str());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_be_a_file_and_a_name_is_one_printable_line() {
        let broken = |host: &str, username: &str, password: &str| match check(host, username, password) {
            Err(ControlError::Invalid(found)) => found.into_iter().map(|it| it.field).collect(),
            _ => Vec::new(),
        };
        let longest = "x\n".repeat(REGISTRY_PASSWORD / 2);
        for (host, username, password, fields) in [
            ("registry.local:5000", "_json_key", longest.as_str(), vec![]),
            ("registry.local:5000", "u", &format!("{longest}x"), vec!["password"]),
            ("a/b", "a\nb", "", vec!["host", "username", "password"]),
            ("a", &"u".repeat(TEXT_BOUND + 1), "a\0", vec!["username", "password"]),
        ] {
            assert_eq!(broken(host, username, password), fields, "{host} {username}");
        }
    }
}
