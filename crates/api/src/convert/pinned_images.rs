//! Conversion of the images that tasks mount.

use crate::model::{MountedImage, PinnedImage};
use crate::proto::{dispatcher as pd, objects as po};

impl From<&PinnedImage> for po::PinnedImage {
    fn from(it: &PinnedImage) -> Self {
        Self {
            reference: it.reference.clone(),
            digest: it.digest.clone(),
            platforms: it.platforms.iter().map(Into::into).collect(),
        }
    }
}

impl From<po::PinnedImage> for PinnedImage {
    fn from(it: po::PinnedImage) -> Self {
        Self {
            reference: it.reference,
            digest: it.digest,
            platforms: it.platforms.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&MountedImage> for pd::MountedImage {
    fn from(it: &MountedImage) -> Self {
        Self {
            reference: it.reference.clone(),
            source: it.source.as_ref().map(Into::into),
            credentials: it.credentials.as_ref().map(Into::into),
        }
    }
}

impl From<pd::MountedImage> for MountedImage {
    fn from(it: pd::MountedImage) -> Self {
        Self { reference: it.reference, source: it.source.map(Into::into), credentials: it.credentials.map(Into::into) }
    }
}
