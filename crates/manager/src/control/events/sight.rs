//! The part of an event that its reader sees, by the reader's role and prefixes.

use std::sync::Arc;

use flota_api::event::{ClusterEvent, EventAttribute};
use flota_api::model::{ANOTHER_TASK, UserRole, preempting};
use flota_api::object::Kind;

use crate::caller::Caller;

/// The facts about a node that every reader sees.
const NODE_FACTS: [&str; 3] = ["role", "state", "availability"];

/// Returns the event as the reader sees it; `None` if the reader does not.
pub(super) fn seen(caller: &Caller, event: &Arc<ClusterEvent>) -> Option<Arc<ClusterEvent>> {
    let whole = !caller.is_limited();
    let operates = caller.is(UserRole::Operator);
    let is_seen = match event.kind {
        Kind::Audit | Kind::User => caller.is(UserRole::Admin),
        Kind::Cluster | Kind::Image => whole,
        Kind::Registry | Kind::ValueData => whole && operates,
        Kind::StoredSecret => operates && caller.sees(&event.name),
        Kind::Service | Kind::Stack | Kind::Network | Kind::Volume | Kind::StoredConfig => caller.sees(&event.name),
        Kind::Task => event.attribute("service").map_or(whole, |service| caller.sees(service)),
        Kind::Node => true,
    };
    if event.kind == Kind::Node && !caller.sees_nodes() {
        let mut event = event.as_ref().clone();
        event.attributes.retain(|it| NODE_FACTS.contains(&it.key));
        return Some(Arc::new(event));
    }
    if event.kind == Kind::Task && !whole && is_seen {
        return Some(without_names(caller, event));
    }
    is_seen.then(|| Arc::clone(event))
}

/// Returns the event of a task without the name of the one that took its place, if the reader does not see that.
fn without_names(caller: &Caller, event: &Arc<ClusterEvent>) -> Arc<ClusterEvent> {
    let hidden = |text: &str| {
        let by = preempting(text).filter(|by| !caller.sees(by))?;
        Some(text.replacen(by, ANOTHER_TASK, 1))
    };
    let changed = |it: &EventAttribute| hidden(&it.value).is_some() || it.old.as_deref().and_then(hidden).is_some();
    if !event.attributes.iter().any(changed) {
        return Arc::clone(event);
    }
    let mut event = event.as_ref().clone();
    for it in &mut event.attributes {
        it.value = hidden(&it.value).unwrap_or_else(|| it.value.clone());
        it.old = it.old.as_deref().map(|old| hidden(old).unwrap_or_else(|| old.to_owned()));
    }
    Arc::new(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Who;
    use flota_api::event::{EventAction, EventCursor};
    use flota_api::model::User;
    use flota_api::version::Timestamp;

    fn event(kind: Kind, name: &str) -> Arc<ClusterEvent> {
        let facts = [("service", name), ("address", "10.0.0.1:7"), ("state", "ready")];
        let attribute = |(key, value): (&'static str, &str)| EventAttribute { key, value: value.into(), old: None };
        Arc::new(ClusterEvent {
            cursor: EventCursor::default(),
            at: Timestamp::default(),
            kind,
            id: "id".into(),
            name: name.into(),
            action: EventAction::Update,
            attributes: facts.map(attribute).to_vec(),
        })
    }

    fn kinds(role: UserRole, prefixes: &[&str], name: &str) -> String {
        let user = User { role, prefixes: prefixes.iter().map(ToString::to_string).collect(), ..User::default() };
        let caller = Caller { who: Who::User(Arc::new(user), String::new()), method: String::new() };
        let kinds = Kind::ALL.iter().filter(|kind| seen(&caller, &event(**kind, name)).is_some());
        kinds.map(|kind| kind.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_reader_gets_the_events_of_what_it_sees() {
        use UserRole::{Admin, Operator, Viewer};
        let all = "cluster node service task image stack registry network volume secret config value user audit";
        assert_eq!(kinds(Admin, &[], "a-x"), all);
        let operator = "cluster node service task image stack registry network volume secret config value";
        assert_eq!(kinds(Operator, &[], "a-x"), operator);
        assert_eq!(kinds(Viewer, &[], "a-x"), "cluster node service task image stack network volume config");
        assert_eq!(kinds(Operator, &["a-"], "a-x"), "node service task stack network volume secret config");
        assert_eq!(kinds(Viewer, &["a-"], "a-x"), "node service task stack network volume config");
        assert_eq!(kinds(Operator, &["a-"], "b-x"), "node");
    }

    #[test]
    fn viewers_get_the_states_of_nodes_and_not_their_addresses() {
        let viewer = Caller { who: Who::User(Arc::new(User::default()), String::new()), method: String::new() };
        let shown = seen(&viewer, &event(Kind::Node, "n1")).expect("it is seen");
        assert_eq!((shown.attribute("state"), shown.attribute("address")), (Some("ready"), None));
    }

    #[test]
    fn the_event_of_a_displaced_task_does_not_name_a_task_that_its_reader_does_not_see() {
        let reason = |by: &str, prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(ToString::to_string).collect();
            let user = User { role: UserRole::Operator, prefixes, ..User::default() };
            let caller = Caller { who: Who::User(Arc::new(user), String::new()), method: String::new() };
            let mut event = event(Kind::Task, "a-web").as_ref().clone();
            let value = format!("preempted by {by}, whose priority is higher");
            event.attributes.push(EventAttribute { key: "reason", value, old: None });
            let seen = seen(&caller, &Arc::new(event)).expect("the task is seen");
            seen.attribute("reason").expect("it is there").to_owned()
        };
        assert_eq!(reason("a-db.1", &["a-"]), "preempted by a-db.1, whose priority is higher");
        assert_eq!(reason("b-db.1", &["a-"]), "preempted by another task, whose priority is higher");
        assert_eq!(reason("b-db.1", &[]), "preempted by b-db.1, whose priority is higher");
    }
}
