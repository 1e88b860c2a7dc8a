//! What `ctl events` tells of tasks: in which order things happened, and how many tasks served at each moment.

use std::collections::BTreeSet;

use flota_tests::Cluster;
use serde_json::Value;

/// All changes of tasks since the cluster began, in their order.
pub(crate) fn tasks(cluster: &Cluster) -> Vec<Value> {
    let text = cluster.ok("events --since 0 --until now --filter type=task --format json");
    text.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
}

/// Those of the tasks of one service.
pub(crate) fn of(cluster: &Cluster, service: &str) -> Vec<Value> {
    let mut events = tasks(cluster);
    events.retain(|event| event["attributes"]["service"] == service);
    events
}

/// Number of events with this action.
pub(crate) fn count(events: &[Value], action: &str) -> usize {
    events.iter().filter(|event| event["action"] == action).count()
}

/// The place of the first or last event of a service with this action.
pub(crate) fn place(events: &[Value], service: &str, action: &str, last: bool) -> usize {
    let is = |event: &Value| event["attributes"]["service"] == service && event["action"] == action;
    let place = if last { events.iter().rposition(is) } else { events.iter().position(is) };
    place.unwrap_or_else(|| panic!("`{action}` of {service} is among the events: {events:#?}"))
}

/// The least number of tasks that served at once since `replicas` of them did for the first time: that ran, and had not been
/// told to stop. Every change is looked at.
pub(crate) fn least_serving(events: &[Value], replicas: usize) -> usize {
    let counts = counts(events, &["stop", "die", "orphan", "remove"]);
    counts.into_iter().skip_while(|count| *count < replicas).min().expect("all of them ran at once")
}

/// The largest number of tasks that ran at once, those included that had been told to stop. Every change is looked at.
pub(crate) fn most_running(events: &[Value]) -> usize {
    counts(events, &["die", "orphan", "remove"]).into_iter().max().expect("there are events")
}

/// How many tasks have started and not come to one of these ends, after each change.
fn counts(events: &[Value], ends: &[&str]) -> Vec<usize> {
    let (mut begun, mut counts) = (BTreeSet::new(), Vec::new());
    for (index, event) in events.iter().enumerate() {
        let id = event["id"].as_str();
        match event["action"].as_str() {
            Some("start") => drop(begun.insert(id)),
            Some(action) if ends.contains(&action) => drop(begun.remove(&id)),
            _ => {}
        }
        // Changes with the same version are one: nobody sees a part of them.
        let version = |event: &Value| event["version"].as_str().and_then(|it| it.split('.').next()).map(str::to_owned);
        if events.get(index + 1).is_none_or(|next| version(next) != version(event)) {
            counts.push(begun.len());
        }
    }
    counts
}
