//! The events that users follow: in order, each once, from any version that is kept, and from any manager.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use flota_api::event::EventCursor;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{Event, Filter, RemoveRequest, WatchEventsRequest};
use flota_api::reason::{Detail, Reason};
use flota_manager::forward::STALE;
use flota_tests::sim::script::{Script, script, spec};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{another_leads, seen};

/// What a reader has got, while it reads.
#[derive(Clone, Default)]
struct Reader {
    events: Arc<Mutex<Vec<Event>>>,
    through: Arc<Mutex<Option<EventCursor>>>,
}

impl Reader {
    /// Reads a stream until it ends.
    async fn read(self, mut client: ControlClient<Channel>, request: WatchEventsRequest) -> Result<(), Status> {
        let is_stale = request.stale;
        let mut request = Request::new(request);
        if is_stale {
            request.metadata_mut().insert(STALE, MetadataValue::from_static("1"));
        }
        let mut messages = client.watch_events(request).await?.into_inner();
        while let Some(message) = messages.message().await? {
            self.events.lock().unwrap().extend(message.events);
            *self.through.lock().unwrap() = message.through.map(Into::into);
            if message.last {
                return Ok(());
            }
        }
        Err(Status::aborted("the stream ended before its last message"))
    }

    fn lines(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(line).collect()
    }

    fn through(&self) -> Option<EventCursor> {
        *self.through.lock().unwrap()
    }
}

fn cursor(event: &Event) -> EventCursor {
    event.cursor.unwrap().into()
}

fn line(event: &Event) -> String {
    format!("{} {} {} {}", cursor(event), event.kind, event.action, event.name)
}

/// Reads what there is after `since`. Returns the events and the place up to which they reach.
fn events(
    it: &mut Script,
    manager: usize,
    stale: bool,
    since: EventCursor,
    filters: &[(&str, &str)],
) -> Result<(Vec<Event>, EventCursor), Status> {
    let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
    let request = WatchEventsRequest {
        stale,
        filters: filters.iter().map(filter).collect(),
        since: Some(since.into()),
        until_now: true,
        ..WatchEventsRequest::default()
    };
    let reader = Reader::default();
    let reads = reader.clone();
    it.request(manager, |client| reads.read(client, request))?;
    let all = reader.events.lock().unwrap().clone();
    Ok((all, reader.through().unwrap()))
}

/// The newest version that the leader has.
fn now(it: &mut Script) -> EventCursor {
    EventCursor::end_of(it.cluster().view().unwrap().version)
}

/// Creates the service `web`, scales it and removes it.
fn life_of_web(it: &mut Script) {
    let leader = it.leader();
    it.create(leader, spec("web", 2)).unwrap();
    it.converge();
    it.update(leader, "scale", spec("web", 3)).unwrap();
    it.converge();
    let remove = RemoveRequest { request_id: "remove".into(), name: "web".into(), force: false };
    it.request(leader, |mut client| async move { client.remove_service(remove).await }).unwrap();
    it.wait("no task is left", 30_000, |cluster| {
        let left = cluster.view().ok_or("no manager leads")?.tasks().count();
        seen(left == 0, left)
    });
}

#[test]
fn the_life_of_a_service_and_of_its_tasks_is_seen_in_order_and_once() {
    script(2, |it| {
        let (leader, since) = (it.leader(), now(it));
        life_of_web(it);
        let (all, _) = events(it, leader, false, since, &[("service", "web")]).unwrap();
        assert!(all.windows(2).all(|pair| cursor(&pair[0]) <= cursor(&pair[1])), "{all:?}");
        let of = |kind: &str, id: &str| -> Vec<&str> {
            let is = |event: &&Event| event.kind == kind && (id.is_empty() || event.id == id);
            all.iter().filter(is).map(|event| event.action.as_str()).collect()
        };
        let service = of("service", "");
        assert_eq!((service.first(), service.last()), (Some(&"create"), Some(&"remove")));
        assert!(service[1..service.len() - 1].iter().all(|action| *action == "update"), "{service:?}");
        let tasks: BTreeSet<&str> = all.iter().filter(|it| it.kind == "task").map(|it| it.id.as_str()).collect();
        assert_eq!(tasks.len(), 3);
        for task in tasks {
            let mut actions = of("task", task);
            actions.retain(|action| *action != "update");
            assert_eq!(actions, ["create", "start", "stop", "die", "remove"], "{all:?}");
        }
    });
}

#[test]
fn filters_are_applied_by_the_manager() {
    script(2, |it| {
        let (leader, since) = (it.leader(), now(it));
        life_of_web(it);
        let names = |it: &mut Script, filters: &[(&str, &str)]| {
            let (all, _) = events(it, leader, false, since, filters).unwrap();
            all.into_iter().map(|event| format!("{} {}", event.action, event.name)).collect::<BTreeSet<_>>()
        };
        let started = names(it, &[("type", "task"), ("event", "start")]);
        assert_eq!(started, ["start web.1", "start web.2", "start web.3"].map(String::from).into());
        assert_eq!(names(it, &[("event", "start"), ("service", "db")]), BTreeSet::new());
        let (on_one, of_tasks) = (names(it, &[("node", "w1"), ("type", "task")]), names(it, &[("type", "task")]));
        assert!(!on_one.is_empty() && on_one.is_subset(&of_tasks), "{on_one:?}");
        let refused = events(it, leader, false, since, &[("colour", "red")]).unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::UnknownFilter));
    });
}

#[test]
fn every_manager_has_the_same_events_and_a_follower_sends_them_as_they_come() {
    script(2, |it| {
        let (since, follower) = (now(it), (it.leader() + 1) % 3);
        let live = Reader::default();
        let (reads, request) = (live.clone(), WatchEventsRequest { stale: true, ..WatchEventsRequest::default() });
        let asked = it.begin(follower, |client| reads.read(client, request));
        it.wait("the stream has begun", 5_000, |_| seen(live.through().is_some(), "no message"));
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        // The heartbeat after the last entry tells the followers that it is committed.
        it.pass(1_000);
        let begun = |of: &[Event]| of.iter().map(line).filter(|line| line.contains(" web")).collect::<Vec<_>>();
        let seen_live = begun(&live.events.lock().unwrap().clone());
        assert!(it.end(asked).is_none(), "it goes on");
        assert!(seen_live.iter().any(|line| line.ends_with(" task start web.2")), "{seen_live:?}");
        for manager in 0..3 {
            for stale in [false, true] {
                let (all, _) = events(it, manager, stale, since, &[]).unwrap();
                assert_eq!(begun(&all), seen_live, "manager {manager}");
            }
        }
    });
}

#[test]
fn a_stream_whose_leader_dies_goes_on_at_another_manager_without_gap_or_repeat() {
    script(2, |it| {
        let (leader, since) = (it.leader(), now(it));
        let first = Reader::default();
        let request = WatchEventsRequest { since: Some(since.into()), ..WatchEventsRequest::default() };
        // Through a follower, as a user may who does not know who leads.
        let (reads, other) = (first.clone(), (leader + 1) % 3);
        let asked = it.begin(other, |client| reads.read(client, request));
        it.wait("the stream has begun", 5_000, |_| seen(first.through().is_some(), "no message"));
        it.pass(500);
        it.cluster().crash_manager(leader, false);
        it.wait("another manager leads", 5_000, another_leads(leader));
        it.pass(1_000);
        let ended = it.end(asked).expect("the stream has ended").unwrap_err();
        assert!(Reason::of(&ended).is_none_or(|reason| !reason.is_judgement()), "another try may succeed: {ended}");
        it.cluster().start_manager(leader);
        it.create(it.leader(), spec("web", 2)).unwrap();
        it.converge();
        let reached = first.through().unwrap();
        let (rest, _) = events(it, other, false, reached, &[]).unwrap();
        let whole = events(it, other, false, since, &[]).unwrap().0;
        let joined: Vec<_> = first.lines().into_iter().chain(rest.iter().map(line)).collect();
        // The node of the dead leader may have changed since.
        assert_eq!(joined, whole.iter().map(line).take(joined.len()).collect::<Vec<_>>());
        assert!(rest.iter().any(|event| event.kind == "service" && event.action == "create"), "{rest:?}");
    });
}

#[test]
fn an_entry_can_be_left_in_the_middle_and_taken_up_again() {
    script(2, |it| {
        let (leader, since) = (it.leader(), now(it));
        it.create(leader, spec("web", 5)).unwrap();
        it.converge();
        let (whole, _) = events(it, leader, false, since, &[]).unwrap();
        assert!(whole.iter().any(|event| cursor(event).number == 5), "one entry creates five tasks: {whole:?}");
        for event in &whole {
            let (rest, _) = events(it, leader, false, cursor(event), &[]).unwrap();
            let later = whole.iter().filter(|it| cursor(it) > cursor(event));
            let expected: Vec<_> = later.map(line).collect();
            assert_eq!(rest.iter().map(line).take(expected.len()).collect::<Vec<_>>(), expected);
        }
    });
}

#[test]
fn versions_before_a_snapshot_are_refused_with_the_oldest_that_can_be_had() {
    script(1, |it| {
        let follower = (it.leader() + 1) % 3;
        it.create(it.leader(), spec("web", 1)).unwrap();
        it.converge();
        it.pass(1_000);
        // The tables come from elsewhere, as with a snapshot of the leader.
        let store = it.cluster().managers[follower].manager().unwrap().store().clone();
        store.restore(store.view());
        let refused = events(it, follower, true, EventCursor::end_of(0), &[]).unwrap_err();
        let detail = Detail::of(&refused).expect("a typed reason");
        assert_eq!(detail.reason, Reason::EventsGone);
        let oldest = detail.oldest.expect("it says what can be had");
        assert!(oldest.version > 0 && refused.message().contains(&oldest.to_string()), "{refused}");
        it.create(it.leader(), spec("db", 1)).unwrap();
        it.converge();
        it.pass(1_000);
        let (all, _) = events(it, follower, true, oldest, &[("service", "db")]).unwrap();
        assert!(all.iter().any(|event| event.action == "create" && event.name == "db"), "{all:?}");
    });
}

#[test]
fn a_place_in_the_future_is_refused_by_the_leader() {
    script(0, |it| {
        let (leader, ahead) = (it.leader(), EventCursor::end_of(1_000_000));
        let refused = events(it, leader, false, ahead, &[]).unwrap_err();
        assert_eq!(Reason::of(&refused), Some(Reason::Invalid));
        assert!(refused.message().starts_with("since: 1000000 is after "), "{refused}");
    });
}
