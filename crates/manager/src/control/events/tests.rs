//! Tests of streams of events on a store in memory.

use flota_api::model::{Cluster, Revoked, Service, ServiceSpec};
use flota_api::object::Kind;
use flota_api::reason::{Detail, Reason};
use flota_api::version::Timestamp;
use flota_raft_store::WriteTx;
use tonic::Status;

use super::super::tests::alone::Alone;
use super::*;
use crate::write::Consensus;

fn service(name: &str) -> Service {
    let spec = Arc::new(ServiceSpec { name: name.into(), ..ServiceSpec::default() });
    Service { id: format!("id-of-{name}").into(), spec, ..Service::default() }
}

/// Creates these services in one entry.
async fn create(control: &Control<Alone>, names: &[&str]) {
    let mut tx = WriteTx::new(control.store.view(), None);
    names.iter().for_each(|name| tx.create(service(name)));
    control.member.propose(tx.finish()).await.expect("they are new");
}

/// Makes an entry with one event.
async fn update(control: &Control<Alone>, name: &str) {
    let view = control.store.view();
    let service = view.service_by_name(name).expect("it is there").as_ref().clone();
    let mut tx = WriteTx::new(view, None);
    tx.update(service);
    control.member.propose(tx.finish()).await.expect("nothing else changes");
}

fn filter(key: &str, value: &str) -> Vec<Filter> {
    vec![Filter { key: key.into(), value: value.into() }]
}

async fn watch(
    control: &Control<Alone>,
    since: &str,
    until: Option<Until>,
    filters: &[Filter],
) -> Result<Watch<EventPage>, ControlError> {
    let since = since.parse().expect("a cursor");
    control.watch_events(None, Freshness::Linearizable, filters, Some(since), until).await
}

/// Reads a stream to its end. Returns the events and the last place.
async fn all(mut watch: Watch<EventPage>) -> (Vec<String>, String) {
    let (mut seen, mut through, mut is_last) = (Vec::new(), EventCursor::default(), false);
    while let Some(page) = watch.recv().await {
        let page = page.expect("no error");
        seen.extend(page.events.iter().map(|it| format!("{} {} {}", it.cursor, it.action, it.name)));
        assert!(!is_last, "nothing follows the last message");
        (through, is_last) = (page.through, page.is_last);
    }
    assert!(is_last, "the reader is told that it was the last");
    (seen, through.to_string())
}

#[tokio::test]
async fn a_stream_ends_after_the_events_that_there_are_or_at_its_place() {
    let control = Control::alone();
    create(&control, &["web", "db"]).await;
    update(&control, "web").await;
    let all_of = |since: &'static str, until| {
        let control = control.clone();
        async move { all(watch(&control, since, Some(until), &[]).await.expect("it is kept")).await }
    };
    let version = control.store.view().version;
    let (first, last) = (format!("{}", version - 1), version.to_string());
    let names = [format!("{first}.1 create web"), format!("{first}.2 create db"), format!("{last}.1 update web")];
    assert_eq!(all_of("0", Until::Now).await, (names.to_vec(), last.clone()));
    let (seen, _) = all_of("0", Until::Cursor(EventCursor::end_of(version - 1))).await;
    assert_eq!(seen, names[..2]);
    let (seen, _) = all_of("0", Until::Cursor(EventCursor { version: version - 1, number: 1 })).await;
    assert_eq!(seen, names[..1]);
    let filtered = watch(&control, "0", Some(Until::Now), &filter("name", "db")).await.expect("it is kept");
    assert_eq!(all(filtered).await, (names[1..2].to_vec(), last.clone()));
    let now =
        control.watch_events(None, Freshness::Linearizable, &[], None, Some(Until::Now)).await.expect("it is kept");
    assert_eq!(all(now).await, (Vec::new(), last));
}

#[tokio::test]
async fn the_first_message_comes_at_once_and_names_the_place_of_the_stream() {
    let control = Control::alone();
    create(&control, &["web"]).await;
    let now = EventCursor::end_of(control.store.view().version);
    for (freshness, age) in [
        (Freshness::Linearizable, Age::Current),
        (Freshness::Stale, Age::Stale(Some(std::time::Duration::from_secs(3)))),
    ] {
        let mut stream = control.watch_events(None, freshness, &[], None, None).await.expect("it begins now");
        let page = stream.recv().await.expect("a message").expect("no error");
        let first = EventPage { age: Some(age), events: Vec::new(), through: now, until: None, is_last: false };
        assert_eq!(page, first);
    }
}

#[tokio::test]
async fn places_that_are_gone_or_not_yet_there_are_refused_with_what_can_be_had() {
    let control = Control::alone();
    create(&control, &["web"]).await;
    let too_new = watch(&control, "9.1", None, &[]).await.map(drop).expect_err("it is in the future");
    assert_eq!(
        too_new.to_string(),
        format!("since: 9.1 is after {}, the cluster's newest version", control.store.view().version)
    );
    // A snapshot of another manager.
    control.store.restore(control.store.view());
    let oldest = EventCursor::end_of(control.store.view().version);
    let gone = Status::from(watch(&control, "0", None, &[]).await.map(drop).expect_err("it is gone"));
    let detail = Detail { oldest: Some(oldest), ..Detail::from(Reason::EventsGone) };
    assert_eq!(Detail::of(&gone), Some(detail));
    assert!(gone.message().contains(&format!("--since {oldest} ")), "{}", gone.message());
    watch(&control, &oldest.to_string(), None, &[]).await.map(drop).expect("the oldest place can be had");
}

#[tokio::test]
async fn a_reader_that_is_too_slow_gets_an_error_behind_what_it_has_got_and_no_gap() {
    let control = Control::alone();
    create(&control, &["web"]).await;
    let mut stream = watch(&control, "0", None, &[]).await.expect("it is kept");
    for _ in 0..52_000 {
        update(&control, "web").await;
        tokio::task::yield_now().await;
    }
    let (mut seen, mut last) = (Vec::new(), None);
    while let Some(page) = stream.recv().await {
        match page {
            Ok(page) => seen.extend(page.events.iter().map(|event| event.cursor.version)),
            Err(error) => last = Some(error),
        }
    }
    assert!(seen.len() < 3_000, "what waits is bounded: {}", seen.len());
    assert!(seen.windows(2).all(|pair| pair[0] + 1 == pair[1]), "each entry has one event");
    let status = Status::from(last.expect("it is told"));
    let detail = Detail::of(&status).expect("a typed reason");
    assert_eq!(detail.reason, Reason::ReaderTooSlow);
    assert!(detail.oldest.is_some_and(|oldest| oldest.version > *seen.last().expect("some")), "{status}");
}

#[tokio::test]
async fn a_reader_whose_filters_pass_nothing_is_told_how_far_the_stream_has_come() {
    let control = Control::alone();
    create(&control, &["web", "db"]).await;
    let mut stream = watch(&control, "0", None, &filter("name", "cache")).await.expect("it is kept");
    assert!(stream.recv().await.expect("a message").expect("no error").events.is_empty());
    for _ in 0..PROGRESS {
        update(&control, "web").await;
    }
    let page = stream.recv().await.expect("a message").expect("no error");
    assert!(page.events.is_empty() && page.through.version >= PROGRESS as u64, "{page:?}");
    create(&control, &["cache"]).await;
    let page = stream.recv().await.expect("a message").expect("no error");
    assert_eq!(page.events.iter().map(|it| it.kind).collect::<Vec<_>>(), [Kind::Service]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_tells_after_a_while_how_far_it_has_come() {
    let control = Control::alone();
    create(&control, &["web"]).await;
    let mut stream = watch(&control, "0", None, &filter("name", "cache")).await.expect("it is kept");
    stream.recv().await.expect("a message").expect("no error");
    update(&control, "web").await;
    let begun = Instant::now();
    let page = stream.recv().await.expect("a message").expect("no error");
    assert_eq!(page.through, EventCursor::end_of(control.store.view().version));
    assert!(page.events.is_empty() && begun.elapsed() >= PROGRESS_AFTER, "{page:?}");
    assert!(stream.recv().now_or_never().is_none(), "nothing has happened since");
}

#[tokio::test]
async fn the_place_of_a_stream_is_not_after_its_end() {
    let control = Control::alone();
    for name in ["web", "db", "cache"] {
        create(&control, &[name]).await;
    }
    let first = EventCursor::end_of(control.store.view().version - 2);
    let ended = watch(&control, "0", Some(Until::Cursor(first)), &[]).await.expect("it is kept");
    assert_eq!(all(ended).await.1, first.to_string(), "a reader that goes on there misses nothing");
    let since = EventCursor::end_of(first.version + 1);
    let nothing = watch(&control, &since.to_string(), Some(Until::Cursor(first)), &[]).await.expect("it is kept");
    assert_eq!(all(nothing).await, (Vec::new(), since.to_string()));
}

#[tokio::test]
async fn the_stream_of_a_node_ends_when_its_certificate_is_revoked() {
    let control = Control::alone();
    control.put(Cluster { id: "c".into(), ..Cluster::default() }).await;
    let mut streams = Vec::new();
    for to in [Some("n1".into()), None] {
        streams.push(control.watch_events(to, Freshness::Linearizable, &[], None, None).await.expect("it begins now"));
    }
    for stream in &mut streams {
        stream.recv().await.expect("a message").expect("no error");
    }
    let view = control.store.view();
    let mut cluster = view.cluster().expect("it is there").as_ref().clone();
    cluster.revoked.push(Revoked { node_id: "n1".into(), until: Timestamp(u64::MAX) });
    let mut tx = WriteTx::new(view, None);
    tx.update(cluster);
    control.member.propose(tx.finish()).await.expect("nothing else changes");
    let [of_node, of_user] = &mut streams[..] else { panic!("two streams") };
    assert!(matches!(of_node.recv().await, Some(Err(ControlError::Revoked))));
    let page = of_user.recv().await.expect("a message").expect("no error");
    assert_eq!(page.events.iter().map(|it| it.kind).collect::<Vec<_>>(), [Kind::Cluster]);
}

#[tokio::test]
async fn a_stale_stream_ends_with_its_manager() {
    let leading = tokio::sync::watch::Sender::new(None);
    let control = Control { leading: leading.subscribe(), ..Control::alone() };
    let mut stream = control.watch_events(None, Freshness::Stale, &[], None, None).await.expect("it begins now");
    stream.recv().await.expect("a message").expect("no error");
    leading.send_replace(Some(CancellationToken::new()));
    assert!(stream.recv().now_or_never().is_none(), "it goes on whoever leads");
    drop(leading);
    assert!(matches!(stream.recv().await, Some(Err(ControlError::ManagerStopped))));
}

#[tokio::test]
async fn there_are_so_many_streams_at_once_and_those_that_end_make_room() {
    let control = Control::alone();
    let mut streams = Vec::new();
    for _ in 0..STREAMS_BOUND {
        streams.push(watch(&control, "0", None, &[]).await.expect("there is room"));
    }
    let refused = watch(&control, "0", None, &[]).await.map(drop);
    assert!(matches!(refused, Err(ControlError::TooManyStreams)), "{refused:?}");
    streams.pop();
    while let Err(error) = watch(&control, "0", None, &[]).await {
        assert!(matches!(error, ControlError::TooManyStreams), "{error}");
        tokio::task::yield_now().await;
    }
}
