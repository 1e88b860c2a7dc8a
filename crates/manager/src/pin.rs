//! What the reference of an image stood for when a user set it. It lies beside the spec of a service, which the system never
//! changes, and decides which image its tasks run and on which nodes they can.

use flota_api::model::{Platform, Revision, Service};

/// An image by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// Digest of its manifest, or of its index.
    pub(crate) digest: String,
    /// The platforms that it is made for; empty if they are not known.
    pub(crate) platforms: Vec<Platform>,
}

impl Pin {
    /// Returns the pin of an image of which nothing but its digest is known.
    pub(crate) fn of_digest(digest: String) -> Self {
        Self { digest, platforms: Vec::new() }
    }

    /// Returns the pin of the service's present spec; `None` if it has none.
    pub(crate) fn of_service(service: &Service) -> Option<Self> {
        let digest = service.image_digest.clone()?;
        Some(Self { digest, platforms: service.image_platforms.clone() })
    }

    /// Returns the pin of an earlier spec; `None` if it has none.
    pub(crate) fn of_revision(revision: &Revision) -> Option<Self> {
        let digest = revision.image_digest.clone()?;
        Some(Self { digest, platforms: revision.image_platforms.clone() })
    }

    /// Returns the service with this pin.
    pub(crate) fn put_on(pin: Option<Self>, service: Service) -> Service {
        let (image_digest, image_platforms) = pin.map(|it| (it.digest, it.platforms)).unzip();
        Service { image_digest, image_platforms: image_platforms.unwrap_or_default(), ..service }
    }
}
