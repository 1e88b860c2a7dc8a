//! What the reference of an image stood for when a user set it. It lies beside the spec of a service, which the system never
//! changes, and decides which image its tasks run and on which nodes they can.

use std::sync::Arc;

use flota_api::model::{Platform, Revision, Service};
use flota_raft_store::Tables;

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

    /// Returns the pin of the image with this digest, with the platforms that the cluster knows of it. They never change, so
    /// no registry need be asked for them again.
    pub(crate) fn known(digest: &str, view: &Tables) -> Self {
        let of_image = view.image_by_digest(digest).map(|image| &image.platforms);
        let of_service = |service: &'_ Arc<Service>| {
            let earlier = service.revisions.iter().filter_map(Self::of_revision);
            Self::of_service(service).into_iter().chain(earlier).find(|it| it.digest == digest).map(|it| it.platforms)
        };
        let of_services = view.services_pinned_to(digest).filter_map(of_service);
        let platforms = of_image.cloned().into_iter().chain(of_services).find(|it| !it.is_empty());
        Self { digest: digest.to_owned(), platforms: platforms.unwrap_or_default() }
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
