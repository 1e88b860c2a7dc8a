//! Why an operation of the Control API is refused, in domain terms. What a front makes of it is the front's own table
//! (see [`super::grpc`]).

use flota_api::Malformed;
use flota_api::model::NodeState;
use flota_api::object::Kind;
use flota_api::reason::Candidate;
use flota_raft_store::ProposeError;

use crate::streams::OpenError;

/// A value that breaks a rule: `field: why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The field as users find it, `services.web.env[0]`.
    pub(crate) field: String,
    /// What is wrong with it, or what is allowed.
    pub(crate) why: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// Why a node is not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeHold {
    /// It leads: the removal would end with the leader that carries it out.
    #[error("leads: use another manager, or `ctl swarm leave --force` there")]
    Leads,
    /// It counts for the quorum.
    #[error("is a manager: `ctl swarm leave --force` there, or --force")]
    IsManager,
    /// It may still run tasks.
    #[error("is {0}, not down: --force removes it all the same")]
    NotDown(NodeState),
}

/// Why an operation is refused or came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The reference means no object.
    #[error("there is no {kind} `{reference}`")]
    NotFound {
        /// The kind that was looked for.
        kind: Kind,
        /// What the user typed.
        reference: String,
    },
    /// The service exists, and has no task that the reference could stand for.
    #[error("service `{service}` has no task")]
    NoTask {
        /// Its name.
        service: String,
    },
    /// The reference may mean several objects.
    #[error("`{reference}` is ambiguous: it may be {}", list(candidates))]
    Ambiguous {
        /// What the user typed.
        reference: String,
        /// The first ten objects that it may mean.
        candidates: Vec<Candidate>,
    },
    /// A filter names a field that the rows do not have.
    #[error("the filter `{filter}` has an unknown key: the keys are {}", keys.join(", "))]
    UnknownFilter {
        /// `KEY=VALUE`.
        filter: String,
        /// Every key that is allowed.
        keys: Vec<&'static str>,
    },
    /// Values break rules: every one of them.
    #[error("{}", list(.0))]
    Invalid(Vec<Violation>),
    /// The name is taken.
    #[error("{kind} `{name}` exists already")]
    AlreadyExists {
        /// The kind of the object that has it.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// The name is taken by a service that does not belong to the stack.
    #[error("service `{service}` exists already and does not belong to this stack")]
    NotOfStack {
        /// Its name.
        service: String,
    },
    /// The object is not the one that the request was made for.
    #[error("{kind} `{name}` has changed meanwhile")]
    ChangedMeanwhile {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The request was done, and its object has been removed since.
    #[error("the request was done, and {kind} `{reference}` has been removed since")]
    RemovedMeanwhile {
        /// Its kind.
        kind: Kind,
        /// What the user typed.
        reference: String,
    },
    /// The image is needed.
    #[error("image `{image}` is used by service `{service}`")]
    ImageInUse {
        /// What the user typed.
        image: String,
        /// A service that uses it.
        service: String,
    },
    /// The node can't be removed as it is.
    #[error("node `{node}` {hold}")]
    NodeHeld {
        /// Its name.
        node: String,
        /// What is in the way.
        hold: NodeHold,
    },
    /// Nobody can reach the task's container.
    #[error(transparent)]
    TaskUnreachable(#[from] OpenError),
    /// The cluster's first entry is not committed yet.
    #[error("the cluster is still being created")]
    NoClusterYet,
    /// This manager leads no more, or does not lead yet.
    #[error("leadership has just moved; try again")]
    LeadershipMoved,
    /// It could not be committed, or this manager could not prove that it leads.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl ControlError {
    /// One value that breaks a rule.
    pub(crate) fn invalid(field: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), why: why.to_string() }])
    }
}

impl From<Malformed> for ControlError {
    fn from(error: Malformed) -> Self {
        Self::invalid(error.field, format_args!("it {}", error.what))
    }
}

fn list(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
