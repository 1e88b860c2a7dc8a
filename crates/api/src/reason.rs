//! Why a request was refused, as a typed detail of the gRPC status: no code decides by the text of a message.
//!
//! Servers attach a [`Detail`] or only a [`Reason`]. `ctl` uses it to decide whether to ask the next manager, to
//! choose its exit code and to print a hint.

use prost::Message;
use tonic::Status;

use crate::event::EventCursor;
use crate::proto::errors as pe;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A refusal that the caller can act on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            fn from_wire(reason: pe::Reason) -> Option<Self> {
                match reason {
                    pe::Reason::Unspecified => None,
                    $(pe::Reason::$name => Some(Self::$name)),*
                }
            }
        }

        impl From<Reason> for pe::Reason {
            fn from(reason: Reason) -> Self {
                match reason { $(Reason::$name => Self::$name),* }
            }
        }
    };
}

reasons! {
    /// The manager is still starting. It will answer soon, and others may answer now.
    Starting,
    /// The manager knows no leader.
    NoLeader,
    /// The manager led when the request came, and no longer leads.
    LeadershipMoved,
    /// The manager can't prove that it leads, so it can't judge the request. Nothing was changed.
    Unproven,
    /// No quorum answered in time. The change may still commit; a retry with the same request id is safe.
    OutcomeUnknown,
    /// The cluster's first entry is not committed yet.
    NoClusterYet,
    /// Too many calls of this kind come from the caller's address, or are open.
    Busy,
    /// The manager is locked: somebody has to open its keys. Others may answer.
    Locked,
    /// The node has no manager, and waiting does not change that.
    NotAManager,
    /// The reference matches no object.
    NotFound,
    /// The request was carried out, and its object has been removed since.
    RemovedMeanwhile,
    /// The reference matches several objects.
    Ambiguous,
    /// A filter names a field that the rows do not have.
    UnknownFilter,
    /// A value in the request breaks a rule.
    Invalid,
    /// The request is valid, but the object is in a state that does not allow it.
    WrongState,
    /// The change is larger than an entry of the log may be.
    TooLarge,
    /// The name is taken.
    AlreadyExists,
    /// The object has changed since the version that the request names.
    ChangedMeanwhile,
    /// An earlier try of the request was refused, so it is not carried out any more.
    RefusedBefore,
    /// A service uses the image.
    InUse,
    /// The node to be removed leads the cluster.
    NodeLeads,
    /// The node to be removed is a manager.
    NodeIsManager,
    /// The node to be removed is not down.
    NodeNotDown,
    /// The task has no node, or its node does not answer.
    TaskUnreachable,
    /// The managers that stay have no quorum without the node.
    MajorityNeeded,
    /// The caller's certificate does not allow the request.
    Denied,
    /// The join token is malformed, or is not valid in this cluster.
    BadToken,
    /// The manager no longer has all events that the reader wants.
    EventsGone,
    /// The reader was so slow that events were dropped that it had not read.
    ReaderTooSlow,
    /// The node can't become a manager now.
    NodeNotReady,
    /// The cluster has removed the node that calls, and does not take it back under its old identity.
    NodeRemoved,
}

impl Reason {
    /// Returns whether the request was judged, so that every other manager gives the same answer. Otherwise another
    /// manager, or mostly the same one later, may carry it out.
    pub fn is_judgement(self) -> bool {
        match self {
            Self::Starting
            | Self::NoLeader
            | Self::LeadershipMoved
            | Self::Unproven
            | Self::OutcomeUnknown
            | Self::NoClusterYet
            | Self::Busy
            | Self::Locked
            | Self::NotAManager => false,
            Self::NotFound
            | Self::RemovedMeanwhile
            | Self::Ambiguous
            | Self::UnknownFilter
            | Self::Invalid
            | Self::WrongState
            | Self::TooLarge
            | Self::AlreadyExists
            | Self::ChangedMeanwhile
            | Self::RefusedBefore
            | Self::InUse
            | Self::NodeLeads
            | Self::NodeIsManager
            | Self::NodeNotDown
            | Self::TaskUnreachable
            | Self::MajorityNeeded
            | Self::Denied
            | Self::BadToken
            | Self::EventsGone
            | Self::ReaderTooSlow
            | Self::NodeNotReady
            | Self::NodeRemoved => true,
        }
    }

    /// Returns the status with this reason as its detail.
    #[must_use]
    pub fn attach(self, status: Status) -> Status {
        Detail::from(self).attach(status)
    }

    /// Returns the reason of a status; `None` if it has no reason or one that this build does not know.
    pub fn of(status: &Status) -> Option<Self> {
        Detail::of(status).map(|detail| detail.reason)
    }
}

/// An object that an ambiguous reference matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The kind of object, as users read it.
    pub kind: String,
    /// Its whole id.
    pub id: String,
    /// Its name; empty if it has none.
    pub name: String,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "{} {}", self.kind, self.id),
            name => write!(f, "{} {name} ({})", self.kind, self.id),
        }
    }
}

/// A reason with its additional data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Why the request was refused.
    pub reason: Reason,
    /// Objects that an ambiguous reference matches; the list may be incomplete.
    pub candidates: Vec<Candidate>,
    /// The place after which the manager has every event, if some that were wanted are gone.
    pub oldest: Option<EventCursor>,
}

impl From<Reason> for Detail {
    fn from(reason: Reason) -> Self {
        Self { reason, candidates: Vec::new(), oldest: None }
    }
}

impl Detail {
    /// Returns the status with this detail, which replaces its own.
    #[must_use]
    pub fn attach(self, mut status: Status) -> Status {
        let candidate = |it: Candidate| pe::Candidate { kind: it.kind, id: it.id, name: it.name };
        let detail = pe::Detail {
            reason: pe::Reason::from(self.reason).into(),
            candidates: self.candidates.into_iter().map(candidate).collect(),
            oldest: self.oldest.map(Into::into),
        };
        let bytes = detail.encode_to_vec().into();
        let metadata = std::mem::take(status.metadata_mut());
        Status::with_details_and_metadata(status.code(), status.message(), bytes, metadata)
    }

    /// Returns the detail of a status; `None` if it has no detail or one that this build does not know.
    pub fn of(status: &Status) -> Option<Self> {
        let detail = pe::Detail::decode(status.details()).ok()?;
        let candidate = |it: pe::Candidate| Candidate { kind: it.kind, id: it.id, name: it.name };
        let reason = Reason::from_wire(detail.reason())?;
        let oldest = detail.oldest.map(Into::into);
        Some(Self { reason, candidates: detail.candidates.into_iter().map(candidate).collect(), oldest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_travels_with_its_status() {
        for reason in Reason::ALL {
            let candidate = Candidate { kind: "node".into(), id: "abc".into(), name: "m1".into() };
            let detail = Detail { reason: *reason, candidates: vec![candidate], oldest: Some(EventCursor::end_of(7)) };
            let sent = detail.clone().attach(Status::unavailable("text")).into_http::<()>();
            let received = Status::from_header_map(sent.headers()).expect("a status");
            assert_eq!((received.message(), Detail::of(&received)), ("text", Some(detail)));
            assert_eq!(Reason::of(&received), Some(*reason));
        }
    }

    #[test]
    fn a_status_without_a_known_detail_has_no_reason() {
        assert_eq!(Reason::of(&Status::unavailable("NotAManager")), None);
        let newer = pe::Detail { reason: 1_000, ..pe::Detail::default() }.encode_to_vec();
        assert_eq!(Reason::of(&Status::with_details(tonic::Code::Internal, "text", newer.into())), None);
    }
}
