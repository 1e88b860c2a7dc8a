//! Conversions between the messages of `control.proto` and the types of the operations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flota_api::model::{
    NetworkSpec, Node, NodeSpec, Platform, Role, Service, ServiceSpec, StackSpec, StackValue, UserRole, ValueKind,
    ValueSpec, VolumeSpec,
};
use flota_api::proto::{control as pc, specs as ps, types as pt};
use flota_api::version::Version;
use flota_api::{Malformed, Violation, validate};
use flota_identity::UnlockKey;

use super::super::Freshness;
use super::super::ca::CaSummary;
use super::super::cluster::{ClusterDefaults, ClusterInfo};
use super::super::error::ControlError;
use super::super::events::{EventPage, Until};
use super::super::filter::Filter;
use super::super::images::NamedImage;
use super::super::networks::{CheckedNode, NetworkSummary};
use super::super::nodes::NodeSummary;
use super::super::pins::{ResolveImage, Warned};
use super::super::progress::{HangingTask, ImageProgress, ServiceProgress};
use super::super::registries::RegistrySummary;
use super::super::services::ServiceSummary;
use super::super::stacks::{self, StackSummary};
use super::super::tasks::TaskSummary;
use super::super::users::UserGrant;
use super::super::values::ValueSummary;
use super::super::volumes::VolumeSummary;
use super::pages::header;

/// Returns the freshness that a list request asks for.
pub(super) fn freshness(stale: bool) -> Freshness {
    if stale { Freshness::Stale } else { Freshness::Linearizable }
}

pub(super) fn filters(filters: Vec<pc::Filter>) -> Vec<Filter> {
    filters.into_iter().map(|it| Filter { key: it.key, value: it.value }).collect()
}

/// Returns the expected version; 0 on the wire means any version.
pub(super) fn version(version: u64) -> Option<Version> {
    Some(version).filter(|version| *version != 0)
}

pub(super) fn role(number: i32) -> Result<Role, ControlError> {
    let role = pt::Role::try_from(number).map_err(|_| ControlError::invalid("role", "it is unknown"))?;
    Ok(role.into())
}

pub(super) fn user_role(number: i32) -> Result<UserRole, ControlError> {
    Ok(UserRole::from_wire(number)?)
}

/// Returns the platforms of an image in their usual spelling.
pub(super) fn image_platforms(platforms: Vec<pt::Platform>) -> Vec<Platform> {
    let named = platforms.iter().filter_map(|it| Platform::new(&it.os, &it.architecture, Some(&it.variant)));
    Platform::of_image(named)
}

pub(super) fn resolve_image(number: i32) -> Result<ResolveImage, ControlError> {
    match pc::ResolveImage::try_from(number) {
        Ok(pc::ResolveImage::Changed) => Ok(ResolveImage::Changed),
        Ok(pc::ResolveImage::Always) => Ok(ResolveImage::Always),
        Ok(pc::ResolveImage::Never) => Ok(ResolveImage::Never),
        Err(_) => Err(ControlError::invalid("resolve_image", "it is unknown")),
    }
}

/// Returns where a stream of events ends; `now` counts if both are given.
pub(super) fn events_until(cursor: Option<pt::EventCursor>, now: bool) -> Option<Until> {
    if now { Some(Until::Now) } else { cursor.map(|cursor| Until::Cursor(cursor.into())) }
}

fn missing_spec() -> ControlError {
    ControlError::invalid("spec", "it is missing")
}

pub(super) fn node_spec(spec: Option<ps::NodeSpec>) -> Result<NodeSpec, ControlError> {
    Ok(spec.ok_or_else(missing_spec)?.try_into()?)
}

/// Returns the spec if nothing is malformed in it. If something is, the error lists the rules that the rest breaks, too.
pub(super) fn service_spec(spec: Option<ps::ServiceSpec>) -> Result<ServiceSpec, ControlError> {
    let (spec, malformed) = ServiceSpec::read(spec.ok_or_else(missing_spec)?);
    refuse(malformed, || validate::violations(&spec))?;
    Ok(spec)
}

/// Fails if something is malformed, with that and with these other violations.
fn refuse(malformed: Vec<Malformed>, others: impl FnOnce() -> Vec<Violation>) -> Result<(), ControlError> {
    if malformed.is_empty() {
        return Ok(());
    }
    Err(ControlError::Invalid(malformed.into_iter().map(Into::into).chain(others()).collect()))
}

pub(super) fn network_spec(spec: Option<ps::NetworkSpec>) -> Result<NetworkSpec, ControlError> {
    Ok(spec.ok_or_else(missing_spec)?.try_into()?)
}

pub(super) fn volume_spec(spec: Option<ps::VolumeSpec>) -> Result<VolumeSpec, ControlError> {
    Ok(spec.ok_or_else(missing_spec)?.into())
}

pub(super) fn value_kind(number: i32) -> Result<ValueKind, ControlError> {
    Ok(ValueKind::from_wire(number)?)
}

pub(super) fn value_spec(spec: Option<ps::ValueSpec>) -> Result<ValueSpec, ControlError> {
    Ok(spec.ok_or_else(missing_spec)?.into())
}

pub(super) fn stack_values(values: Vec<pc::StackValue>) -> Result<Vec<StackValue>, ControlError> {
    values.into_iter().map(|it| Ok(it.try_into()?)).collect()
}

/// As [`service_spec`].
pub(super) fn stack_spec(spec: Option<ps::StackSpec>) -> Result<StackSpec, ControlError> {
    let (spec, malformed) = StackSpec::read(spec.ok_or_else(missing_spec)?);
    refuse(malformed, || stacks::violations(&spec))?;
    Ok(spec)
}

pub(super) fn unlock_key(key: Option<UnlockKey>) -> pc::UnlockKeyInfo {
    pc::UnlockKeyInfo { unlock_key: key.map(|key| key.to_string()).unwrap_or_default() }
}

impl From<pc::UpdateClusterRequest> for ClusterDefaults {
    fn from(request: pc::UpdateClusterRequest) -> Self {
        Self {
            no_new_privileges: request.no_new_privileges,
            auto_rebalance: request.auto_rebalance,
            heartbeat: request.heartbeat_ms.map(Duration::from_millis),
            heartbeats_missed: request.heartbeats_missed,
            certificate_life: request.certificate_life_ms.map(Duration::from_millis),
            renewal_grace: request.renewal_grace_ms.map(Duration::from_millis),
            dead_manager_after: request.dead_manager_after_ms.map(Duration::from_millis),
            task_history_limit: request.task_history_limit,
            autolock: request.autolock,
        }
    }
}

impl From<ClusterInfo> for pc::ClusterInfo {
    fn from(info: ClusterInfo) -> Self {
        Self {
            id: info.cluster.id.to_string(),
            worker_token: info.worker_token.map_or_else(String::new, |it| it.to_string()),
            manager_token: info.manager_token.map_or_else(String::new, |it| it.to_string()),
            epoch: info.cluster.epoch,
            meta: Some((&info.cluster.meta).into()),
            rebalance: info.cluster.rebalance.map(Into::into),
            worker_token_expires_at: info.cluster.worker_token_expires_at.map(|at| at.0),
            manager_token_expires_at: info.cluster.manager_token_expires_at.map(|at| at.0),
            task_history_limit: info.cluster.task_history_limit().get(),
        }
    }
}

impl From<CaSummary> for pc::CaInfo {
    fn from(it: CaSummary) -> Self {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let waiting = |node: Arc<Node>| pc::WaitingNode {
            id: node.id.to_string(),
            name: node.description.hostname.clone(),
            state: pt::NodeState::from(node.state).into(),
            state_since: node.state_since.0,
        };
        Self {
            trusted_der: it.trusted.into_iter().map(Into::into).collect(),
            rotation: it.progress.map(|it| pc::CaProgress {
                begun_at: it.begun_at.0,
                nodes: count(it.nodes),
                renewed: count(it.renewed),
                waiting: it.waiting.into_iter().map(waiting).collect(),
            }),
        }
    }
}

impl From<NodeSummary> for pc::NodeRow {
    fn from(row: NodeSummary) -> Self {
        Self {
            node: Some(row.node.as_ref().into()),
            leader: row.leader,
            role_change: pc::RoleChange::from(row.role_change).into(),
        }
    }
}

impl From<NamedImage> for pc::ImageRow {
    fn from(row: NamedImage) -> Self {
        Self { reference: row.reference.unwrap_or_default(), image: Some(row.image.as_ref().into()) }
    }
}

impl From<ServiceSummary> for pc::ServiceRow {
    fn from(row: ServiceSummary) -> Self {
        Self {
            service: Some(row.service.as_ref().into()),
            running: row.running,
            desired: row.desired,
            done: row.done,
            waits: row.waits.unwrap_or_default(),
        }
    }
}

impl From<Warned<Arc<Service>>> for pc::ServiceChange {
    fn from(it: Warned<Arc<Service>>) -> Self {
        Self { service: Some(it.changed.as_ref().into()), warnings: it.warnings }
    }
}

impl From<Warned<StackSummary>> for pc::StackChange {
    fn from(it: Warned<StackSummary>) -> Self {
        Self { stack: Some(it.changed.into()), warnings: it.warnings }
    }
}

impl From<TaskSummary> for pc::TaskRow {
    fn from(row: TaskSummary) -> Self {
        Self {
            task: Some(row.task.as_ref().into()),
            restarts: row.task.restarts(),
            service_name: row.service_name().to_owned(),
            node_name: row.node_name().to_owned(),
            image: row.image().to_owned(),
            error: row.error(),
            health: row.health().map(|it| pt::HealthState::from(it).into()),
            // They may be long, and a list has many tasks.
            container_labels: BTreeMap::new(),
            crash_loop: row.is_in_crash_loop(),
        }
    }
}

impl From<StackSummary> for pc::StackRow {
    fn from(row: StackSummary) -> Self {
        let services = row.services.into_iter().map(|(id, name)| pc::ServiceName { id: id.into(), name });
        Self { stack: Some(row.stack.as_ref().into()), services: services.collect() }
    }
}

impl From<CheckedNode> for pc::CheckedNode {
    fn from(it: CheckedNode) -> Self {
        let (report, error) = match it.outcome {
            Ok(report) => (Some(report.into()), String::new()),
            Err(why) => (None, why),
        };
        Self { id: it.id.into(), hostname: it.hostname, error, report }
    }
}

impl From<NetworkSummary> for pc::NetworkRow {
    fn from(row: NetworkSummary) -> Self {
        let endpoint = |it: super::super::networks::EndpointSummary| pc::NetworkEndpoint {
            task: it.task,
            node: it.node.unwrap_or_default(),
            addresses: it.addresses,
            state: it.state.as_str().into(),
        };
        let holder = |it: super::super::networks::HolderSummary| pc::NetworkHolder {
            node: it.node,
            addresses: it.addresses,
            programmed: it.programmed,
        };
        Self {
            network: Some(row.network.as_ref().into()),
            services: row.services.into_iter().collect(),
            endpoints: row.endpoints.into_iter().map(endpoint).collect(),
            nodes: row.nodes.into_iter().map(holder).collect(),
            version: row.version,
        }
    }
}

impl From<VolumeSummary> for pc::VolumeRow {
    fn from(row: VolumeSummary) -> Self {
        Self {
            volume: Some(row.volume.as_ref().into()),
            nodes: row.nodes.into_iter().collect(),
            services: row.services.into_iter().collect(),
        }
    }
}

impl From<ValueSummary> for pc::ValueRow {
    fn from(row: ValueSummary) -> Self {
        Self {
            value: Some((&row.value).into()),
            services: row.services.into_iter().collect(),
            bytes: row.bytes.map(|it| it.0.to_vec().into()),
        }
    }
}

impl From<UserGrant> for pc::UserGrant {
    fn from(it: UserGrant) -> Self {
        let all = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
        Self {
            user: Some(it.user.as_ref().into()),
            certificate_der: it.certificate.into(),
            ca_der: all(it.trusted),
            chain_der: all(it.intermediates),
            managers: it.managers,
            cluster_id: it.cluster_id.to_string(),
        }
    }
}

impl From<RegistrySummary> for pc::RegistryRow {
    fn from(row: RegistrySummary) -> Self {
        Self { host: row.host, username: row.username }
    }
}

impl From<EventPage> for pc::Events {
    fn from(it: EventPage) -> Self {
        Self {
            header: it.age.map(header),
            events: it.events.iter().map(|event| event.as_ref().into()).collect(),
            through: Some(it.through.into()),
            until: it.until.map(Into::into),
            last: it.is_last,
        }
    }
}

impl From<HangingTask> for pc::HangingTask {
    fn from(it: HangingTask) -> Self {
        Self { name: it.name, state: it.state.to_string(), reason: it.cause.to_string(), stuck: it.cause.is_stuck() }
    }
}

impl From<ServiceProgress> for pc::ServiceProgress {
    fn from(it: ServiceProgress) -> Self {
        Self {
            running: it.running,
            desired: it.desired,
            converged: it.converged,
            outdated: it.outdated,
            hanging: it.hanging.into_iter().map(Into::into).collect(),
            removed: it.removed,
            done: it.done,
            failed: it.has_failed,
            update: Some((&it.update).into()),
            waits: it.waits.unwrap_or_default(),
        }
    }
}

impl From<ImageProgress> for pc::ImageProgress {
    fn from(it: ImageProgress) -> Self {
        Self { holders: it.holders, wanted: it.wanted, converged: it.converged }
    }
}
