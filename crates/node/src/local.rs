//! Serves what this machine's root may ask of its own node.

use std::future::Future;
use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use flota_api::image_ref::ImageRef;
use flota_api::proto::node::local_node_server::LocalNode;
use flota_api::proto::node::{
    ImageResult, ImageUpload, InfoRequest, InitRequest, JoinRequest, LeaveRequest, LeaveResponse, NodeInfo,
    PullImageRequest, StopTasksRequest, StopTasksResponse,
};
use flota_image::{Credentials, Image};
use flota_worker::Worker;

use crate::join::Unreachable;
use crate::node::Node;
use crate::uploads::UploadReader;

/// A program that is larger is not packed.
const PROGRAM_BOUND: usize = 512 << 20;

/// Serves LocalNode.
#[derive(Clone, Debug)]
pub(crate) struct LocalService(pub(crate) Arc<Node>);

/// A manager that can't be reached is told as such.
fn refused(error: anyhow::Error) -> Status {
    let text = format!("{error:#}");
    if error.is::<Unreachable>() { Status::unavailable(text) } else { Status::failed_precondition(text) }
}

/// Done to its end also when whoever asked goes away in the middle (Ctrl-C): half of it would be worse than either.
async fn whole(work: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Result<(), Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(refused),
        Err(error) => Err(Status::internal(format!("it broke off: {error}"))),
    }
}

fn chain(error: &dyn std::error::Error) -> Status {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if !text.ends_with(&cause.to_string()) {
            text = format!("{text}: {cause}");
        }
        source = cause.source();
    }
    Status::failed_precondition(text)
}

fn result(image: &Image, reference: String) -> Response<ImageResult> {
    Response::new(ImageResult { reference, digest: image.digest.clone(), size: image.size() })
}

fn reference(text: &str) -> Result<String, Status> {
    ImageRef::parse(text).map(|it| it.to_string()).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl LocalService {
    async fn worker(&self) -> Result<Arc<Worker>, Status> {
        let none = || {
            Status::failed_precondition("this node belongs to no cluster: `ctl swarm init` or `ctl swarm join` first")
        };
        self.0.worker().await.ok_or_else(none)
    }
}

#[tonic::async_trait]
impl LocalNode for LocalService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<NodeInfo>, Status> {
        self.0.info().await.map(Response::new)
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<NodeInfo>, Status> {
        if request.get_ref().force_new_cluster {
            return Err(Status::unimplemented("--force-new-cluster is not there yet"));
        }
        let node = Arc::clone(&self.0);
        let advertise = request.into_inner().advertise;
        whole(async move { node.init(&advertise).await }).await?;
        self.0.info().await.map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<NodeInfo>, Status> {
        let request = request.into_inner();
        let node = Arc::clone(&self.0);
        whole(async move { node.join(&request.token, &request.manager, &request.advertise).await }).await?;
        self.0.info().await.map(Response::new)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let node = Arc::clone(&self.0);
        whole(async move { node.leave(request.into_inner().force).await }).await?;
        Ok(Response::new(LeaveResponse {}))
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
        let (image, reference) = worker.import(archive, &first.reference).await.map_err(|error| chain(&error))?;
        Ok(result(&image, reference))
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
        let image = worker.pack(&first.program, program, &reference).await.map_err(|error| chain(&error))?;
        Ok(result(&image, reference))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<ImageResult>, Status> {
        let worker = self.worker().await?;
        let request = request.into_inner();
        let reference = reference(&request.reference)?;
        let given = (!request.username.is_empty()).then_some((request.username, request.password));
        let known = || self.0.manager().and_then(|manager| manager.credentials(&reference));
        let credentials = given.or_else(known).map(|(username, password)| Credentials { username, password });
        let image = worker.pull(&reference, credentials).await.map_err(|error| chain(&error))?;
        Ok(result(&image, reference))
    }
}
