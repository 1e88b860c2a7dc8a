//! Lets the manager ask registries, by the settings of this node.

use futures::FutureExt;
use futures::future::BoxFuture;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Platform, RegistryCredentials};
use flota_api::text::with_causes;
use flota_image::Registries;
use flota_manager::{DigestLookup, Resolved};

/// The registries, as this node reaches them.
#[derive(Debug)]
pub(crate) struct NodeRegistries(pub(crate) Registries);

impl DigestLookup for NodeRegistries {
    fn digest(&self, reference: ImageRef, login: Option<RegistryCredentials>) -> BoxFuture<'static, Resolved> {
        let registries = self.0.clone();
        async move {
            let resolved = flota_worker::resolve(&registries, &reference, login.as_ref()).await;
            resolved.map_err(|error| with_causes(&error))
        }
        .boxed()
    }

    fn platforms(
        &self,
        reference: ImageRef,
        digest: String,
        login: Option<RegistryCredentials>,
    ) -> BoxFuture<'static, Result<Vec<Platform>, String>> {
        let registries = self.0.clone();
        async move {
            let known = flota_worker::image_platforms(&registries, &reference, &digest, login.as_ref()).await;
            known.map_err(|error| with_causes(&error))
        }
        .boxed()
    }
}
