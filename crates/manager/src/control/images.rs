//! Images that the cluster stores, and their names, which users alone give.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::id::{ImageId, NodeId};
use flota_api::image_ref::{ImageRef, is_digest};
use flota_api::model::{Image, ImageHolder, Node, Platform, Service};
use flota_api::object::{Kind, StoreObject};
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};
use crate::images::is_used;

/// One name of an image.
#[derive(Clone, Debug)]
pub(crate) struct NamedImage {
    /// The whole reference; `None` for an image that has no name.
    pub(crate) reference: Option<String>,
    /// The image as the store holds it.
    pub(crate) image: Arc<Image>,
}

/// The name that a user gives to an image on a node.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    /// The reference, as the user wrote it.
    pub(crate) reference: String,
    /// Digest of the image.
    pub(crate) digest: String,
    /// Size of all its blobs in bytes.
    pub(crate) size: u64,
    /// The node that imported, packed or pulled it.
    pub(crate) node: NodeId,
    /// The platforms that it is made for; empty if they are not known.
    pub(crate) platforms: Vec<Platform>,
}

const FIELDS: &[Field<NamedImage>] = &[
    ("id", |row| Some(row.image.id.to_string())),
    ("reference", |row| Some(row.reference.clone().unwrap_or_default())),
    ("digest", |row| Some(row.image.digest.clone())),
    ("size", |row| Some(row.image.size.to_string())),
];

/// Returns a row for each name of the image, or one without a name.
fn rows(image: &Arc<Image>) -> Vec<NamedImage> {
    let row = |reference| NamedImage { reference, image: Arc::clone(image) };
    match image.references.is_empty() {
        true => vec![row(None)],
        false => image.references.iter().map(|it| row(Some(it.clone()))).collect(),
    }
}

/// Returns the whole reference. One that carries a digest means that digest alone.
fn check(naming: &Naming) -> Result<String, ControlError> {
    let reference = ImageRef::parse(&naming.reference).map_err(|error| ControlError::invalid("reference", error))?;
    if !is_digest(&naming.digest) {
        return Err(ControlError::invalid("digest", "it has `sha256:` and 64 hexadecimal digits"));
    }
    match &reference.digest {
        Some(other) if *other != naming.digest => {
            let why = format_args!("it names the digest {other}, and the image has {}", naming.digest);
            Err(ControlError::invalid("reference", why))
        }
        _ => Ok(reference.to_string()),
    }
}

/// Changes `tx` so that the image of `naming` has the name `reference`, which no other image keeps.
fn give_name(tx: &mut WriteTx, view: &Tables, reference: &str, naming: &Naming, new_id: &ImageId) {
    let holder = ImageHolder { node_id: naming.node.clone(), confirmed: true };
    let named = view.image_by_reference(reference);
    if let Some(other) = named.filter(|it| it.digest != naming.digest) {
        let mut other = other.as_ref().clone();
        other.references.remove(reference);
        tx.update(other);
    }
    match named.filter(|it| it.digest == naming.digest).or_else(|| view.image_by_digest(&naming.digest)) {
        Some(image) => {
            let mut image = image.as_ref().clone();
            image.references.insert(reference.to_owned());
            if !naming.platforms.is_empty() {
                image.platforms.clone_from(&naming.platforms);
            }
            image.holders.retain(|it| it.node_id != naming.node);
            image.holders.push(holder);
            tx.update(image);
        }
        None => tx.create(Image {
            id: new_id.clone(),
            references: [reference.to_owned()].into(),
            digest: naming.digest.clone(),
            size: naming.size,
            platforms: naming.platforms.clone(),
            holders: vec![holder],
            ..Image::default()
        }),
    }
}

impl<M: Member> Control<M> {
    /// Returns the image that `reference` identifies.
    pub(crate) async fn get_image(&self, reference: &str) -> Result<Arc<Image>, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).cloned()
    }

    /// Returns the names of images that pass every filter.
    pub(crate) async fn list_images(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<NamedImage>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        Ok(Listing { rows: filter::keep(view.images().flat_map(rows), filters, FIELDS)?, age })
    }

    /// Gives a name to an image on a node, and takes it from the image that had it.
    pub(crate) async fn name_image(
        &self,
        request_id: Option<&str>,
        naming: &Naming,
    ) -> Result<Arc<Image>, ControlError> {
        let reference = check(naming)?;
        let new_id = self.random.draw(ImageId::random);
        let named = self.write_once(request_id, |view| {
            if view.node(&naming.node).is_none() {
                return Err(ControlError::NotFound { kind: Node::KIND, reference: naming.node.to_string() });
            }
            let mut tx = WriteTx::new(view.clone(), request_id);
            give_name(&mut tx, &view, &reference, naming, &new_id);
            Ok((tx.finish(), ()))
        });
        named.await?;
        self.changed(&reference, None).await
    }

    /// By a reference, takes that name away, and removes the image if it was the last; otherwise removes the image.
    /// With `force`, also if a service uses it.
    pub(crate) async fn remove_image(
        &self,
        request_id: Option<&str>,
        reference: &str,
        force: bool,
    ) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let image = resolve::<Image>(&view, reference)?;
            let whole = |text: &str| ImageRef::parse(text).ok().map(|it| it.to_string());
            let name = whole(reference).filter(|name| image.references.contains(name));
            let (lost, kept): (BTreeSet<_>, BTreeSet<_>) =
                image.references.iter().cloned().partition(|it| name.as_ref().is_none_or(|name| name == it));
            let names_it = |service: &Service| {
                let named = std::iter::once(service.spec.image.as_str()).chain(service.spec.mounted_images());
                named.filter_map(whole).any(|it| lost.contains(&it))
            };
            let is_pinned =
                |service: &Service| kept.is_empty() && service.image_digests().any(|digest| digest == image.digest);
            let user = view.services().find(|service| names_it(service) || is_pinned(service));
            if let Some(service) = user.filter(|_| !force) {
                let service = service.spec.name.clone();
                return Err(ControlError::ImageInUse { image: reference.to_owned(), service });
            }
            let mut tx = WriteTx::new(view.clone(), request_id);
            if is_used(image, &view) || !kept.is_empty() {
                // Without a name, the image is removed with the last task or service that uses it.
                tx.update(Image { references: kept, ..image.as_ref().clone() });
            } else {
                tx.remove(Kind::Image, image.id.as_str());
            }
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
