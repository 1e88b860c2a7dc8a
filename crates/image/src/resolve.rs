//! Asks a registry for which digest a tag stands, without pulling the image. Managers do so, once for all nodes.

use reqwest::{Method, Response};
use sha2::{Digest, Sha256};

use crate::manifest::BOUND;
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
    /// The registry gives neither a digest nor a manifest of legal size.
    #[error("failed to resolve {name}: {url} gives no manifest of at most {BOUND} bytes for it")]
    Content {
        /// The image.
        name: String,
        /// The address of the endpoint.
        url: String,
    },
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
    let fail = |source| ResolveError::Registry { name: name.to_string(), source };
    let endpoints = registries.endpoints(name, credentials).map_err(fail)?;
    let mut errors = Vec::new();
    for endpoint in &endpoints {
        match digest_at(endpoint, &name.version).await {
            Ok(Some(digest)) => return Ok(digest),
            Ok(None) => errors.push(ResolveError::Content { name: name.to_string(), url: endpoint.to_string() }),
            Err(source) => errors.push(fail(source)),
        }
        if endpoint.is_registry && errors.last().is_some_and(ResolveError::is_answer) {
            break;
        }
    }
    let told = errors.iter().rposition(ResolveError::is_answer).unwrap_or(errors.len() - 1);
    Err(errors.swap_remove(told))
}

/// A HEAD does not count against the limits of Docker Hub. A registry need not send the digest with it; then it is that
/// of the manifest.
async fn digest_at(endpoint: &Endpoint, version: &str) -> Result<Option<String>, RequestError> {
    let head = endpoint.manifest(Method::HEAD, version).await?;
    let sent = head.headers().get(DIGEST).and_then(|value| value.to_str().ok());
    if let Some(digest) = sent.filter(|it| it.starts_with("sha256:")) {
        return Ok(Some(digest.to_owned()));
    }
    let manifest = endpoint.manifest(Method::GET, version).await?;
    digest_of(endpoint, manifest).await
}

/// Returns the digest of the body; `None` if it is too large for a manifest.
async fn digest_of(endpoint: &Endpoint, mut response: Response) -> Result<Option<String>, RequestError> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(chunk) = response.chunk().await.map_err(|error| endpoint.broken(error))? {
        hash.update(&chunk);
        size += chunk.len() as u64;
        if size > BOUND {
            return Ok(None);
        }
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(format!("sha256:{hex}")))
}
