//! Which events a change of the tables is: pure functions of the change and the tables before and after it.

use flota_api::event::{ClusterEvent, EventAction, EventAttribute, EventCursor};
use flota_api::id::StackId;
use flota_api::model::{
    Audit, AuditedObject, Health, HealthState, Image, Network, Node, Service, StoredValue, Task, User, Volume,
};
use flota_api::naming::task_name;
use flota_api::object::{Object, StoreObject};
use flota_api::state::TaskState;
use flota_api::text::printable_within;
use flota_api::version::{Timestamp, Version};

use super::super::tables::Tables;
use super::super::watch::Event;

/// Largest size of a value in bytes; what is longer ends there.
const VALUE_BOUND: usize = 256;

/// Returns the events of the entry with this index. All events of one change have its number, so that managers of different
/// versions, which may describe a change with more words or fewer, give every event the same number.
pub(in crate::store) fn describe(
    version: Version,
    at: Timestamp,
    changes: &[Event],
    before: &Tables,
    after: &Tables,
) -> Vec<ClusterEvent> {
    let describer = Describer { tables: [after, before] };
    let (mut events, mut number) = (Vec::new(), 0);
    for change in changes {
        let (actions, object, attributes) = match change {
            Event::Created(object) => (vec![EventAction::Create], object, describer.facts(object)),
            Event::Updated { old, new } => (actions(old, new), new, merge(&describer.facts(old), describer.facts(new))),
            Event::Removed(object) => (vec![EventAction::Remove], object, describer.facts(object)),
            Event::Committed(_) | Event::Reset => continue,
        };
        let name = describer.name(object);
        number += 1;
        for action in actions {
            events.push(ClusterEvent {
                cursor: EventCursor { version, number },
                at,
                kind: object.kind(),
                id: object.id(),
                name: name.clone(),
                action,
                attributes: attributes.clone(),
            });
        }
    }
    events
}

/// Returns the event with which the record of a change came.
pub fn audit_event(audit: &Audit) -> ClusterEvent {
    let none = Tables::default();
    let object = audit.clone().into_object();
    let describer = Describer { tables: [&none, &none] };
    ClusterEvent {
        cursor: EventCursor { version: audit.meta.version, number: audit.number },
        at: audit.meta.updated_at,
        kind: object.kind(),
        id: object.id(),
        name: describer.name(&object),
        action: EventAction::Create,
        attributes: describer.facts(&object),
    }
}

/// Returns the words for an update, in the order in which that happened. There are several if reports were gathered.
fn actions(old: &Object, new: &Object) -> Vec<EventAction> {
    let actions = match (old, new) {
        (Object::Task(old), Object::Task(new)) => task_actions(old, new),
        _ => Vec::new(),
    };
    if actions.is_empty() { vec![EventAction::Update] } else { actions }
}

fn task_actions(old: &Task, new: &Task) -> Vec<EventAction> {
    let (was, is) = (old.status.state, new.status.state);
    let begins_again = old.status.attempt != new.status.attempt;
    let enters = |state: TaskState| is == state && (was != state || begins_again);
    // A task that was told to stop before its program ran has had no program that could end.
    let ends = matches!(is, TaskState::Complete | TaskState::Failed)
        || is == TaskState::Shutdown && matches!(was, TaskState::Starting | TaskState::Running);
    // Its program has run although no report said so: the reports were gathered.
    let ran = is == TaskState::Complete && (begins_again || was < TaskState::Running);
    let is_judged = |health: &&Health| health.state != HealthState::Starting;
    let health = |task: &Task| task.status.health.as_deref().filter(is_judged).map(|health| health.state);
    let rows = [
        (EventAction::Assign, old.node_id.is_none() && new.node_id.is_some()),
        (EventAction::Stop, !old.desired_state.is_stopping() && new.desired_state.is_stopping()),
        (EventAction::Die, begins_again || ends && !was.is_terminal() && !ran),
        (EventAction::Reject, enters(TaskState::Rejected)),
        (EventAction::Orphan, enters(TaskState::Orphaned)),
        (EventAction::Start, enters(TaskState::Running) || ran),
        (EventAction::Die, ran),
        (EventAction::HealthStatus, health(new).is_some_and(|now| begins_again || health(old) != Some(now))),
        (EventAction::Pause, !old.paused && new.paused),
        (EventAction::Unpause, old.paused && !new.paused),
    ];
    rows.into_iter().filter(|(_, happened)| *happened).map(|(action, _)| action).collect()
}

/// Returns the facts after a change, those that were different with their values before it. A fact that is gone has an
/// empty value.
fn merge(old: &[EventAttribute], new: Vec<EventAttribute>) -> Vec<EventAttribute> {
    let value = |of: &[EventAttribute], key: &str| of.iter().find(|it| it.key == key).map(|it| it.value.clone());
    let gone = old.iter().filter(|it| value(&new, it.key).is_none()).map(|it| EventAttribute {
        key: it.key,
        value: String::new(),
        old: Some(it.value.clone()),
    });
    let gone: Vec<_> = gone.collect();
    let kept = new.into_iter().map(|it| {
        let before = value(old, it.key).filter(|before| *before != it.value);
        EventAttribute { old: before, ..it }
    });
    kept.chain(gone).collect()
}

/// Returns the name that people know the object by; empty if it has none. `service` returns the name of a task's service, if it
/// is known.
pub(in crate::store) fn name_of(object: &Object, service: impl FnOnce(&Task) -> Option<String>) -> String {
    match object {
        Object::Node(node) => node.description.hostname.clone(),
        Object::Task(task) => service(task).map(|name| task_name(&name, task.slot)).unwrap_or_default(),
        // A removed volume keeps its name for people.
        Object::Volume(volume) => volume.spec.name.clone(),
        Object::Audit(audit) => audit.request.clone(),
        Object::Cluster(_)
        | Object::Service(_)
        | Object::Image(_)
        | Object::Stack(_)
        | Object::Registry(_)
        | Object::Network(_)
        | Object::StoredSecret(_)
        | Object::StoredConfig(_)
        | Object::ValueData(_)
        | Object::User(_) => object.names().first().map(ToString::to_string).unwrap_or_default(),
    }
}

/// The facts that events have. Names of other objects are looked up in the tables, the newer first.
struct Describer<'a> {
    tables: [&'a Tables; 2],
}

impl Describer<'_> {
    fn name(&self, object: &Object) -> String {
        let name = name_of(object, |task| Some(self.service(task)));
        let name = printable_within(&name, VALUE_BOUND);
        if name.is_empty() { object.id().to_string() } else { name }
    }

    fn facts(&self, object: &Object) -> Vec<EventAttribute> {
        let facts = match object {
            Object::Task(task) => self.task(task),
            Object::Service(service) => self.service_facts(service),
            Object::Node(node) => node_facts(node),
            Object::Image(image) => image_facts(image),
            Object::Network(network) => self.network(network),
            Object::Volume(volume) => self.volume(volume),
            Object::StoredSecret(value) => self.value(value),
            Object::StoredConfig(value) => self.value(value),
            Object::User(user) => user_facts(user),
            Object::Audit(audit) => audit_facts(audit),
            Object::Cluster(_) | Object::Stack(_) | Object::Registry(_) | Object::ValueData(_) => Vec::new(),
        };
        let attribute = |(key, value): (&'static str, Option<String>)| {
            let value = printable_within(&value?, VALUE_BOUND);
            Some(EventAttribute { key, value, old: None }).filter(|it| !it.value.is_empty())
        };
        facts.into_iter().filter_map(attribute).collect()
    }

    /// Name of the task's service, which may be removed; its id if nothing knows the name any more.
    fn service(&self, task: &Task) -> String {
        let named = |tables: &&Tables| {
            let spec = tables.spec_of(task).or_else(|| tables.service(&task.service_id).map(|it| &it.spec));
            spec.map(|spec| spec.name.clone())
        };
        self.tables.iter().find_map(named).unwrap_or_else(|| task.service_id.to_string())
    }

    fn stack(&self, id: Option<&StackId>) -> Option<String> {
        let id = id?;
        let named = |tables: &&Tables| tables.stack(id).map(|stack| stack.spec.name.clone());
        Some(self.tables.iter().find_map(named).unwrap_or_else(|| id.to_string()))
    }

    fn task(&self, task: &Task) -> Vec<(&'static str, Option<String>)> {
        let status = &task.status;
        let node = task.node_id.as_ref();
        let hostname = |tables: &&Tables| tables.node(node?).map(|node| node.description.hostname.clone());
        let pending = || task.pending_reason.as_ref().map(ToString::to_string).unwrap_or_default();
        let reason = if status.error.is_empty() { pending() } else { status.error.clone() };
        let reason = task.preemption().unwrap_or(reason);
        vec![
            ("service", Some(self.service(task))),
            ("node", self.tables.iter().find_map(hostname)),
            ("state", Some(status.state.to_string())),
            ("desiredState", Some(task.desired_state.to_string())),
            ("health", status.health.as_ref().map(|health| health.state.to_string())),
            ("exitCode", status.exit_code.map(|code| code.to_string())),
            ("reason", Some(reason)),
            ("attempt", Some(status.attempt.to_string())),
            ("serviceId", Some(task.service_id.to_string())),
            ("nodeId", node.map(ToString::to_string)),
        ]
    }

    fn service_facts(&self, service: &Service) -> Vec<(&'static str, Option<String>)> {
        let spec = &service.spec;
        vec![
            ("stack", self.stack(service.stack_id.as_ref())),
            ("mode", Some(spec.mode.as_str().to_owned())),
            ("replicas", service.replicas().map(|replicas| replicas.to_string())),
            ("image", Some(spec.image.clone())),
            ("stopped", spec.stopped.then(|| "true".to_owned())),
            ("update", Some(service.update.phase.to_string())),
            ("reason", service.update.reason.clone()),
            ("specVersion", Some(service.spec_version.to_string())),
            ("stackId", service.stack_id.as_ref().map(ToString::to_string)),
        ]
    }

    fn network(&self, network: &Network) -> Vec<(&'static str, Option<String>)> {
        let driver = network.spec.driver.to_string();
        let stack_id = network.stack_id.as_ref().map(ToString::to_string);
        vec![("stack", self.stack(network.stack_id.as_ref())), ("driver", Some(driver)), ("stackId", stack_id)]
    }

    fn value<K: Clone>(&self, value: &StoredValue<K>) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("stack", self.stack(value.stack_id.as_ref())),
            ("valueVersion", value.newest().map(|it| it.number.to_string())),
            ("stackId", value.stack_id.as_ref().map(ToString::to_string)),
        ]
    }

    fn volume(&self, volume: &Volume) -> Vec<(&'static str, Option<String>)> {
        let removed = volume.is_removed.then(|| "true".to_owned());
        let places = volume.places.len().to_string();
        vec![
            ("stack", self.stack(volume.stack_id.as_ref())),
            ("places", Some(places)),
            ("removed", removed),
            ("stackId", volume.stack_id.as_ref().map(ToString::to_string)),
        ]
    }
}

fn node_facts(node: &Node) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("role", Some(node.role.to_string())),
        ("state", Some(node.state.to_string())),
        ("reason", node.state_reason.map(|reason| reason.to_string())),
        ("availability", Some(node.spec.availability.to_string())),
        ("address", Some(node.address.clone())),
    ]
}

fn user_facts(user: &User) -> Vec<(&'static str, Option<String>)> {
    let prefixes = user.prefixes.join(" ");
    let by = user.created_by.clone();
    vec![("role", Some(user.role.to_string())), ("prefixes", Some(prefixes)), ("createdBy", Some(by))]
}

fn audit_facts(audit: &Audit) -> Vec<(&'static str, Option<String>)> {
    let object = |it: &AuditedObject| {
        let name = if it.name.is_empty() { &it.id } else { &it.name };
        format!("{} {} {name}", it.change, it.kind)
    };
    let more = Some(audit.more).filter(|more| *more > 0).map(|more| format!("{more} more"));
    let objects: Vec<_> = audit.objects.iter().map(object).chain(more).collect();
    vec![
        ("actor", Some(audit.actor.clone())),
        ("request", Some(audit.request.clone())),
        ("objects", Some(objects.join(", "))),
    ]
}

fn image_facts(image: &Image) -> Vec<(&'static str, Option<String>)> {
    let names = image.references.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    vec![
        ("digest", Some(image.digest.clone())),
        ("names", Some(names)),
        ("holders", Some(image.confirmed().count().to_string())),
    ]
}

#[cfg(test)]
mod tests;
