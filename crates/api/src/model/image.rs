//! Images that the cluster itself keeps.

use serde::Serialize;

use crate::id::{ImageId, NodeId};
use crate::version::Meta;

/// A node that holds an image, or has been asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageHolder {
    /// Which node.
    pub node_id: NodeId,
    /// Whether it has said that all blobs are there.
    pub confirmed: bool,
}

/// An image by digest, with the name that it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Of the object.
    pub id: ImageId,
    /// Times and version.
    pub meta: Meta,
    /// The whole reference; empty when a newer image took it.
    pub reference: String,
    /// Of the manifest.
    pub digest: String,
    /// Bytes of all blobs.
    pub size: u64,
    /// Where it is and where it shall be.
    pub holders: Vec<ImageHolder>,
}

impl Image {
    /// Nodes that have said that they hold it.
    pub fn confirmed(&self) -> impl Iterator<Item = &NodeId> {
        self.holders.iter().filter(|holder| holder.confirmed).map(|holder| &holder.node_id)
    }
}
