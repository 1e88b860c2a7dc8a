//! From a registry: manifest, then what of its blobs is not here yet, each verified.

use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::time::timeout;

use crate::manifest::{self, Document};
use crate::store::{Image, ImageError, ImageStore};

/// A registry that says nothing for this long has gone.
const PROGRESS_WAIT: Duration = Duration::from_secs(30);
const SILENT: &str = "the registry does not answer";

/// Who logs in, and with what.
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
    /// Not a reference.
    #[error("`{0}` is no image reference")]
    Reference(String),
    /// The registry would not, or does not answer.
    #[error("failed to pull {reference}: {why}")]
    Registry {
        /// What was asked for.
        reference: String,
        /// What the registry said.
        why: String,
    },
    /// What came is no good.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Pulls the image and keeps its blobs. Registries on this machine (`localhost`, 127.0.0.0/8) are spoken to in plain
/// HTTP, as Docker does.
///
/// # Errors
/// The registry would not, or a blob is not what its digest says.
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
    let accepted = [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    let mut at = parsed.clone();
    for _ in 0..3 {
        let asked = timeout(PROGRESS_WAIT, client.pull_manifest_raw(&at, &auth, &accepted)).await;
        let (bytes, digest) = asked.map_err(|_| fail(&SILENT))?.map_err(|error| fail(&error))?;
        let document = manifest::parse(&bytes).map_err(ImageError::from)?;
        store.blobs.put(bytes.as_ref(), Some(&digest)).map_err(ImageError::from)?;
        match document {
            Document::Other(descriptor) => at = parsed.clone_with_digest(descriptor.digest),
            Document::Manifest(manifest) => {
                for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
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

async fn fetch(
    client: &Client,
    store: &ImageStore,
    reference: &Reference,
    blob: &manifest::Descriptor,
) -> Result<(), Fetch> {
    use futures::StreamExt;
    use std::io::Write;
    if store.blobs.has(&blob.digest) {
        return Ok(());
    }
    let io = |source| Fetch::Image(ImageError::Io { act: "store a blob", source });
    let mut writer = store.blobs.writer().map_err(io)?;
    let silent = |_| Fetch::Registry(SILENT.into());
    let stream = timeout(PROGRESS_WAIT, client.pull_blob_stream(reference, blob.digest.as_str())).await;
    let mut stream = stream.map_err(silent)?.map_err(|error| Fetch::Registry(error.to_string()))?;
    while let Some(chunk) = timeout(PROGRESS_WAIT, stream.stream.next()).await.map_err(silent)? {
        let chunk = chunk.map_err(|error| Fetch::Registry(error.to_string()))?;
        if writer.size() + chunk.len() as u64 > blob.size {
            return Err(Fetch::Registry(format!("the blob {} is longer than its manifest says", blob.digest)));
        }
        // Disk and hashing, away from the threads that answer others.
        let written;
        (writer, written) = tokio::task::spawn_blocking(move || {
            let written = writer.write_all(&chunk);
            (writer, written)
        })
        .await
        .map_err(|error| io(std::io::Error::other(error)))?;
        written.map_err(io)?;
    }
    let digest = blob.digest.clone();
    let finished = tokio::task::spawn_blocking(move || writer.finish(Some(&digest))).await;
    let finished = finished.map_err(|error| io(std::io::Error::other(error)))?;
    finished.map(drop).map_err(|error| Fetch::Image(error.into()))
}
