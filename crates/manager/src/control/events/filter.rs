//! Filters of events. An event passes if, for each key, it has one of the values that are given for it, as with Docker.

use std::collections::BTreeMap;

use flota_api::event::{ClusterEvent, EventAction};
use flota_api::object::Kind;

use super::super::error::ControlError;
use super::super::filter::Filter;

/// Largest number of filters of one request.
const FILTERS_BOUND: usize = 100;

/// The keys besides the kinds of objects.
const KEYS: [&str; 14] = [
    "type",
    "event",
    "id",
    "name",
    "state",
    "desiredState",
    "health",
    "exitCode",
    "reason",
    "role",
    "availability",
    "update",
    "actor",
    "request",
];

/// Selects events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EventFilter(BTreeMap<String, Vec<String>>);

impl EventFilter {
    /// Creates the filter that these pairs of key and value stand for.
    ///
    /// # Errors
    /// A key is unknown, a value of `type` or `event` is unknown, or there are too many.
    pub(super) fn new(filters: &[Filter]) -> Result<Self, ControlError> {
        if filters.len() > FILTERS_BOUND {
            let why = format!("there are {}, and {FILTERS_BOUND} is the most", filters.len());
            return Err(ControlError::invalid("filters", why));
        }
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Filter { key, value } in filters {
            check(key, value)?;
            wanted.entry(key.clone()).or_default().push(value.clone());
        }
        Ok(Self(wanted))
    }

    /// Whether only records of changes pass.
    pub(super) fn is_for_audit(&self) -> bool {
        self.0.get("type").is_some_and(|types| types.iter().all(|it| it == Kind::Audit.as_str()))
    }

    /// Returns whether the event has one of the values of each key. A record of changes passes only if the filter asks for
    /// its type, because each change is an event by itself.
    pub(super) fn passes(&self, event: &ClusterEvent) -> bool {
        let asks = |types: &Vec<String>| types.iter().any(|it| it == Kind::Audit.as_str());
        if event.kind == Kind::Audit && !self.0.get("type").is_some_and(asks) {
            return false;
        }
        self.0.iter().all(|(key, values)| values.iter().any(|value| has(event, key, value)))
    }
}

fn check(key: &str, value: &str) -> Result<(), ControlError> {
    let one_of = |words: Vec<&str>| {
        let why = || format!("`{value}` is none of {}", words.join(", "));
        words.contains(&value).then_some(()).ok_or_else(|| ControlError::invalid(format!("filter {key}"), why()))
    };
    match key {
        "type" => one_of(Kind::ALL.map(Kind::as_str).to_vec()),
        "event" => one_of(EventAction::ALL.iter().map(|action| action.as_str()).collect()),
        _ if KEYS.contains(&key) || Kind::ALL.iter().any(|kind| kind.as_str() == key) => Ok(()),
        _ => {
            let keys = KEYS.into_iter().chain(Kind::ALL.map(Kind::as_str)).collect();
            Err(ControlError::UnknownFilter { filter: format!("{key}={value}"), keys })
        }
    }
}

/// Returns whether the event has this value of the key.
fn has(event: &ClusterEvent, key: &str, value: &str) -> bool {
    match key {
        "type" => event.kind.as_str() == value,
        "event" => event.action.as_str() == value || event.action.change().as_str() == value,
        "id" => event.id.as_str() == value,
        "name" => event.name == value,
        // An object of this kind, or one that belongs to such an object: by name or id.
        kind if event.kind.as_str() == kind => {
            event.name == value || event.id.as_str() == value || has_name(event, value)
        }
        key => {
            let id = match key {
                "service" => event.attribute("serviceId"),
                "node" => event.attribute("nodeId"),
                "stack" => event.attribute("stackId"),
                _ => None,
            };
            event.attribute(key) == Some(value) || id == Some(value)
        }
    }
}

/// Whether the object, an image, has this reference among its names, or had it before the change.
fn has_name(event: &ClusterEvent, value: &str) -> bool {
    let names = event.attributes.iter().filter(|it| it.key == "names");
    names
        .flat_map(|it| [Some(&it.value), it.old.as_ref()])
        .flatten()
        .any(|names| names.split(' ').any(|it| it == value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::event::{EventAttribute, EventCursor};
    use flota_api::version::Timestamp;

    fn event(kind: Kind, action: EventAction, name: &str, attributes: &[(&'static str, &str)]) -> ClusterEvent {
        let attribute = |(key, value): &(&'static str, &str)| EventAttribute { key, value: (*value).into(), old: None };
        ClusterEvent {
            cursor: EventCursor::default(),
            at: Timestamp::default(),
            kind,
            id: format!("id-of-{name}").into(),
            name: name.into(),
            action,
            attributes: attributes.iter().map(attribute).collect(),
        }
    }

    /// A service, two of its tasks on two nodes, and one of the nodes.
    fn events() -> Vec<ClusterEvent> {
        let task = |name: &str, node: &str, action, state: &str| {
            let node_id = format!("id-of-{node}");
            let ids = [("serviceId", "id-of-web"), ("nodeId", node_id.as_str())];
            let facts = [("service", "web"), ("node", node), ("state", state), ids[0], ids[1]];
            event(Kind::Task, action, name, &facts)
        };
        vec![
            event(Kind::Service, EventAction::Create, "web", &[("stack", "shop")]),
            task("web.1", "w1", EventAction::Start, "running"),
            task("web.2", "w2", EventAction::Die, "failed"),
            event(Kind::Node, EventAction::Update, "w1", &[("state", "down")]),
            event(Kind::Task, EventAction::Remove, "db.1", &[("service", "db"), ("serviceId", "id-of-db")]),
        ]
    }

    fn filter(filters: &[(&str, &str)]) -> Result<EventFilter, String> {
        let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
        EventFilter::new(&filters.iter().map(filter).collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_each_key_has_to_match() {
        let cases: [(&[(&str, &str)], &str); 18] = [
            (&[], "web web.1 web.2 w1 db.1"),
            (&[("type", "task")], "web.1 web.2 db.1"),
            (&[("type", "task"), ("type", "node")], "web.1 web.2 w1 db.1"),
            (&[("service", "web")], "web web.1 web.2"),
            (&[("service", "id-of-web")], "web web.1 web.2"),
            (&[("service", "web"), ("service", "db")], "web web.1 web.2 db.1"),
            (&[("service", "web"), ("type", "task")], "web.1 web.2"),
            (&[("node", "w1")], "web.1 w1"),
            (&[("node", "id-of-w2")], "web.2"),
            (&[("service", "web"), ("node", "w1")], "web.1"),
            (&[("event", "update")], "web.1 web.2 w1"),
            (&[("event", "start")], "web.1"),
            (&[("event", "start"), ("event", "remove")], "web.1 db.1"),
            (&[("stack", "shop")], "web"),
            (&[("state", "down"), ("state", "failed")], "web.2 w1"),
            (&[("task", "web.2")], "web.2"),
            (&[("name", "w1"), ("id", "id-of-w1")], "w1"),
            (&[("health", "healthy")], ""),
        ];
        for (filters, expected) in cases {
            let filter = filter(filters).expect("it is legal");
            let passed: Vec<_> = events().into_iter().filter(|event| filter.passes(event)).map(|it| it.name).collect();
            assert_eq!(passed.join(" "), expected, "{filters:?}");
        }
    }

    #[test]
    fn a_record_of_changes_passes_only_if_its_type_is_asked_for() {
        let record = event(Kind::Audit, EventAction::Create, "CreateService", &[("actor", "ada")]);
        let passes = |filters: &[(&str, &str)]| filter(filters).expect("it is legal").passes(&record);
        assert!(!passes(&[]) && !passes(&[("actor", "ada")]) && !passes(&[("type", "task")]));
        assert!(passes(&[("type", "audit")]) && passes(&[("type", "task"), ("type", "audit"), ("actor", "ada")]));
        assert!(!passes(&[("type", "audit"), ("actor", "bob")]));
        let alone = |filters: &[(&str, &str)]| filter(filters).expect("it is legal").is_for_audit();
        assert!(alone(&[("type", "audit")]) && !alone(&[("type", "task"), ("type", "audit")]) && !alone(&[]));
    }

    #[test]
    fn what_no_event_can_have_is_refused_with_what_is_allowed() {
        let refused = |key, value| filter(&[(key, value)]).expect_err("it is illegal");
        let unknown = refused("colour", "red");
        assert!(
            unknown.starts_with("the filter `colour=red` has an unknown key: the keys are type, event, "),
            "{unknown}"
        );
        assert!(unknown.contains(" service, task, "), "{unknown}");
        let pod = refused("type", "pod");
        assert!(pod.starts_with("filter type: `pod` is none of cluster, node, service, task, "), "{pod}");
        let fly = refused("event", "fly");
        assert!(fly.starts_with("filter event: `fly` is none of create, update, remove, "), "{fly}");
        let many = filter(&vec![("type", "task"); FILTERS_BOUND + 1]).expect_err("too many");
        assert_eq!(many, "filters: there are 101, and 100 is the most");
    }
}
