//! Credentials for registries. No answer contains a password.

use std::sync::Arc;

use flota_api::Violation;
use flota_api::id::RegistryId;
use flota_api::image_ref::registry_host;
use flota_api::model::{Registry, Secret};
use flota_api::object::Kind;
use flota_raft_store::WriteTx;

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};

/// Largest length of a host, user name or password, in bytes.
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
    let fields =
        [("host", is_bad(host) || host.contains('/')), ("username", is_bad(username)), ("password", is_bad(password))];
    let found = fields.into_iter().filter(|(_, bad)| *bad).map(|(field, _)| Violation {
        field: field.into(),
        why: format!("it has 1 to {TEXT_BOUND} printable characters, a host no `/`"),
    });
    let found: Vec<_> = found.collect();
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
