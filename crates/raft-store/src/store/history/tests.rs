//! Tests of the bounds of the history, and of what its readers see.

use flota_api::event::{EventAction, EventAttribute};
use flota_api::object::Kind;
use flota_api::version::Timestamp;
use futures::FutureExt;

use super::*;

fn event(version: Version, number: u32) -> ClusterEvent {
    ClusterEvent {
        cursor: EventCursor { version, number },
        at: Timestamp(version),
        kind: Kind::Service,
        id: "s".into(),
        name: "web".into(),
        action: EventAction::Update,
        attributes: Vec::new(),
    }
}

fn events(version: Version, count: u32) -> Vec<ClusterEvent> {
    (1..=count).map(|number| event(version, number)).collect()
}

fn cursors(batch: &EventBatch) -> String {
    batch.events.iter().map(|event| event.cursor.to_string()).collect::<Vec<_>>().join(" ")
}

fn read(history: &History, since: &str) -> Result<(String, String), String> {
    let mut reader = history.reader(since.parse().expect("a cursor"));
    let batch = reader.read(100).map_err(|gone| gone.oldest.to_string())?;
    assert_eq!(reader.cursor(), batch.through);
    Ok((cursors(&batch), batch.through.to_string()))
}

#[test]
fn a_reader_gets_all_events_after_its_place_and_can_go_on_within_an_entry() {
    let history = History::new();
    let _ = history.add(3, events(3, 2));
    let _ = history.add(4, Vec::new());
    let _ = history.add(5, events(5, 1));
    let seen = |events: &str, through: &str| Ok((events.to_owned(), through.to_owned()));
    assert_eq!(read(&history, "0"), seen("3.1 3.2 5.1", "5"));
    assert_eq!(read(&history, "2"), seen("3.1 3.2 5.1", "5"));
    assert_eq!(read(&history, "3.0"), seen("3.1 3.2 5.1", "5"));
    assert_eq!(read(&history, "3.1"), seen("3.2 5.1", "5"));
    assert_eq!(read(&history, "3"), seen("5.1", "5"));
    assert_eq!(read(&history, "5.1"), seen("", "5"));
    assert_eq!(read(&history, "9.7"), seen("", "9.7"), "it is ahead of this manager");
}

#[test]
fn what_does_not_fit_into_one_batch_comes_with_the_next() {
    let history = History::new();
    let _ = history.add(1, events(1, 5));
    let mut reader = history.reader(EventCursor::end_of(0));
    let mut seen = Vec::new();
    for _ in 0..4 {
        let batch = reader.read(2).expect("all are kept");
        seen.push((cursors(&batch), batch.through.to_string()));
    }
    let expected = [("1.1 1.2", "1.2"), ("1.3 1.4", "1.4"), ("1.5", "1"), ("", "1")];
    assert_eq!(seen, expected.map(|(events, through)| (events.to_owned(), through.to_owned())));
}

#[test]
fn the_events_of_a_change_come_and_go_together() {
    let history = History::new();
    let _ = history.add(1, [1, 1, 1, 2].map(|number| event(1, number)).into());
    let batch = history.reader(EventCursor::end_of(0)).read(2).expect("all are kept");
    assert_eq!((cursors(&batch).as_str(), batch.through.to_string().as_str()), ("1.1 1.1 1.1", "1.1"));
    let count = u32::try_from(EVENTS_KEPT).expect("it is small");
    let dropped = history.add(2, events(2, count - 3));
    assert_eq!(dropped.len(), 3, "one had to go");
    assert_eq!(read(&history, "0"), Err("1.1".into()));
}

#[test]
fn who_has_read_everything_gets_all_of_the_largest_entry() {
    let history = History::new();
    let largest = u32::try_from(crate::ACTIONS_BOUND).expect("it is small");
    let _ = history.add(1, events(1, 1));
    let mut reader = history.reader("1".parse().expect("a cursor"));
    // Each change may be up to three words.
    let _ = history.add(2, (1..=largest).flat_map(|number| [1, 2, 3].map(|_| event(2, number))).collect());
    let batch = reader.read(usize::MAX).expect("nothing was dropped");
    assert_eq!(batch.events.len(), 3 * largest as usize);
}

#[test]
fn the_oldest_events_are_dropped_by_number_and_a_reader_of_them_learns_it() {
    let history = History::new();
    let mut behind = history.reader(EventCursor::end_of(0));
    let count = u32::try_from(EVENTS_KEPT).expect("it is small");
    let _ = history.add(1, events(1, count));
    assert_eq!(history.kept.lock().expect("unlocked").events.len(), EVENTS_KEPT);
    let _ = history.add(2, events(2, 2));
    assert_eq!(history.kept.lock().expect("unlocked").events.len(), EVENTS_KEPT);
    assert_eq!(behind.read(10).map_err(|gone| gone.oldest.to_string()), Err("1.2".into()));
    assert_eq!(read(&history, "1.1"), Err("1.2".into()));
    let mut at_the_oldest = history.reader("1.2".parse().expect("a cursor"));
    assert_eq!(cursors(&at_the_oldest.read(2).expect("they are kept")), "1.3 1.4");
}

#[test]
fn events_are_dropped_by_bytes_and_none_is_counted_twice() {
    let history = History::new();
    let large = |version| {
        let value = "x".repeat(1 << 20);
        let attributes = vec![EventAttribute { key: "reason", value: value.clone(), old: Some(value) }];
        ClusterEvent { attributes, ..event(version, 1) }
    };
    for version in 1..=100 {
        let _ = history.add(version, vec![large(version)]);
    }
    let kept = history.kept.lock().expect("unlocked");
    assert!((6..=8).contains(&kept.events.len()) && kept.bytes <= BYTES_KEPT, "{}", kept.events.len());
    assert_eq!(kept.bytes, kept.events.iter().map(|event| event.size()).sum::<usize>());
}

#[test]
fn after_a_snapshot_only_what_comes_later_can_be_read() {
    let history = History::new();
    let _ = history.add(1, events(1, 1));
    let _ = history.reset(7);
    assert_eq!(read(&history, "1.1"), Err("7".into()));
    assert_eq!(read(&history, "6"), Err("7".into()));
    assert_eq!(read(&history, "7"), Ok((String::new(), "7".into())));
    let _ = history.add(8, events(8, 1));
    assert_eq!(read(&history, "7"), Ok(("8.1".into(), "8".into())));
}

#[tokio::test]
async fn a_reader_is_woken_by_an_entry_without_events_too() {
    let history = History::new();
    let mut reader = history.reader(EventCursor::end_of(0));
    assert_eq!(reader.read(1), Ok(EventBatch { events: Vec::new(), through: EventCursor::end_of(0) }));
    let _ = history.add(1, Vec::new());
    history.announce(1);
    reader.changed().await;
    assert_eq!(reader.read(1).map(|batch| batch.through), Ok(EventCursor::end_of(1)));
    assert_eq!(reader.changed().now_or_never(), None);
}
