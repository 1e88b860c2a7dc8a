//! Conversion between wire and domain types: the only place that handles absent fields and unknown numbers.
//!
//! Conversion to the wire always succeeds; conversion from it returns an error that names the wrong field.

mod assignments;
mod certificates;
mod checks;
mod cron;
mod dependencies;
mod devices;
mod endpoints;
mod events;
mod health;
mod mounts;
mod networks;
mod objects;
mod pinned_images;
mod platforms;
mod restarts;
mod role_changes;
mod scale;
mod settings;
mod specs;
mod streams;
mod tunnels;
mod updates;
mod users;
mod values;

use std::borrow::Cow;
use std::time::Duration;

use crate::model::{
    Availability, Balancer, Concurrency, DependencyCondition, EndpointMode, FailureAction, Filter, HealthState,
    LogDriver, NetworkDriver, NodeState, NodeStateReason, OnPartition, PlacementStrategy, Propagation, Protocol,
    PublishMode, PullPolicy, RestartCondition, Role, RunState, UpdateOrder, UpdatePhase, UserRole, ValueKind,
};
use crate::proto::{objects as po, specs as ps, types as pt};
use crate::state::{DesiredState, TaskState};

/// A field of a message is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field `{field}` {what}")]
pub struct Malformed {
    /// Name of the field in `proto/`, with the place in its list.
    pub field: Cow<'static, str>,
    /// The defect, such as `is missing`.
    pub what: Cow<'static, str>,
}

impl Malformed {
    /// Returns an error for a field, with a description such as `is missing`.
    pub fn new(field: impl Into<Cow<'static, str>>, what: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), what: what.into() }
    }

    /// Returns the same defect of a field that is within this one.
    fn within(self, outer: impl std::fmt::Display) -> Self {
        Self { field: format!("{outer}.{}", self.field).into(), ..self }
    }
}

/// What is malformed in a message, so that its sender learns all of it at once.
#[derive(Debug, Default)]
struct Faults(Vec<Malformed>);

impl Faults {
    /// Returns what was read, or `instead` if it is malformed.
    fn or<T>(&mut self, read: Result<T, Malformed>, instead: T) -> T {
        read.unwrap_or_else(|fault| {
            self.0.push(fault);
            instead
        })
    }

    /// Returns what was read, or its default if it is malformed.
    fn or_default<T: Default>(&mut self, read: Result<T, Malformed>) -> T {
        self.or(read, T::default())
    }

    /// Returns those that are not malformed.
    fn all<W, T: TryFrom<W, Error = Malformed>>(&mut self, values: Vec<W>) -> Vec<T> {
        values.into_iter().filter_map(|value| value.try_into().map_err(|fault| self.0.push(fault)).ok()).collect()
    }

    /// Parses the texts of a list, and returns those that are not malformed.
    fn parsed<T, E: std::fmt::Display>(
        &mut self,
        field: &str,
        texts: &[String],
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut read = |(index, text): (usize, &String)| {
            let malformed = |error| Malformed::new(format!("{field}[{index}]"), format!("can't be used: {error}"));
            parse(text).map_err(|error| self.0.push(malformed(error))).ok()
        };
        texts.iter().enumerate().filter_map(&mut read).collect()
    }
}

pub(crate) fn require<T>(value: Option<T>, field: &'static str) -> Result<T, Malformed> {
    value.ok_or(Malformed::new(field, "is missing"))
}

/// Returns an optional text, which the wire carries as an empty one if it is absent.
pub(crate) fn filled(text: String) -> Option<String> {
    Some(text).filter(|it| !it.is_empty())
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

macro_rules! enums {
    ($($model:ty = $proto:ty, $field:literal { $($left:ident = $right:ident),* $(,)? })*) => { $(
        impl From<$model> for $proto {
            fn from(value: $model) -> Self { match value { $(<$model>::$left => Self::$right),* } }
        }
        impl From<$proto> for $model {
            fn from(value: $proto) -> Self { match value { $(<$proto>::$right => Self::$left),* } }
        }
        impl crate::convert::FromNumber for $model {
            fn from_number(number: i32) -> Result<Self, Malformed> {
                <$proto>::try_from(number).map(Self::from)
                    .map_err(|_| Malformed::new($field, "has an unknown value"))
            }
            fn number(self) -> i32 { <$proto>::from(self) as i32 }
        }
    )* };
}

pub(crate) trait FromNumber: Sized {
    fn from_number(number: i32) -> Result<Self, Malformed>;
    fn number(self) -> i32;
}

enums! {
    Role = pt::Role, "role" { Worker = Worker, Manager = Manager }
    UserRole = pt::UserRole, "role" { Viewer = Viewer, Operator = Operator, Admin = Admin }
    Availability = pt::Availability, "availability" { Active = Active, Pause = Pause, Drain = Drain }
    NodeState = pt::NodeState, "state" { Unknown = Unknown, Ready = Ready, Down = Down }
    NodeStateReason = po::NodeStateReason, "state_reason" {
        Joining = Joining, MissedHeartbeat = MissedHeartbeat, HeartbeatsStopped = HeartbeatsStopped,
        SessionBroke = SessionBroke, Restarting = Restarting, DidNotReturn = DidNotReturn, ShutDown = ShutDown,
        Left = Left,
    }
    Filter = po::Filter, "pending_reason.refused.filter" {
        NotReady = NotReady, Drained = Drained, Paused = Paused, Constraint = Constraint, Cpu = Cpu, Memory = Memory,
        Runtime = Runtime, Privileged = Privileged, Capability = Capability, Device = Device,
        GenericResource = GenericResource, Port = Port, MaxReplicas = MaxReplicas, Affinity = Affinity, AntiAffinity = AntiAffinity, Outdated = Outdated,
        Platform = Platform,
        Encryption = Encryption, BindMount = BindMount, Volume = Volume, CdiDevice = CdiDevice, FileSystem = FileSystem, UserNamespace = UserNamespace,
    }
    NetworkDriver = pt::NetworkDriver, "driver" {
        Overlay = Overlay, Bridge = Bridge, Macvlan = Macvlan, Host = Host, None = None,
    }
    Balancer = pt::Balancer, "description.balancer" { Bpf = Bpf, Nftables = Nftables }
    Propagation = ps::Propagation, "mounts.bind.propagation" {
        Rprivate = Rprivate, Private = Private, Rshared = Rshared, Shared = Shared, Rslave = Rslave, Slave = Slave,
    }
    Protocol = pt::Protocol, "protocol" { Tcp = Tcp, Udp = Udp }
    PublishMode = pt::PublishMode, "mode" { Ingress = Ingress, Host = Host }
    EndpointMode = ps::EndpointMode, "endpoint_mode" { Vip = Vip, Dnsrr = Dnsrr }
    ValueKind = ps::ValueKind, "kind" { Secret = Secret, Config = Config }
    RestartCondition = pt::RestartCondition, "restart.condition" { Any = Any, OnFailure = OnFailure, None = None }
    FailureAction = ps::FailureAction, "update.failure_action" {
        Pause = Pause, Continue = Continue, Rollback = Rollback,
    }
    UpdateOrder = ps::UpdateOrder, "update.order" { StopFirst = StopFirst, StartFirst = StartFirst }
    Concurrency = ps::Concurrency, "concurrency" { Forbid = Forbid, Allow = Allow, Replace = Replace }
    RunState = po::RunState, "service.cron.runs.state" {
        Running = Running, Complete = Complete, Failed = Failed, Replaced = Replaced, Stopped = Stopped,
        Skipped = Skipped,
    }
    LogDriver = ps::LogDriver, "log.driver" { JsonFile = JsonFile, None = None }
    PullPolicy = ps::PullPolicy, "pull" { Missing = Missing, Always = Always }
    PlacementStrategy = ps::PlacementStrategy, "strategy" { Spread = Spread, Binpack = Binpack, LeastUsed = LeastUsed }
    DependencyCondition = ps::DependencyCondition, "depends_on.condition" {
        Started = Started, Healthy = Healthy, Completed = Completed,
    }
    UpdatePhase = po::UpdatePhase, "service.update.phase" {
        Completed = Completed, Updating = Updating, Paused = Paused, RollingBack = RollingBack,
        RollbackPaused = RollbackPaused, RolledBack = RolledBack,
    }
    HealthState = pt::HealthState, "status.health.state" {
        Starting = Starting, Healthy = Healthy, Unhealthy = Unhealthy,
    }
    DesiredState = pt::DesiredState, "desired_state" {
        Ready = Ready, Running = Running, Complete = Complete, Shutdown = Shutdown, Remove = Remove,
    }
    TaskState = pt::TaskState, "status.state" {
        New = New, Pending = Pending, Assigned = Assigned, Accepted = Accepted, Preparing = Preparing, Ready = Ready,
        Starting = Starting, Running = Running, Complete = Complete, Shutdown = Shutdown, Failed = Failed,
        Rejected = Rejected, Orphaned = Orphaned,
    }
}

pub(crate) fn on_partition(kind: i32, after_ms: u64) -> Result<OnPartition, Malformed> {
    match ps::OnPartition::try_from(kind) {
        Ok(ps::OnPartition::Run) => Ok(OnPartition::Run),
        Ok(ps::OnPartition::Stop) => Ok(OnPartition::Stop(Duration::from_millis(after_ms))),
        Err(_) => Err(Malformed::new("on_partition", "has an unknown value")),
    }
}
