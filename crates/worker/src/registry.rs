//! References, credentials and platforms of the cluster as the registries' client knows them.

use flota_api::image_ref::ImageRef;
use flota_api::model::{Platform, RegistryCredentials};
use flota_image::{Credentials, ImageName, ImagePlatform, Registries, ResolveError};

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

/// Returns the platforms of the image with this digest, which the repository of the reference has; none if it does not say.
///
/// # Errors
/// The registry does not have it, or does not answer.
pub async fn image_platforms(
    registries: &Registries,
    reference: &ImageRef,
    digest: &str,
    login: Option<&RegistryCredentials>,
) -> Result<Vec<Platform>, ResolveError> {
    let name = ImageName { version: digest.to_owned(), ..image_name(reference) };
    let named = flota_image::platforms(registries, &name, login.map(credentials).as_ref()).await?;
    Ok(of_image(&named))
}

/// Returns these platforms as the cluster knows them.
pub(crate) fn of_image(named: &[ImagePlatform]) -> Vec<Platform> {
    let known = named.iter().filter_map(|it| Platform::new(&it.os, &it.architecture, it.variant.as_deref()));
    Platform::of_image(known)
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
