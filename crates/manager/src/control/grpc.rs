//! The gRPC front of the Control API: each method converts a request, calls one operation, and converts its answer or
//! its error. It contains no other logic.

mod convert;
mod pages;
mod status;
mod streams;

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, TryFutureExt};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::proto::control::control_server::{Control as Api, ControlServer};
use flota_api::proto::control::{self as pc, Empty};
use flota_api::proto::objects as po;
use flota_api::proto::streams::Frame;
use flota_identity::Peer;
use flota_raft_store::raft::RaftNode;

use super::Control;
use super::ca::GivenPem;
use super::cluster::ClusterDefaults;
use super::error::ControlError;
use super::images::Naming;
use super::progress::Watch;
use super::registries::RegistrySummary;
use super::stacks::Absent;
use super::tasks::TaskScope;
use crate::dispatcher::Programmed;
use crate::replica::Replica;
use crate::resolver::Resolver;
use crate::streams::StreamBroker;
use convert::{
    events_until, filters, freshness, image_platforms, network_spec, node_spec, request_key, resolve_image, role,
    service_spec, stack_spec, stack_values, value_kind, value_spec, version, volume_spec,
};
use pages::pages;

/// Serves Control.
#[derive(Clone, Debug)]
pub struct ControlService {
    control: Control<RaftNode>,
}

impl ControlService {
    /// Creates the service. Exec, logs and forwarded connections reach the workers through `streams`.
    pub(crate) fn server(
        replica: &Replica,
        resolver: Resolver,
        programmed: Programmed,
        streams: StreamBroker,
    ) -> ControlServer<Self> {
        ControlServer::new(Self { control: Control::new(replica, resolver, programmed, streams) })
            .max_decoding_message_size(MESSAGE_BOUND)
            .max_encoding_message_size(MESSAGE_BOUND)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<T>, Status>;

fn reply<T, W: From<T>>(answer: Result<T, ControlError>) -> Reply<W> {
    answer.map(|answer| Response::new(answer.into())).map_err(Into::into)
}

fn done(answer: Result<(), ControlError>) -> Reply<Empty> {
    answer.map(|()| Response::new(Empty {})).map_err(Into::into)
}

fn watched<T: Send + 'static, W: From<T> + 'static>(watch: Result<Watch<T>, ControlError>) -> Reply<Answers<W>> {
    let reports = ReceiverStream::new(watch?).map(|report| report.map(W::from).map_err(Status::from));
    Ok(Response::new(Box::pin(reports)))
}

#[tonic::async_trait]
impl Api for ControlService {
    async fn get_cluster(&self, _: Request<Empty>) -> Reply<pc::ClusterInfo> {
        reply(self.control.get_cluster().await)
    }

    async fn rotate_join_token(&self, request: Request<pc::RotateJoinTokenRequest>) -> Reply<pc::ClusterInfo> {
        let request = request.into_inner();
        reply(
            self.control
                .rotate_join_token(
                    request_key("rotate_join_token", &request.request_id).as_deref(),
                    role(request.role)?,
                    request.ttl_ms.map(Duration::from_millis),
                )
                .await,
        )
    }

    async fn update_cluster(&self, request: Request<pc::UpdateClusterRequest>) -> Reply<pc::ClusterInfo> {
        let request = request.into_inner();
        let defaults = ClusterDefaults {
            no_new_privileges: request.no_new_privileges,
            auto_rebalance: request.auto_rebalance,
            heartbeat: request.heartbeat_ms.map(Duration::from_millis),
            heartbeats_missed: request.heartbeats_missed,
            certificate_life: request.certificate_life_ms.map(Duration::from_millis),
            dead_manager_after: request.dead_manager_after_ms.map(Duration::from_millis),
            task_history_limit: request.task_history_limit,
        };
        let key = request_key("update_cluster", &request.request_id);
        reply(self.control.update_cluster(key.as_deref(), defaults).await)
    }

    async fn rebalance(&self, request: Request<pc::RebalanceRequest>) -> Reply<pc::ClusterInfo> {
        reply(self.control.rebalance(request_key("rebalance", &request.get_ref().request_id).as_deref()).await)
    }

    async fn get_ca(&self, _: Request<Empty>) -> Reply<pc::CaInfo> {
        reply(self.control.get_ca().await)
    }

    async fn rotate_ca(&self, request: Request<pc::RotateCaRequest>) -> Reply<pc::CaInfo> {
        let pc::RotateCaRequest { request_id, ca } = request.into_inner();
        let given = ca.as_ref().map(|it| GivenPem { certificate: &it.certificate_pem, key: &it.key_pem });
        reply(self.control.rotate_ca(request_key("rotate_ca", &request_id).as_deref(), given).await)
    }

    async fn get_node(&self, request: Request<pc::GetRequest>) -> Reply<pc::NodeRow> {
        reply(self.control.get_node(&request.get_ref().name).await)
    }

    type ListNodesStream = Answers<pc::Nodes>;

    async fn list_nodes(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListNodesStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let nodes = self.control.list_nodes(freshness(stale), &filters(wanted)).await?;
        Ok(pages(nodes, pc::NodeRow::from, |header, nodes| pc::Nodes { header, nodes }))
    }

    async fn update_node(&self, request: Request<pc::UpdateNodeRequest>) -> Reply<po::Node> {
        let pc::UpdateNodeRequest { request_id, node, version: expected, spec } = request.into_inner();
        let spec = node_spec(spec)?;
        let updated = self
            .control
            .update_node(request_key("update_node", &request_id).as_deref(), &node, version(expected), &spec)
            .await?;
        Ok(Response::new(updated.as_ref().into()))
    }

    async fn change_role(&self, request: Request<pc::ChangeRoleRequest>) -> Reply<po::Node> {
        let pc::ChangeRoleRequest { request_id, node, role: wanted } = request.into_inner();
        let key = request_key("change_role", &request_id);
        let changed = self.control.change_role(key.as_deref(), &node, role(wanted)?).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn remove_node(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force } = request.into_inner();
        done(self.control.remove_node(request_key("remove_node", &request_id).as_deref(), &name, force).await)
    }

    async fn get_service(&self, request: Request<pc::GetRequest>) -> Reply<pc::ServiceRow> {
        reply(self.control.get_service(&request.get_ref().name).await)
    }

    async fn create_service(&self, request: Request<pc::CreateServiceRequest>) -> Reply<pc::ServiceChange> {
        let pc::CreateServiceRequest { request_id, spec, resolve_image: when } = request.into_inner();
        reply(
            self.control
                .create_service(
                    request_key("create_service", &request_id).as_deref(),
                    service_spec(spec)?,
                    resolve_image(when)?,
                )
                .await,
        )
    }

    async fn update_service(&self, request: Request<pc::UpdateServiceRequest>) -> Reply<pc::ServiceChange> {
        let pc::UpdateServiceRequest {
            request_id,
            service,
            version: expected,
            spec,
            resolve_image: when,
            sets_replicas,
        } = request.into_inner();
        let (spec, when) = (service_spec(spec)?, resolve_image(when)?);
        reply(
            self.control
                .update_service(
                    request_key("update_service", &request_id).as_deref(),
                    &service,
                    version(expected),
                    &spec,
                    when,
                    sets_replicas,
                )
                .await,
        )
    }

    async fn remove_service(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(self.control.remove_service(request_key("remove_service", &request_id).as_deref(), &name).await)
    }

    async fn rollback_service(&self, request: Request<pc::RollbackServiceRequest>) -> Reply<po::Service> {
        let pc::RollbackServiceRequest { request_id, service, version } = request.into_inner();
        let request_id = request_key("rollback_service", &request_id);
        let restored = self.control.rollback_service(request_id.as_deref(), &service, version).await?;
        Ok(Response::new(restored.as_ref().into()))
    }

    async fn run_service(&self, request: Request<pc::RunServiceRequest>) -> Reply<po::Service> {
        let pc::RunServiceRequest { request_id, service } = request.into_inner();
        let request_id = request_key("run_service", &request_id);
        let changed = self.control.run_service(request_id.as_deref(), &service).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn pause_update(&self, request: Request<pc::PauseUpdateRequest>) -> Reply<po::Service> {
        let pc::PauseUpdateRequest { request_id, service, paused } = request.into_inner();
        let request_id = request_key("pause_update", &request_id);
        let changed = self.control.pause_update(request_id.as_deref(), &service, paused).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn get_service_history(&self, request: Request<pc::GetRequest>) -> Reply<pc::ServiceHistory> {
        let history = self.control.service_history(&request.get_ref().name).await?;
        let revisions = history.into_iter().map(|(revision, spec)| pc::ServiceRevision {
            revision: Some((&revision).into()),
            spec: Some(spec.as_ref().into()),
        });
        Ok(Response::new(pc::ServiceHistory { revisions: revisions.collect() }))
    }

    type ListServicesStream = Answers<pc::Services>;

    async fn list_services(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListServicesStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let services = self.control.list_services(freshness(stale), &filters(wanted)).await?;
        Ok(pages(services, pc::ServiceRow::from, |header, services| pc::Services { header, services }))
    }

    type WatchServiceStream = Answers<pc::ServiceProgress>;

    async fn watch_service(&self, request: Request<pc::WatchServiceRequest>) -> Reply<Self::WatchServiceStream> {
        watched(self.control.watch_service(&request.get_ref().service).await)
    }

    async fn get_task(&self, request: Request<pc::GetRequest>) -> Reply<pc::TaskRow> {
        let task = self.control.get_task(&request.get_ref().name).await?;
        let container_labels = task.container_labels();
        Ok(Response::new(pc::TaskRow { container_labels, ..task.into() }))
    }

    type ListTasksStream = Answers<pc::Tasks>;

    async fn list_tasks(&self, request: Request<pc::ListTasksRequest>) -> Reply<Self::ListTasksStream> {
        let pc::ListTasksRequest { stale, filters: wanted, services, nodes } = request.into_inner();
        let scope = TaskScope { services, nodes };
        let tasks = self.control.list_tasks(freshness(stale), &scope, &filters(wanted)).await?;
        let notes = scope.notes(&self.control.store.view());
        Ok(pages(tasks, pc::TaskRow::from, move |header, tasks| {
            let notes = if header.is_some() { notes.clone() } else { Vec::new() };
            pc::Tasks { header, tasks, notes }
        }))
    }

    async fn remove_task(&self, request: Request<pc::RemoveTaskRequest>) -> Reply<Empty> {
        let pc::RemoveTaskRequest { request_id, name, shrink } = request.into_inner();
        done(self.control.remove_task(request_key("remove_task", &request_id).as_deref(), &name, shrink).await)
    }

    type WatchEventsStream = Answers<pc::Events>;

    async fn watch_events(&self, request: Request<pc::WatchEventsRequest>) -> Reply<Self::WatchEventsStream> {
        let to = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let pc::WatchEventsRequest { stale, filters: wanted, since, until, until_now } = request.into_inner();
        let (since, until) = (since.map(Into::into), events_until(until, until_now));
        watched(self.control.watch_events(to, freshness(stale), &filters(wanted), since, until).await)
    }

    async fn get_stack(&self, request: Request<pc::GetRequest>) -> Reply<pc::StackRow> {
        reply(self.control.get_stack(&request.get_ref().name).await)
    }

    async fn deploy_stack(&self, request: Request<pc::DeployStackRequest>) -> Reply<pc::StackChange> {
        let pc::DeployStackRequest { request_id, spec, resolve_image: when, prune, values } = request.into_inner();
        reply(
            self.control
                .deploy_stack(
                    request_key("deploy_stack", &request_id).as_deref(),
                    &stack_spec(spec)?,
                    &stack_values(values)?,
                    if prune { Absent::Remove } else { Absent::Keep },
                    resolve_image(when)?,
                )
                .await,
        )
    }

    type ListStacksStream = Answers<pc::Stacks>;

    async fn list_stacks(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListStacksStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let stacks = self.control.list_stacks(freshness(stale), &filters(wanted)).await?;
        Ok(pages(stacks, pc::StackRow::from, |header, stacks| pc::Stacks { header, stacks }))
    }

    async fn remove_stack(&self, request: Request<pc::RemoveStackRequest>) -> Reply<Empty> {
        let pc::RemoveStackRequest { request_id, name, volumes } = request.into_inner();
        done(self.control.remove_stack(request_key("remove_stack", &request_id).as_deref(), &name, volumes).await)
    }

    async fn get_image(&self, request: Request<pc::GetRequest>) -> Reply<po::Image> {
        let image = self.control.get_image(&request.get_ref().name).await?;
        Ok(Response::new(image.as_ref().into()))
    }

    type ListImagesStream = Answers<pc::Images>;

    async fn list_images(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListImagesStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let images = self.control.list_images(freshness(stale), &filters(wanted)).await?;
        Ok(pages(images, pc::ImageRow::from, |header, images| pc::Images { header, images }))
    }

    async fn name_image(&self, request: Request<pc::NameImageRequest>) -> Reply<po::Image> {
        let pc::NameImageRequest { request_id, reference, digest, size, node, platforms } = request.into_inner();
        let platforms = image_platforms(platforms);
        let naming = Naming { reference, digest, size, node: node.into(), platforms };
        let image = self.control.name_image(request_key("name_image", &request_id).as_deref(), &naming).await?;
        Ok(Response::new(image.as_ref().into()))
    }

    async fn remove_image(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force } = request.into_inner();
        done(self.control.remove_image(request_key("remove_image", &request_id).as_deref(), &name, force).await)
    }

    type WatchImageStream = Answers<pc::ImageProgress>;

    async fn watch_image(&self, request: Request<pc::WatchImageRequest>) -> Reply<Self::WatchImageStream> {
        let pc::WatchImageRequest { image, digest } = request.into_inner();
        watched(self.control.watch_image(image, Some(digest).filter(|it| !it.is_empty())).await)
    }

    async fn get_network(&self, request: Request<pc::GetRequest>) -> Reply<pc::NetworkRow> {
        reply(self.control.get_network(&request.get_ref().name).await)
    }

    async fn check_network(&self, request: Request<pc::CheckNetworkRequest>) -> Reply<pc::CheckedNetwork> {
        let pc::CheckNetworkRequest { name, probe } = request.into_inner();
        let nodes = self.control.check_network(&name, probe).await?;
        Ok(Response::new(pc::CheckedNetwork { nodes: nodes.into_iter().map(Into::into).collect() }))
    }

    async fn create_network(&self, request: Request<pc::CreateNetworkRequest>) -> Reply<po::Network> {
        let pc::CreateNetworkRequest { request_id, spec } = request.into_inner();
        let created = self
            .control
            .create_network(request_key("create_network", &request_id).as_deref(), network_spec(spec)?)
            .await?;
        Ok(Response::new(created.as_ref().into()))
    }

    async fn remove_network(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(self.control.remove_network(request_key("remove_network", &request_id).as_deref(), &name).await)
    }

    type ListNetworksStream = Answers<pc::Networks>;

    async fn list_networks(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListNetworksStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let networks = self.control.list_networks(freshness(stale), &filters(wanted)).await?;
        Ok(pages(networks, pc::NetworkRow::from, |header, networks| pc::Networks { header, networks }))
    }

    async fn get_volume(&self, request: Request<pc::GetRequest>) -> Reply<pc::VolumeRow> {
        reply(self.control.get_volume(&request.get_ref().name).await)
    }

    async fn create_volume(&self, request: Request<pc::CreateVolumeRequest>) -> Reply<po::Volume> {
        let pc::CreateVolumeRequest { request_id, spec } = request.into_inner();
        let request_id = request_key("create_volume", &request_id);
        let created = self.control.create_volume(request_id.as_deref(), volume_spec(spec)?).await?;
        Ok(Response::new(created.as_ref().into()))
    }

    async fn remove_volume(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(self.control.remove_volume(request_key("remove_volume", &request_id).as_deref(), &name).await)
    }

    type ListVolumesStream = Answers<pc::Volumes>;

    async fn list_volumes(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListVolumesStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let volumes = self.control.list_volumes(freshness(stale), &filters(wanted)).await?;
        Ok(pages(volumes, pc::VolumeRow::from, |header, volumes| pc::Volumes { header, volumes }))
    }

    async fn get_value(&self, request: Request<pc::GetValueRequest>) -> Reply<pc::ValueRow> {
        let pc::GetValueRequest { kind, name } = request.into_inner();
        reply(self.control.get_value(value_kind(kind)?, &name).await)
    }

    async fn create_value(&self, request: Request<pc::CreateValueRequest>) -> Reply<pc::ValueRow> {
        let pc::CreateValueRequest { request_id, kind, spec, bytes } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = request_key(&format!("create_{kind}"), &request_id);
        let bytes = bytes.as_ref().to_vec().into();
        reply(self.control.create_value(request_id.as_deref(), kind, value_spec(spec)?, bytes).await)
    }

    async fn update_value(&self, request: Request<pc::UpdateValueRequest>) -> Reply<pc::UpdatedValue> {
        let pc::UpdateValueRequest { request_id, kind, name, bytes, no_roll } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = request_key(&format!("update_{kind}"), &request_id);
        let bytes = bytes.as_ref().to_vec().into();
        let updated = self.control.update_value(request_id.as_deref(), kind, &name, bytes, no_roll).await?;
        let (value, services) = updated;
        Ok(Response::new(pc::UpdatedValue { value: Some(value.into()), services }))
    }

    async fn remove_value(&self, request: Request<pc::RemoveValueRequest>) -> Reply<Empty> {
        let pc::RemoveValueRequest { request_id, kind, name } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = request_key(&format!("remove_{kind}"), &request_id);
        done(self.control.remove_value(request_id.as_deref(), kind, &name).await)
    }

    type ListValuesStream = Answers<pc::Values>;

    async fn list_values(&self, request: Request<pc::ListValuesRequest>) -> Reply<Self::ListValuesStream> {
        let pc::ListValuesRequest { kind, list } = request.into_inner();
        let pc::ListRequest { stale, filters: wanted } = list.unwrap_or_default();
        let values = self.control.list_values(value_kind(kind)?, freshness(stale), &filters(wanted)).await?;
        Ok(pages(values, pc::ValueRow::from, |header, values| pc::Values { header, values }))
    }

    async fn get_registry(&self, request: Request<pc::GetRequest>) -> Reply<pc::RegistryRow> {
        reply(self.control.get_registry(&request.get_ref().name).await)
    }

    async fn put_registry(&self, request: Request<pc::PutRegistryRequest>) -> Reply<Empty> {
        let pc::PutRegistryRequest { request_id, host, username, password } = request.into_inner();
        done(
            self.control
                .put_registry(
                    request_key("put_registry", &request_id).as_deref(),
                    RegistrySummary { host, username },
                    password,
                )
                .await,
        )
    }

    async fn remove_registry(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(self.control.remove_registry(request_key("remove_registry", &request_id).as_deref(), &name).await)
    }

    type ListRegistriesStream = Answers<pc::Registries>;

    async fn list_registries(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListRegistriesStream> {
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let registries = self.control.list_registries(freshness(stale), &filters(wanted)).await?;
        Ok(pages(registries, pc::RegistryRow::from, |header, registries| pc::Registries { header, registries }))
    }

    async fn check_forward(&self, request: Request<pc::GetRequest>) -> Reply<Empty> {
        done(self.control.check_forward(&request.get_ref().name).await)
    }

    type OpenStreamStream = Answers<Frame>;

    async fn open_stream(&self, request: Request<Streaming<Frame>>) -> Reply<Self::OpenStreamStream> {
        // The response begins before the request is served, because the user may wait for it before the first frame.
        let frames = streams::serve(self.control.clone(), request.into_inner()).try_flatten_stream();
        Ok(Response::new(Box::pin(frames)))
    }
}
