//! Conversion of specs, policies, resources, descriptions and statuses.

use std::num::NonZeroU64;
use std::time::Duration;

use super::devices::cdi_names;
use super::networks::{all, parse_all, parse_filled, texts};
use super::{Faults, FromNumber, Malformed, cron, filled, millis, on_partition, require, settings};
use crate::capability::normalise;
use crate::constraint::{Constraint, NodeProperty};
use crate::model::{
    Bound, CdiName, EndpointMode, LogSpec, NodeDescription, NodeSpec, OnPartition, PlacementStrategy, PullPolicy,
    RestartCondition, RestartPolicy, ServiceSpec, StackSpec, TaskStatus, UpdatePolicy,
};
use crate::proto::{specs as ps, types as pt};
use crate::resources::{Limits, Resources};
use crate::version::{Meta, Timestamp};

impl From<&Meta> for pt::Meta {
    fn from(meta: &Meta) -> Self {
        Self {
            created_at: meta.created_at.0,
            updated_at: meta.updated_at.0,
            version: meta.version,
            created: meta.created,
        }
    }
}

impl From<Option<pt::Meta>> for Meta {
    fn from(meta: Option<pt::Meta>) -> Self {
        let meta = meta.unwrap_or_default();
        Self {
            created_at: Timestamp(meta.created_at),
            updated_at: Timestamp(meta.updated_at),
            created: meta.created,
            version: meta.version,
        }
    }
}

impl From<Resources> for pt::Resources {
    fn from(it: Resources) -> Self {
        Self { nano_cpus: it.nano_cpus, memory_bytes: it.memory_bytes, pids: 0 }
    }
}

impl From<Option<pt::Resources>> for Resources {
    fn from(it: Option<pt::Resources>) -> Self {
        let it = it.unwrap_or_default();
        Self { nano_cpus: it.nano_cpus, memory_bytes: it.memory_bytes }
    }
}

impl From<Limits> for pt::Resources {
    fn from(it: Limits) -> Self {
        let number = |limit: Option<NonZeroU64>| limit.map_or(0, NonZeroU64::get);
        Self { nano_cpus: number(it.nano_cpus), memory_bytes: number(it.memory_bytes), pids: number(it.pids) }
    }
}

impl From<Option<pt::Resources>> for Limits {
    fn from(it: Option<pt::Resources>) -> Self {
        let it = it.unwrap_or_default();
        Self {
            nano_cpus: NonZeroU64::new(it.nano_cpus),
            memory_bytes: NonZeroU64::new(it.memory_bytes),
            pids: NonZeroU64::new(it.pids),
        }
    }
}

impl From<&NodeSpec> for ps::NodeSpec {
    fn from(spec: &NodeSpec) -> Self {
        Self {
            labels: spec.labels.clone().into_iter().collect(),
            availability: spec.availability.number(),
            manager_candidate: spec.manager_candidate,
        }
    }
}

impl TryFrom<ps::NodeSpec> for NodeSpec {
    type Error = Malformed;
    fn try_from(spec: ps::NodeSpec) -> Result<Self, Malformed> {
        Ok(Self {
            labels: spec.labels.into_iter().collect(),
            availability: FromNumber::from_number(spec.availability)?,
            manager_candidate: spec.manager_candidate,
        })
    }
}

impl From<&NodeDescription> for pt::NodeDescription {
    fn from(it: &NodeDescription) -> Self {
        Self {
            hostname: it.hostname.clone(),
            platform: Some(pt::Platform {
                os: it.os.clone(),
                architecture: it.architecture.clone(),
                variant: it.variant.clone(),
            }),
            resources: Some(it.resources.into()),
            program_version: it.program_version.clone(),
            feature_level: it.feature_level,
            boot_id: it.boot_id.clone(),
            runtimes: it.runtimes.clone(),
            devices: it.devices.iter().map(Into::into).collect(),
            cdi_devices: it.cdi_devices.iter().map(ToString::to_string).collect(),
            allow: Some((&it.allow).into()),
            data_address: it.data_address.map(|it| it.to_string()).unwrap_or_default(),
            routes: texts(&it.routes),
            listeners: it.listeners.iter().map(Into::into).collect(),
            balancer: it.balancer.map(FromNumber::number),
            listening_tasks: it.listening_tasks.iter().map(Into::into).collect(),
            tunnel_keys: it.tunnel_keys.iter().map(Into::into).collect(),
            user_namespaces: it.user_namespaces,
            app_armor: it.app_armor.clone().unwrap_or_default(),
            labels: it.labels.clone(),
        }
    }
}

impl TryFrom<Option<pt::NodeDescription>> for NodeDescription {
    type Error = Malformed;
    fn try_from(it: Option<pt::NodeDescription>) -> Result<Self, Malformed> {
        let it = it.unwrap_or_default();
        let platform = it.platform.unwrap_or_default();
        Ok(Self {
            hostname: it.hostname,
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            resources: it.resources.into(),
            program_version: it.program_version,
            feature_level: it.feature_level,
            boot_id: it.boot_id,
            runtimes: it.runtimes,
            devices: it.devices.into_iter().map(Into::into).collect(),
            cdi_devices: cdi_names(&it.cdi_devices)?,
            allow: it.allow.into(),
            data_address: parse_filled(&it.data_address, "description.data_address")?,
            routes: parse_all(&it.routes, "description.routes")?,
            listeners: all(it.listeners)?,
            balancer: it.balancer.map(FromNumber::from_number).transpose()?,
            listening_tasks: all(it.listening_tasks)?,
            tunnel_keys: all(it.tunnel_keys)?,
            user_namespaces: it.user_namespaces,
            app_armor: Some(it.app_armor).filter(|it| !it.is_empty()),
            labels: it.labels,
        })
    }
}

impl From<&ServiceSpec> for ps::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        let (kind, after) = match spec.on_partition {
            OnPartition::Run => (ps::OnPartition::Run, 0),
            OnPartition::Stop(after) => (ps::OnPartition::Stop, millis(after)),
        };
        let mut wire = Self {
            name: spec.name.clone(),
            labels: spec.labels.clone().into_iter().collect(),
            image: spec.image.clone(),
            entrypoint: spec.entrypoint.clone(),
            command: spec.command.clone(),
            env: spec.env.clone(),
            working_dir: spec.working_dir.clone().unwrap_or_default(),
            user: spec.user.clone().unwrap_or_default(),
            hostname: spec.hostname.clone().unwrap_or_default(),
            limits: Some(spec.limits.into()),
            reservations: Some(spec.reservations.into()),
            restart: Some(pt::RestartPolicy {
                condition: spec.restart.condition.number(),
                delay_ms: millis(spec.restart.delay),
                max_attempts: spec.restart.max_attempts.map_or(0, NonZeroU64::get),
                window_ms: spec.restart.window.map_or(0, millis),
            }),
            stop_grace_ms: millis(spec.stop_grace),
            stop_signal: spec.stop_signal.clone().unwrap_or_default(),
            constraints: spec.constraints.iter().map(ToString::to_string).collect(),
            spread_over: spec.spread_over.iter().map(ToString::to_string).collect(),
            max_replicas_per_node: spec.max_replicas_per_node.map_or(0, NonZeroU64::get),
            affinity: spec.affinity.clone(),
            anti_affinity: spec.anti_affinity.clone(),
            strategy: spec.strategy.number(),
            priority: spec.priority,
            on_partition: kind.into(),
            on_partition_after_ms: after,
            keep_on_node_loss: spec.keep_on_node_loss,
            force: spec.force,
            runtime: spec.runtime.clone().unwrap_or_default(),
            init: spec.init,
            privileged: spec.privileged,
            no_new_privileges: spec.no_new_privileges,
            user_namespace: spec.user_namespace,
            cap_add: spec.cap_add.clone(),
            cap_drop: spec.cap_drop.clone(),
            devices: spec.devices.iter().map(Into::into).collect(),
            cdi_devices: spec.cdi_devices.iter().map(ToString::to_string).collect(),
            generic_resources: spec.generic_resources.iter().map(Into::into).collect(),
            networks: spec.networks.iter().map(Into::into).collect(),
            ports: spec.ports.iter().map(Into::into).collect(),
            endpoint_mode: spec.endpoint_mode.number(),
            dns: Some((&spec.dns).into()),
            hosts: spec.hosts.iter().map(Into::into).collect(),
            healthcheck: Some((&spec.healthcheck).into()),
            // What has its default is left out, so that a spec of an older build has the same bytes, and digest, in
            // this one.
            update: (spec.update != UpdatePolicy::default()).then(|| (&spec.update).into()),
            rollback: (spec.rollback != UpdatePolicy::default()).then(|| (&spec.rollback).into()),
            stopped: spec.stopped,
            mounts: spec.mounts.iter().map(Into::into).collect(),
            secrets: spec.secrets.iter().map(Into::into).collect(),
            configs: spec.configs.iter().map(Into::into).collect(),
            read_only: spec.read_only,
            tty: spec.tty,
            shm_size: spec.shm_size.map_or(0, NonZeroU64::get),
            ulimits: spec.ulimits.iter().map(Into::into).collect(),
            sysctls: spec.sysctls.clone(),
            groups: spec.groups.clone(),
            container_labels: spec.container_labels.clone(),
            memory_swap: spec.memory_swap.map(Bound::number),
            oom_score_adj: spec.oom_score_adj,
            log: (spec.log != LogSpec::default()).then(|| spec.log.into()),
            pull: spec.pull.number(),
            depends_on: spec.depends_on.iter().map(Into::into).collect(),
            scale: spec.scale.as_ref().map(Into::into),
            ..Self::default()
        };
        cron::set_mode(&spec.mode, &mut wire);
        wire
    }
}

impl ServiceSpec {
    /// Reads a spec, and all that is malformed in it. What is malformed has its default, and is left out of a list.
    pub fn read(spec: ps::ServiceSpec) -> (Self, Vec<Malformed>) {
        let mut faults = Faults::default();
        let mode = faults.or_default(cron::mode(&spec));
        let restart = faults.or_default(require(spec.restart, "restart"));
        let read = Self {
            name: spec.name,
            labels: spec.labels.into_iter().collect(),
            image: spec.image,
            entrypoint: spec.entrypoint,
            command: spec.command,
            env: spec.env,
            working_dir: filled(spec.working_dir),
            user: filled(spec.user),
            hostname: filled(spec.hostname),
            mode,
            limits: spec.limits.into(),
            reservations: spec.reservations.into(),
            restart: RestartPolicy {
                condition: faults.or(FromNumber::from_number(restart.condition), RestartCondition::Any),
                delay: Duration::from_millis(restart.delay_ms),
                max_attempts: NonZeroU64::new(restart.max_attempts),
                window: (restart.window_ms > 0).then(|| Duration::from_millis(restart.window_ms)),
            },
            stop_grace: Duration::from_millis(spec.stop_grace_ms),
            stop_signal: filled(spec.stop_signal),
            constraints: faults.parsed("constraints", &spec.constraints, Constraint::parse),
            spread_over: faults.parsed("spread_over", &spec.spread_over, NodeProperty::parse),
            max_replicas_per_node: NonZeroU64::new(spec.max_replicas_per_node),
            affinity: spec.affinity,
            anti_affinity: spec.anti_affinity,
            strategy: faults.or(FromNumber::from_number(spec.strategy), PlacementStrategy::Spread),
            priority: spec.priority,
            on_partition: faults.or(on_partition(spec.on_partition, spec.on_partition_after_ms), OnPartition::Run),
            keep_on_node_loss: spec.keep_on_node_loss,
            force: spec.force,
            runtime: filled(spec.runtime),
            init: spec.init,
            privileged: spec.privileged,
            no_new_privileges: spec.no_new_privileges,
            user_namespace: spec.user_namespace,
            cap_add: spec.cap_add.iter().map(|it| normalise(it)).collect(),
            cap_drop: spec.cap_drop.iter().map(|it| normalise(it)).collect(),
            devices: spec.devices.into_iter().map(Into::into).collect(),
            cdi_devices: faults.parsed("cdi_devices", &spec.cdi_devices, str::parse::<CdiName>),
            generic_resources: spec.generic_resources.into_iter().map(Into::into).collect(),
            networks: spec.networks.into_iter().map(Into::into).collect(),
            ports: faults.all(spec.ports),
            endpoint_mode: faults.or(FromNumber::from_number(spec.endpoint_mode), EndpointMode::Vip),
            dns: faults.or_default(spec.dns.try_into()),
            hosts: faults.all(spec.hosts),
            healthcheck: faults.or_default(spec.healthcheck.try_into()),
            update: faults.or_default(spec.update.try_into()),
            rollback: faults.or_default(spec.rollback.try_into()),
            stopped: spec.stopped,
            mounts: faults.all(spec.mounts),
            secrets: spec.secrets.into_iter().map(Into::into).collect(),
            configs: spec.configs.into_iter().map(Into::into).collect(),
            read_only: spec.read_only,
            tty: spec.tty,
            shm_size: NonZeroU64::new(spec.shm_size),
            ulimits: faults.all(spec.ulimits),
            sysctls: spec.sysctls,
            groups: spec.groups,
            container_labels: spec.container_labels,
            memory_swap: faults.or_default(spec.memory_swap.map(|it| settings::bound("memory_swap", it)).transpose()),
            oom_score_adj: spec.oom_score_adj,
            log: faults.or_default(spec.log.try_into()),
            pull: faults.or(FromNumber::from_number(spec.pull), PullPolicy::Missing),
            depends_on: faults.all(spec.depends_on),
            scale: faults.or_default(spec.scale.map(TryInto::try_into).transpose()),
        };
        (read, faults.0)
    }
}

impl TryFrom<ps::ServiceSpec> for ServiceSpec {
    type Error = Malformed;
    fn try_from(spec: ps::ServiceSpec) -> Result<Self, Malformed> {
        let (spec, malformed) = Self::read(spec);
        malformed.into_iter().next().map_or(Ok(spec), Err)
    }
}

impl From<&StackSpec> for ps::StackSpec {
    fn from(spec: &StackSpec) -> Self {
        Self {
            name: spec.name.clone(),
            services: spec.services.iter().map(Into::into).collect(),
            networks: spec.networks.iter().map(Into::into).collect(),
            volumes: spec.volumes.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<ps::StackSpec> for StackSpec {
    type Error = Malformed;
    fn try_from(spec: ps::StackSpec) -> Result<Self, Malformed> {
        let (spec, malformed) = Self::read(spec);
        malformed.into_iter().next().map_or(Ok(spec), Err)
    }
}

impl StackSpec {
    /// Reads a spec, and all that is malformed in it, as [`ServiceSpec::read`].
    pub fn read(spec: ps::StackSpec) -> (Self, Vec<Malformed>) {
        let mut faults = Faults::default();
        let mut service = |wire: ps::ServiceSpec| {
            let (service, malformed) = ServiceSpec::read(wire);
            faults.0.extend(malformed.into_iter().map(|it| it.within(format_args!("services.{}", service.name))));
            service
        };
        let services = spec.services.into_iter().map(&mut service).collect();
        let (networks, volumes) = (faults.all(spec.networks), spec.volumes.into_iter().map(Into::into).collect());
        (Self { name: spec.name, services, networks, volumes }, faults.0)
    }
}

impl From<&TaskStatus> for pt::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        Self {
            attempt: status.attempt,
            state: status.state.number(),
            at: status.at.0,
            message: status.message.clone(),
            error: status.error.clone(),
            exit_code: status.exit_code,
            not_before: status.not_before.map(|it| it.0),
            image_digest: status.image_digest.clone(),
            health: status.health.as_deref().map(Into::into),
            restarts: status.restarts.as_deref().map(Into::into),
            lacks_image: status.lacks_image,
        }
    }
}

impl TryFrom<Option<pt::TaskStatus>> for TaskStatus {
    type Error = Malformed;
    fn try_from(status: Option<pt::TaskStatus>) -> Result<Self, Malformed> {
        let status = require(status, "status")?;
        Ok(Self {
            attempt: status.attempt,
            state: FromNumber::from_number(status.state)?,
            at: Timestamp(status.at),
            message: status.message,
            error: status.error,
            exit_code: status.exit_code,
            not_before: status.not_before.map(Timestamp),
            image_digest: status.image_digest,
            health: status.health.map(|it| it.try_into().map(Box::new)).transpose()?,
            restarts: status.restarts.map(|it| Box::new(it.into())),
            lacks_image: status.lacks_image,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_survives_the_wire_and_an_older_build_has_set_none() {
        for priority in [-1_000, 0, 7] {
            let spec = ServiceSpec { priority, ..ServiceSpec::default() };
            assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec));
        }
        let newer = ServiceSpec { priority: 7, ..ServiceSpec::default() };
        assert!(ServiceSpec::default().same_task(&newer), "it replaces no task");
    }

    #[test]
    fn the_restarts_of_a_slot_survive_the_wire() {
        let restarts = crate::model::RestartHistory { in_a_row: 1, count: 2, times: vec![Timestamp(3)] };
        let status =
            TaskStatus { restarts: Some(Box::new(restarts.clone())), lacks_image: true, ..TaskStatus::default() };
        assert_eq!(TaskStatus::try_from(Some(pt::TaskStatus::from(&status))), Ok(status));
        let task =
            crate::model::Task { inherited_restarts: 3, moves: 1, restart_history: restarts, ..Default::default() };
        let wire = crate::proto::objects::Task::from(&task);
        assert_eq!(crate::model::Task::try_from(wire.clone()), Ok(task));
        let old = crate::model::Task::try_from(crate::proto::objects::Task { restart_history: None, ..wire });
        assert_eq!(old.map(|it| it.restart_history.count), Ok(2), "an older build has counted");
    }

    #[test]
    fn constraints_are_parsed_where_they_come_in() {
        let wire = |texts: &[&str]| ps::ServiceSpec {
            restart: Some(pt::RestartPolicy::default()),
            constraints: texts.iter().map(|text| (*text).to_owned()).collect(),
            ..ps::ServiceSpec::default()
        };
        let spec = ServiceSpec::try_from(wire(&["node.role == worker"])).expect("a good spec");
        assert!(crate::model::Node::default().satisfies(&spec.constraints[0]));
        assert_eq!(ps::ServiceSpec::from(&spec).constraints, ["node.role==worker"]);
        let error = ServiceSpec::try_from(wire(&["node.id==a", "colour==red"])).expect_err("no such key");
        assert!(
            error.to_string().contains("`constraints[1]` can't be used: `colour==red`: the key is one of"),
            "{error}"
        );
    }

    #[test]
    fn all_that_is_malformed_in_a_spec_is_found_and_the_rest_is_read() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let wire = ps::ServiceSpec {
            name: "web".into(),
            restart: None,
            mode: ps::ServiceMode::Cron.into(),
            schedule: "now and then".into(),
            constraints: texts(&["colour==red", "node.role==worker", "node.id"]),
            spread_over: texts(&["rack"]),
            cdi_devices: texts(&["gpu"]),
            ports: vec![pt::PublishedPort { target: 0, ..pt::PublishedPort::default() }],
            ..ps::ServiceSpec::default()
        };
        let stack = ps::StackSpec { services: vec![wire.clone()], ..ps::StackSpec::default() };
        let fields = |malformed: Vec<Malformed>| malformed.into_iter().map(|it| it.field).collect::<Vec<_>>();
        let (spec, malformed) = ServiceSpec::read(wire);
        let expected = [
            "schedule",
            "restart",
            "constraints[0]",
            "constraints[2]",
            "spread_over[0]",
            "cdi_devices[0]",
            "ports.target",
        ];
        assert_eq!(fields(malformed), expected);
        assert_eq!((spec.name.as_str(), spec.constraints.len()), ("web", 1));
        let (_, malformed) = StackSpec::read(stack);
        assert_eq!(fields(malformed), expected.map(|field| format!("services.web.{field}")));
    }
}
