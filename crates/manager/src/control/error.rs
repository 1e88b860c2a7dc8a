//! Why an operation of the Control API is refused, in domain terms. Each front maps these errors with a table of its
//! own (see [`super::grpc`]).

use flota_api::event::EventCursor;
use flota_api::model::{NodeState, UserRole};
use flota_api::object::Kind;
use flota_api::reason::Candidate;
use flota_api::{Malformed, Violation};
use flota_raft_store::ProposeError;

use crate::departure::DepartureError;
use crate::level::OldBuild;
use crate::promotion::PromotionError;
use crate::streams::{BrokenStream, OpenError};

/// Why a node can't be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeHold {
    /// It is the leader, which carries out the removal itself.
    #[error("leads: use another manager, or `ctl swarm leave --force` there")]
    Leads,
    /// It is part of the quorum.
    #[error("is a manager: `ctl swarm leave --force` there, or --force")]
    IsManager,
    /// It may still run tasks.
    #[error("is {0}, not down: --force removes it all the same")]
    NotDown(NodeState),
}

/// Why an operation is refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No object matches the reference.
    #[error("there is no {kind} `{reference}`")]
    NotFound {
        /// The kind of the object.
        kind: Kind,
        /// The reference.
        reference: String,
    },
    /// The service exists but has no task that the reference could stand for.
    #[error("service `{service}` has no task")]
    NoTask {
        /// Its name.
        service: String,
    },
    /// The service exists but none of its tasks runs.
    #[error("service `{service}` has no running task")]
    NoRunningTask {
        /// Its name.
        service: String,
    },
    /// Several objects match the reference.
    #[error("`{reference}` is ambiguous: it may be any of {}", list(candidates))]
    Ambiguous {
        /// The reference.
        reference: String,
        /// The first ten candidates.
        candidates: Vec<Candidate>,
    },
    /// A filter names a field that the rows lack.
    #[error("the filter `{filter}` has an unknown key: the keys are {}", keys.join(", "))]
    UnknownFilter {
        /// `KEY=VALUE`.
        filter: String,
        /// Every allowed key.
        keys: Vec<&'static str>,
    },
    /// Some values break rules; all violations are listed.
    #[error("{}", list(.0))]
    Invalid(Vec<Violation>),
    /// The request is valid, but the object is in a state that does not allow it.
    #[error("{0}")]
    WrongState(String),
    /// Another object has the name.
    #[error("{kind} `{name}` exists already")]
    AlreadyExists {
        /// The kind of that object.
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
    /// The object no longer has the version that the request names.
    #[error("{kind} `{name}` has changed meanwhile")]
    ChangedMeanwhile {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The request was carried out, and its object has been removed since.
    #[error("the request was done, and {kind} `{reference}` has been removed since")]
    RemovedMeanwhile {
        /// Its kind.
        kind: Kind,
        /// The reference.
        reference: String,
    },
    /// A service uses the image.
    #[error("image `{image}` is used by service `{service}`")]
    ImageInUse {
        /// The reference.
        image: String,
        /// A service that uses it.
        service: String,
    },
    /// Services use the network.
    #[error("network `{network}` is used by {}", users.join(", "))]
    NetworkInUse {
        /// Its name.
        network: String,
        /// Names of the services.
        users: Vec<String>,
    },
    /// Services use the volume.
    #[error("volume `{volume}` is used by {}", users.join(", "))]
    VolumeInUse {
        /// Its name.
        volume: String,
        /// Names of the services.
        users: Vec<String>,
    },
    /// Services use the secret or config.
    #[error("{kind} `{name}` is used by {}", users.join(", "))]
    ValueInUse {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Names of the services.
        users: Vec<String>,
    },
    /// The node can't be removed in its current state.
    #[error("node `{node}` {hold}")]
    NodeHeld {
        /// Its name.
        node: String,
        /// The reason.
        hold: NodeHold,
    },
    /// The manager can't leave the others.
    #[error("manager `{node}` can't leave: {error}")]
    Departure {
        /// Its name.
        node: String,
        /// The reason.
        error: DepartureError,
    },
    /// The node can't become a manager.
    #[error("node `{node}` can't become a manager: {error}")]
    Promotion {
        /// Its name.
        node: String,
        /// The reason.
        error: PromotionError,
    },
    /// The task's container can't be reached.
    #[error(transparent)]
    TaskUnreachable(#[from] OpenError),
    /// The stream to the task's container broke.
    #[error(transparent)]
    BrokenStream(#[from] BrokenStream),
    /// This manager does not have all events that the request is for.
    #[error(
        "the events after version {since} are not all kept any more: this manager has those after {oldest}; --since {oldest} \
         goes on without the others"
    )]
    EventsGone {
        /// The place after which they are wanted.
        since: EventCursor,
        /// The place after which every event is kept.
        oldest: EventCursor,
    },
    /// Events were dropped before the reader of a stream took them.
    #[error(
        "the reader is too slow, or this manager has got a snapshot: the events up to version {reached} were read, and this \
         manager has only those after {oldest}; --since {oldest} goes on without the others"
    )]
    ReaderTooSlow {
        /// The place up to which the stream was sent.
        reached: EventCursor,
        /// The place after which every event is kept.
        oldest: EventCursor,
    },
    /// This manager sends as many streams of events as it may.
    #[error("too many streams of events are open at this manager")]
    TooManyStreams,
    /// A user has as many streams open as one may.
    #[error("user `{user}` has {most} streams of this kind open at this manager, and that is the most")]
    TooManyOfUser {
        /// The name of the user.
        user: String,
        /// The bound.
        most: usize,
    },
    /// The change would also be one of objects that the user does not see.
    #[error("this would also change what is outside of your prefixes; ask an admin")]
    OutsideOfPrefixes,
    /// The user's role does not allow it.
    #[error("this needs the role {0}")]
    RoleNeeded(UserRole),
    /// The certificate of the reader of a stream was revoked.
    #[error("the node that reads has left the cluster")]
    Revoked,
    /// This manager has stopped while a stream was open.
    #[error("the manager has stopped")]
    ManagerStopped,
    /// The cluster's first entry is not committed yet.
    #[error("the cluster is still being created")]
    NoClusterYet,
    /// This manager no longer leads, or does not lead yet.
    #[error("leadership has just moved; try again")]
    LeadershipMoved,
    /// The change could not be committed, or this manager could not prove that it leads.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl From<OldBuild> for ControlError {
    fn from(error: OldBuild) -> Self {
        Self::WrongState(error.to_string())
    }
}

impl ControlError {
    /// Creates an error for a single value that breaks a rule.
    pub(crate) fn invalid(field: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), why: why.to_string() }])
    }

    /// Returns the same error, of which the broken rules are those of a field, or of one within it.
    pub(super) fn within(self, outer: &str) -> Self {
        match self {
            Self::Invalid(found) => Self::Invalid(found.into_iter().map(|it| it.within(outer)).collect()),
            other => other,
        }
    }
}

impl From<Malformed> for ControlError {
    fn from(error: Malformed) -> Self {
        Self::Invalid(vec![error.into()])
    }
}

/// Most bytes of a list of what is wrong. It travels in a header, whose characters may take three bytes each, and of which
/// clients read 16 KiB.
const LIST_BOUND: usize = 4 << 10;

fn list(items: &[impl std::fmt::Display]) -> String {
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        let item = item.to_string();
        let separator = if index == 0 { "" } else { "; " };
        if index > 0 && text.len() + separator.len() + item.len() > LIST_BOUND {
            return format!("{text}; and {} more", items.len() - index);
        }
        text.extend([separator, &item]);
    }
    text
}
