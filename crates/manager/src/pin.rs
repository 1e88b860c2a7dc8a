//! What the references of images stood for when a user set them. It lies beside the spec of a service, which the system
//! never changes, and decides which image its tasks run, which ones they mount, and on which nodes they can run.

use std::sync::Arc;

use flota_api::model::{PinnedImage, Platform, Revision, Service, Task};
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
            let earlier = service.revisions.iter().map(SpecImages::of_revision);
            let all = std::iter::once(SpecImages::of_service(service)).chain(earlier).flat_map(SpecImages::into_pins);
            all.filter(|it| it.digest == digest).map(|it| it.platforms).find(|it| !it.is_empty())
        };
        let of_services = view.services_pinned_to(digest).filter_map(of_service);
        let platforms = of_image.cloned().into_iter().chain(of_services).find(|it| !it.is_empty());
        Self { digest: digest.to_owned(), platforms: platforms.unwrap_or_default() }
    }

    fn of_own(digest: Option<&String>, platforms: &[Platform]) -> Option<Self> {
        Some(Self { digest: digest?.clone(), platforms: platforms.to_vec() })
    }
}

/// The images of a spec, as far as they are known: the one that the tasks run, and those that they mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecImages {
    /// What the spec's own reference stood for.
    pub(crate) own: Option<Pin>,
    /// What the references in its mounts stood for, in the order of the references.
    pub(crate) mounted: Vec<PinnedImage>,
}

impl SpecImages {
    /// Returns the images of the service's present spec.
    pub(crate) fn of_service(service: &Service) -> Self {
        let own = Pin::of_own(service.image_digest.as_ref(), &service.image_platforms);
        Self { own, mounted: service.mounted_images.clone() }
    }

    /// Returns the images of an earlier spec.
    pub(crate) fn of_revision(revision: &Revision) -> Self {
        let own = Pin::of_own(revision.image_digest.as_ref(), &revision.image_platforms);
        Self { own, mounted: revision.mounted_images.clone() }
    }

    /// Returns the images that a task was made with.
    pub(crate) fn of_task(task: &Task) -> Self {
        Self { own: task.image_digest.clone().map(Pin::of_digest), mounted: task.mounted_images.clone() }
    }

    /// Returns what a reference in the mounts stood for; `None` if it is not known.
    pub(crate) fn mounted(&self, reference: &str) -> Option<Pin> {
        let found = self.mounted.iter().find(|it| it.reference == reference)?;
        Some(Pin { digest: found.digest.clone(), platforms: found.platforms.clone() })
    }

    /// Returns the digests of the images that tasks run and mount.
    pub(crate) fn digests(&self) -> impl Iterator<Item = &str> {
        self.own.iter().map(|pin| pin.digest.as_str()).chain(self.mounted.iter().map(|it| it.digest.as_str()))
    }

    /// Returns whether tasks run and mount the same with both.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        fn digests(it: &SpecImages) -> impl Iterator<Item = (&str, &str)> {
            let own = it.own.iter().map(|pin| ("", pin.digest.as_str()));
            own.chain(it.mounted.iter().map(|it| (it.reference.as_str(), it.digest.as_str())))
        }
        digests(self).eq(digests(other))
    }

    /// Returns the service with these images.
    pub(crate) fn put_on(self, service: Service) -> Service {
        let (image_digest, image_platforms) = self.own.map(|it| (it.digest, it.platforms)).unzip();
        let image_platforms = image_platforms.unwrap_or_default();
        Service { image_digest, image_platforms, mounted_images: self.mounted, ..service }
    }

    fn into_pins(self) -> impl Iterator<Item = Pin> {
        let pin = |it: PinnedImage| Pin { digest: it.digest, platforms: it.platforms };
        self.own.into_iter().chain(self.mounted.into_iter().map(pin))
    }
}
