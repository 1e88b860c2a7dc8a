//! Serves LocalNode: requests about this machine from `ctl`, which only root can send.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status, Streaming};

use flota_api::image_ref::ImageRef;
use flota_api::model::RegistryCredentials;
use flota_api::proto::node::local_node_server::LocalNode;
use flota_api::proto::node::{
    BackupRequest, ForceNewClusterRequest, ImageResult, ImageUpload, InfoRequest, InitRequest, JoinRequest,
    LeaveRequest, LeaveResponse, NodeInfo, PullImageRequest, ReconnectRequest, ReconnectResponse, RecoveryReport,
    RestorePart, StopTasksRequest, StopTasksResponse, UnlockRequest,
};
use flota_api::text::with_causes;
use flota_identity::{RootCa, UnlockKey};
use flota_image::Image;
use flota_worker::Worker;

use crate::backups::{self, BackupParts};
use crate::join::Unreachable;
use crate::node::Node;
use crate::uploads::UploadReader;

/// Largest program that `ctl image pack` accepts, in bytes.
const PROGRAM_BOUND: usize = 512 << 20;

/// Serves LocalNode for the node.
#[derive(Clone, Debug)]
pub(crate) struct LocalService(pub(crate) Arc<Node>);

/// A status for an error. `ctl` has an exit code of its own for a manager that can't be reached.
fn status_of(error: anyhow::Error) -> Status {
    let text = format!("{error:#}");
    if error.is::<Unreachable>() { Status::unavailable(text) } else { Status::failed_precondition(text) }
}

/// Completes `work` even if the caller disconnects (Ctrl-C), because half a join is worse than none or a whole one.
async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(status_of),
        Err(error) => Err(Status::internal(format!("the operation panicked: {error}"))),
    }
}

/// A status whose message contains the error and its causes.
fn status_with_causes(error: &(dyn std::error::Error + 'static)) -> Status {
    Status::failed_precondition(with_causes(error))
}

/// Normalises a reference.
fn reference(text: &str) -> Result<ImageRef, Status> {
    ImageRef::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl LocalService {
    async fn worker(&self) -> Result<Arc<Worker>, Status> {
        let no_cluster = || {
            Status::failed_precondition(
                "this node belongs to no cluster; run `ctl swarm init` or `ctl swarm join` first",
            )
        };
        self.0.worker().await.ok_or_else(no_cluster)
    }

    /// Describes an image that this node now holds, so that the caller can name it in the cluster.
    async fn image_result(
        &self,
        worker: &Worker,
        image: &Image,
        references: Vec<String>,
    ) -> Result<Response<ImageResult>, Status> {
        let node_id = self.0.info().await?.node_id;
        let platforms = worker.platforms(image).await.map_err(|error| status_with_causes(&error))?;
        let platforms = platforms.iter().map(Into::into).collect();
        let (digest, size) = (image.digest.clone(), image.size());
        Ok(Response::new(ImageResult { references, digest, size, node_id, platforms }))
    }
}

#[tonic::async_trait]
impl LocalNode for LocalService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<NodeInfo>, Status> {
        self.0.info().await.map(Response::new)
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<NodeInfo>, Status> {
        let node = Arc::clone(&self.0);
        let request = request.into_inner();
        let pools = flota_manager::address_pools(&request.address_pools, request.subnet_length);
        let pools = pools.map_err(|why| Status::invalid_argument(format!("--default-addr-pool: {why}")))?;
        let life = Some(Duration::from_millis(request.certificate_life_ms)).filter(|it| !it.is_zero());
        let checked = life.map_or(Ok(()), flota_manager::check_certificate_life);
        checked.map_err(|why| Status::invalid_argument(format!("--cert-expiry: {why}")))?;
        let given = request.ca.map(|it| RootCa::from_pem(&it.certificate_pem, &it.key_pem, SystemTime::now()));
        let ca = given.transpose().map_err(|error| Status::invalid_argument(format!("--ca-cert: {error}")))?;
        run_to_end(async move { node.init(&request.advertise, &pools, life, ca).await }).await?;
        self.0.info().await.map(Response::new)
    }

    async fn force_new_cluster(
        &self,
        request: Request<ForceNewClusterRequest>,
    ) -> Result<Response<RecoveryReport>, Status> {
        let (node, dry_run) = (Arc::clone(&self.0), request.into_inner().dry_run);
        run_to_end(async move { node.force_new_cluster(dry_run).await }).await.map(Response::new)
    }

    type BackupStream = BackupParts;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<BackupParts>, Status> {
        let source = self.0.backup_source().await.map_err(status_of)?;
        Ok(Response::new(backups::send(source, request.into_inner().passphrase)))
    }

    async fn restore(&self, request: Request<Streaming<RestorePart>>) -> Result<Response<RecoveryReport>, Status> {
        let (backup, settings) = backups::receive(request.into_inner()).await?;
        let node = Arc::clone(&self.0);
        let restored = async move { node.restore(backup, &settings.advertise, settings.dry_run).await };
        run_to_end(restored).await.map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<NodeInfo>, Status> {
        let request = request.into_inner();
        let node = Arc::clone(&self.0);
        run_to_end(async move { node.join(&request.token, &request.manager, &request.advertise).await }).await?;
        self.0.info().await.map(Response::new)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<NodeInfo>, Status> {
        let key = request.into_inner().unlock_key.parse::<UnlockKey>();
        let key = key.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let node = Arc::clone(&self.0);
        run_to_end(async move { node.unlock(&key).await }).await?;
        self.0.info().await.map(Response::new)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let node = Arc::clone(&self.0);
        run_to_end(async move { node.leave(request.into_inner().force).await }).await?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn reconnect(&self, request: Request<ReconnectRequest>) -> Result<Response<ReconnectResponse>, Status> {
        let found = self.0.reconnect(&request.into_inner().managers).await.map_err(status_of)?;
        Ok(Response::new(ReconnectResponse { found }))
    }

    async fn stop_tasks(&self, _: Request<StopTasksRequest>) -> Result<Response<StopTasksResponse>, Status> {
        if let Some(worker) = self.0.worker().await {
            worker.stop_tasks().await;
        }
        Ok(Response::new(StopTasksResponse {}))
    }

    async fn import_image(&self, request: Request<Streaming<ImageUpload>>) -> Result<Response<ImageResult>, Status> {
        let worker = self.worker().await?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("the archive is empty"))?;
        let archive = UploadReader::start(first.data, stream);
        let (image, references) =
            worker.import(archive, &first.reference).await.map_err(|error| status_with_causes(&error))?;
        self.image_result(&worker, &image, references).await
    }

    async fn pack_image(&self, request: Request<Streaming<ImageUpload>>) -> Result<Response<ImageResult>, Status> {
        let worker = self.worker().await?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("the program is empty"))?;
        let reference = reference(&first.reference)?;
        let mut program = first.data.to_vec();
        while let Some(next) = stream.message().await? {
            if program.len() + next.data.len() > PROGRAM_BOUND {
                return Err(Status::invalid_argument(format!("the program has more than {PROGRAM_BOUND} bytes")));
            }
            program.extend_from_slice(&next.data);
        }
        let image = worker.pack(&first.program, program).await.map_err(|error| status_with_causes(&error))?;
        self.image_result(&worker, &image, vec![reference.to_string()]).await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<ImageResult>, Status> {
        let worker = self.worker().await?;
        let request = request.into_inner();
        let reference = reference(&request.reference)?;
        let given = (!request.username.is_empty()).then(|| RegistryCredentials {
            host: reference.registry.clone(),
            username: request.username,
            password: request.password.into(),
        });
        let login = given.or_else(|| self.0.manager()?.credentials(&reference));
        let pulled = worker.pull(&reference, login.as_ref()).await;
        let image = pulled.map_err(|error| status_with_causes(&error))?;
        self.image_result(&worker, &image, vec![reference.to_string()]).await
    }
}
