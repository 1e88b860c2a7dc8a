//! Between the wire and the domain: the only place that meets absent fields and unknown numbers.
//!
//! From the domain to the wire always succeeds; the other way says which field can't be understood.

mod assignments;
mod devices;
mod objects;
mod specs;

use std::time::Duration;

use crate::model::{Availability, NodeState, OnPartition, RestartCondition, Role};
use crate::proto::{specs as ps, types as pt};
use crate::state::{DesiredState, TaskState};

/// A message from outside that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the field `{field}` {what}")]
pub struct Malformed {
    /// Its name in `proto/`.
    pub field: &'static str,
    /// `is missing`, `has an unknown value`.
    pub what: &'static str,
}

pub(crate) fn require<T>(value: Option<T>, field: &'static str) -> Result<T, Malformed> {
    value.ok_or(Malformed { field, what: "is missing" })
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
                    .map_err(|_| Malformed { field: $field, what: "has an unknown value" })
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
    Availability = pt::Availability, "availability" { Active = Active, Pause = Pause, Drain = Drain }
    NodeState = pt::NodeState, "state" { Unknown = Unknown, Ready = Ready, Down = Down }
    RestartCondition = pt::RestartCondition, "restart.condition" { Any = Any, OnFailure = OnFailure, None = None }
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
        Err(_) => Err(Malformed { field: "on_partition", what: "has an unknown value" }),
    }
}
