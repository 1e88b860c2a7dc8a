//! Images that the cluster keeps on its own nodes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::platform::Platform;
use crate::id::{ImageId, NodeId};
use crate::version::Meta;

/// A node that holds an image or has been asked to hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageHolder {
    /// The node.
    pub node_id: NodeId,
    /// Whether the node reported that it has all blobs.
    pub confirmed: bool,
}

/// An image by digest, and the names that users gave to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Identifier of the object.
    pub id: ImageId,
    /// Times and version.
    pub meta: Meta,
    /// Whole references. Each refers to one image: naming another image takes it away from this one.
    pub references: BTreeSet<String>,
    /// Digest of the manifest.
    pub digest: String,
    /// Size of all blobs in bytes.
    pub size: u64,
    /// The platforms that it is made for; empty if they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// The nodes that hold the image or were asked to.
    pub holders: Vec<ImageHolder>,
}

impl Image {
    /// Returns the nodes that reported that they hold the image.
    pub fn confirmed(&self) -> impl Iterator<Item = &NodeId> {
        self.holders.iter().filter(|holder| holder.confirmed).map(|holder| &holder.node_id)
    }
}
