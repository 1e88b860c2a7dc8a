//! The records of who has changed what. Applying a transaction that says who asked for it leaves one, so a record is there
//! exactly if the change is, on every manager, and a change of leader loses none. The oldest go when there are too many.

use flota_api::id::{AuditId, Id};
use flota_api::model::{AUDITED_OBJECTS, Audit, AuditedObject};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::text::printable_within;
use flota_api::version::Meta;

use super::super::history::name_of;
use super::super::tables::Tables;
use super::super::watch::Event;
use super::Stamp;
use crate::transaction::Origin;

/// Number of records that are kept.
pub(super) const RECORDS_KEPT: usize = 5_000;
/// Largest size of a name in bytes; what is longer ends there.
const NAME_BOUND: usize = 128;

impl Tables {
    /// Adds the record of these changes, of which the first is the event with this number in its entry, and drops the
    /// oldest records. Changes nothing if there are no changes.
    pub(super) fn record(&mut self, stamp: Stamp, origin: Origin, first: usize, events: &mut Vec<Event>) {
        // The bytes of a secret are an object of their own, which says nothing that the secret's does not.
        let is_shown = |(object, _): &(&Object, &str)| object.kind() != Kind::ValueData;
        let changes = events[first..].iter().filter_map(changed).filter(is_shown);
        let mut objects: Vec<_> = changes.map(|(object, change)| self.audited(object, change)).collect();
        if objects.is_empty() {
            return;
        }
        let more = objects.len().saturating_sub(AUDITED_OBJECTS);
        objects.truncate(AUDITED_OBJECTS);
        let number = u32::try_from(events.len() + 1).unwrap_or(u32::MAX);
        let audit = Audit {
            id: AuditId::from(format!("{:016x}{number:08x}", stamp.index)),
            meta: Meta { created_at: stamp.at, updated_at: stamp.at, created: stamp.index, version: stamp.index },
            actor: origin.actor,
            request: origin.request,
            objects,
            more: u64::try_from(more).unwrap_or(u64::MAX),
            number,
        };
        let audit = audit.into_object();
        self.replace_counted(audit.clone());
        events.push(Event::Created(audit));
        while self.count(Kind::Audit) > RECORDS_KEPT {
            let oldest: Option<Id> = self.all::<Audit>().next().map(|it| (&it.id).into());
            // No event: readers got the one of its creation, and the removal of an old record changes nothing for them.
            oldest.and_then(|id| self.remove_counted(Kind::Audit, id));
        }
    }

    fn audited(&self, object: &Object, change: &str) -> AuditedObject {
        let name = name_of(object, |task| self.spec_of(task).map(|spec| spec.name.clone()));
        AuditedObject {
            kind: object.kind().to_string(),
            id: object.id().to_string(),
            name: printable_within(&name, NAME_BOUND),
            change: change.to_owned(),
        }
    }
}

fn changed(event: &Event) -> Option<(&Object, &'static str)> {
    match event {
        Event::Created(object) => Some((object, "create")),
        Event::Updated { new, .. } => Some((new, "update")),
        Event::Removed(object) => Some((object, "remove")),
        Event::Committed(_) | Event::Reset => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::transaction::{Action, Entry, Transaction};
    use flota_api::model::{Service, ServiceSpec, Stack, StackSpec, StoredSecret};
    use flota_api::version::Timestamp;

    fn by(actor: &str, actions: Vec<Action>) -> Transaction {
        let origin = Origin { actor: actor.into(), request: "CreateService".into() };
        Transaction { actions, origin: Some(origin), ..Transaction::default() }
    }

    fn stack(id: &str) -> Object {
        Stack { id: id.into(), spec: StackSpec { name: id.into(), ..StackSpec::default() }, ..Stack::default() }
            .into_object()
    }

    fn entry(transactions: Vec<Transaction>) -> Entry {
        Entry { at: Timestamp(5), transactions, ..Entry::default() }
    }

    #[test]
    fn a_change_leaves_a_record_of_who_asked_for_it_and_never_of_what_is_in_it() {
        let store = Store::default();
        let spec = ServiceSpec { name: "web".into(), env: vec!["PASSWORD=hunter2".into()], ..ServiceSpec::default() };
        let service = Service { id: "s".into(), spec: spec.into(), ..Service::default() }.into_object();
        let secret = StoredSecret { id: "x".into(), ..StoredSecret::default() };
        let (secret, data) = secret.with_version("d".into(), b"hunter2".to_vec().into());
        let create = [service, secret.into_object(), data.into_object()].map(Action::Create).to_vec();
        let failed = by("eve", vec![Action::Remove(Kind::Service, "none".into())]);
        let unasked = Transaction { actions: vec![Action::Create(stack("k"))], ..Transaction::default() };
        store.apply(7, entry(vec![by("ada", create), failed, unasked, by("bob", Vec::new())]));
        let view = store.view();
        let records: Vec<_> = view.all::<Audit>().collect();
        let [record] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((record.actor.as_str(), record.meta.version, record.meta.updated_at), ("ada", 7, Timestamp(5)));
        let objects: Vec<_> = record.objects.iter().map(|it| format!("{} {} {}", it.change, it.kind, it.id)).collect();
        assert_eq!(objects, ["create service s", "create secret x"]);
        assert!(!format!("{record:?}").contains("hunter2"));
    }

    #[test]
    fn the_newest_records_are_kept_and_a_snapshot_has_them() {
        let store = Store::default();
        for index in 1..=RECORDS_KEPT as u64 + 3 {
            store.apply(index, entry(vec![by("ada", vec![Action::Create(stack(&format!("k{index}")))])]));
        }
        let view = store.view();
        let versions: Vec<_> = view.all::<Audit>().map(|it| it.meta.version).collect();
        assert_eq!((versions.len(), versions[0]), (RECORDS_KEPT, 4));
        let records: Vec<_> = view.records().collect();
        let again = Tables::from_records(records.iter().map(Vec::as_slice)).expect("just written");
        assert_eq!((again.count(Kind::Audit), again.digest()), (RECORDS_KEPT, view.digest()));
    }

    #[test]
    fn a_request_that_changes_many_objects_names_the_first_and_counts_the_others() {
        let store = Store::default();
        let create = |number: usize| Action::Create(stack(&format!("k{number}")));
        store.apply(1, entry(vec![by("ada", (0..AUDITED_OBJECTS + 2).map(create).collect())]));
        let view = store.view();
        let record = view.all::<Audit>().next().expect("a record");
        assert_eq!((record.objects.len(), record.more), (AUDITED_OBJECTS, 2));
    }
}
