//! Images that the cluster keeps.

use tonic::Status;

use flota_api::image_ref::ImageRef;
use flota_api::model::Image;
use flota_api::object::Kind;
use flota_api::proto::control as pc;
use flota_raft_store::WriteTx;

use super::find::find_image;
use super::status::WriteFailed;
use crate::replica::Replica;

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let image = find_image(&view, &request.name)?.clone();
        let names = |reference: &str| ImageRef::parse(reference).is_ok_and(|it| it.to_string() == image.reference);
        let user = view.services().find(|service| names(&service.spec.image));
        if let Some(service) = user.filter(|_| !request.force) {
            let text = format!("image `{}` is used by service `{}`", request.name, service.spec.name);
            return Err(WriteFailed::Refused(Status::failed_precondition(text)));
        }
        let used = view.tasks().any(|task| task.image_digest == image.digest && !task.status.state.is_terminal());
        let mut tx = WriteTx::new(view.clone(), &request.request_id);
        if used {
            // Without a name it goes with the last task that uses it.
            tx.update(Image { reference: String::new(), ..image.as_ref().clone() });
        } else {
            tx.remove(Kind::Image, image.id.as_str());
        }
        Ok((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
