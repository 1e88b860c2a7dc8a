//! Modes of services: how many tasks they have, where these run, and whether they end.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::seconds_or_zero;
use crate::resources::number_or_zero;
use crate::schedule::Schedule;
use crate::state::states;

states! {
    /// The name of a mode.
    ModeName {
        /// A fixed number of tasks.
        Replicated = "replicated",
        /// A task on each node.
        Global = "global",
        /// Tasks that end.
        ReplicatedJob = "replicated-job",
        /// Tasks that end, one on each node.
        GlobalJob = "global-job",
        /// A job at the times of a schedule.
        Cron = "cron",
    }
}

impl ModeName {
    /// Returns the mode of this name.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|it| it.as_str() == name);
        found.ok_or_else(|| format!("`{name}` is none of replicated, global, replicated-job, global-job and cron"))
    }
}

states! {
    /// What happens at a time of a schedule while an earlier run is under way.
    Concurrency {
        /// The time is skipped.
        Forbid = "forbid",
        /// The runs overlap.
        Allow = "allow",
        /// The earlier run is stopped, and the new one begins when its tasks have ended.
        Replace = "replace",
    }
}

impl Concurrency {
    /// Returns the rule of this name.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|it| it.as_str() == name);
        found.ok_or_else(|| format!("`{name}` is none of forbid, allow and replace"))
    }
}

/// How many tasks a service has and where they run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum ServiceMode {
    /// A fixed number of tasks on any nodes where they fit.
    Replicated {
        /// The number of tasks.
        replicas: u64,
    },
    /// One task on each node that meets the constraints and is not drained.
    Global {},
    /// Tasks that end when their work is done.
    ReplicatedJob {
        /// The number of tasks whose program must end well.
        completions: u64,
        /// Largest number of tasks that run at once; `None` for all.
        #[serde(serialize_with = "number_or_zero")]
        max_concurrent: Option<NonZeroU64>,
    },
    /// A task on each node that meets the constraints and is not drained, which ends when its work is done.
    GlobalJob {},
    /// A job that runs at the times of a schedule.
    Cron {
        /// When it runs.
        #[serde(flatten)]
        schedule: Arc<Schedule>,
        /// What happens when a run is due while an earlier one is under way.
        concurrency: Concurrency,
        /// How late a run may begin; a time that is longer ago is missed. `None`: the newest time is made up for, however
        /// late.
        #[serde(serialize_with = "seconds_or_zero")]
        start_deadline: Option<Duration>,
        /// The number of tasks of one run whose program must end well.
        completions: u64,
        /// Largest number of tasks of one run that run at once; `None` for all.
        #[serde(serialize_with = "number_or_zero")]
        max_concurrent: Option<NonZeroU64>,
    },
}

impl ServiceMode {
    /// Returns the mode of this name, with one task unless it has one on each node. `schedule` is that of the mode cron,
    /// which then forbids that runs overlap.
    ///
    /// # Errors
    /// The mode cron lacks its schedule, or another one has one.
    pub fn named(name: ModeName, schedule: Option<Schedule>) -> Result<Self, String> {
        let mode = match (name, schedule) {
            (ModeName::Cron, Some(schedule)) => Self::Cron {
                schedule: Arc::new(schedule),
                concurrency: Concurrency::Forbid,
                start_deadline: None,
                completions: 1,
                max_concurrent: None,
            },
            (ModeName::Cron, None) => return Err("a service of the mode cron needs a schedule".into()),
            (_, Some(_)) => return Err(format!("a service of the mode {name} has no schedule: cron has one")),
            (ModeName::Replicated, None) => Self::default(),
            (ModeName::Global, None) => Self::Global {},
            (ModeName::ReplicatedJob, None) => Self::ReplicatedJob { completions: 1, max_concurrent: None },
            (ModeName::GlobalJob, None) => Self::GlobalJob {},
        };
        Ok(mode)
    }

    /// Returns the name of the mode.
    pub fn name(&self) -> ModeName {
        match self {
            Self::Replicated { .. } => ModeName::Replicated,
            Self::Global {} => ModeName::Global,
            Self::ReplicatedJob { .. } => ModeName::ReplicatedJob,
            Self::GlobalJob {} => ModeName::GlobalJob,
            Self::Cron { .. } => ModeName::Cron,
        }
    }

    /// Returns the name of the mode that users see.
    pub fn as_str(&self) -> &'static str {
        self.name().as_str()
    }

    /// Returns the number of tasks that the service has in all unless it is stopped, or that of one run of the
    /// mode cron; `None` if it has one on each node.
    pub fn replicas(&self) -> Option<u64> {
        match self {
            Self::Replicated { replicas: count }
            | Self::ReplicatedJob { completions: count, .. }
            | Self::Cron { completions: count, .. } => Some(*count),
            Self::Global {} | Self::GlobalJob {} => None,
        }
    }

    /// Returns the mode with this number of tasks.
    ///
    /// # Errors
    /// A service of this mode has a task on each node, and no number of tasks.
    pub fn with_replicas(&self, replicas: u64) -> Result<Self, String> {
        let mut mode = self.clone();
        match &mut mode {
            Self::Replicated { replicas: count }
            | Self::ReplicatedJob { completions: count, .. }
            | Self::Cron { completions: count, .. } => *count = replicas,
            Self::Global {} | Self::GlobalJob {} => {
                let name = self.as_str();
                return Err(format!("a service of the mode {name} has a task on each node, and no number of tasks"));
            }
        }
        Ok(mode)
    }

    /// Returns the mode with this largest number of tasks at once; `None` for all.
    ///
    /// # Errors
    /// The mode is neither replicated-job nor cron.
    pub fn with_max_concurrent(&self, max_concurrent: Option<NonZeroU64>) -> Result<Self, String> {
        let mut mode = self.clone();
        match &mut mode {
            Self::ReplicatedJob { max_concurrent: most, .. } | Self::Cron { max_concurrent: most, .. } => {
                *most = max_concurrent;
            }
            _ => return Err("it is for services of the modes replicated-job and cron".into()),
        }
        Ok(mode)
    }

    /// Returns the largest number of tasks that run at once; `None` if all may.
    pub fn max_concurrent(&self) -> Option<NonZeroU64> {
        match self {
            Self::ReplicatedJob { max_concurrent, .. } | Self::Cron { max_concurrent, .. } => *max_concurrent,
            _ => None,
        }
    }

    /// Returns whether the service has one task on each node.
    pub fn is_global(&self) -> bool {
        matches!(self, Self::Global {} | Self::GlobalJob {})
    }

    /// Returns whether its tasks end when their work is done.
    pub fn is_job(&self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob {} | Self::Cron { .. })
    }

    /// Returns whether its tasks end, and each new spec is another run of them. Those of the mode cron go by its schedule.
    pub fn has_numbered_runs(&self) -> bool {
        self.is_job() && self.cron().is_none()
    }

    /// Returns the schedule of the mode cron, and what happens when runs would overlap.
    pub fn cron(&self) -> Option<(&Arc<Schedule>, Concurrency)> {
        match self {
            Self::Cron { schedule, concurrency, .. } => Some((schedule, *concurrency)),
            _ => None,
        }
    }

    /// Returns how late a run of the mode cron may begin; `None` for however late.
    pub fn start_deadline(&self) -> Option<Duration> {
        match self {
            Self::Cron { start_deadline, .. } => *start_deadline,
            _ => None,
        }
    }
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}
