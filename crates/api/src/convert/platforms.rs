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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeDescription;

    #[test]
    fn platforms_of_images_and_nodes_survive_the_way_to_the_wire_and_back() {
        for variant in [None, Some("v7")] {
            let platform = Platform::new("linux", "arm", variant).expect("legal");
            assert_eq!(Platform::from(pt::Platform::from(&platform)), platform);
            let node = NodeDescription {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant.unwrap_or_default(),
                ..NodeDescription::default()
            };
            assert_eq!(NodeDescription::try_from(Some(pt::NodeDescription::from(&node))), Ok(node));
        }
    }
}
