//! Pulls an image from a registry: its manifest first, then the missing blobs, several at once. The digest of each is
//! verified.
//!
//! Data that has arrived is kept: a blob continues where it broke off, also at the next endpoint, and a pull that
//! failed leaves its whole blobs to the next one.

use std::io::{self, Write};
use std::mem;

use bytes::Buf;
use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::Descriptor;
use reqwest::Response;

use crate::blob_store::{BlobError, BlobWriter};
use crate::manifest::{self, Document};
use crate::registry::{Credentials, Endpoint, ImageName, Registries, RequestError, TRIES, pause};
use crate::store::{Image, ImageError, ImageStore, LEVELS, parts};

/// Number of blobs that are pulled at once.
const PARALLEL: usize = 3;
/// Number of bytes that are collected for one write.
const CHUNK: usize = 1 << 20;
const PRESENT: &str = "a writer is absent only while it writes, and then it comes back";

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry refused the request, broke off or did not answer.
    #[error("failed to pull {name}: {source}")]
    Registry {
        /// The image.
        name: String,
        /// The error of the registry.
        source: RequestError,
    },
    /// The registry sent something that is not what it should be.
    #[error("failed to pull {name}: {url} {why}")]
    Content {
        /// The image.
        name: String,
        /// The address of the endpoint.
        url: String,
        /// The defect.
        why: String,
    },
    /// Neither a mirror nor the registry sent it.
    #[error("failed to pull {name}: {}", answers.join("; "))]
    Everywhere {
        /// The image.
        name: String,
        /// What each endpoint answered, in the order in which they were asked.
        answers: Vec<String>,
    },
    /// The image can't be stored, or is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<BlobError> for PullError {
    fn from(error: BlobError) -> Self {
        Self::Image(error.into())
    }
}

/// Pulls the image and stores its blobs. The image is known by the digest that its name stands for, also if that is the
/// digest of an index.
///
/// # Errors
/// The registry fails, the image is not for this machine, or a blob does not have its digest.
pub async fn pull(
    store: &ImageStore,
    registries: &Registries,
    name: &ImageName,
    credentials: Option<&Credentials>,
) -> Result<Image, PullError> {
    let endpoints = registries.endpoints(name, credentials);
    let fail = |source| PullError::Registry { name: name.to_string(), source };
    let pull = Pull { store, name, endpoints: endpoints.map_err(fail)? };
    let mut version = name.version.clone();
    let mut outermost = None;
    for _ in 0..LEVELS {
        let (digest, document) = pull.document(&version).await?;
        let outermost: &String = outermost.get_or_insert(digest);
        match document {
            Document::Index(fitting) => version = fitting[0].digest().to_string(),
            Document::Manifest(manifest) => {
                let blobs: Vec<Descriptor> = parts(&manifest).cloned().collect();
                stream::iter(&blobs).map(Ok).try_for_each_concurrent(PARALLEL, |blob| pull.blob(blob)).await?;
                let image = store.image(outermost)?;
                store.record(&image)?;
                return Ok(image);
            }
        }
    }
    Err(pull.content(&pull.endpoints[0], "has an index that names an index that names an index"))
}

struct Pull<'a> {
    store: &'a ImageStore,
    name: &'a ImageName,
    endpoints: Vec<Endpoint>,
}

impl Pull<'_> {
    /// Returns the error to report: that of the only endpoint, or what each has answered.
    fn everywhere(&self, mut errors: Vec<PullError>) -> PullError {
        if errors.len() == 1 {
            return errors.swap_remove(0);
        }
        let mut answers: Vec<String> = errors.iter().map(answer).collect();
        answers.dedup();
        PullError::Everywhere { name: self.name.to_string(), answers }
    }

    fn content(&self, endpoint: &Endpoint, why: impl Into<String>) -> PullError {
        PullError::Content { name: self.name.to_string(), url: endpoint.to_string(), why: why.into() }
    }

    /// Stores the manifest or index with this tag or digest, from the first endpoint that has it.
    async fn document(&self, version: &str) -> Result<(String, Document), PullError> {
        let mut errors = Vec::new();
        for endpoint in &self.endpoints {
            match self.document_from(endpoint, version).await {
                Ok(bytes) => match manifest::parse(&bytes) {
                    Ok(document) => {
                        let expected = Some(version.to_owned()).filter(|it| it.starts_with("sha256:"));
                        let store = self.store.clone();
                        match blocking(move || store.blobs.put(bytes.as_slice(), expected.as_deref())).await? {
                            Ok((digest, _)) => return Ok((digest, document)),
                            Err(error) => errors.push(error.into()),
                        }
                    }
                    Err(error) => errors.push(ImageError::from(error).into()),
                },
                Err(error) => errors.push(error),
            }
            if endpoint.is_registry && errors.last().is_some_and(is_answer) {
                break;
            }
        }
        Err(self.everywhere(errors))
    }

    async fn document_from(&self, endpoint: &Endpoint, version: &str) -> Result<Vec<u8>, PullError> {
        let document = endpoint.manifest(version).await;
        let document = document.map_err(|source| PullError::Registry { name: self.name.to_string(), source })?;
        document.ok_or_else(|| self.content(endpoint, format!("has a manifest of more than {} bytes", manifest::BOUND)))
    }

    /// Stores a blob, unless the store holds it.
    async fn blob(&self, blob: &Descriptor) -> Result<(), PullError> {
        if self.store.blobs.has(blob.digest().as_ref()) {
            return Ok(());
        }
        let mut download = self.begin(blob)?;
        let mut errors = Vec::new();
        for endpoint in &self.endpoints {
            // Damaged data may come from the endpoint before, so it is pulled once more.
            for _ in 0..2 {
                match self.try_blob(endpoint, blob, &mut download).await {
                    Ok(()) => return Ok(()),
                    Err(error @ PullError::Image(_)) => return Err(error),
                    Err(error) => errors.push(error),
                }
                if !matches!(errors.last(), Some(PullError::Content { .. })) {
                    break;
                }
                download = self.begin(blob)?;
            }
            if endpoint.is_registry && errors.last().is_some_and(is_answer) {
                break;
            }
        }
        Err(self.everywhere(errors))
    }

    /// Stores a blob from one endpoint. What has arrived stays in `download`, unless it is damaged.
    async fn try_blob(&self, endpoint: &Endpoint, blob: &Descriptor, download: &mut Download) -> Result<(), PullError> {
        let digest = blob.digest().to_string();
        self.download(endpoint, &digest, download).await?;
        match mem::replace(download, self.begin(blob)?).finish(&digest).await? {
            Err(BlobError::Digest { .. }) => {
                Err(self.content(endpoint, format!("sent something else than the blob {digest}")))
            }
            other => Ok(other?),
        }
    }

    fn begin(&self, blob: &Descriptor) -> Result<Download, PullError> {
        let writer = Some(self.store.blobs.writer().map_err(stored)?);
        Ok(Download { writer, written: 0, chunk: Vec::new(), size: blob.size() })
    }

    /// Appends the rest of a blob. Tries again from where it broke off, and gives up when several tries in a row bring
    /// nothing.
    async fn download(&self, endpoint: &Endpoint, digest: &str, download: &mut Download) -> Result<(), PullError> {
        let fail = |source| PullError::Registry { name: self.name.to_string(), source };
        let mut tries = 1;
        while download.offset() < download.size {
            let before = download.offset();
            let (response, begins) = match endpoint.get_from(&format!("blobs/{digest}"), before).await {
                Ok(answer) => answer,
                Err(error) if endpoint.is_interruption(&error) && tries < TRIES => {
                    pause(tries, None).await;
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(fail(error)),
            };
            let Some(known) = before.checked_sub(begins) else {
                return Err(self.content(endpoint, "sent another part of a blob than it was asked for"));
            };
            let ended = download.append(response, known).await?;
            let size = download.size;
            match ended {
                Ended::TooLong => {
                    return Err(self.content(endpoint, format!("sent more than the {size} bytes of the blob {digest}")));
                }
                _ if download.offset() == size => break,
                _ if download.offset() > before => tries = 1,
                _ if tries < TRIES => tries += 1,
                Ended::Broken(error) => return Err(fail(endpoint.broken(error))),
                Ended::Whole => {
                    let why = format!("sent {before} of the {size} bytes of the blob {digest}");
                    return Err(self.content(endpoint, why));
                }
            }
            pause(tries, None).await;
        }
        Ok(())
    }
}

/// Returns whether an endpoint answered, so that the error tells more than that another address does not exist.
fn is_answer(error: &PullError) -> bool {
    !matches!(error, PullError::Registry { source: RequestError::Connect { .. }, .. })
}

/// Returns what an endpoint answered, without the name of the image.
fn answer(error: &PullError) -> String {
    match error {
        PullError::Registry { source, .. } => source.to_string(),
        PullError::Content { url, why, .. } => format!("{url} {why}"),
        PullError::Everywhere { .. } | PullError::Image(_) => error.to_string(),
    }
}

/// A blob that is being pulled.
struct Download {
    /// Absent while another thread writes.
    writer: Option<BlobWriter>,
    written: u64,
    /// Data that has arrived and is not yet written.
    chunk: Vec<u8>,
    /// Size that the manifest gives.
    size: u64,
}

/// How an answer ended.
enum Ended {
    Whole,
    Broken(reqwest::Error),
    TooLong,
}

impl Download {
    fn offset(&self) -> u64 {
        self.written + self.chunk.len() as u64
    }

    /// Appends an answer, without its first `known` bytes.
    async fn append(&mut self, mut response: Response, mut known: u64) -> Result<Ended, ImageError> {
        let ended = loop {
            let mut bytes = match response.chunk().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Ended::Whole,
                Err(error) => break Ended::Broken(error),
            };
            let skipped = bytes.len().min(usize::try_from(known).unwrap_or(usize::MAX));
            known -= skipped as u64;
            bytes.advance(skipped);
            if self.offset() + bytes.len() as u64 > self.size {
                break Ended::TooLong;
            }
            self.chunk.extend_from_slice(&bytes);
            if self.chunk.len() >= CHUNK {
                self.write().await?;
            }
        };
        self.write().await?;
        Ok(ended)
    }

    /// Writes and hashes what has arrived. Both block.
    async fn write(&mut self) -> Result<(), ImageError> {
        let chunk = mem::take(&mut self.chunk);
        self.written += chunk.len() as u64;
        let mut writer = self.writer.take().expect(PRESENT);
        let written;
        (writer, written) = blocking(move || {
            let written = writer.write_all(&chunk);
            (writer, written)
        })
        .await?;
        self.writer = Some(writer);
        written.map_err(stored)
    }

    /// Verifies the blob and makes it visible in the store.
    async fn finish(self, digest: &str) -> Result<Result<(), BlobError>, ImageError> {
        let (writer, digest) = (self.writer.expect(PRESENT), digest.to_owned());
        blocking(move || writer.finish(Some(&digest)).map(drop)).await
    }
}

fn stored(source: io::Error) -> ImageError {
    ImageError::Io { act: "store a blob", source }
}

/// Runs disk work and hashing outside the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| stored(io::Error::other(error)))
}
