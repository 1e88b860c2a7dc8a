//! The only table that maps errors to gRPC: a code for clients in general, and a [`Reason`] for those that act on it.

use tonic::{Code, Status};

use flota_api::reason::{Detail, Reason};
use flota_raft_store::{Conflict, ProposeError};

use super::super::error::{ControlError, NodeHold};
use crate::streams::BrokenStream;

/// Returns the code and the reason for an error.
fn row(error: &ControlError) -> (Code, Reason) {
    match error {
        ControlError::NotFound { .. } | ControlError::NoTask { .. } => (Code::NotFound, Reason::NotFound),
        ControlError::RemovedMeanwhile { .. } => (Code::NotFound, Reason::RemovedMeanwhile),
        ControlError::Ambiguous { .. } => (Code::InvalidArgument, Reason::Ambiguous),
        ControlError::UnknownFilter { .. } => (Code::InvalidArgument, Reason::UnknownFilter),
        ControlError::Invalid(_) => (Code::InvalidArgument, Reason::Invalid),
        ControlError::WrongState(_) => (Code::FailedPrecondition, Reason::WrongState),
        ControlError::AlreadyExists { .. } | ControlError::NotOfStack { .. } => {
            (Code::AlreadyExists, Reason::AlreadyExists)
        }
        ControlError::ChangedMeanwhile { .. } => (Code::Aborted, Reason::ChangedMeanwhile),
        ControlError::ImageInUse { .. }
        | ControlError::NetworkInUse { .. }
        | ControlError::VolumeInUse { .. }
        | ControlError::ValueInUse { .. } => (Code::FailedPrecondition, Reason::InUse),
        ControlError::NodeHeld { hold, .. } => match hold {
            NodeHold::Leads => (Code::FailedPrecondition, Reason::NodeLeads),
            NodeHold::IsManager => (Code::FailedPrecondition, Reason::NodeIsManager),
            NodeHold::NotDown(_) => (Code::FailedPrecondition, Reason::NodeNotDown),
        },
        ControlError::Departure { .. } => (Code::FailedPrecondition, Reason::MajorityNeeded),
        ControlError::Promotion { .. } => (Code::FailedPrecondition, Reason::NodeNotReady),
        ControlError::TaskUnreachable(_) | ControlError::NoRunningTask { .. } => {
            (Code::FailedPrecondition, Reason::TaskUnreachable)
        }
        ControlError::BrokenStream(BrokenStream::Lost(_)) => (Code::Unavailable, Reason::TaskUnreachable),
        ControlError::BrokenStream(BrokenStream::Malformed(_)) => (Code::Internal, Reason::TaskUnreachable),
        ControlError::EventsGone { .. } => (Code::OutOfRange, Reason::EventsGone),
        ControlError::ReaderTooSlow { .. } => (Code::DataLoss, Reason::ReaderTooSlow),
        ControlError::TooManyStreams => (Code::Unavailable, Reason::Busy),
        // No other manager would answer differently, so no other is asked.
        ControlError::TooManyOfUser { .. } => (Code::ResourceExhausted, Reason::Busy),
        ControlError::Revoked | ControlError::OutsideOfPrefixes | ControlError::RoleNeeded(_) => {
            (Code::PermissionDenied, Reason::Denied)
        }
        ControlError::ManagerStopped => (Code::Unavailable, Reason::NotAManager),
        ControlError::NoClusterYet => (Code::Unavailable, Reason::NoClusterYet),
        ControlError::LeadershipMoved => (Code::Unavailable, Reason::LeadershipMoved),
        ControlError::Propose(error) => match error {
            ProposeError::Conflict(Conflict::NameTaken { .. }) => (Code::AlreadyExists, Reason::AlreadyExists),
            ProposeError::Conflict(Conflict::Changed { .. }) => (Code::Aborted, Reason::ChangedMeanwhile),
            ProposeError::Refused | ProposeError::Conflict(Conflict::Answered { .. }) => {
                (Code::Aborted, Reason::RefusedBefore)
            }
            ProposeError::NotLeader => (Code::Unavailable, Reason::LeadershipMoved),
            ProposeError::Unknown => (Code::Unavailable, Reason::OutcomeUnknown),
            ProposeError::Unproven => (Code::Unavailable, Reason::Unproven),
            ProposeError::TooLarge { .. } => (Code::InvalidArgument, Reason::TooLarge),
        },
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        let (code, reason) = row(&error);
        let status = Self::new(code, error.to_string());
        let detail = Detail::from(reason);
        let detail = match error {
            ControlError::Ambiguous { candidates, .. } => Detail { candidates, ..detail },
            ControlError::EventsGone { oldest, .. } | ControlError::ReaderTooSlow { oldest, .. } => {
                Detail { oldest: Some(oldest), ..detail }
            }
            _ => detail,
        };
        detail.attach(status)
    }
}
