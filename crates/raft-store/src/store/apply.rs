//! Applies committed entries. This is the only place where the tables of the store change: on every manager in the same
//! order with the same result. It reads neither a clock nor a random source; times and ids are in the entry.

mod audit;

use std::sync::Arc;
use std::time::Duration;

use flota_api::id::{Id, NodeId, TaskId};
use flota_api::model::{Task, TaskStatus};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::{Meta, Timestamp, Version};

use super::table::Key;
use super::tables::{Answer, Tables};
use super::watch::Event;
use crate::faults::{self, Fault};
use crate::transaction::{Action, Conflict, Entry, Expectation, Outcome, Rules, Transaction};

/// Number of answers to users' requests that are kept, so that a retry is not carried out again.
const ANSWERS_KEPT: usize = 100_000;
/// How long answers are kept when entries of the old format are applied.
const OLD_ANSWERS_KEPT_FOR: Duration = Duration::from_secs(15 * 60);

/// Largest number of actions of which it is found out beforehand whether they succeed.
const LOOKED_AT: usize = 8;

/// Facts about the entry that is being applied.
#[derive(Clone, Copy)]
struct Stamp {
    index: Version,
    at: Timestamp,
    /// The rules of the entry.
    rules: Rules,
}

impl Tables {
    pub(super) fn apply(&mut self, index: Version, entry: Entry) -> (Vec<Outcome>, Vec<Event>) {
        let mut events = Vec::new();
        let rules = entry.rules;
        let at = if rules == Rules::ByClock || faults::is_on(Fault::OrderByClock) {
            entry.at
        } else {
            self.advance_time(entry.at)
        };
        let stamp = Stamp { index, at, rules };
        let outcomes = entry.transactions.into_iter().map(|it| self.apply_one(stamp, it, &mut events)).collect();
        self.version = index;
        self.forget_answers(stamp, entry.forget_answers);
        (outcomes, events)
    }

    /// Moves the time of the tables on. It never falls, although the clock of a new leader may be behind.
    fn advance_time(&mut self, at: Timestamp) -> Timestamp {
        if self.time == Timestamp::default() {
            // The first entry of this format continues from the latest time in the tables, which all managers share.
            self.time = self.objects().map(|object| object.meta().updated_at).max().unwrap_or_default();
        }
        self.time = self.time.max(at);
        self.time
    }

    fn apply_one(&mut self, stamp: Stamp, tx: Transaction, events: &mut Vec<Event>) -> Outcome {
        if let Some(request) = &tx.request_id
            && let Some(answer) = self.answers.get(request.as_str())
        {
            return match answer.is_refusal == tx.is_refusal {
                true => Ok(answer.version),
                false => Err(Conflict::Answered { request: request.clone() }),
            };
        }
        self.check(&tx.expectations)?;
        let before = events.len();
        // All or nothing. Where an action may fail, they are applied to a clone, which is kept only if none does. A clone is
        // cheap, but while it exists, every change copies a path of a persistent map.
        if self.will_succeed(&tx.actions) {
            self.apply_actions(stamp, tx.actions, events).expect("it is certain that no action fails");
        } else {
            let mut next = self.clone();
            if let Err(conflict) = next.apply_actions(stamp, tx.actions, events) {
                events.truncate(before);
                return Err(conflict);
            }
            *self = next;
        }
        if let Some(origin) = tx.origin {
            self.record(stamp, origin, before, events);
        }
        if let Some(request) = tx.request_id.map(Key::from) {
            self.digest.add_answer(&request, stamp.index, tx.is_refusal);
            self.answers
                .insert(Arc::clone(&request), Answer { version: stamp.index, is_refusal: tx.is_refusal, at: stamp.at });
            self.answers_by_age.insert((stamp.index, request));
        }
        Ok(stamp.index)
    }

    /// Checks the conditions of a transaction.
    fn check(&self, expectations: &[Expectation]) -> Result<(), Conflict> {
        match expectations.iter().find(|it| self.version_of(it.kind, it.id) != it.version) {
            Some(unmet) => Err(changed(unmet.kind, unmet.id)),
            None => Ok(()),
        }
    }

    /// Whether it is certain that none of these actions fails: each is about another object, which is there or absent as the
    /// action needs it, and has names that no other object has. Of many actions it is not found out.
    fn will_succeed(&self, actions: &[Action]) -> bool {
        if actions.len() > LOOKED_AT {
            return false;
        }
        let object = |action: &Action| match action {
            Action::Create(object) | Action::Update(object) => Some((object.kind(), object.id())),
            Action::Remove(kind, id) => Some((*kind, *id)),
            Action::Status(..) => None,
        };
        let names = |action: &Action| match action {
            Action::Create(object) | Action::Update(object) => {
                object.names().into_iter().map(|name| (object.kind(), name.to_owned())).collect()
            }
            Action::Remove(..) | Action::Status(..) => Vec::new(),
        };
        actions.iter().enumerate().all(|(index, action)| {
            let others = &actions[..index];
            let fits = match action {
                Action::Create(new) => self.object(new.kind(), new.id()).is_none() && self.taken_name(new).is_none(),
                Action::Update(new) => self.object(new.kind(), new.id()).is_some() && self.taken_name(new).is_none(),
                Action::Remove(kind, id) => self.object(*kind, *id).is_some(),
                Action::Status(..) => true,
            };
            let is_own = |other: &Action| object(action).is_none() || object(action) != object(other);
            let own_names = |other: &Action| names(other).iter().all(|name| !names(action).contains(name));
            fits && others.iter().all(|other| is_own(other) && own_names(other))
        })
    }

    /// Applies actions in order, up to the first that fails.
    fn apply_actions(&mut self, stamp: Stamp, actions: Vec<Action>, events: &mut Vec<Event>) -> Result<(), Conflict> {
        for action in actions {
            match action {
                Action::Create(object) => events.push(self.create(stamp, object)?),
                Action::Update(object) => events.push(self.update(stamp, object)?),
                Action::Remove(kind, id) => {
                    let removed = self.remove_counted(kind, id).ok_or_else(|| changed(kind, id))?;
                    events.push(Event::Removed(removed));
                }
                Action::Status(task, node, status) => {
                    events.extend(self.status(stamp, &task, &node, status));
                }
            }
        }
        Ok(())
    }

    fn create(&mut self, stamp: Stamp, mut object: Object) -> Result<Event, Conflict> {
        if self.object(object.kind(), object.id()).is_some() {
            return Err(changed(object.kind(), object.id()));
        }
        self.check_name(&object)?;
        let Stamp { index, at, rules } = stamp;
        let created = if rules == Rules::ByClock { 0 } else { index };
        *object.meta_mut() = Meta { created_at: at, updated_at: at, created, version: index };
        if let Object::Service(service) = &mut object
            && rules >= Rules::WithProgress
        {
            let service = Arc::make_mut(service);
            (service.spec_set_at, service.update.started_at) = (Some(at), at);
        }
        self.replace_counted(object.clone());
        Ok(Event::Created(object))
    }

    fn update(&mut self, stamp: Stamp, mut new: Object) -> Result<Event, Conflict> {
        let old = self.object(new.kind(), new.id()).cloned();
        let old = old.ok_or_else(|| changed(new.kind(), new.id()))?;
        self.check_name(&new)?;
        *new.meta_mut() = Meta { updated_at: stamp.at, version: stamp.index, ..old.meta().clone() };
        match (&old, &mut new) {
            (Object::Task(old), Object::Task(new))
                if old.status.rank() > new.status.rank()
                    || (old.status.rank() == new.status.rank() && stamp.rules != Rules::ByClock) =>
            {
                // The update may have been planned before the worker's report arrived, so the report stays.
                let new = Arc::make_mut(new);
                new.status = old.status.clone();
                if stamp.rules >= Rules::WithProgress {
                    (new.prepared_at, new.served_at) = (old.prepared_at, old.served_at);
                }
            }
            (Object::Service(old), Object::Service(new)) if stamp.rules >= Rules::WithProgress => {
                let new = Arc::make_mut(new);
                let is_same = old.spec_version == new.spec_version;
                let goes_on = is_same && !(old.update.is_paused() && new.update.is_active());
                new.spec_set_at = if is_same { old.spec_set_at } else { Some(stamp.at) };
                new.update.started_at = if goes_on { old.update.started_at } else { stamp.at };
            }
            _ => {}
        }
        self.replace_counted(new.clone());
        Ok(Event::Updated { old, new })
    }

    fn status(&mut self, stamp: Stamp, task: &TaskId, node: &NodeId, status: TaskStatus) -> Option<Event> {
        let old = self.task(task)?;
        let higher = status.rank() > old.status.rank();
        // A status of the same rank may bring another text. Reports arrive in the order in which the worker made them;
        // its clock may step, and says nothing about their order.
        let in_order = stamp.rules != Rules::ByClock || status.at >= old.status.at;
        let newer = status.rank() == old.status.rank() && in_order && status != old.status;
        if !old.is_on(node) || old.status.state.is_terminal() || !(higher || newer) {
            return None;
        }
        let old = Arc::clone(old);
        let mut new = Task { status, ..old.as_ref().clone() };
        new.meta.updated_at = stamp.at;
        if stamp.rules >= Rules::WithProgress {
            new.record_progress(stamp.at);
        }
        let new = new.into_object();
        self.replace_counted(new.clone());
        Some(Event::Updated { old: Object::Task(old), new })
    }

    fn check_name(&self, object: &Object) -> Result<(), Conflict> {
        match self.taken_name(object) {
            None => Ok(()),
            Some(name) => Err(Conflict::NameTaken { kind: object.kind().to_string(), name: name.to_owned() }),
        }
    }

    fn forget_answers(&mut self, stamp: Stamp, expired: Option<Version>) {
        while let Some((version, id)) = self.answers_by_age.get_min().cloned() {
            let is_expired = if stamp.rules == Rules::ByClock {
                self.answers.get(&id).is_none_or(|answer| answer.at.until(stamp.at) > OLD_ANSWERS_KEPT_FOR)
            } else {
                expired.is_some_and(|expired| version <= expired)
            };
            if self.answers.len() <= ANSWERS_KEPT && !is_expired {
                return;
            }
            let answer = self.answers.remove(&id);
            self.digest.take_answer(&id, version, answer.is_some_and(|it| it.is_refusal));
            self.answers_by_age.remove(&(version, id));
        }
    }
}

fn changed(kind: Kind, id: Id) -> Conflict {
    Conflict::Changed { kind: kind.to_string(), id: id.to_string() }
}

#[cfg(test)]
mod tests;
