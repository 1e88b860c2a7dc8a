//! One pass over the dirty keys, from plans to transactions. It is pure.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::object::Kind;
use flota_api::version::{Timestamp, Version};
use flota_raft_store::{Action, Event, Expectation, Tables, Transaction};

use super::ControlLoop;
use crate::plan::{Change, Plan, PlanContext};

/// A loop, by its place in the pipeline, and one of its keys.
pub(super) type Work = (usize, String);
type ObjectKey = (Kind, String);

/// The transactions of one pass, each with the work that it came from, and the work to plan again later.
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub(super) groups: Vec<(Transaction, Vec<Work>)>,
    pub(super) timers: Vec<(Timestamp, Work)>,
}

/// A set of plans that share an object.
#[derive(Default)]
struct Group {
    changed: BTreeSet<ObjectKey>,
    expected: BTreeSet<ObjectKey>,
    work: Vec<Work>,
}

pub(super) fn run(
    loops: &mut [Box<dyn ControlLoop>],
    dirty: &mut BTreeSet<Work>,
    base: &Tables,
    cx: &mut PlanContext,
) -> Planned {
    let mut overlay = base.clone();
    let mut groups: Vec<Group> = Vec::new();
    let mut planned = Planned::default();
    for index in 0..loops.len() {
        let keys: Vec<String> = dirty.iter().filter(|(at, _)| *at == index).map(|(_, key)| key.clone()).collect();
        for key in keys {
            dirty.remove(&(index, key.clone()));
            let plan = loops[index].plan(&key, &overlay, cx);
            if !plan.changes.is_empty() {
                tracing::debug!(control_loop = loops[index].name(), key, changes = plan.changes.len(), "planned");
            }
            let work = (index, key);
            if let Some(at) = plan.retry_at {
                planned.timers.push((at, work.clone()));
            }
            if plan.changes.is_empty() {
                continue;
            }
            let events = change(&mut overlay, &plan);
            // Later loops see the change in this pass, earlier ones when it comes back as an event.
            for (later, each) in loops.iter().enumerate().skip(index + 1) {
                let keys = events.iter().flat_map(|event| each.dirtied_by(event, &overlay));
                dirty.extend(keys.map(|key| (later, key)));
            }
            join(&mut groups, plan, work);
        }
    }
    planned.groups = groups.into_iter().filter_map(|group| fold(group, base, &overlay)).collect();
    planned
}

/// Applies a plan to the overlay and returns the events that the store would emit.
fn change(overlay: &mut Tables, plan: &Plan) -> Vec<Event> {
    let mut events = Vec::new();
    for change in &plan.changes {
        match change {
            Change::Put(new) => {
                let old = overlay.object(new.kind(), new.id()).cloned();
                overlay.put(new.clone());
                events.push(match old {
                    Some(old) => Event::Updated { old, new: new.clone() },
                    None => Event::Created(new.clone()),
                });
            }
            Change::Remove(kind, id) => events.extend(overlay.remove(*kind, id).map(Event::Removed)),
        }
    }
    events
}

/// Puts a plan into the group that it shares objects with; merges groups that it connects.
fn join(groups: &mut Vec<Group>, plan: Plan, work: Work) {
    let changed: BTreeSet<ObjectKey> = plan.changes.iter().map(object_key).collect();
    let expected: BTreeSet<ObjectKey> = plan.expects.into_iter().collect();
    let touches = |group: &Group| {
        changed.iter().chain(&expected).any(|key| group.changed.contains(key))
            || changed.iter().any(|key| group.expected.contains(key))
    };
    let mut joined = Group::default();
    let mut rest = Vec::with_capacity(groups.len() + 1);
    for group in groups.drain(..) {
        if touches(&group) {
            joined.changed.extend(group.changed);
            joined.expected.extend(group.expected);
            joined.work.extend(group.work);
        } else {
            rest.push(group);
        }
    }
    joined.changed.extend(changed);
    joined.expected.extend(expected);
    joined.work.push(work);
    rest.push(joined);
    *groups = rest;
}

fn object_key(change: &Change) -> ObjectKey {
    match change {
        Change::Put(object) => (object.kind(), object.id().to_owned()),
        Change::Remove(kind, id) => (*kind, id.clone()),
    }
}

/// Folds a group into a transaction with one action for each object, from the store's object to that of the overlay.
fn fold(group: Group, base: &Tables, overlay: &Tables) -> Option<(Transaction, Vec<Work>)> {
    let mut transaction = Transaction::default();
    let mut expected: BTreeMap<ObjectKey, Option<Version>> = BTreeMap::new();
    for (kind, id) in &group.changed {
        let (old, new) = (base.object(*kind, id), overlay.object(*kind, id));
        let action = match (old, new) {
            (None, Some(new)) => Action::Create(new.clone()),
            (Some(old), Some(new)) if old != new => Action::Update(new.clone()),
            (Some(_), None) => Action::Remove(*kind, id.clone()),
            _ => continue,
        };
        expected.insert((*kind, id.clone()), old.map(|old| old.meta().version));
        transaction.actions.push(action);
    }
    if transaction.actions.is_empty() {
        return None;
    }
    for (kind, id) in group.expected {
        let version = base.version_of(kind, &id);
        expected.entry((kind, id)).or_insert(version);
    }
    transaction.expectations =
        expected.into_iter().map(|((kind, id), version)| Expectation { kind, id, version }).collect();
    Some((transaction, group.work))
}
