//! What a node says of an image it holds, written into the store.

use tonic::Status;

use flota_api::id::{ImageId, NodeId};
use flota_api::image_ref::ImageRef;
use flota_api::model::{Image, ImageHolder};
use flota_api::proto::dispatcher::ImageReport;
use flota_raft_store::WriteTx;

use crate::control::WriteFailed;
use crate::manager::Manager;

/// A node holds an image, or holds it no more. With a reference, the name goes to that image.
pub(super) async fn write(manager: &Manager, node_id: &NodeId, report: ImageReport) -> Result<(), Status> {
    let legal = report.digest.len() < 256 && report.reference.len() < 1024;
    if !legal || (!report.reference.is_empty() && ImageRef::parse(&report.reference).is_err()) {
        return Err(Status::invalid_argument("an image report: its digest or reference is malformed"));
    }
    let written = manager.write(|view| {
        let mut tx = WriteTx::new(view.clone(), "");
        let known = view.image_by_digest(&report.digest);
        if report.gone {
            let image = known.filter(|it| it.holders.iter().any(|it| it.node_id == *node_id));
            let mut image = image.ok_or(WriteFailed::Nothing)?.as_ref().clone();
            image.holders.retain(|it| it.node_id != *node_id);
            tx.update(image);
            return Ok((tx.finish(), ()));
        }
        let reference = (!report.reference.is_empty()).then(|| report.reference.clone());
        let named = reference.as_deref().and_then(|reference| view.image_by_reference(reference));
        if let Some(other) = named.filter(|it| it.digest != report.digest) {
            tx.update(Image { reference: None, ..other.as_ref().clone() });
        }
        let same_name = known.is_some_and(|it| reference.is_none() || it.reference == reference);
        match known.filter(|it| same_name || it.reference.is_none()) {
            Some(image) => {
                let held = with_holder(image, node_id).unwrap_or_else(|| image.as_ref().clone());
                let new = Image { reference: reference.or(held.reference.clone()), ..held };
                if new == **image {
                    return Err(WriteFailed::Nothing);
                }
                tx.update(new);
            }
            None if reference.is_none() => return Err(WriteFailed::Nothing),
            None => tx.create(Image {
                id: manager.random.draw(ImageId::random),
                reference,
                digest: report.digest.clone(),
                size: report.size,
                holders: vec![ImageHolder { node_id: node_id.clone(), confirmed: true }],
                ..Image::default()
            }),
        }
        Ok((tx.finish(), ()))
    });
    match written.await {
        Ok(()) | Err(WriteFailed::Nothing) => Ok(()),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

/// The image with the node among those that are known to hold it; `None`: it is already.
pub(super) fn with_holder(image: &Image, node: &NodeId) -> Option<Image> {
    if image.confirmed().any(|id| id == node) {
        return None;
    }
    let mut image = image.clone();
    image.holders.retain(|holder| holder.node_id != *node);
    image.holders.push(ImageHolder { node_id: node.clone(), confirmed: true });
    Some(image)
}
