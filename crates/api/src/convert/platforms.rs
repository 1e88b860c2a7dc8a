//! Conversion of the platforms of images.

use super::filled;
use crate::model::Platform;
use crate::proto::types as pt;

impl From<&Platform> for pt::Platform {
    fn from(it: &Platform) -> Self {
        Self {
            os: it.os.clone(),
            architecture: it.architecture.clone(),
            variant: it.variant.clone().unwrap_or_default(),
        }
    }
}

impl From<pt::Platform> for Platform {
    fn from(it: pt::Platform) -> Self {
        Self { os: it.os, architecture: it.architecture, variant: filled(it.variant) }
    }
}
