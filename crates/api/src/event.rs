//! Events: what has changed in the cluster, in the order of the log, as users follow it.
//!
//! An event names an object and the few facts that users look for. It never has the whole object: no environment, command,
//! label or credential is in it.

use std::fmt;
use std::str::FromStr;

use crate::id::Id;
use crate::object::Kind;
use crate::state::states;
use crate::version::{Timestamp, Version};

/// The place of an event in the order of all events: that of the change which it is. An entry of the log may bring several
/// changes; they are numbered from 1. Several words for one change are several events at the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCursor {
    /// The Raft index of the entry.
    pub version: Version,
    /// Number of the change within its entry; [`EventCursor::LAST`] stands for the last one, however many there are.
    pub number: u32,
}

/// A text is not a place in the order of events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version: it is a number such as 1234, or 1234.2 for the second change of that version")]
pub struct EventCursorError(String);

impl EventCursor {
    /// The number that comes after every event of an entry.
    pub const LAST: u32 = u32::MAX;

    /// Returns the place after all events of the entry.
    pub fn end_of(version: Version) -> Self {
        Self { version, number: Self::LAST }
    }
}

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Self::LAST => write!(f, "{}", self.version),
            number => write!(f, "{}.{number}", self.version),
        }
    }
}

impl FromStr for EventCursor {
    type Err = EventCursorError;

    fn from_str(text: &str) -> Result<Self, EventCursorError> {
        // `u64::from_str` accepts a plus sign.
        let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
        let cursor = match text.split_once('.') {
            None => number(text).map(Self::end_of),
            Some((version, of_entry)) => number(version)
                .zip(number(of_entry).and_then(|it| u32::try_from(it).ok()))
                .map(|(version, number)| Self { version, number }),
        };
        cursor.ok_or_else(|| EventCursorError(text.chars().take(40).collect()))
    }
}

states! {
    /// What happened to an object, in Docker's words where it has one.
    EventAction {
        /// The object was created.
        Create = "create",
        /// The object was changed, in a way for which there is no other word.
        Update = "update",
        /// The object was removed.
        Remove = "remove",
        /// The task has got its node.
        Assign = "assign",
        /// The task is to stop.
        Stop = "stop",
        /// The program of the task has ended, or its container could not be started.
        Die = "die",
        /// The task can't be carried out on its node.
        Reject = "reject",
        /// The node of the task was lost for so long that its result is no longer expected.
        Orphan = "orphan",
        /// The program of the task has started.
        Start = "start",
        /// The health checks of the task have another result.
        HealthStatus = "health_status",
        /// The processes of the task were frozen.
        Pause = "pause",
        /// The processes of the task go on.
        Unpause = "unpause",
    }
}

impl EventAction {
    /// Returns what happened to the object in the store: `Create`, `Update` or `Remove`.
    pub fn change(self) -> Self {
        match self {
            Self::Create | Self::Remove => self,
            _ => Self::Update,
        }
    }
}

/// A fact about the object of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventAttribute {
    /// Its name, mostly that of a field in the JSON form of the object's rows.
    pub key: &'static str,
    /// The value after the change; before it if the object was removed.
    pub value: String,
    /// The value before the change, if it was another one.
    pub old: Option<String>,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Its place in the order of all events.
    pub cursor: EventCursor,
    /// The time of the entry, which never falls from one entry to the next.
    pub at: Timestamp,
    /// Kind of the object.
    pub kind: Kind,
    /// Identifier of the object.
    pub id: Id,
    /// Name of the object as users see it, such as `web.1` for a task; its id if it has no name.
    pub name: String,
    /// What happened.
    pub action: EventAction,
    /// Facts about the object, in the order in which people read them. Those without a value are left out, except one that
    /// the change has taken away: it is empty, and has the value before.
    pub attributes: Vec<EventAttribute>,
}

impl ClusterEvent {
    /// Returns the value of an attribute; `None` if the object has none.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|it| it.key == key).map(|it| it.value.as_str())
    }

    /// Returns about how many bytes of memory the event takes.
    pub fn size(&self) -> usize {
        let of =
            |it: &EventAttribute| size_of::<EventAttribute>() + it.value.len() + it.old.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.name.len() + self.attributes.iter().map(of).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_printed() {
        for (text, version, number) in [("0", 0, EventCursor::LAST), ("12", 12, EventCursor::LAST), ("12.3", 12, 3)] {
            let cursor = EventCursor { version, number };
            assert_eq!((text.parse(), cursor.to_string().as_str()), (Ok(cursor), text));
        }
        for bad in ["", ".", "1.", ".1", "+1", "-1", "1.2.3", "x", "1.4294967296", "18446744073709551616", "1 "] {
            assert!(bad.parse::<EventCursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_version_alone_comes_after_all_its_events_and_before_those_of_the_next() {
        let of = |text: &str| text.parse::<EventCursor>().unwrap_or_default();
        assert!(of("7.0") < of("7.1") && of("7.1") < of("7.2") && of("7.9") < of("7") && of("7") < of("8.0"));
    }

    #[test]
    fn every_finer_word_is_an_update() {
        let finer = EventAction::ALL.iter().filter(|it| it.change() != **it);
        assert!(finer.clone().all(|it| it.change() == EventAction::Update));
        assert_eq!(finer.count(), 9);
    }
}
