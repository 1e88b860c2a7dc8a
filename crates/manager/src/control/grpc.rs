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

use super::ca::GivenPem;
use super::error::ControlError;
use super::images::Naming;
use super::limits::{Held, OpenStream};
use super::progress::Watch;
use super::registries::RegistrySummary;
use super::stacks::Absent;
use super::tasks::TaskScope;
use super::users::NewUser;
use super::{Control, Member};
use crate::caller::Caller;
use crate::dispatcher::Programmed;
use crate::replica::Replica;
use crate::resolver::Resolver;
use crate::streams::StreamBroker;
use convert::{
    events_until, filters, freshness, image_platforms, network_spec, node_spec, resolve_image, role, service_spec,
    stack_spec, stack_values, unlock_key, user_role, value_kind, value_spec, version, volume_spec,
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

    /// Returns the operations for the caller of this request.
    fn by<T>(&self, request: &Request<T>) -> Control<RaftNode> {
        // Every request comes through `admission.rs`, which adds the caller.
        self.control.by(request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::nobody))
    }
}

impl<M: Member> Control<M> {
    fn key(&self, method: &str, request_id: &str) -> Option<String> {
        self.caller.request_key(method, request_id)
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

/// Returns the reports as a stream that holds the place of its user as long as it is open.
fn watched<T: Send + 'static, W: From<T> + 'static>(place: Option<OpenStream>, watch: Watch<T>) -> Reply<Answers<W>> {
    let reports = ReceiverStream::new(watch).map(move |report| {
        let _held = &place;
        report.map(W::from).map_err(Status::from)
    });
    Ok(Response::new(Box::pin(reports)))
}

#[tonic::async_trait]
impl Api for ControlService {
    async fn get_cluster(&self, request: Request<Empty>) -> Reply<pc::ClusterInfo> {
        let control = self.by(&request);
        reply(control.get_cluster().await)
    }

    async fn rotate_join_token(&self, request: Request<pc::RotateJoinTokenRequest>) -> Reply<pc::ClusterInfo> {
        let control = self.by(&request);
        let request = request.into_inner();
        let (key, ttl) =
            (control.key("rotate_join_token", &request.request_id), request.ttl_ms.map(Duration::from_millis));
        reply(control.rotate_join_token(key.as_deref(), role(request.role)?, ttl).await)
    }

    async fn update_cluster(&self, request: Request<pc::UpdateClusterRequest>) -> Reply<pc::ClusterInfo> {
        let control = self.by(&request);
        let request = request.into_inner();
        let key = control.key("update_cluster", &request.request_id);
        reply(control.update_cluster(key.as_deref(), request.into()).await)
    }

    async fn rebalance(&self, request: Request<pc::RebalanceRequest>) -> Reply<pc::ClusterInfo> {
        let control = self.by(&request);
        reply(control.rebalance(control.key("rebalance", &request.get_ref().request_id).as_deref()).await)
    }

    async fn get_unlock_key(&self, request: Request<Empty>) -> Reply<pc::UnlockKeyInfo> {
        let control = self.by(&request);
        reply(control.get_unlock_key().await.map(unlock_key))
    }

    async fn rotate_unlock_key(&self, request: Request<pc::RotateUnlockKeyRequest>) -> Reply<pc::UnlockKeyInfo> {
        let control = self.by(&request);
        let key = control.key("rotate_unlock_key", &request.get_ref().request_id);
        reply(control.rotate_unlock_key(key.as_deref()).await.map(unlock_key))
    }

    async fn get_ca(&self, request: Request<Empty>) -> Reply<pc::CaInfo> {
        let control = self.by(&request);
        reply(control.get_ca().await)
    }

    async fn rotate_ca(&self, request: Request<pc::RotateCaRequest>) -> Reply<pc::CaInfo> {
        let control = self.by(&request);
        let pc::RotateCaRequest { request_id, ca } = request.into_inner();
        let given = ca.as_ref().map(|it| GivenPem { certificate: &it.certificate_pem, key: &it.key_pem });
        reply(control.rotate_ca(control.key("rotate_ca", &request_id).as_deref(), given).await)
    }

    async fn get_node(&self, request: Request<pc::GetRequest>) -> Reply<pc::NodeRow> {
        let control = self.by(&request);
        reply(control.get_node(&request.get_ref().name).await)
    }

    type ListNodesStream = Answers<pc::Nodes>;

    async fn list_nodes(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListNodesStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let nodes = control.list_nodes(freshness(stale), &filters(wanted)).await?;
        Ok(pages(nodes, pc::NodeRow::from, |header, nodes| pc::Nodes { header, nodes }))
    }

    async fn update_node(&self, request: Request<pc::UpdateNodeRequest>) -> Reply<po::Node> {
        let control = self.by(&request);
        let pc::UpdateNodeRequest { request_id, node, version: expected, spec } = request.into_inner();
        let spec = node_spec(spec)?;
        let updated = control
            .update_node(control.key("update_node", &request_id).as_deref(), &node, version(expected), &spec)
            .await?;
        Ok(Response::new(updated.as_ref().into()))
    }

    async fn change_role(&self, request: Request<pc::ChangeRoleRequest>) -> Reply<po::Node> {
        let control = self.by(&request);
        let pc::ChangeRoleRequest { request_id, node, role: wanted } = request.into_inner();
        let key = control.key("change_role", &request_id);
        let changed = control.change_role(key.as_deref(), &node, role(wanted)?).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn remove_node(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force } = request.into_inner();
        done(control.remove_node(control.key("remove_node", &request_id).as_deref(), &name, force).await)
    }

    async fn get_service(&self, request: Request<pc::GetRequest>) -> Reply<pc::ServiceRow> {
        let control = self.by(&request);
        reply(control.get_service(&request.get_ref().name).await)
    }

    async fn create_service(&self, request: Request<pc::CreateServiceRequest>) -> Reply<pc::ServiceChange> {
        let control = self.by(&request);
        let pc::CreateServiceRequest { request_id, spec, resolve_image: when } = request.into_inner();
        let key = control.key("create_service", &request_id);
        reply(control.create_service(key.as_deref(), service_spec(spec)?, resolve_image(when)?).await)
    }

    async fn update_service(&self, request: Request<pc::UpdateServiceRequest>) -> Reply<pc::ServiceChange> {
        let control = self.by(&request);
        let pc::UpdateServiceRequest {
            request_id,
            service,
            version: expected,
            spec,
            resolve_image: when,
            sets_replicas,
        } = request.into_inner();
        let (spec, when, expected) = (service_spec(spec)?, resolve_image(when)?, version(expected));
        let key = control.key("update_service", &request_id);
        reply(control.update_service(key.as_deref(), &service, expected, &spec, when, sets_replicas).await)
    }

    async fn remove_service(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(control.remove_service(control.key("remove_service", &request_id).as_deref(), &name).await)
    }

    async fn rollback_service(&self, request: Request<pc::RollbackServiceRequest>) -> Reply<po::Service> {
        let control = self.by(&request);
        let pc::RollbackServiceRequest { request_id, service, version } = request.into_inner();
        let request_id = control.key("rollback_service", &request_id);
        let restored = control.rollback_service(request_id.as_deref(), &service, version).await?;
        Ok(Response::new(restored.as_ref().into()))
    }

    async fn run_service(&self, request: Request<pc::RunServiceRequest>) -> Reply<po::Service> {
        let control = self.by(&request);
        let pc::RunServiceRequest { request_id, service } = request.into_inner();
        let request_id = control.key("run_service", &request_id);
        let changed = control.run_service(request_id.as_deref(), &service).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn pause_update(&self, request: Request<pc::PauseUpdateRequest>) -> Reply<po::Service> {
        let control = self.by(&request);
        let pc::PauseUpdateRequest { request_id, service, paused } = request.into_inner();
        let request_id = control.key("pause_update", &request_id);
        let changed = control.pause_update(request_id.as_deref(), &service, paused).await?;
        Ok(Response::new(changed.as_ref().into()))
    }

    async fn get_service_history(&self, request: Request<pc::GetRequest>) -> Reply<pc::ServiceHistory> {
        let control = self.by(&request);
        let history = control.service_history(&request.get_ref().name).await?;
        let revisions = history.into_iter().map(|(revision, spec)| pc::ServiceRevision {
            revision: Some((&revision).into()),
            spec: Some(spec.as_ref().into()),
        });
        Ok(Response::new(pc::ServiceHistory { revisions: revisions.collect() }))
    }

    type ListServicesStream = Answers<pc::Services>;

    async fn list_services(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListServicesStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let services = control.list_services(freshness(stale), &filters(wanted)).await?;
        Ok(pages(services, pc::ServiceRow::from, |header, services| pc::Services { header, services }))
    }

    type WatchServiceStream = Answers<pc::ServiceProgress>;

    async fn watch_service(&self, request: Request<pc::WatchServiceRequest>) -> Reply<Self::WatchServiceStream> {
        let control = self.by(&request);
        watched(control.place(Held::Watch)?, control.watch_service(&request.get_ref().service).await?)
    }

    async fn get_task(&self, request: Request<pc::GetRequest>) -> Reply<pc::TaskRow> {
        let control = self.by(&request);
        let task = control.get_task(&request.get_ref().name).await?;
        let container_labels = task.container_labels();
        Ok(Response::new(pc::TaskRow { container_labels, ..task.into() }))
    }

    type ListTasksStream = Answers<pc::Tasks>;

    async fn list_tasks(&self, request: Request<pc::ListTasksRequest>) -> Reply<Self::ListTasksStream> {
        let control = self.by(&request);
        let pc::ListTasksRequest { stale, filters: wanted, services, nodes } = request.into_inner();
        let scope = TaskScope { services, nodes };
        let tasks = control.list_tasks(freshness(stale), &scope, &filters(wanted)).await?;
        let notes = scope.notes(&control.seen(control.store.view()));
        Ok(pages(tasks, pc::TaskRow::from, move |header, tasks| {
            let notes = if header.is_some() { notes.clone() } else { Vec::new() };
            pc::Tasks { header, tasks, notes }
        }))
    }

    async fn remove_task(&self, request: Request<pc::RemoveTaskRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveTaskRequest { request_id, name, shrink } = request.into_inner();
        done(control.remove_task(control.key("remove_task", &request_id).as_deref(), &name, shrink).await)
    }

    type WatchEventsStream = Answers<pc::Events>;

    async fn watch_events(&self, request: Request<pc::WatchEventsRequest>) -> Reply<Self::WatchEventsStream> {
        let control = self.by(&request);
        let to = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let pc::WatchEventsRequest { stale, filters: wanted, since, until, until_now } = request.into_inner();
        let (since, until) = (since.map(Into::into), events_until(until, until_now));
        watched(
            control.place(Held::Watch)?,
            control.watch_events(to, freshness(stale), &filters(wanted), since, until).await?,
        )
    }

    async fn get_stack(&self, request: Request<pc::GetRequest>) -> Reply<pc::StackRow> {
        let control = self.by(&request);
        reply(control.get_stack(&request.get_ref().name).await)
    }

    async fn deploy_stack(&self, request: Request<pc::DeployStackRequest>) -> Reply<pc::StackChange> {
        let control = self.by(&request);
        let pc::DeployStackRequest { request_id, spec, resolve_image: when, prune, values } = request.into_inner();
        reply(
            control
                .deploy_stack(
                    control.key("deploy_stack", &request_id).as_deref(),
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
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let stacks = control.list_stacks(freshness(stale), &filters(wanted)).await?;
        Ok(pages(stacks, pc::StackRow::from, |header, stacks| pc::Stacks { header, stacks }))
    }

    async fn remove_stack(&self, request: Request<pc::RemoveStackRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveStackRequest { request_id, name, volumes } = request.into_inner();
        done(control.remove_stack(control.key("remove_stack", &request_id).as_deref(), &name, volumes).await)
    }

    async fn get_image(&self, request: Request<pc::GetRequest>) -> Reply<po::Image> {
        let control = self.by(&request);
        let image = control.get_image(&request.get_ref().name).await?;
        Ok(Response::new(image.as_ref().into()))
    }

    type ListImagesStream = Answers<pc::Images>;

    async fn list_images(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListImagesStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let images = control.list_images(freshness(stale), &filters(wanted)).await?;
        Ok(pages(images, pc::ImageRow::from, |header, images| pc::Images { header, images }))
    }

    async fn name_image(&self, request: Request<pc::NameImageRequest>) -> Reply<po::Image> {
        let control = self.by(&request);
        let pc::NameImageRequest { request_id, reference, digest, size, node, platforms } = request.into_inner();
        let platforms = image_platforms(platforms);
        let naming = Naming { reference, digest, size, node: node.into(), platforms };
        let image = control.name_image(control.key("name_image", &request_id).as_deref(), &naming).await?;
        Ok(Response::new(image.as_ref().into()))
    }

    async fn remove_image(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force } = request.into_inner();
        done(control.remove_image(control.key("remove_image", &request_id).as_deref(), &name, force).await)
    }

    type WatchImageStream = Answers<pc::ImageProgress>;

    async fn watch_image(&self, request: Request<pc::WatchImageRequest>) -> Reply<Self::WatchImageStream> {
        let control = self.by(&request);
        let pc::WatchImageRequest { image, digest } = request.into_inner();
        watched(
            control.place(Held::Watch)?,
            control.watch_image(image, Some(digest).filter(|it| !it.is_empty())).await?,
        )
    }

    async fn get_network(&self, request: Request<pc::GetRequest>) -> Reply<pc::NetworkRow> {
        let control = self.by(&request);
        reply(control.get_network(&request.get_ref().name).await)
    }

    async fn check_network(&self, request: Request<pc::CheckNetworkRequest>) -> Reply<pc::CheckedNetwork> {
        let control = self.by(&request);
        let pc::CheckNetworkRequest { name, probe } = request.into_inner();
        let nodes = control.check_network(&name, probe).await?;
        Ok(Response::new(pc::CheckedNetwork { nodes: nodes.into_iter().map(Into::into).collect() }))
    }

    async fn create_network(&self, request: Request<pc::CreateNetworkRequest>) -> Reply<po::Network> {
        let control = self.by(&request);
        let pc::CreateNetworkRequest { request_id, spec } = request.into_inner();
        let created =
            control.create_network(control.key("create_network", &request_id).as_deref(), network_spec(spec)?).await?;
        Ok(Response::new(created.as_ref().into()))
    }

    async fn remove_network(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(control.remove_network(control.key("remove_network", &request_id).as_deref(), &name).await)
    }

    type ListNetworksStream = Answers<pc::Networks>;

    async fn list_networks(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListNetworksStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let networks = control.list_networks(freshness(stale), &filters(wanted)).await?;
        Ok(pages(networks, pc::NetworkRow::from, |header, networks| pc::Networks { header, networks }))
    }

    async fn get_volume(&self, request: Request<pc::GetRequest>) -> Reply<pc::VolumeRow> {
        let control = self.by(&request);
        reply(control.get_volume(&request.get_ref().name).await)
    }

    async fn create_volume(&self, request: Request<pc::CreateVolumeRequest>) -> Reply<po::Volume> {
        let control = self.by(&request);
        let pc::CreateVolumeRequest { request_id, spec } = request.into_inner();
        let request_id = control.key("create_volume", &request_id);
        let created = control.create_volume(request_id.as_deref(), volume_spec(spec)?).await?;
        Ok(Response::new(created.as_ref().into()))
    }

    async fn remove_volume(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(control.remove_volume(control.key("remove_volume", &request_id).as_deref(), &name).await)
    }

    type ListVolumesStream = Answers<pc::Volumes>;

    async fn list_volumes(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListVolumesStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let volumes = control.list_volumes(freshness(stale), &filters(wanted)).await?;
        Ok(pages(volumes, pc::VolumeRow::from, |header, volumes| pc::Volumes { header, volumes }))
    }

    async fn get_value(&self, request: Request<pc::GetValueRequest>) -> Reply<pc::ValueRow> {
        let control = self.by(&request);
        let pc::GetValueRequest { kind, name } = request.into_inner();
        reply(control.get_value(value_kind(kind)?, &name).await)
    }

    async fn create_value(&self, request: Request<pc::CreateValueRequest>) -> Reply<pc::ValueRow> {
        let control = self.by(&request);
        let pc::CreateValueRequest { request_id, kind, spec, bytes } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = control.key(&format!("create_{kind}"), &request_id);
        let bytes = bytes.as_ref().to_vec().into();
        reply(control.create_value(request_id.as_deref(), kind, value_spec(spec)?, bytes).await)
    }

    async fn update_value(&self, request: Request<pc::UpdateValueRequest>) -> Reply<pc::UpdatedValue> {
        let control = self.by(&request);
        let pc::UpdateValueRequest { request_id, kind, name, bytes, no_roll } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = control.key(&format!("update_{kind}"), &request_id);
        let bytes = bytes.as_ref().to_vec().into();
        let updated = control.update_value(request_id.as_deref(), kind, &name, bytes, no_roll).await?;
        let (value, services) = updated;
        Ok(Response::new(pc::UpdatedValue { value: Some(value.into()), services }))
    }

    async fn remove_value(&self, request: Request<pc::RemoveValueRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveValueRequest { request_id, kind, name } = request.into_inner();
        let kind = value_kind(kind)?;
        let request_id = control.key(&format!("remove_{kind}"), &request_id);
        done(control.remove_value(request_id.as_deref(), kind, &name).await)
    }

    type ListValuesStream = Answers<pc::Values>;

    async fn list_values(&self, request: Request<pc::ListValuesRequest>) -> Reply<Self::ListValuesStream> {
        let control = self.by(&request);
        let pc::ListValuesRequest { kind, list } = request.into_inner();
        let pc::ListRequest { stale, filters: wanted } = list.unwrap_or_default();
        let values = control.list_values(value_kind(kind)?, freshness(stale), &filters(wanted)).await?;
        Ok(pages(values, pc::ValueRow::from, |header, values| pc::Values { header, values }))
    }

    async fn get_registry(&self, request: Request<pc::GetRequest>) -> Reply<pc::RegistryRow> {
        let control = self.by(&request);
        reply(control.get_registry(&request.get_ref().name).await)
    }

    async fn put_registry(&self, request: Request<pc::PutRegistryRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::PutRegistryRequest { request_id, host, username, password } = request.into_inner();
        done(
            control
                .put_registry(
                    control.key("put_registry", &request_id).as_deref(),
                    RegistrySummary { host, username },
                    password,
                )
                .await,
        )
    }

    async fn remove_registry(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(control.remove_registry(control.key("remove_registry", &request_id).as_deref(), &name).await)
    }

    type ListRegistriesStream = Answers<pc::Registries>;

    async fn list_registries(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListRegistriesStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let registries = control.list_registries(freshness(stale), &filters(wanted)).await?;
        Ok(pages(registries, pc::RegistryRow::from, |header, registries| pc::Registries { header, registries }))
    }

    async fn check_forward(&self, request: Request<pc::GetRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        done(control.check_forward(&request.get_ref().name).await)
    }

    type OpenStreamStream = Answers<Frame>;

    async fn open_stream(&self, request: Request<Streaming<Frame>>) -> Reply<Self::OpenStreamStream> {
        let control = self.by(&request);
        let place = control.place(Held::Stream)?;
        // The response begins before the request is served, because the user may wait for it before the first frame.
        let frames = streams::serve(control, request.into_inner()).try_flatten_stream();
        let frames = frames.map(move |frame| {
            let _held = &place;
            frame
        });
        Ok(Response::new(Box::pin(frames)))
    }

    async fn create_user(&self, request: Request<pc::CreateUserRequest>) -> Reply<pc::UserGrant> {
        let control = self.by(&request);
        let pc::CreateUserRequest { request_id, name, role, prefixes, csr_der, life_ms } = request.into_inner();
        let (key, role) = (control.key("create_user", &request_id), user_role(role)?);
        let life = life_ms.map(Duration::from_millis);
        reply(control.create_user(key.as_deref(), NewUser { name, role, prefixes }, &csr_der, life).await)
    }

    async fn renew_user(&self, request: Request<pc::RenewUserRequest>) -> Reply<pc::UserGrant> {
        let control = self.by(&request);
        let pc::RenewUserRequest { request_id, name, csr_der, life_ms } = request.into_inner();
        let (key, life) = (control.key("renew_user", &request_id), life_ms.map(Duration::from_millis));
        reply(control.renew_user(key.as_deref(), &name, &csr_der, life).await)
    }

    async fn remove_user(&self, request: Request<pc::RemoveRequest>) -> Reply<Empty> {
        let control = self.by(&request);
        let pc::RemoveRequest { request_id, name, force: _ } = request.into_inner();
        done(control.remove_user(control.key("remove_user", &request_id).as_deref(), &name).await)
    }

    type ListUsersStream = Answers<pc::Users>;

    async fn list_users(&self, request: Request<pc::ListRequest>) -> Reply<Self::ListUsersStream> {
        let control = self.by(&request);
        let pc::ListRequest { stale, filters: wanted } = request.into_inner();
        let users = control.list_users(freshness(stale), &filters(wanted)).await?;
        Ok(pages(users, |user| po::User::from(user.as_ref()), |header, users| pc::Users { header, users }))
    }
}
