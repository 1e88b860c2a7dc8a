//! Serves the blobs of this node's images to other nodes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::images::image_store_server::{ImageStore as ImageStoreRpc, ImageStoreServer};
use flota_api::proto::images::{Chunk, GetBlobRequest};
use flota_identity::{Peer, verify_grant};

use super::{Images, PROGRESS_WAIT};

const CHUNK: usize = 1 << 20;
/// Largest number of concurrent transfers to other nodes.
const TRANSFERS: usize = 32;
/// Longest wait for a place among them, well below the time after which the other node gives up.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// Serves blobs to nodes that the leader granted them to.
#[derive(Clone, Debug)]
pub struct ImagesService(Images, Arc<Semaphore>);

impl ImagesService {
    pub(crate) fn server(images: Images) -> ImageStoreServer<Self> {
        ImageStoreServer::new(Self(images, Arc::new(Semaphore::new(TRANSFERS))))
            .max_encoding_message_size(MESSAGE_BOUND)
    }
}

fn denied() -> Status {
    Status::permission_denied("the leader has not granted this image to this node")
}

/// Opens a blob of an image that is whole here.
fn open_blob(images: &Images, image: &str, blob: &str) -> Result<std::fs::File, Status> {
    let missing = || Status::not_found("this node does not hold the image");
    let image = images.store.whole_image(image).ok_or_else(missing)?;
    if !image.blobs().iter().any(|it| it == blob) {
        return Err(denied());
    }
    images.store.blobs.open_blob(blob).map_err(|_| missing())
}

#[tonic::async_trait]
impl ImageStoreRpc for ImagesService {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn get_blob(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetBlobStream>, Status> {
        let node = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned().ok_or_else(denied)?;
        let request = request.into_inner();
        let grant = request.grant.ok_or_else(denied)?;
        let (keys, now) = (self.0.grant_keys.lock().expect("no holder panics").clone(), self.0.clock.now());
        if !keys.iter().any(|key| verify_grant(&grant, key, node.as_str(), now)) {
            return Err(denied());
        }
        let images = self.0.clone();
        // A slow disk must not delay the node's other work.
        let opened = tokio::task::spawn_blocking(move || open_blob(&images, &grant.digest, &request.digest));
        let file = opened.await.map_err(|error| Status::internal(error.to_string()))??;
        let busy = || Status::resource_exhausted("this node gives images to as many others as it can");
        let permit = timeout(TURN_WAIT, Arc::clone(&self.1).acquire_owned()).await;
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
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
