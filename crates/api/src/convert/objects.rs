//! Conversion of the objects that the store holds.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::networks::all;
use super::restarts::untimed;
use super::updates::old_status;
use super::{FromNumber, Malformed, filled, require};
use crate::clock_offset::ClockOffset;
use crate::model::{
    Audit, Cluster, Filter, Image, ImageHolder, Network, Node, NodeStateReason, PendingReason, Rebalance, Registry,
    RestartHistory, Revoked, Secret, Service, Stack, StoredConfig, StoredSecret, Task, User, ValueData, Volume,
};
use crate::object::{Object, StoreObject};
use crate::proto::objects as po;
use crate::version::Timestamp;

impl From<Rebalance> for po::Rebalance {
    fn from(it: Rebalance) -> Self {
        Self { begun_at: it.begun_at.0, moved: it.moved, ended_at: it.ended_at.map(|at| at.0) }
    }
}

impl From<po::Rebalance> for Rebalance {
    fn from(it: po::Rebalance) -> Self {
        Self { begun_at: Timestamp(it.begun_at), moved: it.moved, ended_at: it.ended_at.map(Timestamp) }
    }
}

impl From<&Cluster> for po::Cluster {
    fn from(it: &Cluster) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            epoch: it.epoch,
            feature_level: it.feature_level,
            next_raft_id: it.next_raft_id,
            ca_certificate: it.ca_certificate.clone().into(),
            ca_key: it.ca_key.0.clone().into(),
            worker_token_secret: it.worker_token_secret.as_text().to_owned(),
            manager_token_secret: it.manager_token_secret.as_text().to_owned(),
            worker_token_expires_at: it.worker_token_expires_at.map(|at| at.0),
            manager_token_expires_at: it.manager_token_expires_at.map(|at| at.0),
            grant_key: it.grant_key.0.clone().into(),
            revoked: it
                .revoked
                .iter()
                .map(|it| po::RevokedNode { node_id: it.node_id.to_string(), until: it.until.0 })
                .collect(),
            address_pools: it.address_pools.iter().map(Into::into).collect(),
            no_new_privileges: it.no_new_privileges,
            rebalance: it.rebalance.map(Into::into),
            auto_rebalance: it.auto_rebalance,
            heartbeat_ms: it.heartbeat.map_or(0, millis),
            heartbeats_missed: it.heartbeats_missed.map_or(0, NonZeroU64::get),
            certificate_life_ms: it.certificate_life.map_or(0, millis),
            renewal_grace_ms: it.renewal_grace.map_or(0, millis),
            retired: it.retired.iter().map(Into::into).collect(),
            dead_manager_after_ms: it.dead_manager_after.map_or(0, millis),
            task_history_limit: it.task_history_limit.map_or(0, NonZeroU64::get),
            ca_rotation: it.ca_rotation.as_ref().map(Into::into),
            unlock_secret: it.unlock_secret.as_text().to_owned(),
            autolock: it.autolock,
        }
    }
}

impl TryFrom<po::Cluster> for Cluster {
    type Error = Malformed;
    fn try_from(it: po::Cluster) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            epoch: it.epoch,
            feature_level: it.feature_level,
            next_raft_id: it.next_raft_id,
            ca_certificate: it.ca_certificate.into(),
            ca_key: Secret(it.ca_key.into()),
            worker_token_secret: it.worker_token_secret.into(),
            manager_token_secret: it.manager_token_secret.into(),
            worker_token_expires_at: it.worker_token_expires_at.map(Timestamp),
            manager_token_expires_at: it.manager_token_expires_at.map(Timestamp),
            grant_key: Secret(it.grant_key.into()),
            revoked: it
                .revoked
                .into_iter()
                .map(|it| Revoked { node_id: it.node_id.into(), until: Timestamp(it.until) })
                .collect(),
            address_pools: all(it.address_pools)?,
            no_new_privileges: it.no_new_privileges,
            rebalance: it.rebalance.map(Into::into),
            auto_rebalance: it.auto_rebalance,
            heartbeat: unless_zero(it.heartbeat_ms),
            heartbeats_missed: NonZeroU64::new(it.heartbeats_missed),
            certificate_life: unless_zero(it.certificate_life_ms),
            renewal_grace: unless_zero(it.renewal_grace_ms),
            retired: it.retired.into_iter().map(Into::into).collect(),
            dead_manager_after: unless_zero(it.dead_manager_after_ms),
            task_history_limit: NonZeroU64::new(it.task_history_limit),
            ca_rotation: it.ca_rotation.map(Into::into),
            unlock_secret: it.unlock_secret.into(),
            autolock: it.autolock,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unless_zero(millis: u64) -> Option<Duration> {
    Some(Duration::from_millis(millis)).filter(|it| !it.is_zero())
}

impl From<&Node> for po::Node {
    fn from(it: &Node) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            spec: Some((&it.spec).into()),
            role: it.role.number(),
            description: Some((&it.description).into()),
            address: it.address.clone(),
            state: it.state.number(),
            old_state_reason: String::new(),
            state_reason: it.state_reason.map(FromNumber::number),
            state_since: it.state_since.0,
            clock_offset: it.clock_offset.0,
            raft_id: it.raft_id,
            attachments: it.attachments.iter().map(Into::into).collect(),
            losses: it.losses.iter().map(|at| at.0).collect(),
            certificates: it.certificates.iter().map(Into::into).collect(),
            trusts: it.trusts.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<po::Node> for Node {
    type Error = Malformed;
    fn try_from(it: po::Node) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            spec: require(it.spec, "node.spec")?.try_into()?,
            role: FromNumber::from_number(it.role)?,
            description: it.description.try_into()?,
            address: it.address,
            state: FromNumber::from_number(it.state)?,
            state_reason: match it.state_reason {
                Some(reason) => Some(FromNumber::from_number(reason)?),
                None => old_state_reason(&it.old_state_reason),
            },
            state_since: Timestamp(it.state_since),
            clock_offset: ClockOffset(it.clock_offset),
            raft_id: it.raft_id,
            attachments: all(it.attachments)?,
            losses: it.losses.into_iter().map(Timestamp).collect(),
            certificates: it.certificates.into_iter().map(Into::into).collect(),
            trusts: filled(it.trusts),
        })
    }
}

/// Parses the state reason of an object that an older build wrote, which was a text.
fn old_state_reason(text: &str) -> Option<NodeStateReason> {
    NodeStateReason::ALL.iter().copied().find(|reason| reason.as_str() == text)
}

impl From<&Service> for po::Service {
    fn from(it: &Service) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            spec: Some(it.spec.as_ref().into()),
            spec_version: it.spec_version,
            stack_id: it.stack_id.clone().map(Into::into),
            update_paused: it.update.reason.clone().filter(|_| is_of_older_build(it)),
            virtual_ips: it.virtual_ips.iter().map(Into::into).collect(),
            ports: it.ports.iter().map(Into::into).collect(),
            image_digest: it.image_digest.clone(),
            image_platforms: it.image_platforms.iter().map(Into::into).collect(),
            values: it.values.iter().map(Into::into).collect(),
            spec_set_at: it.spec_set_at.map(|at| at.0),
            revisions: it.revisions.iter().map(Into::into).collect(),
            update: (!is_of_older_build(it)).then(|| (&it.update).into()),
            job_run: it.job_run.map_or(0, NonZeroU64::get),
            cron: (!it.cron.is_unused()).then(|| (&it.cron).into()),
            scale: (!it.scale.is_unused()).then(|| (&it.scale).into()),
            mounted_images: it.mounted_images.iter().map(Into::into).collect(),
        }
    }
}

/// Whether an older build has written the service, and no newer one has changed its update. It then has the same bytes, and
/// digest, as in the older build.
fn is_of_older_build(it: &Service) -> bool {
    it.spec_set_at.is_none() && it.update == old_status(it.update.reason.clone())
}

impl TryFrom<po::Service> for Service {
    type Error = Malformed;
    fn try_from(it: po::Service) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            spec: Arc::new(require(it.spec, "service.spec")?.try_into()?),
            spec_version: it.spec_version,
            stack_id: it.stack_id.map(Into::into),
            spec_set_at: it.spec_set_at.map(Timestamp),
            revisions: it.revisions.into_iter().map(Into::into).collect(),
            update: match it.update {
                Some(update) => update.try_into()?,
                None => old_status(it.update_paused),
            },
            virtual_ips: all(it.virtual_ips)?,
            ports: all(it.ports)?,
            image_digest: it.image_digest,
            image_platforms: it.image_platforms.into_iter().map(Into::into).collect(),
            values: it.values.into_iter().map(Into::into).collect(),
            job_run: NonZeroU64::new(it.job_run),
            cron: it.cron.try_into()?,
            scale: it.scale.map(Into::into).unwrap_or_default(),
            mounted_images: it.mounted_images.into_iter().map(Into::into).collect(),
        })
    }
}

/// Whether the task has restarts to inherit, or would seem to have some that do not count.
fn has_restarts(task: &Task) -> bool {
    task.restart_history != RestartHistory::default() || task.inherited_restarts > task.moves
}

impl From<&Task> for po::Task {
    fn from(it: &Task) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            service_id: it.service_id.clone().into(),
            spec_version: it.spec_version,
            slot: it.slot,
            run: it.run.map_or(0, NonZeroU64::get),
            node_id: it.node_id.clone().map(Into::into),
            desired_state: it.desired_state.number(),
            status: Some((&it.status).into()),
            inherited_restarts: it.inherited_restarts,
            moves: it.moves,
            restart_history: has_restarts(it).then(|| (&it.restart_history).into()),
            image_digest: it.image_digest.clone(),
            not_before: it.not_before.map(|it| it.0),
            prepared_at: it.prepared_at.map(|it| it.0),
            served_at: it.served_at.map(|it| it.0),
            pinned_to: it.pinned_to.clone().map(Into::into),
            replaces: it.replaces.clone().map(Into::into),
            relocates: it.relocates,
            preempted_by: it.preempted_by.clone(),
            paused: it.paused,
            pending_reason: it.pending_reason.as_deref().map(Into::into),
            device_ids: it.device_ids.iter().map(Into::into).collect(),
            values: it.values.iter().map(Into::into).collect(),
            mounted_images: it.mounted_images.iter().map(Into::into).collect(),
            attachments: it.attachments.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<po::Task> for Task {
    type Error = Malformed;
    fn try_from(it: po::Task) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            service_id: it.service_id.into(),
            spec_version: it.spec_version,
            slot: it.slot,
            run: NonZeroU64::new(it.run),
            node_id: it.node_id.map(Into::into),
            desired_state: FromNumber::from_number(it.desired_state)?,
            status: it.status.try_into()?,
            inherited_restarts: it.inherited_restarts,
            moves: it.moves,
            restart_history: match it.restart_history {
                Some(history) => history.into(),
                None => untimed(it.inherited_restarts.saturating_sub(it.moves)),
            },
            image_digest: it.image_digest,
            not_before: it.not_before.map(Timestamp),
            prepared_at: it.prepared_at.map(Timestamp),
            served_at: it.served_at.map(Timestamp),
            pinned_to: it.pinned_to.map(Into::into),
            replaces: it.replaces.map(Into::into),
            relocates: it.relocates,
            preempted_by: it.preempted_by,
            paused: it.paused,
            pending_reason: it.pending_reason.map(|it| it.try_into().map(Box::new)).transpose()?,
            device_ids: it.device_ids.into_iter().map(Into::into).collect(),
            values: it.values.into_iter().map(Into::into).collect(),
            mounted_images: it.mounted_images.into_iter().map(Into::into).collect(),
            attachments: all(it.attachments)?,
        })
    }
}

impl From<&PendingReason> for po::PendingReason {
    fn from(it: &PendingReason) -> Self {
        let (refused, needs_room) = match it {
            PendingReason::NoAddress(network) => {
                return Self { no_address: Some(network.clone()), ..Self::default() };
            }
            PendingReason::VolumesElsewhere { refused, needs_room, .. }
            | PendingReason::OtherPlatforms { refused, needs_room, .. } => (refused, *needs_room),
            PendingReason::NoNode => (&BTreeMap::new(), false),
            PendingReason::NoNodeFits(refused) => (refused, false),
            PendingReason::NeedsRoom(refused) => (refused, true),
            PendingReason::AwaitsRoom { refused, .. } => (refused, false),
        };
        let claim = match it {
            PendingReason::AwaitsRoom { node_id, node, .. } => {
                Some(po::Claim { node_id: node_id.clone().into(), node: node.clone() })
            }
            _ => None,
        };
        let count = |(filter, nodes): (&Filter, &u64)| po::FilterCount { filter: filter.number(), nodes: *nodes };
        let volumes = match it {
            PendingReason::VolumesElsewhere { volumes, .. } => volumes.iter().map(Into::into).collect(),
            _ => Vec::new(),
        };
        let platforms = match it {
            PendingReason::OtherPlatforms { image, .. } => image.iter().map(Into::into).collect(),
            _ => Vec::new(),
        };
        Self { refused: refused.iter().map(count).collect(), needs_room, no_address: None, volumes, platforms, claim }
    }
}

impl TryFrom<po::PendingReason> for PendingReason {
    type Error = Malformed;
    fn try_from(it: po::PendingReason) -> Result<Self, Malformed> {
        if let Some(network) = it.no_address {
            return Ok(Self::NoAddress(network));
        }
        let count = |it: po::FilterCount| Ok((Filter::from_number(it.filter)?, it.nodes));
        let refused = it.refused.into_iter().map(count).collect::<Result<BTreeMap<_, _>, Malformed>>()?;
        if let Some(po::Claim { node_id, node }) = it.claim {
            return Ok(Self::AwaitsRoom { node_id: node_id.into(), node, refused });
        }
        if !it.volumes.is_empty() {
            let volumes = it.volumes.into_iter().map(Into::into).collect();
            return Ok(Self::VolumesElsewhere { volumes, refused, needs_room: it.needs_room });
        }
        if !it.platforms.is_empty() {
            let image = it.platforms.into_iter().map(Into::into).collect();
            return Ok(Self::OtherPlatforms { image, refused, needs_room: it.needs_room });
        }
        Ok(match it.needs_room {
            true => Self::NeedsRoom(refused),
            false if refused.is_empty() => Self::NoNode,
            false => Self::NoNodeFits(refused),
        })
    }
}

impl From<&Image> for po::Image {
    fn from(it: &Image) -> Self {
        let holder = |it: &ImageHolder| po::ImageHolder { node_id: it.node_id.clone().into(), confirmed: it.confirmed };
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            references: it.references.iter().cloned().collect(),
            digest: it.digest.clone(),
            size: it.size,
            platforms: it.platforms.iter().map(Into::into).collect(),
            holders: it.holders.iter().map(holder).collect(),
        }
    }
}

impl From<po::Image> for Image {
    fn from(it: po::Image) -> Self {
        let holder = |it: po::ImageHolder| ImageHolder { node_id: it.node_id.into(), confirmed: it.confirmed };
        Self {
            id: it.id.into(),
            meta: it.meta.into(),
            references: it.references.into_iter().collect(),
            digest: it.digest,
            size: it.size,
            platforms: it.platforms.into_iter().map(Into::into).collect(),
            holders: it.holders.into_iter().map(holder).collect(),
        }
    }
}

impl From<&Stack> for po::Stack {
    fn from(it: &Stack) -> Self {
        Self { id: it.id.clone().into(), meta: Some((&it.meta).into()), spec: Some((&it.spec).into()) }
    }
}

impl TryFrom<po::Stack> for Stack {
    type Error = Malformed;
    fn try_from(it: po::Stack) -> Result<Self, Malformed> {
        Ok(Self { id: it.id.into(), meta: it.meta.into(), spec: require(it.spec, "stack.spec")?.try_into()? })
    }
}

impl From<&Registry> for po::Registry {
    fn from(it: &Registry) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            host: it.host.clone(),
            username: it.username.clone(),
            password: it.password.as_text().to_owned(),
        }
    }
}

impl From<po::Registry> for Registry {
    fn from(it: po::Registry) -> Self {
        Self {
            id: it.id.into(),
            meta: it.meta.into(),
            host: it.host,
            username: it.username,
            password: it.password.into(),
        }
    }
}

impl From<&Object> for po::Object {
    fn from(object: &Object) -> Self {
        use po::object::Kind;
        Self {
            kind: Some(match object {
                Object::Cluster(it) => Kind::Cluster(it.as_ref().into()),
                Object::Node(it) => Kind::Node(it.as_ref().into()),
                Object::Service(it) => Kind::Service(it.as_ref().into()),
                Object::Task(it) => Kind::Task(it.as_ref().into()),
                Object::Image(it) => Kind::Image(it.as_ref().into()),
                Object::Stack(it) => Kind::Stack(it.as_ref().into()),
                Object::Registry(it) => Kind::Registry(it.as_ref().into()),
                Object::Network(it) => Kind::Network(it.as_ref().into()),
                Object::Volume(it) => Kind::Volume(it.as_ref().into()),
                Object::StoredSecret(it) => Kind::Secret(it.as_ref().into()),
                Object::StoredConfig(it) => Kind::Config(it.as_ref().into()),
                Object::ValueData(it) => Kind::ValueData(it.as_ref().into()),
                Object::User(it) => Kind::User(it.as_ref().into()),
                Object::Audit(it) => Kind::Audit(it.as_ref().into()),
            }),
        }
    }
}

impl TryFrom<po::Object> for Object {
    type Error = Malformed;
    fn try_from(object: po::Object) -> Result<Self, Malformed> {
        use po::object::Kind;
        Ok(match require(object.kind, "object.kind")? {
            Kind::Cluster(it) => Cluster::try_from(it)?.into_object(),
            Kind::Node(it) => Node::try_from(it)?.into_object(),
            Kind::Service(it) => Service::try_from(it)?.into_object(),
            Kind::Task(it) => Task::try_from(it)?.into_object(),
            Kind::Image(it) => Image::from(it).into_object(),
            Kind::Stack(it) => Stack::try_from(it)?.into_object(),
            Kind::Registry(it) => Registry::from(it).into_object(),
            Kind::Network(it) => Network::try_from(it)?.into_object(),
            Kind::Volume(it) => Volume::try_from(it)?.into_object(),
            Kind::Secret(it) => StoredSecret::try_from(it)?.into_object(),
            Kind::Config(it) => StoredConfig::try_from(it)?.into_object(),
            Kind::ValueData(it) => ValueData::from(it).into_object(),
            Kind::User(it) => User::try_from(it)?.into_object(),
            Kind::Audit(it) => Audit::from(it).into_object(),
        })
    }
}

#[cfg(test)]
mod tests;
