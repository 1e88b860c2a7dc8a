//! The flags of `ctl service create` and `update`, and how they change a spec.

use std::num::NonZeroU64;

use anyhow::Context;
use clap::Args;

use flota_api::constraint::{Constraint, NodeProperty};
use flota_api::model::{ModeName, OnPartition, RestartCondition, ServiceSpec};

use crate::commands::affinity_flags::AffinityFlags;
use crate::commands::dependency_flags::DependencyFlags;
use crate::commands::env_flags::EnvFlags;
use crate::commands::health_flags::HealthFlags;
use crate::commands::mount_flags::MountFlags;
use crate::commands::network_flags::NetworkFlags;
use crate::commands::privilege_flags::PrivilegeFlags;
use crate::commands::scale_flags::ScaleFlags;
use crate::commands::schedule_flags::ScheduleFlags;
use crate::commands::setting_flags::SettingFlags;
use crate::commands::update_flags::{RollbackFlags, UpdateFlags};
use crate::commands::value_flags::ValueFlags;
use crate::error::{self, Usage};
use crate::parse;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct SpecFlags {
    #[command(flatten)]
    basic: BasicFlags,
    #[command(flatten)]
    schedule: ScheduleFlags,
    #[command(flatten)]
    env: EnvFlags,
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    privileges: PrivilegeFlags,
    #[command(flatten)]
    networks: NetworkFlags,
    #[command(flatten)]
    mounts: MountFlags,
    #[command(flatten)]
    values: ValueFlags,
    #[command(flatten)]
    affinity: AffinityFlags,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    update: UpdateFlags,
    #[command(flatten)]
    rollback: RollbackFlags,
    #[command(flatten)]
    dependencies: DependencyFlags,
    #[command(flatten)]
    scale: ScaleFlags,
}

/// Those that have no file of their own.
#[derive(Debug, Default, Args)]
struct BasicFlags {
    /// Number of tasks to run; of a replicated job and a run of the mode cron, those whose program must end well
    #[arg(long)]
    replicas: Option<u64>,
    /// Largest number of tasks of a replicated job, or of a run of the mode cron, that run at once; 0 means all
    #[arg(long, value_name = "COUNT")]
    max_concurrent: Option<u64>,
    /// Label of the service, KEY=VALUE; may be repeated
    #[arg(short, long, visible_alias = "label-add", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Entrypoint to run instead of the image's, split into words as by a shell
    #[arg(long)]
    entrypoint: Option<String>,
    /// Working directory
    #[arg(short, long)]
    workdir: Option<String>,
    /// User to run as, USER[:GROUP]
    #[arg(short, long)]
    user: Option<String>,
    /// Host name of its tasks
    #[arg(long)]
    hostname: Option<String>,
    /// Memory that a task can't exceed, such as 256m
    #[arg(long, value_parser = parse::bytes)]
    limit_memory: Option<u64>,
    /// CPUs that a task can't exceed, such as 0.5
    #[arg(long, value_parser = parse::cpus)]
    limit_cpu: Option<u64>,
    /// Processes that a task can't exceed
    #[arg(long)]
    limit_pids: Option<u64>,
    /// Memory that a node must have free
    #[arg(long, value_parser = parse::bytes)]
    reserve_memory: Option<u64>,
    /// CPUs that a node must have free
    #[arg(long, value_parser = parse::cpus)]
    reserve_cpu: Option<u64>,
    /// Constraint on the node, such as node.labels.zone==a; may be repeated
    #[arg(long, visible_alias = "constraint-add")]
    constraint: Vec<String>,
    /// Property of nodes over whose values the tasks are spread, spread=node.labels.zone; may be repeated
    #[arg(long, visible_alias = "placement-pref-add", value_name = "PREFERENCE", value_parser = parse::preference)]
    placement_pref: Vec<NodeProperty>,
    /// Largest number of tasks on one node; 0 means no limit
    #[arg(long, value_name = "COUNT")]
    replicas_max_per_node: Option<u64>,
    /// Condition to restart a task: any, on-failure or none
    #[arg(long)]
    restart_condition: Option<String>,
    /// Delay before the second restart in a row; it doubles from there on
    #[arg(long, value_parser = parse::duration)]
    restart_delay: Option<std::time::Duration>,
    /// Most restarts of one slot; 0 means no limit
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    /// Time after which a restart no longer counts
    #[arg(long, value_parser = parse::duration)]
    restart_window: Option<std::time::Duration>,
    /// Time between the stop signal and SIGKILL
    #[arg(long, value_parser = parse::duration)]
    stop_grace_period: Option<std::time::Duration>,
    /// Signal that asks the program to stop, such as SIGQUIT, or its number
    #[arg(long)]
    stop_signal: Option<String>,
    /// Behaviour of a task whose node can reach no manager: run, or stop:TIME
    #[arg(long, value_name = "WHAT", value_parser = parse::on_partition)]
    on_partition: Option<OnPartition>,
    /// Treatment of a task whose node is lost: replace, or keep (wait for the node)
    #[arg(long, value_name = "WHAT", value_parser = parse::on_node_loss)]
    on_node_loss: Option<bool>,
}

impl SpecFlags {
    /// Returns the spec of a service that is created, of this mode, and everything that is wrong with the flags.
    pub(super) fn spec(&self, mode: ModeName) -> (ServiceSpec, anyhow::Result<()>) {
        let mode = self.schedule.mode(mode);
        let mut spec = mode.as_ref().map_or_else(|_| ServiceSpec::default(), |it| ServiceSpec::of_mode(it.clone()));
        let schedule = mode.and_then(|_| self.schedule.apply(&mut spec));
        let result = error::all([schedule, self.apply_others(&mut spec)]);
        (spec, result)
    }

    /// Returns whether the number of tasks is given.
    pub(super) fn sets_replicas(&self) -> bool {
        self.basic.replicas.is_some()
    }

    /// Sets the given flags in the spec and leaves the rest as it is.
    ///
    /// # Errors
    /// A flag is wrong. The error lists everything that is wrong with the flags.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> anyhow::Result<()> {
        error::all([self.schedule.apply(spec), self.apply_others(spec)])
    }

    /// As [`SpecFlags::apply`], without the flags of the mode cron.
    fn apply_others(&self, spec: &mut ServiceSpec) -> anyhow::Result<()> {
        self.privileges.apply(spec);
        self.networks.apply(spec);
        self.mounts.apply(spec);
        self.values.apply(spec);
        self.affinity.apply(spec);
        self.health.apply(spec);
        self.update.apply(spec);
        self.rollback.apply(spec);
        self.dependencies.apply(spec);
        let settings = self.settings.apply(spec).map_err(Into::into);
        let scale = self.scale.apply(spec).map_err(Into::into);
        error::all([self.env.apply(spec), settings, scale, self.basic.apply(spec)])
    }
}

impl BasicFlags {
    fn apply(&self, spec: &mut ServiceSpec) -> anyhow::Result<()> {
        fn set<T: Clone>(target: &mut T, given: &Option<T>) {
            if let Some(value) = given {
                target.clone_from(value);
            }
        }
        let mut failed: Vec<anyhow::Error> = Vec::new();
        if let Some(replicas) = self.replicas {
            match spec.mode.with_replicas(replicas) {
                Ok(mode) => spec.mode = mode,
                Err(why) => failed.push(Usage(format!("--replicas: {why}")).into()),
            }
        }
        if let Some(most) = self.max_concurrent {
            match spec.mode.with_max_concurrent(NonZeroU64::new(most)) {
                Ok(mode) => spec.mode = mode,
                Err(why) => failed.push(Usage(format!("--max-concurrent: {why}")).into()),
            }
        }
        // An empty text or a zero removes what the spec has.
        fn replace<T: Clone, U>(target: &mut Option<U>, given: &Option<T>, read: impl FnOnce(T) -> Option<U>) {
            if let Some(value) = given {
                *target = read(value.clone());
            }
        }
        let filled = |text: String| Some(text).filter(|it| !it.is_empty());
        replace(&mut spec.working_dir, &self.workdir, filled);
        replace(&mut spec.user, &self.user, filled);
        replace(&mut spec.hostname, &self.hostname, filled);
        replace(&mut spec.stop_signal, &self.stop_signal, filled);
        replace(&mut spec.limits.memory_bytes, &self.limit_memory, NonZeroU64::new);
        replace(&mut spec.limits.nano_cpus, &self.limit_cpu, NonZeroU64::new);
        replace(&mut spec.limits.pids, &self.limit_pids, NonZeroU64::new);
        replace(&mut spec.max_replicas_per_node, &self.replicas_max_per_node, NonZeroU64::new);
        for key in &self.placement_pref {
            if !spec.spread_over.contains(key) {
                spec.spread_over.push(key.clone());
            }
        }
        replace(&mut spec.restart.max_attempts, &self.restart_max_attempts, NonZeroU64::new);
        replace(&mut spec.restart.window, &self.restart_window, |it| Some(it).filter(|it| !it.is_zero()));
        set(&mut spec.reservations.memory_bytes, &self.reserve_memory);
        set(&mut spec.reservations.nano_cpus, &self.reserve_cpu);
        set(&mut spec.restart.delay, &self.restart_delay);
        set(&mut spec.stop_grace, &self.stop_grace_period);
        if let Some(entrypoint) = &self.entrypoint {
            match parse::words(entrypoint).context("--entrypoint") {
                Ok(words) => spec.entrypoint = words,
                Err(error) => failed.push(error),
            }
        }
        spec.labels.extend(self.label.iter().cloned());
        for (index, text) in self.constraint.iter().enumerate() {
            match Constraint::parse(text).with_context(|| format!("constraints[{index}]")) {
                Ok(constraint) if !spec.constraints.contains(&constraint) => spec.constraints.push(constraint),
                Ok(_) => {}
                Err(error) => failed.push(error),
            }
        }
        if let Some(text) = &self.restart_condition {
            use RestartCondition::{Any, None, OnFailure};
            match [Any, OnFailure, None].into_iter().find(|it| it.as_str() == text) {
                Some(condition) => spec.restart.condition = condition,
                Option::None => {
                    let why = format!("--restart-condition {text}: it must be any, on-failure or none");
                    failed.push(Usage(why).into());
                }
            }
        }
        set(&mut spec.on_partition, &self.on_partition);
        set(&mut spec.keep_on_node_loss, &self.on_node_loss);
        error::all(failed.into_iter().map(Err))
    }
}
