//! Credentials of registries. They are shown to nobody.

use tonic::Status;

use flota_api::id::RegistryId;
use flota_api::model::Registry;
use flota_api::object::Kind;
use flota_api::proto::control as pc;
use flota_raft_store::WriteTx;

use super::status::WriteFailed;
use crate::replica::Replica;

pub(super) async fn put(replica: &Replica, request: pc::PutRegistryRequest) -> Result<(), Status> {
    let bad = |text: &str| text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control);
    if bad(&request.host) || request.host.contains('/') || bad(&request.username) || bad(&request.password) {
        return Err(Status::invalid_argument("host, username and password: each has 1 to 1024 printable characters"));
    }
    let put = replica.write_once(&request.request_id, |view| {
        let known = view.registry_by_host(&request.host).cloned();
        let registry = Registry {
            id: known.as_ref().map_or_else(|| replica.random.draw(RegistryId::random), |it| it.id.clone()),
            host: request.host.clone(),
            username: request.username.clone(),
            password: request.password.clone().into(),
            ..Registry::default()
        };
        let mut tx = WriteTx::new(view, &request.request_id);
        if known.is_some() {
            tx.update(registry)
        } else {
            tx.create(registry)
        }
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    put.await.map(drop).map_err(Into::into)
}

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let missing = || Status::not_found(format!("nobody is logged in to `{}`", request.name));
        let id = view.registry_by_host(&request.name).ok_or_else(missing)?.id.clone();
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.remove(Kind::Registry, id.as_str());
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
