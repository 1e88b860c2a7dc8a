//! Encodes all tables as a sequence of records and decodes them. The caller frames, encrypts and writes the records.

use std::sync::Arc;

use prost::Message;

use flota_api::model::Cluster;
use flota_api::object::Object;
use flota_api::proto::raft::{Answer as WireAnswer, SnapshotRecord, SpecVersion, snapshot_record::Record};
use flota_api::proto::specs::ServiceSpec as WireSpec;
use flota_api::version::Timestamp;

use super::table::Key;
use super::tables::{Answer, Tables};
use crate::level::{self, NewerLevel};

/// Why tables can't be built from the records of a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A record can't be decoded.
    #[error("failed to decode a record of the snapshot: {0}")]
    Record(String),
    /// The cluster uses a newer feature level.
    #[error(transparent)]
    Newer(#[from] NewerLevel),
}

impl Tables {
    /// The encoded records. Equal tables give equal records in the same order.
    pub fn records(&self) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let record = |record| SnapshotRecord { record: Some(record) }.encode_to_vec();
        // The clone is cheap and does not change while the caller iterates.
        let tables = self.clone();
        let specs = tables.specs.clone().into_iter().map(|((service, version), spec)| {
            Record::Spec(SpecVersion {
                service_id: service.into(),
                spec_version: version,
                spec: WireSpec::from(spec.as_ref()).encode_to_vec().into(),
            })
        });
        let answers = tables.answers.clone().into_iter().map(|(id, answer)| {
            let Answer { version, is_refusal, at } = answer;
            Record::Answer(WireAnswer { request_id: id.to_string(), at: at.0, version, is_refusal })
        });
        let last = [Record::Version(tables.version), Record::Time(tables.time.0)];
        let objects = tables.objects().map(|object| Record::Object((&object).into()));
        // Specs come first, so that they are complete when objects refer to them.
        specs.chain(objects).chain(answers).chain(last).map(record)
    }

    /// Builds tables from records.
    ///
    /// # Errors
    /// A record is damaged or was written by a newer build.
    pub fn from_records<'a>(records: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Self, SnapshotError> {
        let read = Self::from_known(records.clone());
        // A newer build may have written objects of a kind that is not known here.
        let cluster = match &read {
            Ok(tables) => tables.cluster().cloned(),
            Err(_) => records.filter_map(cluster).next(),
        };
        cluster.map_or(Ok(()), |cluster| level::check(&cluster))?;
        read
    }

    fn from_known<'a>(records: impl Iterator<Item = &'a [u8]>) -> Result<Self, SnapshotError> {
        let fail = |error: &dyn std::fmt::Display| SnapshotError::Record(error.to_string());
        let mut tables = Self::default();
        let (mut specs, mut tasks) = (Vec::new(), Vec::new());
        for bytes in records {
            let record = SnapshotRecord::decode(bytes).map_err(|error| fail(&error))?.record;
            match record.ok_or_else(|| fail(&"it is of an unknown kind"))? {
                Record::Object(object) => match Object::try_from(object).map_err(|error| fail(&error))? {
                    task @ Object::Task(_) => tasks.push(task),
                    object => drop(tables.replace_counted(object)),
                },
                Record::Spec(it) => {
                    let spec = WireSpec::decode(it.spec.as_ref()).map_err(|error| fail(&error))?;
                    let spec = spec.try_into().map_err(|error| fail(&error))?;
                    specs.push(((it.service_id.into(), it.spec_version), Arc::new(spec)));
                }
                Record::Answer(it) => {
                    let request = Key::from(it.request_id);
                    tables.answers_by_age.insert((it.version, Arc::clone(&request)));
                    tables.answers.insert(
                        request,
                        Answer { version: it.version, is_refusal: it.is_refusal, at: Timestamp(it.at) },
                    );
                }
                Record::Version(version) => tables.version = version,
                Record::Time(time) => tables.time = Timestamp(time),
            }
        }
        // A service alone brings only its newest spec, and the indices of a task need its spec.
        specs.into_iter().for_each(|(version, spec)| tables.hold_spec(version, spec));
        tasks.into_iter().for_each(|task| drop(tables.replace_counted(task)));
        let mut digest = tables.digest;
        tables
            .answers
            .iter()
            .for_each(|(request, answer)| digest.add_answer(request, answer.version, answer.is_refusal));
        tables.digest = digest;
        Ok(tables)
    }
}

/// Returns the cluster if it is in this record.
fn cluster(record: &[u8]) -> Option<Arc<Cluster>> {
    match SnapshotRecord::decode(record).ok()?.record? {
        Record::Object(object) => match Object::try_from(object).ok()? {
            Object::Cluster(cluster) => Some(cluster),
            _ => None,
        },
        _ => None,
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
    fn a_snapshot_holds_old_specs_answers_versions_and_time() {
        let store = Store::default();
        for version in 1..=2 {
            let view = store.view();
            let mut tx = WriteTx::new(view.clone(), Some(&format!("request {version}")));
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
    fn the_digest_is_that_of_the_tables_however_they_came_about() {
        let store = Store::default();
        for index in 1..30 {
            let view = store.view();
            let mut tx = WriteTx::new(view.clone(), Some(&format!("request {index}")));
            match view.tasks().next() {
                Some(task) if index % 3 == 0 => tx.remove(flota_api::object::Kind::Task, task.id.as_str()),
                Some(task) if index % 3 == 1 => tx.update(task.as_ref().clone()),
                _ => tx.create(Task { id: format!("t{index}").as_str().into(), ..Task::default() }),
            }
            store.apply(
                index,
                Entry { transactions: vec![tx.finish()], forget_answers: Some(index / 2), ..Entry::default() },
            );
            let records: Vec<_> = store.view().records().collect();
            let again = Tables::from_records(records.iter().map(Vec::as_slice)).expect("just written");
            assert_eq!(again.digest(), store.digest(), "after entry {index}");
        }
        assert_ne!(store.digest(), Store::default().digest());
    }
}
