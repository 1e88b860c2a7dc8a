//! `ctl events` prints what changes in the cluster, as it changes. When the connection breaks, it goes on at the next
//! manager after the last event that it has printed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};

use flota_api::event::EventCursor;
use flota_api::proto::control::{Event, Events as Message, Filter, WatchEventsRequest};
use flota_api::text::printable;
use flota_api::version::Timestamp;

use crate::client::Client;
use crate::error::Usage;
use crate::parse;
use crate::printer::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Print what came after this version; every event names its own
    #[arg(long, value_name = "VERSION")]
    since: Option<EventCursor>,
    /// Stop after this version, or with `now` after the events that there are
    #[arg(long, value_name = "VERSION|now")]
    until: Option<Until>,
    /// Print only events of this type: service, task, node, …; or audit: who has changed what
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Print only events where KEY is VALUE; may be repeated: one value of each key has to match
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = parse::filter)]
    filters: Vec<(String, String)>,
    /// Format to print: table (a line for people) or json (an object), for each event
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
    /// Print what this manager learns, even without a quorum, and how old it may be at the beginning
    #[arg(long)]
    stale: bool,
}

/// Where the events end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Now,
    Cursor(EventCursor),
}

impl FromStr for Until {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        match text {
            "now" => Ok(Self::Now),
            _ => text.parse().map(Self::Cursor).map_err(|error| Usage(format!("{error}; or now"))),
        }
    }
}

pub(crate) async fn run(it: Events, client: &Client) -> anyhow::Result<()> {
    let print = |event: &Event| match it.format {
        Format::Table => printer::line(&line(event)),
        Format::Json => printer::line(&object(event).to_string()),
    };
    follow(&it, client, print).await
}

/// Calls `print` for each event, until the last one.
async fn follow(it: &Events, client: &Client, mut print: impl FnMut(&Event)) -> anyhow::Result<()> {
    let filter = |(key, value): &(String, String)| Filter { key: key.clone(), value: value.clone() };
    let of_type = |it: &String| Filter { key: "type".into(), value: it.clone() };
    let first = WatchEventsRequest {
        stale: it.stale,
        filters: it.filters.iter().map(filter).chain(it.types.iter().map(of_type)).collect(),
        since: it.since.map(Into::into),
        until: match it.until {
            Some(Until::Cursor(cursor)) => Some(cursor.into()),
            Some(Until::Now) | None => None,
        },
        until_now: it.until == Some(Until::Now),
    };
    let next = RefCell::new(first);
    let each = |message: Message| {
        printer::age(message.header);
        message.events.iter().for_each(&mut print);
        let mut next = next.borrow_mut();
        next.since = message.through.or(next.since);
        if let Some(until) = message.until {
            // What `now` was when the first manager answered.
            (next.until, next.until_now) = (Some(until), false);
        }
        Ok(if message.last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    let request = || next.borrow().clone();
    client.follow(request, |mut control, request| async move { control.watch_events(request).await }, each).await
}

/// Returns the event as a line for people. Everything in it may come from another machine.
fn line(event: &Event) -> String {
    let mut facts = vec![format!("id={}", event.id)];
    for it in &event.attributes {
        facts.push(format!("{}={}", it.key, it.value));
        facts.extend(it.old.as_ref().map(|old| format!("{}.old={old}", it.key)));
    }
    let (time, cursor) = (Timestamp(event.at), cursor(event));
    let text = format!("{time} {cursor} {} {} {} ({})", event.kind, event.action, event.name, facts.join(", "));
    printable(&text).into_owned()
}

fn object(event: &Event) -> Value {
    let values: BTreeMap<_, _> = event.attributes.iter().map(|it| (&it.key, &it.value)).collect();
    let before: BTreeMap<_, _> =
        event.attributes.iter().filter_map(|it| it.old.as_ref().map(|old| (&it.key, old))).collect();
    json!({
        "version": cursor(event).to_string(),
        "time": Timestamp(event.at).to_string(),
        "type": event.kind,
        "action": event.action,
        "id": event.id,
        "name": event.name,
        "attributes": values,
        "before": before,
    })
}

fn cursor(event: &Event) -> EventCursor {
    event.cursor.map(Into::into).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use flota_api::proto::control::EventAttribute;
    use flota_api::reason::Reason;
    use tonic::Status;

    use crate::client::fake::{Act, FakeManager};

    fn event(version: u64, number: u32) -> Event {
        let cursor = EventCursor { version, number };
        Event { cursor: Some(cursor.into()), kind: "task".into(), action: "die".into(), ..Event::default() }
    }

    fn message(events: Vec<Event>, through: &str) -> Message {
        let through: EventCursor = through.parse().expect("a cursor");
        Message { events, through: Some(through.into()), ..Message::default() }
    }

    fn arguments(line: &str) -> Result<Events, String> {
        #[derive(Parser)]
        struct Program {
            #[command(flatten)]
            events: Events,
        }
        let words = std::iter::once("events").chain(line.split_whitespace());
        Program::try_parse_from(words).map(|it| it.events).map_err(|error| error.to_string())
    }

    #[test]
    fn an_event_is_one_line_that_controls_no_terminal_or_one_object() {
        let attribute = |key: &str, value: &str, old: Option<&str>| EventAttribute {
            key: key.into(),
            value: value.into(),
            old: old.map(Into::into),
        };
        let attributes =
            vec![attribute("state", "failed", Some("running")), attribute("reason", "a\u{1b}[2J\nb", None)];
        let event = Event { at: 1_000, id: "t1".into(), name: "web.1".into(), attributes, ..event(12, 3) };
        let expected = r"1970-01-01T00:00:01.000Z 12.3 task die web.1 (id=t1, state=failed, state.old=running, reason=a\u001b[2J\u000ab)";
        assert_eq!(line(&event), expected);
        let expected = json!({
            "version": "12.3", "time": "1970-01-01T00:00:01.000Z", "type": "task", "action": "die", "id": "t1",
            "name": "web.1", "attributes": {"state": "failed", "reason": "a\u{1b}[2J\nb"}, "before": {"state": "running"},
        });
        assert_eq!(object(&event), expected);
        assert_eq!(expected.to_string().lines().count(), 1);
    }

    #[test]
    fn versions_are_read_as_they_are_printed() {
        let it = arguments("--since 12.3 --until now").expect("it is legal");
        assert_eq!((it.since.map(|it| it.to_string()), it.until), (Some("12.3".into()), Some(Until::Now)));
        let it = arguments("--until 14").expect("it is legal");
        assert_eq!(it.until, Some(Until::Cursor(EventCursor::end_of(14))));
        for bad in ["--since now", "--since 1h", "--until then", "--filter type"] {
            assert!(arguments(bad).is_err(), "{bad}");
        }
        let error = arguments("--until then").expect_err("it is illegal");
        assert!(error.contains("`then` is not a version: it is a number such as 1234"), "{error}");
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_at_the_next_manager_after_the_last_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let lost = Status::unavailable("the manager shuts down");
        let first = [Message { until: Some(EventCursor::end_of(9).into()), ..message(Vec::new(), "5") }];
        let first = first.into_iter().chain([message(vec![event(6, 1), event(6, 2)], "6.2")]).collect();
        let one = FakeManager::start(
            folder.path(),
            "one",
            [Act::Events(first, Some(lost)), Act::Refuse(Reason::NoLeader.attach(Status::unavailable("none")))],
        );
        let second = vec![message(vec![event(6, 3)], "7"), Message { last: true, ..message(vec![event(9, 1)], "9") }];
        let two = FakeManager::start(folder.path(), "two", [Act::Events(second, None)]);
        let client = Client::new(&[&one, &two].map(|it| format!("unix://{}", it.socket.display()))).expect("sockets");
        let (it, mut printed) = (arguments("--until now").expect("legal"), Vec::new());
        follow(&it, &client, |event| printed.push(cursor(event).to_string())).await.expect("it ends");
        assert_eq!(printed, ["6.1", "6.2", "6.3", "9.1"]);
        assert_eq!(one.seen(), ["WatchEvents from now until now", "WatchEvents from 6.2 until 9"]);
        assert_eq!(two.seen(), ["WatchEvents from 6.2 until 9"]);
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_nothing_is_asked_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = Reason::EventsGone.attach(Status::out_of_range("they are gone"));
        let one = FakeManager::start(folder.path(), "one", [Act::Refuse(gone)]);
        let client = Client::new(&[format!("unix://{}", one.socket.display())]).expect("a socket");
        let refused = follow(&arguments("--since 3").expect("legal"), &client, |_| panic!("nothing is printed")).await;
        let refused = refused.expect_err("they are gone");
        assert_eq!((refused.to_string().as_str(), crate::error::code(&refused)), ("they are gone", 1));
        assert_eq!(one.seen(), ["WatchEvents from 3"]);
    }
}
