//! References and credentials of the cluster as the registries' client knows them.

use flota_api::image_ref::ImageRef;
use flota_api::model::RegistryCredentials;
use flota_image::{Credentials, ImageName, Registries, ResolveError};

/// Returns the digest for which a reference stands at its registry.
///
/// # Errors
/// The registry does not have it, or does not answer.
pub async fn resolve(
    registries: &Registries,
    reference: &ImageRef,
    login: Option<&RegistryCredentials>,
) -> Result<String, ResolveError> {
    flota_image::resolve(registries, &image_name(reference), login.map(credentials).as_ref()).await
}

pub(crate) fn image_name(reference: &ImageRef) -> ImageName {
    ImageName {
        registry: reference.registry.clone(),
        repository: reference.repository.clone(),
        version: reference.digest.as_ref().unwrap_or(&reference.tag).clone(),
    }
}

pub(crate) fn credentials(login: &RegistryCredentials) -> Credentials {
    Credentials { username: login.username.clone(), password: login.password.as_text().to_owned() }
}
