//! Writes a node's report that it holds an image, or no longer holds it, to the store.

use tonic::Status;

use flota_api::id::{ImageId, NodeId};
use flota_api::image_ref::ImageRef;
use flota_api::model::{Image, ImageHolder};
use flota_api::proto::dispatcher::ImageReport;
use flota_raft_store::WriteTx;

use crate::replica::Replica;

/// Records that a node holds an image, or no longer holds it. A report with a reference gives that name to the image.
///
/// # Errors
/// The report is malformed, or this manager can't commit it.
pub(super) async fn write(replica: &Replica, node_id: &NodeId, report: ImageReport) -> Result<(), Status> {
    let legal = report.digest.len() < 256 && report.reference.len() < 1024;
    if !legal || (!report.reference.is_empty() && ImageRef::parse(&report.reference).is_err()) {
        return Err(Status::invalid_argument("an image report: its digest or reference is malformed"));
    }
    let written = replica.write_if_needed(|view| {
        let mut tx = WriteTx::new(view.clone(), "");
        let known = view.image_by_digest(&report.digest);
        if report.gone {
            let image = known.filter(|it| it.holders.iter().any(|it| it.node_id == *node_id));
            let mut image = image?.as_ref().clone();
            image.holders.retain(|it| it.node_id != *node_id);
            tx.update(image);
            return Some((tx.finish(), ()));
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
                    return None;
                }
                tx.update(new);
            }
            None if reference.is_none() => return None,
            None => tx.create(Image {
                id: replica.random.draw(ImageId::random),
                reference,
                digest: report.digest.clone(),
                size: report.size,
                holders: vec![ImageHolder { node_id: node_id.clone(), confirmed: true }],
                ..Image::default()
            }),
        }
        Some((tx.finish(), ()))
    });
    written.await.map(drop).map_err(|error| Status::unavailable(error.to_string()))
}

/// Returns the image with the node added to its confirmed holders; `None` if the node is one already.
pub(super) fn with_holder(image: &Image, node: &NodeId) -> Option<Image> {
    if image.confirmed().any(|id| id == node) {
        return None;
    }
    let mut image = image.clone();
    image.holders.retain(|holder| holder.node_id != *node);
    image.holders.push(ImageHolder { node_id: node.clone(), confirmed: true });
    Some(image)
}
