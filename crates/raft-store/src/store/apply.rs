//! THE only place where a committed entry changes tables: on every manager, in the same order, with the same
//! result. No clock, no chance: times and ids are in the entry.

use std::sync::Arc;

use flota_api::model::{Task, TaskStatus};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Meta, Timestamp, Version};

use super::tables::{Key, Table, Tables};
use super::watch::Event;
use crate::transaction::{Action, Conflict, Entry, Outcome, Transaction};

/// Answers to users' requests that are kept, so that a retry is not done again.
const ANSWERS_KEPT: usize = 100_000;

impl Tables {
    pub(super) fn apply(&mut self, index: Version, entry: Entry) -> (Vec<Outcome>, Vec<Event>) {
        let mut events = Vec::new();
        // A leader's clock may be behind the one before it; nothing that is planned by these times must see that.
        self.time = self.time.max(entry.at);
        let at = self.time;
        let outcomes = entry.transactions.into_iter().map(|it| self.apply_one(index, at, it, &mut events)).collect();
        self.version = index;
        self.forget_answers(entry.forget_answers);
        (outcomes, events)
    }

    fn apply_one(&mut self, index: Version, at: Timestamp, tx: Transaction, events: &mut Vec<Event>) -> Outcome {
        if let Some(answer) = self.answers.get(tx.request_id.as_str()) {
            return Ok(*answer);
        }
        // All or nothing: work on a clone (which costs nothing) and keep it only when every action held.
        let mut next = self.clone();
        let before = events.len();
        if let Err(conflict) = next.try_apply(index, at, &tx, events) {
            events.truncate(before);
            return Err(conflict);
        }
        if !tx.request_id.is_empty() {
            let request = Key::from(tx.request_id);
            next.answers.insert(Arc::clone(&request), index);
            next.answers_by_age.insert((index, request));
        }
        *self = next;
        Ok(index)
    }

    fn try_apply(
        &mut self,
        index: Version,
        at: Timestamp,
        tx: &Transaction,
        events: &mut Vec<Event>,
    ) -> Result<(), Conflict> {
        for expectation in &tx.expectations {
            if self.version_of(expectation.kind, &expectation.id) != expectation.version {
                return Err(changed(expectation.kind, &expectation.id));
            }
        }
        for action in &tx.actions {
            match action {
                Action::Create(object) => events.push(self.create(index, at, object)?),
                Action::Update(object) => events.push(self.update(index, at, object)?),
                Action::Remove(kind, id) => {
                    let removed = self.remove(*kind, id).ok_or_else(|| changed(*kind, id))?;
                    events.push(Event::Removed(removed));
                }
                Action::Status(task, node, status) => {
                    events.extend(self.status(at, task.as_str(), node.as_str(), status));
                }
            }
        }
        Ok(())
    }

    fn create(&mut self, index: Version, at: Timestamp, object: &Object) -> Result<Event, Conflict> {
        if self.object(object.kind(), object.id()).is_some() {
            return Err(changed(object.kind(), object.id()));
        }
        self.check_name(object)?;
        let object = with_meta(object, Meta { created_at: at, updated_at: at, created: index, version: index });
        self.put(object.clone());
        Ok(Event::Created(object))
    }

    fn update(&mut self, index: Version, at: Timestamp, object: &Object) -> Result<Event, Conflict> {
        let old = self.object(object.kind(), object.id()).ok_or_else(|| changed(object.kind(), object.id()))?;
        self.check_name(object)?;
        let meta = Meta { updated_at: at, version: index, ..old.meta().clone() };
        let mut new = with_meta(object, meta);
        if let (Object::Task(old), Object::Task(new)) = (&old, &mut new)
            && old.status.rank() > new.status.rank()
        {
            // Planned before the worker's report came in: the report stands.
            Arc::make_mut(new).status = old.status.clone();
        }
        self.put(new.clone());
        Ok(Event::Updated { old, new })
    }

    fn status(&mut self, at: Timestamp, task: &str, node: &str, status: &TaskStatus) -> Option<Event> {
        let old = self.tasks.get(task)?;
        let higher = status.rank() > old.status.rank();
        // The same rank with another text: what is known of a task that waits may grow. A worker's reports come in the
        // order in which it made them; its clock, which may step, says nothing about that.
        let newer = status.rank() == old.status.rank() && *status != old.status;
        if old.node_id.as_str() != node || old.status.state.is_terminal() || !(higher || newer) {
            return None;
        }
        let old = Arc::clone(old);
        let mut new = Task { status: status.clone(), ..old.as_ref().clone() };
        new.meta.updated_at = at;
        let new = new.into_object();
        self.put(new.clone());
        Some(Event::Updated { old: Object::Task(old), new })
    }

    fn check_name(&self, object: &Object) -> Result<(), Conflict> {
        fn check<T: StoreObject>(table: &Table<T>, object: &T) -> Result<(), Conflict> {
            match table.name_taken(object) {
                None => Ok(()),
                Some(_) => Err(Conflict::NameTaken {
                    kind: T::KIND.to_string(),
                    name: object.name().unwrap_or_default().to_owned(),
                }),
            }
        }
        match object {
            Object::Cluster(it) => check(&self.clusters, it),
            Object::Node(it) => check(&self.nodes, it),
            Object::Service(it) => check(&self.services, it),
            Object::Task(it) => check(&self.tasks, it),
            Object::Image(it) => check(&self.images, it),
            Object::Stack(it) => check(&self.stacks, it),
            Object::Registry(it) => check(&self.registries, it),
        }
    }

    fn forget_answers(&mut self, expired: Version) {
        while let Some((version, id)) = self.answers_by_age.get_min().cloned() {
            if self.answers.len() <= ANSWERS_KEPT && version > expired {
                return;
            }
            self.answers_by_age.remove(&(version, id.clone()));
            self.answers.remove(&id);
        }
    }
}

fn changed(kind: Kind, id: &str) -> Conflict {
    Conflict::Changed { kind: kind.to_string(), id: id.to_owned() }
}

fn with_meta(object: &Object, meta: Meta) -> Object {
    fn set<T: StoreObject>(object: &Arc<T>, meta: Meta) -> Object {
        let mut object = object.as_ref().clone();
        *object.meta_mut() = meta;
        object.into_object()
    }
    match object {
        Object::Cluster(it) => set(it, meta),
        Object::Node(it) => set(it, meta),
        Object::Service(it) => set(it, meta),
        Object::Task(it) => set(it, meta),
        Object::Image(it) => set(it, meta),
        Object::Stack(it) => set(it, meta),
        Object::Registry(it) => set(it, meta),
    }
}

#[cfg(test)]
mod tests;
