//! Images that the cluster stores.

use std::sync::Arc;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Image, Task};
use flota_api::object::Kind;
use flota_raft_store::WriteTx;

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};

const FIELDS: &[Field<Arc<Image>>] = &[
    ("id", |image| Some(image.id.to_string())),
    ("reference", |image| Some(image.reference.clone().unwrap_or_default())),
    ("digest", |image| Some(image.digest.clone())),
    ("size", |image| Some(image.size.to_string())),
];

impl<M: Member> Control<M> {
    /// Returns the image that `reference` identifies.
    pub(crate) async fn get_image(&self, reference: &str) -> Result<Arc<Image>, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).cloned()
    }

    /// Returns the images that pass every filter.
    pub(crate) async fn list_images(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<Arc<Image>>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        Ok(Listing { rows: filter::keep(view.images().cloned().collect(), filters, FIELDS)?, age })
    }

    /// Removes the image. With `force`, also if a service uses it.
    pub(crate) async fn remove_image(
        &self,
        request_id: &str,
        reference: &str,
        force: bool,
    ) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let image = resolve::<Image>(&view, reference)?;
            let names =
                |reference: &str| ImageRef::parse(reference).is_ok_and(|it| Some(it.to_string()) == image.reference);
            let user = view.services().find(|service| names(&service.spec.image));
            if let Some(service) = user.filter(|_| !force) {
                let service = service.spec.name.clone();
                return Err(ControlError::ImageInUse { image: reference.to_owned(), service });
            }
            let uses = |task: &Arc<Task>| task.image_digest.as_ref() == Some(&image.digest);
            let used = view.tasks().any(|task| uses(task) && !task.status.state.is_terminal());
            let mut tx = WriteTx::new(view.clone(), request_id);
            if used {
                // Without a name, the image is removed with the last task that uses it.
                tx.update(Image { reference: None, ..image.as_ref().clone() });
            } else {
                tx.remove(Kind::Image, image.id.as_str());
            }
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }
}
