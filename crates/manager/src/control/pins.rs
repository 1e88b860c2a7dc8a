//! The digests that services get with their specs, so that all tasks of a service run one image and mount the same ones,
//! whatever their names stand for later, and the platforms of those images, which decide where they can run. Both lie beside
//! the spec, which the system never changes.
//!
//! A reference with a digest means that digest, and a name that the cluster knows means the cluster's image. Registries
//! are asked for the others, before the change is planned. A digest that can't be found out is a warning, as in Docker: the
//! nodes then ask by themselves. If the platforms can't be found out, a task may go to any node, as one with another
//! platform refuses it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Image, PinnedImage, PullPolicy, Service, ServiceSpec};
use flota_api::object::Kind;
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::{Control, Member};
use crate::images::is_used;
use crate::pin::{Pin, SpecImages};

/// The services of a request whose images are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolveImage {
    /// Those that are new or get another reference, and those with [`PullPolicy::Always`].
    Changed,
    /// All.
    Always,
    /// None. A service keeps its digest as long as it keeps its reference.
    Never,
}

/// A change, with what the user should know about it.
#[derive(Clone, Debug)]
pub(crate) struct Warned<T> {
    pub(crate) changed: T,
    pub(crate) warnings: Vec<String>,
}

/// What a request needs to know to give services their digests.
#[derive(Debug)]
pub(super) struct Pins {
    when: ResolveImage,
    /// What registries say, by the reference as it is in the spec; `None` where they can't be asked.
    asked: BTreeMap<String, Option<Pin>>,
    pub(super) warnings: Vec<String>,
}

/// A reference of a spec, and what it stood for so far.
#[derive(Debug)]
struct Wish<'a> {
    reference: &'a str,
    /// Whether the service has the reference already, at the same place.
    is_kept: bool,
    /// What it stands for there; `None` if that is not known.
    before: Option<Pin>,
}

impl<'a> Wish<'a> {
    /// The spec's own image.
    fn own(spec: &'a ServiceSpec, before: Option<&Service>) -> Self {
        let kept = before.filter(|it| it.spec.image == spec.image);
        let pin = kept.and_then(|it| SpecImages::of_service(it).own);
        Self { reference: &spec.image, is_kept: kept.is_some(), before: pin }
    }

    /// The images that its tasks mount.
    fn mounted(spec: &'a ServiceSpec, before: Option<&Service>) -> impl Iterator<Item = Self> {
        spec.mounted_images().into_iter().map(move |reference| {
            let kept = before.filter(|it| it.spec.mounted_images().contains(reference));
            let pin = kept.and_then(|it| SpecImages::of_service(it).mounted(reference));
            Self { reference, is_kept: kept.is_some(), before: pin }
        })
    }
}

/// Makes the transaction fail if one of these images is removed meanwhile. If nothing uses an image yet, a removal that was
/// planned before fails as well.
pub(super) fn claim(tx: &mut WriteTx, images: &SpecImages) {
    let view = Arc::clone(tx.view());
    for image in images.digests().filter_map(|digest| view.image_by_digest(digest)) {
        if is_used(image, &view) {
            tx.expect(Kind::Image, image.id.as_str());
        } else {
            tx.touch(Image::clone(image));
        }
    }
}

impl Pins {
    /// Returns the images of the service with this spec, as far as they are known. `before` is the service as it is.
    ///
    /// # Errors
    /// A concurrent change made it necessary to ask a registry that was not asked.
    pub(super) fn of(
        &self,
        spec: &ServiceSpec,
        before: Option<&Service>,
        view: &Tables,
    ) -> Result<SpecImages, ControlError> {
        let own = self.find(spec, Wish::own(spec, before), view)?;
        let mut mounted = Vec::new();
        for wish in Wish::mounted(spec, before) {
            let reference = wish.reference.to_owned();
            let pinned = |pin: Pin| PinnedImage { reference, digest: pin.digest, platforms: pin.platforms };
            mounted.extend(self.find(spec, wish, view)?.map(pinned));
        }
        Ok(SpecImages { own, mounted })
    }

    /// Returns the image that a reference of the spec means; `None` if it is not known.
    fn find(&self, spec: &ServiceSpec, wish: Wish<'_>, view: &Tables) -> Result<Option<Pin>, ControlError> {
        if !self.concerns(spec, &wish) {
            return Ok(wish.before);
        }
        let reference = ImageRef::parse(wish.reference).ok();
        let known = reference.as_ref().and_then(|reference| self.known(reference, view));
        let fixed = reference.and_then(|it| it.digest).map(Pin::of_digest);
        match (known, self.asked.get(wish.reference)) {
            (Some(pin), _) => Ok(Some(pin)),
            // A registry that can't be asked changes nothing about an image that is known already.
            (None, Some(None)) => Ok(fixed.or(wish.before)),
            (None, Some(Some(pin))) => Ok(Some(pin.clone())),
            // Another request has removed the image meanwhile.
            (None, None) if fixed.is_some() => Ok(fixed),
            (None, None) if self.when == ResolveImage::Never => Ok(None),
            (None, None) => Err(ControlError::ChangedMeanwhile { kind: Kind::Service, name: spec.name.clone() }),
        }
    }

    /// Whether the reference is resolved anew.
    fn concerns(&self, spec: &ServiceSpec, wish: &Wish<'_>) -> bool {
        let is_asked_for = match self.when {
            ResolveImage::Always => true,
            ResolveImage::Changed => spec.pull == PullPolicy::Always,
            ResolveImage::Never => false,
        };
        is_asked_for || !wish.is_kept
    }

    /// The image that a reference means, if no registry need be asked for it.
    fn known(&self, reference: &ImageRef, view: &Tables) -> Option<Pin> {
        match (&reference.digest, self.when) {
            (digest, ResolveImage::Never) => digest.clone().map(Pin::of_digest),
            (Some(digest), _) => {
                // One that a user has brought need not be at any registry.
                let has_name = view.image_by_digest(digest).is_some_and(|image| !image.references.is_empty());
                Some(Pin::known(digest, view)).filter(|pin| has_name || !pin.platforms.is_empty())
            }
            (None, _) => view.image_by_reference(&reference.to_string()).map(|image| Pin::known(&image.digest, view)),
        }
    }
}

impl<M: Member> Control<M> {
    /// Asks registries for the images of these specs, as far as `when` asks for it.
    ///
    /// # Errors
    /// This manager can't prove that its view is complete. An old view would leave out images that have to be asked for, and
    /// the request would be refused although nothing has changed during it.
    pub(super) async fn pins(
        &self,
        request_id: Option<&str>,
        specs: &[ServiceSpec],
        when: ResolveImage,
    ) -> Result<Pins, ControlError> {
        let mut pins = Pins { when, asked: BTreeMap::new(), warnings: Vec::new() };
        let view = self.store.view();
        // A request that was refused is planned again, to tell why.
        let is_done = request_id.is_some_and(|id| view.answered(id) && !view.refused(id));
        if when == ResolveImage::Never || is_done {
            return Ok(pins);
        }
        let view = self.proven_whole_view().await?;
        let wishes = specs.iter().flat_map(|spec| {
            let before = view.service_by_name(&spec.name).map(AsRef::as_ref);
            let all = std::iter::once(Wish::own(spec, before)).chain(Wish::mounted(spec, before));
            all.map(move |wish| (spec, wish))
        });
        let concerned = wishes.filter(|(spec, wish)| pins.concerns(spec, wish));
        let references =
            concerned.filter_map(|(_, it)| Some((it.reference.to_owned(), ImageRef::parse(it.reference).ok()?)));
        let unknown: BTreeMap<_, _> = references.filter(|(_, it)| pins.known(it, &view).is_none()).collect();
        let ask = |(name, reference)| {
            let (resolver, view) = (&self.resolver, &view);
            async move { (name, resolver.resolve(&reference, view).await) }
        };
        for (name, answer) in join_all(unknown.into_iter().map(ask)).await {
            if let Err(why) = &answer {
                let each = "each node asks the registry by itself, and nodes may run different images";
                pins.warnings.push(format!("{why}; {each}"));
            }
            pins.asked.insert(name, answer.ok());
        }
        Ok(pins)
    }
}
