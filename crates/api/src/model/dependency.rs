//! Dependencies: the services that must be there before another one starts or is updated, and that stop after it. The
//! words are those of Compose (`depends_on`).

use serde::Serialize;

use crate::state::states;

states! {
    /// How far a service must be before those that depend on it go on.
    DependencyCondition {
        /// All of its tasks run.
        Started = "started",
        /// All of its tasks run, and their health checks have succeeded.
        Healthy = "healthy",
        /// All of its tasks have done their work.
        Completed = "completed",
    }
}

/// A service on which another one depends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Name of the service. It need not exist yet.
    pub service: String,
    /// How far it must be.
    pub condition: DependencyCondition,
    /// Whether it is waited for while it does not exist or is stopped.
    pub required: bool,
}
