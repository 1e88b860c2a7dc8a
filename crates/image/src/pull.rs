//! Pulls an image from a registry: its manifest first, then the missing blobs. The digest of each is verified.

use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use oci_spec::image::{Descriptor, MediaType, ToDockerV2S2};
use tokio::time::timeout;

use crate::manifest::{self, Document};
use crate::store::{Image, ImageError, ImageStore, parts};

/// The longest wait for the next bytes of a registry.
const PROGRESS_WAIT: Duration = Duration::from_secs(30);
const SILENT: &str = "the registry does not answer";

/// A login to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, [redacted])", self.username)
    }
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The text is not an image reference.
    #[error("`{0}` is not an image reference")]
    Reference(String),
    /// The registry refused the request, broke off or did not answer.
    #[error("failed to pull {reference}: {why}")]
    Registry {
        /// The reference as it was given.
        reference: String,
        /// The registry's answer, or the cause of the failure.
        why: String,
    },
    /// The image can't be stored, or is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Pulls the image and stores its blobs. Uses plain HTTP for a registry on this machine (`localhost`, 127.0.0.0/8), as
/// Docker does, and HTTPS for all others.
///
/// # Errors
/// The registry fails, the image is not for this machine, or a blob does not have its digest.
pub async fn pull(store: &ImageStore, reference: &str, credentials: Option<Credentials>) -> Result<Image, PullError> {
    let parsed: Reference = reference.parse().map_err(|_| PullError::Reference(reference.to_owned()))?;
    let fail =
        |error: &dyn std::fmt::Display| PullError::Registry { reference: reference.to_owned(), why: error.to_string() };
    let registry = parsed.resolve_registry().to_owned();
    let host = registry.rsplit_once(':').map_or(registry.as_str(), |(host, _)| host);
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback());
    let protocol = if local { ClientProtocol::Http } else { ClientProtocol::Https };
    let client =
        Client::try_from(ClientConfig { protocol, ..ClientConfig::default() }).map_err(|error| fail(&error))?;
    let auth = credentials.map_or(RegistryAuth::Anonymous, |it| RegistryAuth::Basic(it.username, it.password));
    let kinds = [MediaType::ImageManifest, MediaType::ImageIndex];
    let docker = kinds.iter().map(|it| it.to_docker_v2s2().expect("Docker has both"));
    let accepted: Vec<&str> = kinds.iter().map(AsRef::as_ref).chain(docker).collect();
    let mut at = parsed.clone();
    for _ in 0..3 {
        let asked = timeout(PROGRESS_WAIT, client.pull_manifest_raw(&at, &auth, &accepted)).await;
        let (bytes, digest) = asked.map_err(|_| fail(&SILENT))?.map_err(|error| fail(&error))?;
        let document = manifest::parse(&bytes).map_err(ImageError::from)?;
        store.blobs.put(bytes.as_ref(), Some(&digest)).map_err(ImageError::from)?;
        match document {
            Document::Index(chosen) => at = parsed.clone_with_digest(chosen.digest().to_string()),
            Document::Manifest(manifest) => {
                for blob in parts(&manifest) {
                    fetch(&client, store, &parsed, blob).await.map_err(|error| match error {
                        Fetch::Registry(why) => fail(&why),
                        Fetch::Image(error) => PullError::Image(error),
                    })?;
                }
                let image = store.image(&digest)?;
                store.record(&image)?;
                return Ok(image);
            }
        }
    }
    Err(fail(&"the registry's index names an index that names an index"))
}

enum Fetch {
    Registry(String),
    Image(ImageError),
}

async fn fetch(client: &Client, store: &ImageStore, reference: &Reference, blob: &Descriptor) -> Result<(), Fetch> {
    use futures::StreamExt;
    use std::io::Write;
    let digest = blob.digest().to_string();
    if store.blobs.has(&digest) {
        return Ok(());
    }
    let io = |source| Fetch::Image(ImageError::Io { act: "store a blob", source });
    let mut writer = store.blobs.writer().map_err(io)?;
    let silent = |_| Fetch::Registry(SILENT.into());
    let stream = timeout(PROGRESS_WAIT, client.pull_blob_stream(reference, digest.as_str())).await;
    let mut stream = stream.map_err(silent)?.map_err(|error| Fetch::Registry(error.to_string()))?;
    while let Some(chunk) = timeout(PROGRESS_WAIT, stream.stream.next()).await.map_err(silent)? {
        let chunk = chunk.map_err(|error| Fetch::Registry(error.to_string()))?;
        if writer.size() + chunk.len() as u64 > blob.size() {
            return Err(Fetch::Registry(format!("the blob {digest} is longer than its manifest says")));
        }
        // Writing and hashing block, so they run outside the threads of the async runtime.
        let written;
        (writer, written) = tokio::task::spawn_blocking(move || {
            let written = writer.write_all(&chunk);
            (writer, written)
        })
        .await
        .map_err(|error| io(std::io::Error::other(error)))?;
        written.map_err(io)?;
    }
    let finished = tokio::task::spawn_blocking(move || writer.finish(Some(&digest))).await;
    let finished = finished.map_err(|error| io(std::io::Error::other(error)))?;
    finished.map(drop).map_err(|error| Fetch::Image(error.into()))
}
