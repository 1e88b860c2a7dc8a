//! All tables as a sequence of records, and back. The caller frames, encrypts and writes them.

use std::sync::Arc;

use prost::Message;

use flota_api::object::Object;
use flota_api::proto::raft::{Answer as WireAnswer, SnapshotRecord, SpecVersion, snapshot_record::Record};
use flota_api::proto::specs::ServiceSpec as WireSpec;
use flota_api::version::Timestamp;

use super::digest::Digest;
use super::tables::{Key, Tables};

/// A record that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("a record of the snapshot can't be understood: {0}")]
pub struct SnapshotError(String);

impl Tables {
    /// Every record of a snapshot, encoded. The same tables make the same records in the same order.
    pub fn records(&self) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let record = |record| SnapshotRecord { record: Some(record) }.encode_to_vec();
        // Persistent maps: the copy costs nothing, and what it holds stays as it is.
        let tables = self.clone();
        let specs = tables.specs.clone().into_iter().map(|((service, version), spec)| {
            Record::Spec(SpecVersion {
                service_id: service.into(),
                spec_version: version,
                spec: WireSpec::from(spec.as_ref()).encode_to_vec().into(),
            })
        });
        let answers = tables
            .answers
            .clone()
            .into_iter()
            .map(|(id, version)| Record::Answer(WireAnswer { request_id: id.to_string(), at: 0, version }));
        let last = [Record::Version(tables.version), Record::Time(tables.time.0), Record::Format(tables.format)];
        let objects = tables.into_objects().map(|object| Record::Object((&object).into()));
        // Specs first: a task's or a service's removal of unused ones must not see a half.
        specs.chain(objects).chain(answers).chain(last).map(record)
    }

    /// The tables that these records make.
    ///
    /// # Errors
    /// A record is damaged, or newer than this build.
    pub fn from_records<'a>(records: impl Iterator<Item = &'a [u8]>) -> Result<Self, SnapshotError> {
        let fail = |error: &dyn std::fmt::Display| SnapshotError(error.to_string());
        let mut tables = Self::default();
        let mut specs = Vec::new();
        for bytes in records {
            let record = SnapshotRecord::decode(bytes).map_err(|error| fail(&error))?.record;
            match record.ok_or_else(|| fail(&"it is of an unknown kind"))? {
                Record::Object(object) => tables.put(Object::try_from(object).map_err(|error| fail(&error))?),
                Record::Spec(it) => {
                    let spec = WireSpec::decode(it.spec.as_ref()).map_err(|error| fail(&error))?;
                    let spec = spec.try_into().map_err(|error| fail(&error))?;
                    specs.push(((it.service_id.into(), it.spec_version), Arc::new(spec)));
                }
                Record::Answer(it) => {
                    let request = Key::from(it.request_id);
                    tables.answers_by_age.insert((it.version, Arc::clone(&request)));
                    tables.answers.insert(request, it.version);
                }
                Record::Version(version) => tables.version = version,
                Record::Time(time) => tables.time = Timestamp(time),
                Record::Format(format) => tables.format = format,
            }
        }
        tables.specs.extend(specs);
        let mut digest = Digest::default();
        tables.objects().for_each(|object| digest.add_object(&object));
        tables.answers.iter().for_each(|(request, version)| digest.add_answer(request, *version));
        tables.digest = digest;
        Ok(tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WriteTx;
    use crate::store::Store;
    use crate::transaction::Entry;
    use flota_api::model::{Service, Task};

    #[test]
    fn a_snapshot_holds_everything_also_old_specs_and_answers() {
        let store = Store::default();
        for version in 1..=2 {
            let view = store.view();
            let mut tx = WriteTx::new(view.clone(), &format!("request {version}"));
            let service = Service { id: "s".into(), spec_version: version, ..Service::default() };
            if view.service("s").is_some() {
                tx.update(service)
            } else {
                tx.create(service)
            }
            let id = format!("t{version}").as_str().into();
            tx.create(Task { id, service_id: "s".into(), spec_version: version, ..Task::default() });
            store.apply(version, Entry { at: Timestamp(version), transactions: vec![tx.finish()], ..Entry::default() });
        }
        let tables = store.view();
        let records: Vec<_> = tables.records().collect();
        let again = Tables::from_records(records.iter().map(Vec::as_slice)).expect("just written");
        assert_eq!(again.records().collect::<Vec<_>>(), records);
        assert_eq!(again.specs.len(), 2);
        assert_eq!((again.version, again.time), (2, Timestamp(2)));
        assert_eq!(again.service("s").map(|it| (it.meta.created, it.meta.version)), Some((1, 2)));
        assert_eq!(again.tasks_of_service(&"s".into()).count(), 2);
        assert!(Tables::from_records([b"\xff".as_slice()].into_iter()).is_err());
    }

    /// One manager comes from a snapshot of the format before, another from the entries behind it.
    #[test]
    fn managers_agree_after_the_first_entry_of_todays_format() {
        let task = |id: &str| Task { id: id.into(), ..Task::default() };
        let legacy = |store: &Store, id: &str, at| {
            let mut tx = WriteTx::new(store.view(), id);
            tx.create(task(id));
            Entry { at: Timestamp(at), transactions: vec![tx.finish()], is_legacy: true, ..Entry::default() }
        };
        let replayed = Store::default();
        replayed.apply(1, legacy(&replayed, "a", 9));
        replayed.apply(2, legacy(&replayed, "b", 7));
        let is_new = |bytes: &Vec<u8>| {
            let record = SnapshotRecord::decode(bytes.as_slice()).expect("just written").record;
            matches!(record, Some(Record::Time(_) | Record::Format(_) | Record::Answer(_)))
        };
        let old: Vec<_> = replayed.view().records().filter(|record| !is_new(record)).collect();
        let restored = Store::default();
        restored.restore(Tables::from_records(old.iter().map(Vec::as_slice)).expect("just written"));
        for store in [&replayed, &restored] {
            let mut tx = WriteTx::new(store.view(), "c");
            tx.create(task("c"));
            store.apply(3, Entry { at: Timestamp(1), transactions: vec![tx.finish()], ..Entry::default() });
        }
        assert_eq!(replayed.digest(), restored.digest());
        let records = |store: &Store| store.view().records().collect::<Vec<_>>();
        assert_eq!(records(&replayed), records(&restored));
        let view = replayed.view();
        let made = |id| view.task(id).map(|it| (it.meta.created, it.meta.created_at));
        assert_eq!(made("b"), Some((0, Timestamp(7))), "as it was applied then");
        assert_eq!(made("c"), Some((3, Timestamp(9))), "and time never falls from then on");
    }

    #[test]
    fn the_digest_is_that_of_the_tables_however_they_came_about() {
        let store = Store::default();
        for index in 1..30 {
            let view = store.view();
            let mut tx = WriteTx::new(view.clone(), &format!("request {index}"));
            match view.tasks().next() {
                Some(task) if index % 3 == 0 => tx.remove(flota_api::object::Kind::Task, task.id.as_str()),
                Some(task) if index % 3 == 1 => tx.update(task.as_ref().clone()),
                _ => tx.create(Task { id: format!("t{index}").as_str().into(), ..Task::default() }),
            }
            store.apply(index, Entry { transactions: vec![tx.finish()], forget_answers: index / 2, ..Entry::default() });
            let records: Vec<_> = store.view().records().collect();
            let again = Tables::from_records(records.iter().map(Vec::as_slice)).expect("just written");
            assert_eq!(again.digest(), store.digest(), "after entry {index}");
        }
        assert_ne!(store.digest(), Digest::default());
    }
}
