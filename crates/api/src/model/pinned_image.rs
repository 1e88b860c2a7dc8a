//! The images that the tasks of a service mount, beside the one that they run.

use serde::Serialize;

use super::platform::Platform;

/// What the reference of an image that tasks mount stood for when a user set it, so that all tasks of a spec mount the same
/// files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedImage {
    /// The reference, as it is in the mounts of the spec.
    pub reference: String,
    /// Digest for which it stood. It may be that of an index, from which each node takes the manifest for its platform.
    pub digest: String,
    /// The platforms of that image, which decide where the tasks can run; empty if they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
}
