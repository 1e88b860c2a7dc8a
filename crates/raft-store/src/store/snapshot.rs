//! All tables as a sequence of records, and back. The caller frames, encrypts and writes them.

use std::sync::Arc;

use prost::Message;

use flota_api::object::Object;
use flota_api::proto::raft::{Answer as WireAnswer, SnapshotRecord, SpecVersion, snapshot_record::Record};
use flota_api::proto::specs::ServiceSpec as WireSpec;
use flota_api::version::Timestamp;

use super::tables::{Key, Tables};

/// A record that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("a record of the snapshot can't be understood: {0}")]
pub struct SnapshotError(String);

impl Tables {
    /// Every record of a snapshot, encoded.
    pub fn records(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let record = |record| SnapshotRecord { record: Some(record) }.encode_to_vec();
        let objects = self.objects().map(|object| Record::Object((&object).into()));
        let specs = self.specs.iter().map(|((service, version), spec)| {
            Record::Spec(SpecVersion {
                service_id: service.clone().into(),
                spec_version: *version,
                spec: WireSpec::from(spec.as_ref()).encode_to_vec().into(),
            })
        });
        let answers = self
            .answers
            .iter()
            .map(|(id, answer)| Record::Answer(WireAnswer { request_id: id.to_string(), at: 0, version: *answer }));
        // Specs first: a task's or a service's removal of unused ones must not see a half.
        let last = [Record::Version(self.version), Record::Time(self.time.0)];
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
            }
        }
        tables.specs.extend(specs);
        // A snapshot from before it held the time: what it holds is no later than its last entry.
        let latest = tables.objects().map(|object| object.meta().updated_at).max();
        tables.time = tables.time.max(latest.unwrap_or_default());
        Ok(tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WriteTx;
    use crate::store::Store;
    use crate::transaction::Entry;
    use flota_api::model::{Service, Stack, Task};
    use flota_api::object::StoreObject;
    use flota_api::version::Meta;

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

    #[test]
    fn a_snapshot_from_before_it_held_the_time_ends_at_its_latest_change() {
        let mut tables = Tables::default();
        for (id, at) in [("a", 9), ("b", 7)] {
            let meta = Meta { updated_at: Timestamp(at), ..Meta::default() };
            tables.put(Stack { id: id.into(), meta, ..Stack::default() }.into_object());
        }
        let is_time = |bytes: &Vec<u8>| {
            matches!(SnapshotRecord::decode(bytes.as_slice()), Ok(SnapshotRecord { record: Some(Record::Time(_)) }))
        };
        let old: Vec<_> = tables.records().filter(|record| !is_time(record)).collect();
        let again = Tables::from_records(old.iter().map(Vec::as_slice)).expect("just written");
        assert_eq!(again.time, Timestamp(9));
    }
}
