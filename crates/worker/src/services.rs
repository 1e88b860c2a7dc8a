//! The leader's requests to a node that do not concern the running of tasks: to hold images, and to open streams to
//! containers. It is the interface between the agent and the parts of the worker that only a real node has.
//!
//! Work that takes time is returned as a future, which the agent spawns and which ends with the worker.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tonic::transport::Channel;

use flota_api::model::ImageSource;

use crate::executor::ContainerExecutor;
use crate::messages::OpenStream;
use crate::streams;

/// Serves the leader's requests that do not concern the running of tasks.
pub trait NodeServices: fmt::Debug + Send + Sync {
    /// Returns the digests of the images that are complete on this node.
    fn images(&self) -> BoxFuture<'_, Vec<String>>;

    /// Sets the public key that verifies grants of images.
    fn set_grant_key(&self, key: Vec<u8>);

    /// Fetches the images that this node is to keep.
    fn keep_images(&self, sources: Vec<ImageSource>) -> BoxFuture<'static, ()>;

    /// Removes images that the cluster no longer needs, each once no task of this node uses it.
    fn drop_images(&self, digests: Vec<String>) -> BoxFuture<'static, ()>;

    /// Opens a stream to the leader and serves it until it ends: exec, logs, a forwarded connection or a report.
    fn open_stream(&self, leader: Channel, open: OpenStream) -> BoxFuture<'static, ()>;
}

/// The services of a node with containers.
#[derive(Debug)]
pub(crate) struct ContainerServices(pub(crate) Arc<ContainerExecutor>);

impl NodeServices for ContainerServices {
    fn images(&self) -> BoxFuture<'_, Vec<String>> {
        let store = self.0.images.store.clone();
        Box::pin(async move {
            let images = tokio::task::spawn_blocking(move || store.images()).await.unwrap_or_default();
            images.into_iter().map(|image| image.digest).collect()
        })
    }

    fn set_grant_key(&self, key: Vec<u8>) {
        *self.0.images.grant_key.lock().expect("no holder panics") = key;
    }

    fn keep_images(&self, sources: Vec<ImageSource>) -> BoxFuture<'static, ()> {
        Box::pin(self.0.images.clone().keep(sources))
    }

    fn drop_images(&self, digests: Vec<String>) -> BoxFuture<'static, ()> {
        Box::pin(self.0.images.clone().drop_unused(digests))
    }

    fn open_stream(&self, leader: Channel, open: OpenStream) -> BoxFuture<'static, ()> {
        Box::pin(streams::open(Arc::clone(&self.0), leader, open))
    }
}

/// The services of a node without images and containers: it holds no image and opens no stream.
#[cfg(any(test, feature = "fake"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct FakeServices;

#[cfg(any(test, feature = "fake"))]
impl NodeServices for FakeServices {
    fn images(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn set_grant_key(&self, _: Vec<u8>) {}

    fn keep_images(&self, _: Vec<ImageSource>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn drop_images(&self, _: Vec<String>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn open_stream(&self, _: Channel, _: OpenStream) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
