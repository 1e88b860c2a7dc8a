//! Images on this node: fetched from nodes that hold them or from a registry, and removed once the cluster no longer
//! needs them. `transfer.rs` receives blobs from other nodes, and `server.rs` sends them.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use flota_api::clock::Clock;
use flota_api::image_ref::{ImageRef, ImageRefError};
use flota_api::model::{Assignment, ImageSource, RegistryCredentials};
use flota_identity::Dialer;
use flota_image::{Image, ImageError, ImageStore, PullError, Registries};

use crate::locks::KeyedLocks;
use crate::messages::ImageReport;
use crate::registry::{credentials, image_name};
use crate::reporter::Reporter;

mod server;
mod transfer;
mod uses;
mod wanted;

pub use server::ImagesService;
pub(crate) use uses::ImageUses;
pub(crate) use wanted::WantedImage;

/// Time without progress after which a transfer is given up.
const PROGRESS_WAIT: Duration = Duration::from_secs(20);
/// Pause between two tries to remove images while others are being added.
const DROP_RETRY: Duration = Duration::from_secs(1);

/// Why an image could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// None of the nodes that hold the image sent it.
    #[error("failed to fetch the image {digest} from the nodes that hold it: {}", answers.join("; "))]
    Holders {
        /// Digest of the image or blob.
        digest: String,
        /// What each node answered, in the order in which they were asked.
        answers: Vec<String>,
    },
    /// No node holds the image that the leader names, and the registry did not send it.
    #[error("no node holds the image {digest}, and its registry does not send it")]
    Nowhere {
        /// Digest of the image.
        digest: String,
        /// The error of the registry.
        #[source]
        source: PullError,
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

/// The result of an addition to the store. Nothing is removed while this lives, so that the addition can be reported first.
#[derive(Debug)]
pub(crate) struct Added<T> {
    pub(crate) value: T,
    pub(crate) _adds: OwnedRwLockReadGuard<()>,
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
    /// Public keys that verify grants. The leader sends them in each session.
    pub(crate) grant_keys: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Ensures that an image is fetched once at a time, because tasks of one service need it at the same time.
    fetching: KeyedLocks,
    /// Read-locked while an image is added and write-locked while one is removed, so that a new image is not
    /// considered unused.
    pub(crate) changing: Arc<RwLock<()>>,
    /// The images that tasks of this node use.
    pub(crate) uses: ImageUses,
    /// The images that this node is to hold, as the leader has said last, and that were not looked at since.
    to_keep: Arc<Mutex<VecDeque<ImageSource>>>,
    /// Held by the one that fetches them.
    keeper: Arc<tokio::sync::Mutex<()>>,
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
            grant_keys: Arc::default(),
            fetching: KeyedLocks::default(),
            changing: Arc::default(),
            uses: ImageUses::default(),
            to_keep: Arc::default(),
            keeper: Arc::default(),
            unwanted: Arc::default(),
            clock,
        }
    }

    /// Returns an image that the task needs once all of it is present: from a node that holds it, or, if the leader names
    /// none, from the registry.
    pub(crate) async fn ensure(&self, task: &Assignment, wanted: &WantedImage<'_>) -> Result<Image, FetchError> {
        let (role, named) = (&wanted.role, wanted.source);
        let digest = named.map(|source| source.digest.as_str()).or(wanted.pinned);
        if let Some(digest) = digest {
            self.uses.add(task, role.clone(), digest);
        }
        if let Some(source) = named.filter(|source| !source.holders.is_empty()) {
            return self.fetch(source).await;
        }
        if let Some(digest) = digest
            && let Some(image) = self.whole_image(digest).await?
        {
            if named.is_some() {
                // It came before the cluster had a use for it, so the leader has not taken note of it.
                self.added(&image);
            }
            return Ok(image);
        }
        let mut reference = ImageRef::parse(wanted.reference)?;
        reference.digest = named.map(|source| source.digest.clone()).or(reference.digest);
        let _one = self.fetching.lock(&reference.to_string()).await;
        // Nothing is removed before the use is recorded.
        let _adds = self.changing.read().await;
        // Tasks of one spec have one image, whatever its name resolves to by now.
        if let Some(digest) = self.uses.of_spec(task, role)
            && let Some(image) = self.whole_image(&digest).await?
        {
            self.uses.add(task, role.clone(), &digest);
            return Ok(image);
        }
        let pulled = self.pull(&reference, wanted.credentials).await;
        let image = pulled.map_err(|source| match named {
            Some(named) => FetchError::Nowhere { digest: named.digest.clone(), source },
            None => source.into(),
        })?;
        self.uses.add(task, role.clone(), &image.digest);
        Ok(image)
    }

    /// Pulls an image from its registry.
    pub(crate) async fn pull(
        &self,
        reference: &ImageRef,
        login: Option<&RegistryCredentials>,
    ) -> Result<Image, PullError> {
        let _adds = self.changing.read().await;
        let (name, login) = (image_name(reference), login.map(credentials));
        let image = flota_image::pull(&self.store, &self.registries, &name, login.as_ref()).await?;
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
        if let Some(image) = self.whole_image(&source.digest).await? {
            return Ok(image);
        }
        let _one = self.fetching.lock(&source.digest).await;
        if let Some(image) = self.whole_image(&source.digest).await? {
            return Ok(image);
        }
        let _adds = self.changing.read().await;
        loop {
            let (store, digest) = (self.store.clone(), source.digest.clone());
            let missing = blocking(move || store.missing(&digest)).await??;
            if missing.is_empty() {
                break;
            }
            for (blob, size) in missing {
                self.fetch_blob(source, &blob, size).await?;
            }
        }
        let digest = source.digest.clone();
        let recorded = self.add(move |store| {
            let image = store.image(&digest)?;
            store.record(&image)?;
            Ok(image)
        });
        let Added { value: image, _adds } = recorded.await?;
        self.added(&image);
        Ok(image)
    }

    /// Runs work that adds to the store, outside the async threads. Nothing is removed until it has ended, also if nobody
    /// waits for it any more.
    pub(crate) async fn add<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<Added<T>, ImageError> {
        let (store, adds) = (self.store.clone(), Arc::clone(&self.changing).read_owned().await);
        let work = move || Ok(Added { value: work(&store)?, _adds: adds });
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| ImageError::Io { act: "add to the images", source: io::Error::other(error) })?
    }

    /// Returns the image if all of it is on this node. It then stays as long as a use is recorded.
    async fn whole_image(&self, digest: &str) -> Result<Option<Image>, FetchError> {
        // A removal that had begun before the use was recorded has ended.
        let _adds = self.changing.read().await;
        let (store, digest) = (self.store.clone(), digest.to_owned());
        blocking(move || store.whole_image(&digest)).await
    }

    /// Fetches these images, one after the other, instead of those of the last call. Reports those that are here already,
    /// too: the leader removed such an image, and has it again before this node got to removing its copy.
    pub(crate) fn keep(self, mut sources: Vec<ImageSource>) -> impl Future<Output = ()> + Send + 'static {
        {
            let mut to_keep = self.to_keep();
            // Those that still wait have their turn before those that were tried, so that one that nobody gives holds up none.
            sources.sort_by_key(|source| !to_keep.iter().any(|it| it.digest == source.digest));
            *to_keep = sources.into();
        }
        async move {
            while !self.to_keep().is_empty() {
                // Only one fetches; it takes what later calls have brought.
                let Ok(_only) = self.keeper.try_lock() else { return };
                while let Some(source) = self.next_to_keep() {
                    match self.fetch(&source).await {
                        Ok(image) => self.added(&image),
                        Err(error) => {
                            let image = source.digest;
                            tracing::warn!(image, %error, "failed to fetch an image that this node is to hold");
                        }
                    }
                }
            }
        }
    }

    fn to_keep(&self) -> MutexGuard<'_, VecDeque<ImageSource>> {
        self.to_keep.lock().expect("no holder panics")
    }

    fn next_to_keep(&self) -> Option<ImageSource> {
        self.to_keep().pop_front()
    }

    /// Removes images that the cluster no longer needs, once no task on this node uses them. Keeps images whose
    /// arrival may still be unknown to the leader, and those that the leader requests again before they are removed.
    pub(crate) fn drop_unused(self, digests: Vec<String>) -> impl Future<Output = ()> + Send + 'static {
        // This happens before the future runs, so that an image that is requested again in the meantime stays.
        self.to_keep().retain(|source| !digests.contains(&source.digest));
        self.unwanted.lock().expect("no holder panics").extend(digests.iter().cloned());
        let mut left = digests;
        async move {
            loop {
                left.retain(|it| self.unwanted.lock().expect("no holder panics").contains(it));
                if left.is_empty() {
                    return;
                }
                self.drop_now(&left).await;
                tokio::time::sleep(DROP_RETRY).await;
            }
        }
    }

    /// Removes the images that no task uses, unless an image is being added. It does not queue for the lock, because
    /// additions would then have to wait behind it for as long as the slowest pull takes.
    async fn drop_now(&self, digests: &[String]) {
        let Ok(_alone) = self.changing.try_write() else { return };
        for digest in digests.iter().filter(|it| !self.uses.contains(it)) {
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

#[cfg(test)]
mod tests;
