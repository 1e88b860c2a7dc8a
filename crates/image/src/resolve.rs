//! Asks a registry for which digest a tag stands, and for which platforms an image is, without pulling it. Managers do so,
//! once for all nodes.

use oci_spec::image::Sha256Digest;
use sha2::{Digest, Sha256};

use crate::manifest::{self, BOUND, ImagePlatform, ManifestError, NamedPlatforms};
use crate::registry::{Credentials, Endpoint, ImageName, Registries, RequestError};

/// Header with the digest of a manifest or index (OCI distribution specification, "Checking if content exists").
const DIGEST: &str = "docker-content-digest";

/// Why it is not known for which digest a name stands.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The registry refused the request, broke off or did not answer.
    #[error("failed to resolve {name}")]
    Registry {
        /// The image.
        name: String,
        /// The error of the registry.
        #[source]
        source: RequestError,
    },
    /// The registry gives neither a digest nor a manifest.
    #[error("failed to resolve {name}: {url} gives no manifest for it: {why}")]
    Content {
        /// The image.
        name: String,
        /// The address of the endpoint.
        url: String,
        /// What is wrong with what it gives.
        why: String,
    },
    /// The registry sends another document than the one with the digest.
    #[error("failed to resolve {name}: {url} sends something else than {digest}")]
    Digest {
        /// The image.
        name: String,
        /// The address of the endpoint.
        url: String,
        /// The digest of the document.
        digest: String,
    },
    /// A document of the image is malformed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl ResolveError {
    /// Whether this tells more than that an address does not exist.
    fn is_answer(&self) -> bool {
        !matches!(self, Self::Registry { source: RequestError::Connect { .. }, .. })
    }
}

/// Returns the digest of the manifest or index for which the name stands, from the first endpoint that has it.
///
/// # Errors
/// No endpoint has it, or none answers.
pub async fn resolve(
    registries: &Registries,
    name: &ImageName,
    credentials: Option<&Credentials>,
) -> Result<String, ResolveError> {
    let endpoints = registries.endpoints(name, credentials);
    let endpoints = endpoints.map_err(|source| ResolveError::Registry { name: name.to_string(), source })?;
    let mut errors = Vec::new();
    for endpoint in &endpoints {
        match digest_at(endpoint, name).await {
            Ok(digest) => return Ok(digest),
            Err(error) => errors.push(error),
        }
        if endpoint.is_registry && errors.last().is_some_and(ResolveError::is_answer) {
            break;
        }
    }
    let told = errors.iter().rposition(ResolveError::is_answer).unwrap_or(errors.len() - 1);
    Err(errors.swap_remove(told))
}

/// A HEAD does not count against the limits of Docker Hub. A registry need not send the digest with it; then it is that
/// of the manifest. What answers may be no registry at all, such as the login page of a network.
async fn digest_at(endpoint: &Endpoint, name: &ImageName) -> Result<String, ResolveError> {
    let fail = |source| ResolveError::Registry { name: name.to_string(), source };
    let head = endpoint.has_manifest(&name.version).await.map_err(fail)?;
    let sent = head.headers().get(DIGEST).and_then(|value| value.to_str().ok());
    let is_digest = |it: &&str| it.strip_prefix("sha256:").is_some_and(|hex| hex.parse::<Sha256Digest>().is_ok());
    if let Some(digest) = sent.filter(is_digest) {
        return Ok(digest.to_owned());
    }
    let bytes = endpoint.manifest(&name.version).await.map_err(fail)?.ok_or_else(|| too_large(endpoint, name))?;
    match manifest::platforms(&bytes) {
        Ok(_) => Ok(digest_of(&bytes)),
        Err(error) => Err(no_manifest(endpoint, name, error.to_string())),
    }
}

fn no_manifest(endpoint: &Endpoint, name: &ImageName, why: String) -> ResolveError {
    ResolveError::Content { name: name.to_string(), url: endpoint.to_string(), why }
}

fn too_large(endpoint: &Endpoint, name: &ImageName) -> ResolveError {
    no_manifest(endpoint, name, format!("it has more than {BOUND} bytes"))
}

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Returns the platforms of the image whose digest `name` has as its version, as its index or its config names them; none if
/// it does not say.
///
/// # Errors
/// No endpoint has its documents, or they are malformed.
pub async fn platforms(
    registries: &Registries,
    name: &ImageName,
    credentials: Option<&Credentials>,
) -> Result<Vec<ImagePlatform>, ResolveError> {
    let endpoints = registries.endpoints(name, credentials);
    let endpoints = endpoints.map_err(|source| ResolveError::Registry { name: name.to_string(), source })?;
    let mut told = None;
    for endpoint in &endpoints {
        match platforms_at(endpoint, name).await {
            Ok(platforms) => return Ok(platforms),
            Err(error) if endpoint.is_registry && error.is_answer() => return Err(error),
            Err(error) => told = told.filter(ResolveError::is_answer).or(Some(error)),
        }
    }
    Err(told.expect("there is at least one endpoint, and none has succeeded"))
}

async fn platforms_at(endpoint: &Endpoint, name: &ImageName) -> Result<Vec<ImagePlatform>, ResolveError> {
    let index_or_manifest = endpoint.manifest(&name.version).await;
    match manifest::platforms(&verified(endpoint, name, index_or_manifest, &name.version)?)? {
        NamedPlatforms::Index(named) => Ok(named),
        NamedPlatforms::Config(digest) => {
            let config = verified(endpoint, name, endpoint.config(&digest).await, &digest)?;
            Ok(manifest::config_platform(&config)?.into_iter().collect())
        }
    }
}

/// Returns the document that has come if it has this digest.
fn verified(
    endpoint: &Endpoint,
    name: &ImageName,
    document: Result<Option<Vec<u8>>, RequestError>,
    digest: &str,
) -> Result<Vec<u8>, ResolveError> {
    let (image, url) = (name.to_string(), endpoint.to_string());
    match document {
        Ok(Some(bytes)) if digest_of(&bytes) == digest => Ok(bytes),
        Ok(Some(_)) => Err(ResolveError::Digest { name: image, url, digest: digest.to_owned() }),
        Ok(None) => Err(too_large(endpoint, name)),
        Err(source) => Err(ResolveError::Registry { name: image, source }),
    }
}
