//! Our errors as gRPC statuses: the one table.
//!
//! invalid → InvalidArgument · missing → NotFound · name taken → AlreadyExists · changed meanwhile → Aborted · in use →
//! FailedPrecondition · no leader, no quorum, or no proof of leading → Unavailable

use tonic::Status;

use flota_raft_store::{Conflict, ProposeError};

/// Why a write came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteFailed {
    /// The request can't be done as things are. Final: [`crate::write`] has had it proved by a read barrier.
    #[error("{}", .0.message())]
    Refused(Status),
    /// It could not be committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl From<Status> for WriteFailed {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl From<WriteFailed> for Status {
    fn from(error: WriteFailed) -> Self {
        match error {
            WriteFailed::Refused(status) => status,
            WriteFailed::Propose(error) => propose_status(&error),
        }
    }
}

/// The answer to a request that was done, when its object has been removed since.
pub(super) fn gone(kind: &str, name: &str) -> WriteFailed {
    WriteFailed::Refused(Status::not_found(format!("the request was done, and {kind} `{name}` has been removed since")))
}

/// What a proposal's error is to whoever asked.
pub(crate) fn propose_status(error: &ProposeError) -> Status {
    let text = error.to_string();
    match error {
        ProposeError::Conflict(Conflict::NameTaken { .. }) => Status::already_exists(text),
        ProposeError::Conflict(Conflict::Changed { .. }) => Status::aborted(text),
        ProposeError::NotLeader | ProposeError::Unknown | ProposeError::Unproven => Status::unavailable(text),
        ProposeError::TooLarge { .. } => Status::invalid_argument(text),
    }
}
