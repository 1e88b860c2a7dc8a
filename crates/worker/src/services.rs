//! The leader's requests to a node that do not concern the running of tasks: to hold images, to drop volumes, and to
//! open streams to containers. It is the interface between the agent and the parts of the worker that only a real node has.
//!
//! Work that takes time is returned as a future, which the agent spawns and which ends with the worker.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tonic::transport::Channel;

use flota_api::id::VolumeId;
use flota_api::model::ImageSource;

use crate::executor::ContainerExecutor;
#[cfg(any(test, feature = "fake"))]
use crate::executor::FakeMachine;
use crate::health::HealthBoard;
use crate::messages::OpenStream;
use crate::streams;

/// Serves the leader's requests that do not concern the running of tasks.
pub trait NodeServices: fmt::Debug + Send + Sync {
    /// Returns the digests of the images that are complete on this node.
    fn images(&self) -> BoxFuture<'_, Vec<String>>;

    /// Sets the public keys that verify grants of images.
    fn set_grant_keys(&self, keys: Vec<Vec<u8>>);

    /// Fetches the images that this node is to keep.
    fn keep_images(&self, sources: Vec<ImageSource>) -> BoxFuture<'static, ()>;

    /// Removes images that the cluster no longer needs, each once no task of this node uses it.
    fn drop_images(&self, digests: Vec<String>) -> BoxFuture<'static, ()>;

    /// Removes the data of a volume that a user has removed, once no task of this node uses it; resolves when nothing
    /// is left.
    fn drop_volume(&self, volume: VolumeId) -> BoxFuture<'static, ()>;

    /// Opens a stream to the leader and serves it until it ends: exec, logs, a forwarded connection or a report.
    fn open_stream(&self, leader: Channel, open: OpenStream) -> BoxFuture<'static, ()>;
}

/// The services of a node with containers.
#[derive(Debug)]
pub(crate) struct ContainerServices {
    pub(crate) executor: Arc<ContainerExecutor>,
    pub(crate) health: HealthBoard,
}

impl NodeServices for ContainerServices {
    fn images(&self) -> BoxFuture<'_, Vec<String>> {
        let store = self.executor.images.store.clone();
        Box::pin(async move {
            let images = tokio::task::spawn_blocking(move || store.images()).await.unwrap_or_default();
            images.into_iter().map(|image| image.digest).collect()
        })
    }

    fn set_grant_keys(&self, keys: Vec<Vec<u8>>) {
        *self.executor.images.grant_keys.lock().expect("no holder panics") = keys;
    }

    fn keep_images(&self, sources: Vec<ImageSource>) -> BoxFuture<'static, ()> {
        Box::pin(self.executor.images.clone().keep(sources))
    }

    fn drop_images(&self, digests: Vec<String>) -> BoxFuture<'static, ()> {
        Box::pin(self.executor.images.clone().drop_unused(digests))
    }

    fn drop_volume(&self, volume: VolumeId) -> BoxFuture<'static, ()> {
        Box::pin(self.executor.volumes.clone().drop_data(volume))
    }

    fn open_stream(&self, leader: Channel, open: OpenStream) -> BoxFuture<'static, ()> {
        Box::pin(streams::open(Arc::clone(&self.executor), self.health.clone(), leader, open))
    }
}

/// Drops a volume of a machine once none of its containers uses it.
#[cfg(any(test, feature = "fake"))]
async fn drop_fake(machine: FakeMachine, volume: VolumeId) {
    while !machine.drop_volume(volume.as_str()) {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// The services of a node with simulated containers: it holds no image and opens no stream.
#[cfg(any(test, feature = "fake"))]
#[derive(Clone, Debug)]
pub struct FakeServices(pub FakeMachine);

#[cfg(any(test, feature = "fake"))]
impl NodeServices for FakeServices {
    fn images(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn set_grant_keys(&self, _: Vec<Vec<u8>>) {}

    fn keep_images(&self, _: Vec<ImageSource>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn drop_images(&self, _: Vec<String>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn drop_volume(&self, volume: VolumeId) -> BoxFuture<'static, ()> {
        Box::pin(drop_fake(self.0.clone(), volume))
    }

    fn open_stream(&self, _: Channel, _: OpenStream) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
