//! Why a request was refused, where the caller acts on it: a header beside the gRPC status, so that nobody reads
//! messages. Servers attach a reason, `ctl` reads it to go on to the next manager, to stop, or to give a hint.

use tonic::Status;
use tonic::metadata::MetadataValue;

const HEADER: &str = "flota-reason";

/// A refusal that the caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node that was asked has no manager, and gets none by waiting.
    NotAManager,
    /// The manager that was asked is still starting; it answers soon, others may answer now.
    Starting,
    /// The manager that was asked knows no leader.
    NoLeader,
}

impl Reason {
    const ALL: [Self; 3] = [Self::NotAManager, Self::Starting, Self::NoLeader];

    fn as_str(self) -> &'static str {
        match self {
            Self::NotAManager => "not-a-manager",
            Self::Starting => "starting",
            Self::NoLeader => "no-leader",
        }
    }

    /// The status with this reason beside it.
    #[must_use]
    pub fn attach(self, mut status: Status) -> Status {
        status.metadata_mut().insert(HEADER, MetadataValue::from_static(self.as_str()));
        status
    }

    /// The reason beside a status; `None` where there is none, or one that this build does not know.
    pub fn of(status: &Status) -> Option<Self> {
        let text = status.metadata().get(HEADER)?.to_str().ok()?;
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_travels_with_its_status() {
        for reason in Reason::ALL {
            let sent = reason.attach(Status::unavailable("text")).into_http::<()>();
            let received = Status::from_header_map(sent.headers()).expect("a status");
            assert_eq!((received.message(), Reason::of(&received)), ("text", Some(reason)));
        }
        assert_eq!(Reason::of(&Status::unavailable("not-a-manager")), None);
    }
}
