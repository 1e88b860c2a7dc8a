//! Conversion of events. Kinds and actions are texts on the wire, so that a reader can show those that it does not know.

use crate::event::{ClusterEvent, EventAttribute, EventCursor};
use crate::proto::{control as pc, types as pt};

impl From<EventCursor> for pt::EventCursor {
    fn from(it: EventCursor) -> Self {
        Self { version: it.version, number: Some(it.number).filter(|number| *number != EventCursor::LAST) }
    }
}

impl From<pt::EventCursor> for EventCursor {
    fn from(it: pt::EventCursor) -> Self {
        Self { version: it.version, number: it.number.unwrap_or(Self::LAST) }
    }
}

impl From<&ClusterEvent> for pc::Event {
    fn from(it: &ClusterEvent) -> Self {
        let attribute = |it: &EventAttribute| pc::EventAttribute {
            key: it.key.to_string(),
            value: it.value.clone(),
            old: it.old.clone(),
        };
        Self {
            cursor: Some(it.cursor.into()),
            at: it.at.0,
            kind: it.kind.to_string(),
            id: it.id.to_string(),
            name: it.name.clone(),
            action: it.action.to_string(),
            attributes: it.attributes.iter().map(attribute).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_the_same_after_the_way_over_the_wire() {
        for number in [0, 1, EventCursor::LAST] {
            let cursor = EventCursor { version: 7, number };
            assert_eq!(EventCursor::from(pt::EventCursor::from(cursor)), cursor);
        }
    }
}
