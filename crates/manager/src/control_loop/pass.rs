//! One pass over the dirty keys, from plans to transactions. It is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flota_api::object::Kind;
use flota_api::version::{Timestamp, Version};
use flota_raft_store::{Action, Event, Expectation, Tables, Transaction};

use super::{ControlLoop, Key};
use crate::plan::{Change, Plan, PlanContext};

/// A loop, by its place in the pipeline, and one of its keys.
pub(super) type Work = (usize, Key);
type ObjectKey = (Kind, Arc<str>);

/// The transactions of one pass, each with the work that it came from, and the work to plan again later.
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub(super) groups: Vec<(Transaction, Vec<Work>)>,
    pub(super) timers: Vec<(Timestamp, Work)>,
}

/// Plans the dirty keys of each loop, until the loop has made as many changes as there is room for in `cx`. Keys that
/// are not planned to the end stay dirty.
pub(super) fn run(
    loops: &mut [Box<dyn ControlLoop>],
    dirty: &mut [BTreeSet<Key>],
    base: &Tables,
    cx: &mut PlanContext,
) -> Planned {
    let mut overlay = base.clone();
    let mut joined = Joined::default();
    let mut planned = Planned::default();
    let share = cx.room;
    for index in 0..loops.len() {
        cx.room = share;
        while cx.room > 0 {
            let Some(key) = dirty[index].pop_first() else { break };
            let mut plan = loops[index].plan(&key, &overlay, cx);
            if plan.is_full(cx) {
                plan.changes.truncate(cx.room);
                dirty[index].insert(key.clone());
            }
            cx.room -= plan.changes.len();
            if let Some(at) = plan.retry_at {
                planned.timers.push((at, (index, key.clone())));
            }
            if plan.changes.is_empty() {
                continue;
            }
            tracing::debug!(control_loop = loops[index].name(), %key, changes = plan.changes.len(), "planned");
            let events = change(&mut overlay, &plan);
            // Later loops see the change in this pass, earlier ones when it comes back as an event.
            for (each, dirty) in loops.iter().zip(dirty.iter_mut()).skip(index + 1) {
                dirty.extend(events.iter().flat_map(|event| each.dirtied_by(event, &overlay)));
            }
            joined.add(plan, (index, key));
        }
    }
    planned.groups = joined.groups().filter_map(|group| fold(group, base, &overlay)).collect();
    planned
}

/// Applies a plan to the overlay and returns the events that the store would emit.
fn change(overlay: &mut Tables, plan: &Plan) -> Vec<Event> {
    let mut events = Vec::new();
    for change in &plan.changes {
        match change {
            Change::Put(new) => {
                events.push(match overlay.replace(new.clone()) {
                    Some(old) => Event::Updated { old, new: new.clone() },
                    None => Event::Created(new.clone()),
                });
            }
            Change::Remove(kind, id) => events.extend(overlay.remove(*kind, id).map(Event::Removed)),
        }
    }
    events
}

/// A set of plans that share an object.
#[derive(Default)]
struct Group {
    changed: Vec<ObjectKey>,
    expected: Vec<ObjectKey>,
    work: Vec<Work>,
}

/// The plans of a pass, joined where one changes an object that another changes or expects.
#[derive(Default)]
struct Joined {
    /// For each plan, another plan of its group; the first plan of a group names itself.
    same: Vec<usize>,
    work: Vec<Work>,
    /// The last plan that changes an object.
    changers: BTreeMap<ObjectKey, usize>,
    /// Plans that expect an object, at least one of each group.
    readers: BTreeMap<ObjectKey, Vec<usize>>,
}

impl Joined {
    fn add(&mut self, plan: Plan, work: Work) {
        let this = self.same.len();
        self.same.push(this);
        self.work.push(work);
        for key in plan.changes.iter().map(object_key) {
            if let Some(readers) = self.readers.get_mut(&key) {
                let others = std::mem::replace(readers, vec![this]);
                others.into_iter().for_each(|other| self.join(other, this));
            }
            if let Some(other) = self.changers.insert(key, this) {
                self.join(other, this);
            }
        }
        for key in plan.expects {
            if let Some(other) = self.changers.get(&key).copied() {
                self.join(other, this);
            }
            let readers = self.readers.entry(key).or_default();
            if readers.last() != Some(&this) {
                readers.push(this);
            }
        }
    }

    /// Returns the first plan of the group, and shortens the way to it.
    fn first(&mut self, mut plan: usize) -> usize {
        while self.same[plan] != plan {
            self.same[plan] = self.same[self.same[plan]];
            plan = self.same[plan];
        }
        plan
    }

    fn join(&mut self, left: usize, right: usize) {
        let (left, right) = (self.first(left), self.first(right));
        self.same[left.max(right)] = left.min(right);
    }

    /// Returns the groups, in the order of their first plans.
    fn groups(mut self) -> impl Iterator<Item = Group> {
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for (plan, work) in std::mem::take(&mut self.work).into_iter().enumerate() {
            groups.entry(self.first(plan)).or_default().work.push(work);
        }
        for (key, plan) in std::mem::take(&mut self.changers) {
            groups.entry(self.first(plan)).or_default().changed.push(key);
        }
        for (key, plans) in std::mem::take(&mut self.readers) {
            for plan in plans {
                let expected = &mut groups.entry(self.first(plan)).or_default().expected;
                if expected.last() != Some(&key) {
                    expected.push(key.clone());
                }
            }
        }
        groups.into_values()
    }
}

fn object_key(change: &Change) -> ObjectKey {
    match change {
        Change::Put(object) => (object.kind(), object.key()),
        Change::Remove(kind, id) => (*kind, Arc::clone(id)),
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
            (Some(_), None) => Action::Remove(*kind, id.to_string()),
            _ => continue,
        };
        expected.insert((*kind, Arc::clone(id)), old.map(|old| old.meta().version));
        transaction.actions.push(action);
    }
    if transaction.actions.is_empty() {
        return None;
    }
    for (kind, id) in group.expected {
        let version = base.version_of(kind, &id);
        expected.entry((kind, id)).or_insert(version);
    }
    let expectation = |((kind, id), version): (ObjectKey, _)| Expectation { kind, id: id.to_string(), version };
    transaction.expectations = expected.into_iter().map(expectation).collect();
    Some((transaction, group.work))
}
