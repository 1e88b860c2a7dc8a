//! Images on this node: fetched from nodes that hold them or from a registry, and served to other nodes.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{RwLock, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use flota_api::clock::Clock;
use flota_api::defaults::MESSAGE_BOUND;
use flota_api::image_ref::{ImageRef, ImageRefError};
use flota_api::model::{Assignment, ImageSource};
use flota_api::proto::images::image_store_client::ImageStoreClient;
use flota_api::proto::images::image_store_server::{ImageStore as ImageStoreRpc, ImageStoreServer};
use flota_api::proto::images::{Chunk, GetBlobRequest};
use flota_identity::{Dialer, Peer, verify_grant};
use flota_image::{BlobWriter, Credentials, Image, ImageError, ImageName, ImageStore, PullError, Registries};

use crate::locks::KeyedLocks;
use crate::messages::ImageReport;
use crate::reporter::Reporter;

const CHUNK: usize = 1 << 20;
/// Largest manifest that is accepted; its size is not known beforehand.
const MANIFEST_BOUND: u64 = 4 << 20;
/// Time without progress after which a transfer is given up.
const PROGRESS_WAIT: Duration = Duration::from_secs(20);
/// Pause between two tries to remove images while others are being added.
const DROP_RETRY: Duration = Duration::from_secs(1);
/// Largest number of concurrent transfers to other nodes.
const TRANSFERS: usize = 32;

/// Why an image could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// None of the nodes that hold the image sent it.
    #[error("failed to fetch the image {digest} from {count} nodes that hold it: {last}")]
    Holders {
        /// Digest of the image or blob.
        digest: String,
        /// Number of nodes that were asked.
        count: usize,
        /// The failure of the last one.
        last: String,
    },
    /// The spec names no image.
    #[error(transparent)]
    Reference(#[from] ImageRefError),
    /// The registry did not send it.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The received data is not a valid image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// This node's images, and the means to fetch more. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) store: ImageStore,
    dialer: Dialer,
    /// How this node reaches registries.
    registries: Registries,
    /// Reports added and removed images to the leader.
    reporter: Reporter,
    /// Public key that verifies grants. The leader sends it in each session.
    pub(crate) grant_key: Arc<Mutex<Vec<u8>>>,
    /// Ensures that an image is fetched once at a time, because tasks of one service need it at the same time.
    fetching: KeyedLocks,
    /// Read-locked while an image is added and write-locked while one is removed, so that a new image is not
    /// considered unused.
    pub(crate) changing: Arc<RwLock<()>>,
    /// Images that the leader allows to be removed and that still exist here.
    unwanted: Arc<Mutex<BTreeSet<String>>>,
    /// Determines whether a grant has expired.
    clock: Clock,
}

impl Images {
    pub(crate) fn new(
        store: ImageStore,
        dialer: Dialer,
        registries: Registries,
        reporter: Reporter,
        clock: Clock,
    ) -> Self {
        Self {
            store,
            dialer,
            registries,
            reporter,
            grant_key: Arc::default(),
            fetching: KeyedLocks::default(),
            changing: Arc::default(),
            unwanted: Arc::default(),
            clock,
        }
    }

    /// Returns the task's image once all of it is present. `pinned` is the digest that an earlier start of the task
    /// used; it applies if the leader names none.
    pub(crate) async fn ensure(&self, task: &Assignment, pinned: Option<&str>) -> Result<Image, FetchError> {
        if let Some(source) = &task.image {
            return self.fetch(source).await;
        }
        if let Some(image) = pinned.and_then(|digest| self.store.whole_image(digest)) {
            return Ok(image);
        }
        let reference = ImageRef::parse(&task.spec.image)?;
        let credentials = task
            .credentials
            .as_ref()
            .map(|it| Credentials { username: it.username.clone(), password: it.password.as_text().to_owned() });
        let _one = self.fetching.lock(&reference.to_string()).await;
        Ok(self.pull(&reference, credentials).await?)
    }

    /// Pulls an image from its registry.
    pub(crate) async fn pull(
        &self,
        reference: &ImageRef,
        credentials: Option<Credentials>,
    ) -> Result<Image, PullError> {
        let _adds = self.changing.read().await;
        let name = ImageName {
            registry: reference.registry.clone(),
            repository: reference.repository.clone(),
            version: reference.digest.as_ref().unwrap_or(&reference.tag).clone(),
        };
        let image = flota_image::pull(&self.store, &self.registries, &name, credentials.as_ref()).await?;
        let (store, to_unpack) = (self.store.clone(), image.clone());
        let unpacked = tokio::task::spawn_blocking(move || store.unpack(&to_unpack)).await;
        let broke = |error| ImageError::Io { act: "unpack the image", source: io::Error::other(error) };
        unpacked.map_err(|error| PullError::Image(broke(error)))??;
        self.added(&image);
        Ok(image)
    }

    /// Returns an image by its digest, from this node or from one that holds it. Reports an image that is new on this
    /// node.
    pub(crate) async fn fetch(&self, source: &ImageSource) -> Result<Image, FetchError> {
        self.wanted(&source.digest);
        if let Some(image) = self.store.whole_image(&source.digest) {
            return Ok(image);
        }
        let _one = self.fetching.lock(&source.digest).await;
        if let Some(image) = self.store.whole_image(&source.digest) {
            return Ok(image);
        }
        let _adds = self.changing.read().await;
        self.fetch_blob(source, &source.digest, MANIFEST_BOUND).await?;
        for (blob, size) in self.store.image_manifest(&source.digest)? {
            self.fetch_blob(source, &blob, size).await?;
        }
        let image = self.store.image(&source.digest)?;
        self.store.record(&image)?;
        self.added(&image);
        Ok(image)
    }

    /// Fetches these images, one after the other.
    pub(crate) async fn keep(self, sources: Vec<ImageSource>) {
        for source in sources {
            if let Err(error) = self.fetch(&source).await {
                tracing::warn!(image = source.digest, %error, "failed to fetch an image that this node is to hold");
            }
        }
    }

    /// Removes images that the cluster no longer needs, once no task on this node uses them. Keeps images whose
    /// arrival may still be unknown to the leader, and those that the leader requests again before they are removed.
    pub(crate) fn drop_unused(
        self,
        digests: Vec<String>,
        used: impl Fn() -> BTreeSet<String> + Send + Sync + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        // This happens before the future runs, so that an image that is requested again in the meantime stays.
        self.unwanted.lock().expect("no holder panics").extend(digests.iter().cloned());
        let mut left = digests;
        async move {
            loop {
                left.retain(|it| self.unwanted.lock().expect("no holder panics").contains(it));
                if left.is_empty() {
                    return;
                }
                self.drop_now(&left, &used).await;
                tokio::time::sleep(DROP_RETRY).await;
            }
        }
    }

    /// Removes the images that no task uses, unless an image is being added. It does not queue for the lock, because
    /// additions would then have to wait behind it for as long as the slowest pull takes.
    async fn drop_now(&self, digests: &[String], used: &(impl Fn() -> BTreeSet<String> + Send + Sync)) {
        let Ok(_alone) = self.changing.try_write() else { return };
        let used = used();
        for digest in digests.iter().filter(|it| !used.contains(*it)) {
            self.unwanted.lock().expect("no holder panics").remove(digest);
            if self.reporter.has_report_of(digest) {
                continue;
            }
            tracing::info!(image = digest, "removing an image that the cluster no longer needs");
            let (store, digest) = (self.store.clone(), digest.clone());
            swept(tokio::task::spawn_blocking(move || store.remove(&digest)).await);
        }
    }

    /// Removes the blobs of images that were never completed, as soon as no image is being added.
    pub(crate) fn sweep(&self) {
        let images = self.clone();
        tokio::spawn(async move {
            loop {
                if let Ok(_alone) = images.changing.try_write() {
                    let store = images.store.clone();
                    swept(tokio::task::spawn_blocking(move || store.sweep()).await);
                    return;
                }
                tokio::time::sleep(DROP_RETRY).await;
            }
        });
    }

    fn wanted(&self, digest: &str) {
        self.unwanted.lock().expect("no holder panics").remove(digest);
    }

    /// Fetches one blob of at most `most` bytes. A transfer that breaks off continues with the next holder at the same
    /// offset; after a damaged one, the next holder starts from the beginning.
    async fn fetch_blob(&self, source: &ImageSource, digest: &str, most: u64) -> Result<(), FetchError> {
        if self.store.blobs.has(digest) {
            return Ok(());
        }
        let mut writer = self.store.blobs.writer().map_err(stored)?;
        let mut last = "no node holds it".to_owned();
        for holder in &source.holders {
            let done;
            (writer, done) = self.transfer(source, digest, most, &holder.address, writer).await?;
            if let Err(why) = done {
                last = why;
                continue;
            }
            let whole = digest.to_owned();
            match blocking(move || writer.finish(Some(&whole))).await? {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::warn!(holder = holder.address, %error, "a node sent something else than the blob it was asked for");
                    last = error.to_string();
                    writer = self.store.blobs.writer().map_err(stored)?;
                }
            }
        }
        Err(FetchError::Holders { digest: digest.to_owned(), count: source.holders.len(), last })
    }

    /// Appends what one holder sends, from the offset that was reached. The inner error is the reason why it stopped.
    async fn transfer(
        &self,
        source: &ImageSource,
        digest: &str,
        most: u64,
        holder: &str,
        mut writer: BlobWriter,
    ) -> Result<(BlobWriter, Result<(), String>), FetchError> {
        let offset = writer.size();
        let request =
            GetBlobRequest { grant: source.grant.as_ref().map(Into::into), digest: digest.to_owned(), offset };
        let mut client = ImageStoreClient::new(self.dialer.node(holder)).max_decoding_message_size(MESSAGE_BOUND);
        let silent = || Err(format!("{holder} has not answered for {PROGRESS_WAIT:?}"));
        let mut stream = match timeout(PROGRESS_WAIT, client.get_blob(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ok((writer, Err(status.message().to_owned()))),
            Err(_) => return Ok((writer, silent())),
        };
        loop {
            let chunk = match timeout(PROGRESS_WAIT, stream.message()).await {
                Ok(Ok(Some(chunk))) => chunk.data,
                Ok(Ok(None)) => return Ok((writer, Ok(()))),
                Ok(Err(status)) => return Ok((writer, Err(status.message().to_owned()))),
                Err(_) => return Ok((writer, silent())),
            };
            if writer.size() + chunk.len() as u64 > most {
                return Ok((writer, Err(format!("{holder} gave more than the {most} bytes that the blob has"))));
            }
            let written;
            (writer, written) = blocking(move || {
                let written = writer.write_all(&chunk);
                (writer, written)
            })
            .await?;
            written.map_err(stored)?;
        }
    }

    /// Reports that this image is now complete here.
    pub(crate) fn added(&self, image: &Image) {
        self.wanted(&image.digest);
        let (digest, size) = (image.digest.clone(), image.size());
        self.reporter.report_image(ImageReport { digest, size, gone: false });
    }
}

/// Logs that blobs or layers stay that no image may need. The next sweep tries again.
fn swept(result: Result<Result<(), ImageError>, tokio::task::JoinError>) {
    let error: &dyn std::error::Error = match &result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(error) => error,
    };
    let cause = error.source().map(tracing::field::display);
    tracing::warn!(%error, cause, "failed to remove what no image needs");
}

fn stored(source: io::Error) -> FetchError {
    FetchError::Image(ImageError::Io { act: "store a blob", source })
}

/// Runs disk work and hashing outside the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| stored(io::Error::other(error)))
}

/// Serves blobs to nodes that the leader granted them to.
#[derive(Clone, Debug)]
pub struct ImagesService(Images, Arc<Semaphore>);

impl ImagesService {
    pub(crate) fn server(images: Images) -> ImageStoreServer<Self> {
        ImageStoreServer::new(Self(images, Arc::new(Semaphore::new(TRANSFERS))))
            .max_encoding_message_size(MESSAGE_BOUND)
    }
}

#[tonic::async_trait]
impl ImageStoreRpc for ImagesService {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn get_blob(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetBlobStream>, Status> {
        let denied = || Status::permission_denied("the leader has not granted this image to this node");
        let node = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned().ok_or_else(denied)?;
        let request = request.into_inner();
        let grant = request.grant.ok_or_else(denied)?;
        let key = self.0.grant_key.lock().expect("no holder panics").clone();
        if !verify_grant(&grant, &key, node.as_str(), self.0.clock.now()) {
            return Err(denied());
        }
        let missing = || Status::not_found("this node does not hold the image");
        let image = self.0.store.whole_image(&grant.digest).ok_or_else(missing)?;
        if !image.blobs().contains(&request.digest) {
            return Err(denied());
        }
        let file = self.0.store.blobs.open_blob(&request.digest).map_err(|_| missing())?;
        let busy = || Status::resource_exhausted("this node gives images to as many others as it can");
        let permit = Arc::clone(&self.1).try_acquire_owned().map_err(|_| busy())?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let _permit = permit;
            let mut file = tokio::fs::File::from_std(file);
            let result = async {
                file.seek(io::SeekFrom::Start(request.offset)).await?;
                loop {
                    let mut data = vec![0; CHUNK];
                    let count = file.read(&mut data).await?;
                    data.truncate(count);
                    if count == 0 {
                        return Ok(());
                    }
                    // A node that does not read ends its own transfer.
                    match timeout(PROGRESS_WAIT, sender.send(Ok(Chunk { data: data.into() }))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return Ok::<_, io::Error>(()),
                    }
                }
            };
            if let Err(error) = result.await {
                let _ = sender.send(Err(Status::data_loss(error.to_string()))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[cfg(test)]
mod tests;
