//! What the new spec of a service asks of the other objects of the cluster, and everything that is wrong with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::id::NetworkId;
use flota_api::model::{PinnedValue, Service, ServiceSpec, Volume};
use flota_api::validate::violations;
use flota_raft_store::WriteTx;

use super::error::ControlError;
use super::faults::Faults;
use super::networks::{self, with_ids};
use super::reference::resolve;
use super::values::Declared;
use super::{Control, Member, dependencies, values, volumes};
use crate::level;

/// Most entries of a list of a spec that are looked up. A longer one breaks a rule anyway.
pub(super) const LOOKED_UP: usize = 128;

/// Whether all that the spec names may be looked up. What is wrong with a larger one beside its size is not told.
pub(super) fn is_bounded(spec: &ServiceSpec) -> bool {
    let lengths =
        [spec.networks.len(), spec.ports.len(), spec.depends_on.len(), spec.mounts.len(), spec.values().count()];
    lengths.into_iter().all(|length| length <= LOOKED_UP)
}

/// A spec with what it holds on to in the transaction that sets it.
#[derive(Default)]
pub(super) struct Claimed {
    /// The spec, with the ids of its networks in place of their names.
    pub(super) spec: ServiceSpec,
    /// The versions of its secrets and configs.
    pub(super) values: Vec<PinnedValue>,
}

impl<M: Member> Control<M> {
    /// Makes the transaction fail if something that the spec needs changes meanwhile, and creates the volumes that are
    /// missing. `before` is the service as it is now.
    ///
    /// # Errors
    /// Something that it needs is missing, taken, or of another kind. The error names all of it.
    pub(super) fn claimed(
        &self,
        tx: &mut WriteTx,
        spec: &ServiceSpec,
        before: Option<&Service>,
    ) -> Result<Claimed, ControlError> {
        let view = Arc::clone(tx.view());
        let known = before.map(|it| it.spec.as_ref());
        let mut faults = Faults::default();
        // A name or the beginning of an id stands for what the caller sees, whatever else there is.
        let seen = if spec.networks.is_empty() { Arc::clone(&view) } else { self.seen(Arc::clone(&view)) };
        let spec_with_ids = faults.note("networks", with_ids(spec, &seen, &BTreeMap::<String, NetworkId>::new()));
        faults.note("spec", level::claim(tx, spec.feature_level()).map_err(Into::into));
        let claimed = spec_with_ids.as_ref().unwrap_or(spec);
        faults.note("ports", networks::claim(tx, &spec.name, claimed, &self.caller));
        faults.note("depends_on", dependencies::claim(tx, spec, &|name| self.caller.sees(name)));
        let declared: Option<&BTreeMap<String, Volume>> = None;
        faults.note("mounts", volumes::claim(tx, spec, known, declared, &self.random));
        let values = faults.note("values", values::claim(tx, spec, before, &Declared::default()));
        faults.refuse()?;
        Ok(Claimed { spec: spec_with_ids.unwrap_or_default(), values: values.unwrap_or_default() })
    }

    /// Refuses a spec that breaks a rule by itself, or that the caller may not set; with everything else that is wrong
    /// with it now. What is wrong only beside other objects is left to the transaction that sets it. `reference` is the
    /// service that exists.
    pub(super) async fn check_spec(&self, spec: &ServiceSpec, reference: Option<&str>) -> Result<(), ControlError> {
        let mut faults = self.beyond_limits(spec).await?;
        faults.extend(violations(spec));
        // Without a leader, what is wrong by itself is still wrong.
        if !faults.is_empty()
            && is_bounded(spec)
            && let Ok(view) = self.proven_view().await
        {
            let service: Option<&Arc<Service>> = reference.and_then(|it| resolve(&view, it).ok());
            let mut tx = WriteTx::new(Arc::clone(&view), None);
            faults.note_new("spec", self.claimed(&mut tx, spec, service.map(AsRef::as_ref)));
        }
        faults.refuse()
    }
}
