//! One pass over the dirty keys, from plans to transactions. It is pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use flota_api::id::Id;
use flota_api::object::{Kind, Object};
use flota_api::version::Timestamp;
use flota_raft_store::{Action, Event, Expectation, Tables, Transaction};

use super::{ControlLoop, Key};
use crate::plan::{Change, Plan, PlanContext};

/// A loop, by its place in the pipeline, and one of its keys.
pub(crate) type Work = (usize, Key);
type ObjectKey = (Kind, Id);

/// The transactions of one pass, each with the work that it came from, and the work to plan again later.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) groups: Vec<(Transaction, Vec<Work>)>,
    pub(crate) timers: Vec<(Timestamp, Work)>,
    /// Work that needed no change on top of the changes that this pass had planned. It is planned again if one of these is not
    /// committed.
    pub(crate) idle: Vec<Work>,
}

/// Plans the dirty keys of each loop, until the loop has made as many changes as there is room for in `cx`. Keys that
/// are not planned to the end stay dirty.
pub(crate) fn run(
    loops: &mut [Box<dyn ControlLoop>],
    dirty: &mut [BTreeSet<Key>],
    base: &Tables,
    cx: &mut PlanContext,
) -> Planned {
    let mut overlay = base.clone();
    let mut joined = Joined::default();
    let mut planned = Planned::default();
    // The plans of this pass that have made a key dirty.
    let mut causes: BTreeMap<Work, Vec<usize>> = BTreeMap::new();
    let share = cx.room;
    for index in 0..loops.len() {
        cx.room = share;
        // Only later loops become dirty while this one plans.
        let mut order = loops[index].order(&dirty[index], &overlay).map(Vec::into_iter);
        while cx.room > 0 {
            let next = match &mut order {
                None => dirty[index].pop_first(),
                Some(order) => order.next().filter(|key| dirty[index].remove(key)),
            };
            let Some(key) = next else { break };
            let mut plan = loops[index].plan(&key, &overlay, cx);
            if plan.is_full(cx) {
                plan.changes.truncate(cx.room);
                dirty[index].insert(key);
            }
            cx.room -= plan.changes.len();
            if let Some(at) = plan.retry_at {
                planned.timers.push((at, (index, key)));
            }
            if plan.changes.is_empty() {
                if !joined.work.is_empty() {
                    planned.idle.push((index, key));
                }
                continue;
            }
            tracing::debug!(control_loop = loops[index].name(), %key, changes = plan.changes.len(), "planned");
            let events = change(&mut overlay, &plan);
            let number = joined.add(&plan, &events, (index, key));
            // What was planned because of a change must not come about without it.
            causes.remove(&(index, key)).into_iter().flatten().for_each(|cause| joined.join(cause, number));
            // What one plan gives back, a later one of the same loop may take.
            for event in events.iter().filter(|event| matches!(event, Event::Removed(_))) {
                let own = loops[index].dirtied_by(event, &overlay).into_iter();
                own.filter(|key| dirty[index].contains(key))
                    .for_each(|key| causes.entry((index, key)).or_default().push(number));
            }
            // Later loops see the change in this pass, earlier ones when it comes back as an event.
            for (later, (each, dirty)) in loops.iter().zip(dirty.iter_mut()).enumerate().skip(index + 1) {
                for key in events.iter().flat_map(|event| each.dirtied_by(event, &overlay)) {
                    let known = causes.entry((later, key)).or_default();
                    if known.last() != Some(&number) {
                        known.push(number);
                    }
                    dirty.insert(key);
                }
            }
        }
    }
    planned.groups = joined.groups().filter_map(|group| fold(group, base)).collect();
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

/// A set of plans that share an object, or of which one was made because of another.
#[derive(Default)]
struct Group {
    changed: Vec<(ObjectKey, Folded)>,
    expected: Vec<ObjectKey>,
    work: Vec<Work>,
}

/// All changes of an object in a pass: what it is in the store, and what it is to be.
struct Folded {
    old: Option<Object>,
    new: Option<Object>,
    /// The last plan that changes it.
    plan: usize,
    /// Whether it gets another version even if it stays as it is.
    is_touched: bool,
}

/// The plans of a pass, joined where one changes an object that another changes or expects, and where one follows from another.
#[derive(Default)]
struct Joined {
    /// For each plan, another plan of its group; the first plan of a group names itself.
    same: Vec<usize>,
    work: Vec<Work>,
    changed: BTreeMap<ObjectKey, Folded>,
    /// Plans that expect an object, at least one of each group.
    readers: BTreeMap<ObjectKey, Vec<usize>>,
}

impl Joined {
    /// Adds a plan, whose changes made these events. Returns its number.
    fn add(&mut self, plan: &Plan, events: &[Event], work: Work) -> usize {
        let this = self.same.len();
        self.same.push(this);
        self.work.push(work);
        for event in events {
            let (old, new) = match event {
                Event::Created(new) => (None, Some(new)),
                Event::Updated { old, new } => (Some(old), Some(new)),
                Event::Removed(old) => (Some(old), None),
                Event::Committed(_) | Event::Reset => continue,
            };
            let Some(object) = new.or(old) else { continue };
            let key = (object.kind(), object.id());
            if let Some(readers) = self.readers.get_mut(&key) {
                let others = std::mem::replace(readers, vec![this]);
                others.into_iter().for_each(|other| self.join(other, this));
            }
            match self.changed.entry(key) {
                Entry::Vacant(vacant) => {
                    let is_touched = false;
                    vacant.insert(Folded { old: old.cloned(), new: new.cloned(), plan: this, is_touched });
                }
                Entry::Occupied(mut occupied) => {
                    let folded = occupied.get_mut();
                    let other = std::mem::replace(&mut folded.plan, this);
                    folded.new = new.cloned();
                    self.join(other, this);
                }
            }
        }
        for object in &plan.touches {
            let key = (object.kind(), object.id());
            if let Some(readers) = self.readers.get_mut(&key) {
                let others = std::mem::replace(readers, vec![this]);
                others.into_iter().for_each(|other| self.join(other, this));
            }
            let unchanged =
                || Folded { old: Some(object.clone()), new: Some(object.clone()), plan: this, is_touched: true };
            let folded = self.changed.entry(key).or_insert_with(unchanged);
            folded.is_touched = true;
            let other = std::mem::replace(&mut folded.plan, this);
            self.join(other, this);
        }
        for key in &plan.expects {
            if let Some(folded) = self.changed.get(key) {
                self.join(folded.plan, this);
            }
            match self.readers.get_mut(key) {
                Some(readers) if readers.last() == Some(&this) => {}
                Some(readers) => readers.push(this),
                None => drop(self.readers.insert(*key, vec![this])),
            }
        }
        this
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
        for (key, folded) in std::mem::take(&mut self.changed) {
            groups.entry(self.first(folded.plan)).or_default().changed.push((key, folded));
        }
        for (key, plans) in std::mem::take(&mut self.readers) {
            for plan in plans {
                let expected = &mut groups.entry(self.first(plan)).or_default().expected;
                if expected.last() != Some(&key) {
                    expected.push(key);
                }
            }
        }
        groups.into_values()
    }
}

/// Folds a group into a transaction with one action for each object, from the store's object to that of the overlay.
fn fold(group: Group, base: &Tables) -> Option<(Transaction, Vec<Work>)> {
    let mut transaction = Transaction::default();
    let mut expected: BTreeSet<ObjectKey> = group.expected.into_iter().collect();
    let mut expect = |(kind, id): ObjectKey, version| {
        transaction.expectations.push(Expectation { kind, id, version });
    };
    for (key, Folded { old, new, is_touched, .. }) in group.changed {
        let version = old.as_ref().map(|old| old.meta().version);
        let action = match (old, new) {
            (None, Some(new)) => Action::Create(new),
            (Some(old), Some(new)) if old != new || is_touched => Action::Update(new),
            (Some(_), None) => Action::Remove(key.0, key.1),
            _ => continue,
        };
        expected.remove(&key);
        expect(key, version);
        transaction.actions.push(action);
    }
    if transaction.actions.is_empty() {
        return None;
    }
    expected.into_iter().for_each(|key| expect(key, base.version_of(key.0, key.1)));
    Some((transaction, group.work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, Task};
    use flota_api::object::StoreObject;

    #[test]
    fn what_is_touched_gets_another_version_and_joins_what_removes_it() {
        let mut view = Tables::default();
        view.put(Node { id: "n".into(), ..Node::default() }.into_object());
        let touching = |id: &str| {
            let mut touching = plan(&[id], &[]);
            touching.touch(Node { id: "n".into(), ..Node::default() });
            touching
        };
        let mut joined = Joined::default();
        let mut overlay = view.clone();
        for (number, plan) in [touching("a"), plan(&["b"], &[]), touching("c"), plan(&["d"], &["n"])].iter().enumerate()
        {
            let events = change(&mut overlay, plan);
            joined.add(plan, &events, (number, Key::of("key")));
        }
        let folded: Vec<_> = joined.groups().filter_map(|group| fold(group, &view)).collect();
        let [(first, work), (second, _)] = folded.as_slice() else { panic!("{folded:?}") };
        assert_eq!((work.len(), second.actions.len()), (3, 1));
        let touched: Vec<_> = first.actions.iter().filter(|it| matches!(it, Action::Update(Object::Node(_)))).collect();
        assert_eq!((touched.len(), first.actions.len()), (1, 4));
        assert!(first.expectations.iter().any(|it| it.kind == Kind::Node && it.version == Some(0)));
    }

    fn plan(changes: &[&str], expects: &[&str]) -> Plan {
        let mut plan = Plan::default();
        changes.iter().for_each(|id| plan.put(Task { id: (*id).into(), ..Task::default() }));
        expects.iter().for_each(|id| plan.expect(Kind::Node, *id));
        plan
    }

    /// The numbers of the plans in each group.
    fn joined(plans: Vec<Plan>) -> Vec<Vec<usize>> {
        let (mut joined, mut overlay) = (Joined::default(), Tables::default());
        for (number, plan) in plans.into_iter().enumerate() {
            let events = change(&mut overlay, &plan);
            joined.add(&plan, &events, (number, Key::of("key")));
        }
        joined.groups().map(|group| group.work.into_iter().map(|(number, _)| number).collect()).collect()
    }

    #[test]
    fn plans_are_one_transaction_if_one_changes_what_the_other_changes_or_expects_and_only_then() {
        let reader = || plan(&["other"], &["n"]);
        let mut writer = Plan::default();
        writer.put(Node { id: "n".into(), ..Node::default() });
        for (plans, expected) in [
            (vec![plan(&["a"], &[]), plan(&["b"], &[])], vec![vec![0], vec![1]]),
            (vec![plan(&["a"], &[]), plan(&["b"], &[]), plan(&["a"], &[])], vec![vec![0, 2], vec![1]]),
            (vec![plan(&["a"], &[]), plan(&["b"], &[]), plan(&["a", "b"], &[])], vec![vec![0, 1, 2]]),
            (vec![plan(&["a"], &["n"]), plan(&["b"], &["n"])], vec![vec![0], vec![1]]),
            (vec![plan(&["a"], &["n"]), writer.clone(), plan(&["b"], &["n"])], vec![vec![0, 1, 2]]),
            (vec![reader(), plan(&["a"], &[]), writer], vec![vec![0, 2], vec![1]]),
        ] {
            assert_eq!(joined(plans), expected);
        }
    }

    /// A loop that creates, for each of its keys, the task of this name. The second of a pair is such a key, which the loop plans
    /// after the task that is named first has changed.
    struct Follower {
        keys: &'static [(&'static str, &'static str)],
    }

    impl ControlLoop for Follower {
        fn name(&self) -> &'static str {
            "follower"
        }

        fn all(&self, _: &Tables) -> Vec<Key> {
            Vec::new()
        }

        fn dirtied_by(&self, event: &Event, _: &Tables) -> Vec<Key> {
            let (Event::Created(object) | Event::Updated { new: object, .. }) = event else { return Vec::new() };
            let follows = |(after, _): &&(&str, &str)| object.id() == Id::from(*after);
            self.keys.iter().filter(follows).map(|(_, key)| Key::of(*key)).collect()
        }

        fn plan(&mut self, key: &Key, _: &Tables, _: &mut PlanContext) -> Plan {
            let mut made = Plan::default();
            made.put(Task { id: key.id.into(), ..Task::default() });
            made
        }
    }

    #[test]
    fn what_is_planned_because_of_a_change_comes_about_with_it_or_not_at_all() {
        let loops = [&[][..], &[("a", "x"), ("b", "y"), ("b", "x")], &[("y", "z")]];
        let mut loops: Vec<Box<dyn ControlLoop>> =
            loops.into_iter().map(|keys| Box::new(Follower { keys }) as Box<dyn ControlLoop>).collect();
        // The last one was dirty before.
        let mut dirty: Vec<BTreeSet<Key>> =
            [&["a", "b", "c"][..], &[], &["w", "z"]].map(|keys| keys.iter().map(|key| Key::of(*key)).collect()).into();
        let planned = run(&mut loops, &mut dirty, &Tables::default(), &mut PlanContext::at(Timestamp::default()));
        let ids = |transaction: &Transaction| {
            let id = |action: &Action| match action {
                Action::Create(object) => object.id().to_string(),
                other => panic!("{other:?}"),
            };
            let mut ids: Vec<String> = transaction.actions.iter().map(id).collect();
            ids.sort();
            ids.concat()
        };
        let mut groups: Vec<String> = planned.groups.iter().map(|(transaction, _)| ids(transaction)).collect();
        groups.sort();
        assert_eq!(groups, ["abxyz", "c", "w"]);
    }

    /// A loop that removes the task `old` for the key `a`, and creates a task for every other key. A removal makes the keys `b`
    /// and `d` dirty.
    struct Remover;

    impl ControlLoop for Remover {
        fn name(&self) -> &'static str {
            "remover"
        }

        fn all(&self, _: &Tables) -> Vec<Key> {
            Vec::new()
        }

        fn dirtied_by(&self, event: &Event, _: &Tables) -> Vec<Key> {
            if matches!(event, Event::Removed(_)) { vec![Key::of("b"), Key::of("d")] } else { Vec::new() }
        }

        fn plan(&mut self, key: &Key, _: &Tables, _: &mut PlanContext) -> Plan {
            let mut made = Plan::default();
            match key.id == Id::from("a") {
                true => made.remove(Kind::Task, "old"),
                false => made.put(Task { id: key.id.into(), ..Task::default() }),
            }
            made
        }
    }

    #[test]
    fn what_takes_what_another_plan_of_its_loop_gives_back_comes_about_with_it() {
        let mut view = Tables::default();
        view.put(Task { id: "old".into(), ..Task::default() }.into_object());
        let mut loops: Vec<Box<dyn ControlLoop>> = vec![Box::new(Remover)];
        let mut dirty: Vec<BTreeSet<Key>> = vec![["a", "b", "c"].map(Key::of).into()];
        let planned = run(&mut loops, &mut dirty, &view, &mut PlanContext::at(Timestamp::default()));
        let sizes: Vec<usize> = planned.groups.iter().map(|(transaction, _)| transaction.actions.len()).collect();
        assert_eq!(sizes, [2, 1], "`c` has nothing to do with it, and `d` was not to be planned");
    }
}
