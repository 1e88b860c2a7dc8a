//! Images on this node: fetched from nodes that hold them or from a registry, and served to other nodes.

use std::io::{Read, Seek, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::image_ref::ImageRef;
use flota_api::proto::dispatcher::{ImageReport, ImageSource, TaskAssignment};
use flota_api::proto::images::image_store_client::ImageStoreClient;
use flota_api::proto::images::image_store_server::{ImageStore as ImageStoreRpc, ImageStoreServer};
use flota_api::proto::images::{Chunk, GetBlobRequest};
use flota_api::version::Timestamp;
use flota_identity::{Dialer, Peer, verify_grant};
use flota_image::{Credentials, Image, ImageError, ImageStore, PullError};

const CHUNK: usize = 1 << 20;

/// Why an image can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No node that holds it gave it.
    #[error("failed to fetch the image {digest} from {count} nodes that hold it: {last}")]
    Holders {
        /// Which image.
        digest: String,
        /// How many were asked.
        count: usize,
        /// What the last one said.
        last: String,
    },
    /// The registry did not give it.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// What came is refused.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// This node's images, and the ways to more. Cloned handles share it.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) store: ImageStore,
    pub(crate) dialer: Dialer,
    /// What the leader shall know: images that came, images that went.
    pub(crate) reports: mpsc::UnboundedSender<ImageReport>,
    /// Judges grants; comes with each session.
    pub(crate) grant_key: Arc<Mutex<Vec<u8>>>,
    /// One fetch at a time: tasks of one service want the same image at once.
    pub(crate) fetching: Arc<tokio::sync::Mutex<()>>,
}

impl Images {
    /// The task's image, whole and here.
    pub(crate) async fn ensure(&self, assignment: &TaskAssignment) -> Result<Image, FetchError> {
        if let Some(source) = &assignment.image {
            return self.fetch(source).await;
        }
        let _one = self.fetching.lock().await;
        let reference = assignment.spec.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
        let credentials = assignment.credentials.as_ref();
        let credentials =
            credentials.map(|it| Credentials { username: it.username.clone(), password: it.password.clone() });
        let whole = ImageRef::parse(&reference).map_or(reference, |it| it.to_string());
        Ok(flota_image::pull(&self.store, &whole, credentials).await?)
    }

    /// The image by digest, from this node or a holder; the leader is told when it came.
    pub(crate) async fn fetch(&self, source: &ImageSource) -> Result<Image, FetchError> {
        if let Some(image) = self.store.whole_image(&source.digest) {
            return Ok(image);
        }
        let _one = self.fetching.lock().await;
        if let Some(image) = self.store.whole_image(&source.digest) {
            return Ok(image);
        }
        self.fetch_blob(source, &source.digest).await?;
        let config = self.store.image_manifest(&source.digest)?;
        for blob in config.iter().filter(|blob| !self.store.blobs.has(blob)) {
            self.fetch_blob(source, blob).await?;
        }
        let image = self.store.image(&source.digest)?;
        self.store.record(&image)?;
        let report = ImageReport { digest: image.digest.clone(), size: image.size(), ..ImageReport::default() };
        let _ = self.reports.send(report);
        Ok(image)
    }

    /// One blob; a transfer that breaks off goes on with the next holder where it stopped.
    async fn fetch_blob(&self, source: &ImageSource, digest: &str) -> Result<(), FetchError> {
        if self.store.blobs.has(digest) {
            return Ok(());
        }
        let io = |source| FetchError::Image(ImageError::Io { act: "store a blob", source });
        let mut writer = self.store.blobs.writer().map_err(io)?;
        let mut last = "no node holds it".to_owned();
        for holder in &source.holders {
            let request =
                GetBlobRequest { grant: source.grant.clone(), digest: digest.to_owned(), offset: writer.size() };
            let mut client =
                ImageStoreClient::new(self.dialer.node(&holder.address)).max_decoding_message_size(MESSAGE_BOUND);
            let mut stream = match client.get_blob(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => {
                    last = status.message().to_owned();
                    continue;
                }
            };
            loop {
                match stream.message().await {
                    Ok(Some(chunk)) => writer.write_all(&chunk.data).map_err(io)?,
                    Ok(None) => {
                        return writer.finish(Some(digest)).map(drop).map_err(|error| FetchError::Image(error.into()));
                    }
                    Err(status) => {
                        last = status.message().to_owned();
                        break;
                    }
                }
            }
        }
        Err(FetchError::Holders { digest: digest.to_owned(), count: source.holders.len(), last })
    }

    /// A user's import, pack or pull gave this image a name.
    pub(crate) fn named(&self, image: &Image, reference: &str) {
        let report = ImageReport {
            digest: image.digest.clone(),
            reference: reference.to_owned(),
            size: image.size(),
            gone: false,
        };
        let _ = self.reports.send(report);
    }
}

/// Serves blobs to nodes that the leader granted them to.
#[derive(Clone, Debug)]
pub struct ImagesService(Images);

impl ImagesService {
    pub(crate) fn server(images: Images) -> ImageStoreServer<Self> {
        ImageStoreServer::new(Self(images)).max_encoding_message_size(MESSAGE_BOUND)
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
        if !verify_grant(&grant, &key, node.as_str(), Timestamp::from_system(SystemTime::now())) {
            return Err(denied());
        }
        let missing = || Status::not_found("this node does not hold the image");
        let image = self.0.store.whole_image(&grant.digest).ok_or_else(missing)?;
        if !image.blobs().contains(&request.digest) {
            return Err(denied());
        }
        let mut file = self.0.store.blobs.open_blob(&request.digest).map_err(|_| missing())?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut read = || -> std::io::Result<()> {
                file.seek(std::io::SeekFrom::Start(request.offset))?;
                loop {
                    let mut data = vec![0; CHUNK];
                    let count = file.read(&mut data)?;
                    data.truncate(count);
                    if count == 0 || sender.blocking_send(Ok(Chunk { data: data.into() })).is_err() {
                        return Ok(());
                    }
                }
            };
            if let Err(error) = read() {
                let _ = sender.blocking_send(Err(Status::data_loss(error.to_string())));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
