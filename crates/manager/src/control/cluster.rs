//! The cluster itself, and its join tokens.

use tonic::Status;

use flota_api::model::{Cluster, Role};
use flota_api::proto::{control as pc, types as pt};
use flota_identity::{JoinToken, new_secret};
use flota_raft_store::{Tables, WriteTx};

use super::status::WriteFailed;
use crate::replica::Replica;

pub(super) fn info(view: &Tables) -> Result<pc::ClusterInfo, Status> {
    let cluster = view.cluster().ok_or_else(|| Status::unavailable("the cluster is just beginning"))?;
    Ok(pc::ClusterInfo {
        id: cluster.id.to_string(),
        worker_token: JoinToken::of(cluster, Role::Worker).to_string(),
        manager_token: JoinToken::of(cluster, Role::Manager).to_string(),
        epoch: cluster.epoch,
        meta: Some((&cluster.meta).into()),
    })
}

pub(super) async fn rotate(replica: &Replica, request: pc::RotateJoinTokenRequest) -> Result<pc::ClusterInfo, Status> {
    let role = pt::Role::try_from(request.role).map_err(|_| Status::invalid_argument("role: it is unknown"))?;
    let rotated = replica.write_once(&request.request_id, |view| {
        let cluster = view.cluster().ok_or_else(|| Status::unavailable("the cluster is just beginning"))?;
        let mut cluster: Cluster = cluster.as_ref().clone();
        let secret = match role {
            pt::Role::Worker => &mut cluster.worker_token_secret,
            pt::Role::Manager => &mut cluster.manager_token_secret,
        };
        *secret = replica.random.draw(|rng| new_secret(secret.as_text(), rng)).into();
        let mut tx = WriteTx::new(view, &request.request_id);
        tx.update(cluster);
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    rotated.await?;
    info(&replica.store.view())
}
