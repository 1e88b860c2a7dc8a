//! Serves Control: each method asks its noun's file, and lists wait for a read round first.

use std::pin::Pin;

use futures::Stream;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::control::control_server::{Control, ControlServer};
use flota_api::proto::control::{self as pc, Empty};
use flota_api::proto::objects as po;
use flota_api::proto::streams::Frame;
use flota_raft_store::View;

use super::{cluster, find, images, nodes, progress, registries, services, stacks, status, streams, tasks};
use crate::replica::Replica;
use crate::streams::StreamBroker;

/// Serves Control.
#[derive(Clone, Debug)]
pub struct ControlService {
    replica: Replica,
    streams: StreamBroker,
}

impl ControlService {
    /// Creates the service. Exec and logs reach the workers through `streams`.
    pub(crate) fn server(replica: Replica, streams: StreamBroker) -> ControlServer<Self> {
        ControlServer::new(Self { replica, streams })
            .max_decoding_message_size(MESSAGE_BOUND)
            .max_encoding_message_size(MESSAGE_BOUND)
    }

    /// What is true now; or, where the user wants no more, what this manager knows.
    async fn read(&self, request: &pc::ListRequest) -> Result<(View, Option<pc::ListHeader>), Status> {
        if !request.stale {
            return Ok((self.proven_view().await?, Some(pc::ListHeader { stale: false, age_ms: Some(0) })));
        }
        self.replica.raft.freshen().await;
        // Before the view, which is then at least as new as its age says.
        let age_ms = self.replica.raft.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Ok((self.replica.store.view(), Some(pc::ListHeader { stale: true, age_ms })))
    }

    async fn proven_view(&self) -> Result<View, Status> {
        self.replica.proven_view().await.map_err(|error| status::propose_status(&error))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<T>, Status>;

/// Bytes of one page of a list.
const PAGE: usize = 1 << 20;

/// Rows in pages, the first of them with the header; an empty list is one page too.
fn pages<R, P>(
    header: Option<pc::ListHeader>,
    rows: Vec<R>,
    page: impl Fn(Option<pc::ListHeader>, Vec<R>) -> P + Send + 'static,
) -> Response<Answers<P>>
where
    R: Message + Send + 'static,
    P: Send + 'static,
{
    let (mut rows, mut header) = (rows.into_iter().peekable(), header);
    let mut done = false;
    let next = std::iter::from_fn(move || {
        if std::mem::replace(&mut done, true) {
            return None;
        }
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(row) = rows.next_if(|row| taken.is_empty() || size + row.encoded_len() <= PAGE) {
            size += row.encoded_len();
            taken.push(row);
        }
        done = rows.peek().is_none();
        Some(Ok(page(header.take(), taken)))
    });
    Response::new(Box::pin(tokio_stream::iter(next)))
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn get_cluster(&self, _: Request<Empty>) -> Reply<pc::ClusterInfo> {
        let (view, _) = self.read(&pc::ListRequest { stale: false }).await?;
        cluster::info(&view).map(Response::new)
    }

    async fn rotate_join_token(&self, request: Request<pc::RotateJoinTokenRequest>) -> Reply<pc::ClusterInfo> {
        cluster::rotate(&self.replica, request.into_inner()).await.map(Response::new)
    }

    type ListNodesStream = Answers<pc::Nodes>;

    async fn list_nodes(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListNodesStream> {
        let (_, header) = self.read(request.get_ref()).await?;
        Ok(pages(header, nodes::list(&self.replica), |header, nodes| pc::Nodes { header, nodes }))
    }

    async fn update_node(&self, request: Request<pc::UpdateNodeRequest>) -> Reply<po::Node> {
        nodes::update(&self.replica, request.into_inner()).await.map(Response::new)
    }

    async fn remove_node(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        nodes::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    async fn create_service(&self, request: Request<pc::CreateServiceRequest>) -> Reply<po::Service> {
        let service = services::create(&self.replica, request.into_inner()).await?;
        Ok(Response::new((&service).into()))
    }

    async fn update_service(&self, request: Request<pc::UpdateServiceRequest>) -> Reply<po::Service> {
        let service = services::update(&self.replica, request.into_inner()).await?;
        Ok(Response::new((&service).into()))
    }

    async fn remove_service(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        services::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    type ListServicesStream = Answers<pc::Services>;

    async fn list_services(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListServicesStream> {
        let (view, header) = self.read(request.get_ref()).await?;
        Ok(pages(header, services::list(&view), |header, services| pc::Services { header, services }))
    }

    type WatchServiceStream = Answers<pc::ServiceProgress>;

    async fn watch_service(&self, request: Request<pc::WatchServiceRequest>) -> Reply<Self::WatchServiceStream> {
        let text = request.into_inner().service;
        // What was acknowledged before is not to be missed: neither the service nor its newest spec.
        let view = self.proven_view().await?;
        // By id also when the service is gone already: its tasks may not be.
        let id = match find::find_service(&view, &text) {
            Ok(service) => service.id.clone(),
            Err(status) if !flota_api::id::is_id(&text) => return Err(status),
            Err(_) => text.into(),
        };
        let progress = progress::watch(&self.replica, move |view| {
            let now = progress::service(view, &id);
            let done = now.converged || !now.update_paused.is_empty();
            Ok((now, done))
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    type ListTasksStream = Answers<pc::Tasks>;

    async fn list_tasks(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListTasksStream> {
        let (view, header) = self.read(request.get_ref()).await?;
        Ok(pages(header, tasks::list(&view), |header, tasks| pc::Tasks { header, tasks }))
    }

    async fn remove_task(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        tasks::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    async fn deploy_stack(&self, request: Request<pc::DeployStackRequest>) -> Reply<po::Stack> {
        let stack = stacks::deploy(&self.replica, request.into_inner()).await?;
        Ok(Response::new((&stack).into()))
    }

    type ListStacksStream = Answers<pc::Stacks>;

    async fn list_stacks(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListStacksStream> {
        let (view, header) = self.read(request.get_ref()).await?;
        let stacks = view.stacks().map(|stack| stack.as_ref().into()).collect();
        Ok(pages(header, stacks, |header, stacks| pc::Stacks { header, stacks }))
    }

    async fn remove_stack(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        stacks::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    type ListImagesStream = Answers<pc::Images>;

    async fn list_images(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListImagesStream> {
        let (view, header) = self.read(request.get_ref()).await?;
        let images = view.images().map(|image| image.as_ref().into()).collect();
        Ok(pages(header, images, |header, images| pc::Images { header, images }))
    }

    async fn remove_image(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        images::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    type WatchImageStream = Answers<pc::ImageProgress>;

    async fn watch_image(&self, request: Request<pc::WatchImageRequest>) -> Reply<Self::WatchImageStream> {
        let pc::WatchImageRequest { image: text, digest } = request.into_inner();
        self.proven_view().await?;
        let progress = progress::watch(&self.replica, move |view| {
            // The node that imported it tells the leader by itself: it may not have done so yet.
            let now = progress::image(view, &text, &digest).unwrap_or_default();
            let done = now.converged && now.wanted > 0;
            Ok((now, done))
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn put_registry(&self, request: Request<pc::PutRegistryRequest>) -> Reply<Empty> {
        registries::put(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    async fn remove_registry(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        registries::remove(&self.replica, request.into_inner()).await.map(|()| Response::new(Empty {}))
    }

    type ListRegistriesStream = Answers<pc::Registries>;

    async fn list_registries(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListRegistriesStream> {
        let (view, header) = self.read(request.get_ref()).await?;
        let row = |it: &std::sync::Arc<flota_api::model::Registry>| pc::RegistryRow {
            host: it.host.clone(),
            username: it.username.clone(),
        };
        let rows = view.registries().map(row).collect();
        Ok(pages(header, rows, |header, registries| pc::Registries { header, registries }))
    }

    type OpenStreamStream = Answers<Frame>;

    async fn open_stream(&self, request: Request<Streaming<Frame>>) -> Reply<Self::OpenStreamStream> {
        let answers = streams::open(self.replica.clone(), self.streams.clone(), request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn a_long_list_comes_in_pages_with_nothing_lost() {
        let row = |number: u64| pc::RegistryRow { host: number.to_string(), username: "x".repeat(300 << 10) };
        let list = |count: u64| {
            let header = Some(pc::ListHeader { stale: true, age_ms: Some(7) });
            pages(header, (0..count).map(row).collect(), |header, registries| pc::Registries { header, registries })
        };
        let all: Vec<_> = list(10).into_inner().map(|page| page.expect("a page")).collect().await;
        assert!(all.len() >= 3 && all.iter().all(|page| page.encoded_len() <= PAGE + 100));
        assert!(all[0].header.is_some() && all[1..].iter().all(|page| page.header.is_none()));
        let hosts: Vec<_> = all.iter().flat_map(|page| &page.registries).map(|row| row.host.clone()).collect();
        assert_eq!(hosts, (0..10).map(|number: u64| number.to_string()).collect::<Vec<_>>());
        assert_eq!(list(0).into_inner().count().await, 1, "an empty list has a header too");
    }
}
