//! Which versions of secrets and configs the specs of services stand for, and what uses them: pure functions, of which the
//! Control API and the plans for updates are made.
//!
//! A spec names a secret, and the version lies beside it, as the digest of its image does. So another version is another
//! revision of the service: it rolls by the update policy, and a rollback brings the version back. A version is kept as
//! long as a service, one of its earlier specs that are kept, or a task has it.

use std::collections::{BTreeMap, BTreeSet};

use flota_api::id::{ValueDataId, ValueId};
use flota_api::model::{
    AnyValue, PinnedValue, Service, ServiceSpec, StoredConfig, StoredSecret, Task, ValueData, ValueKind, ValueUse,
};
use flota_raft_store::Tables;

/// Why a spec's secrets and configs can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// There is no secret or config of this kind with this name.
    Unknown(ValueKind, String),
    /// It has no such version, or no longer. The field, and the versions that it has.
    Version { field: String, name: String, version: u64, kept: Vec<u64> },
}

/// Returns the pins of the service's present spec with their uses.
pub(crate) fn pinned(service: &Service) -> impl Iterator<Item = (&ValueUse, &PinnedValue)> {
    service.spec.values().map(|(_, it)| it).zip(&service.values)
}

/// Returns the pins for a spec. `known` looks up a secret or config by its name. A use that follows the newest version
/// keeps the one that the service has now (`before`), so that only an update of the secret changes it, unless a user
/// replaces all tasks anyway.
///
/// # Errors
/// Secrets, configs or versions do not exist.
pub(crate) fn pins(
    spec: &ServiceSpec,
    before: Option<&Service>,
    known: &dyn Fn(ValueKind, &str) -> Option<AnyValue>,
) -> Result<Vec<PinnedValue>, Vec<Unusable>> {
    let before = before.filter(|it| it.spec.force == spec.force);
    let kept = |id: &ValueId| {
        let mut pins = before.into_iter().flat_map(pinned);
        pins.find(|(it, pin)| it.version.is_none() && pin.value == *id).map(|(_, pin)| pin.clone())
    };
    let mut indices = BTreeMap::new();
    let pin = |(kind, it): (ValueKind, &ValueUse)| {
        let index = indices.entry(kind).or_insert(0usize);
        let field = format!("{kind}s[{index}].version");
        *index += 1;
        let value = known(kind, &it.source).ok_or_else(|| Unusable::Unknown(kind, it.source.clone()))?;
        if let Some(pin) = kept(&value.id).filter(|_| it.version.is_none()) {
            return Ok(pin);
        }
        let version = match it.version {
            None => value.newest(),
            Some(number) => value.version(number.get()),
        };
        let found = version.map(|version| PinnedValue {
            value: value.id.clone(),
            version: version.number,
            data: version.data.clone(),
        });
        found.ok_or_else(|| Unusable::Version {
            field,
            name: it.source.clone(),
            version: it.version.map_or(0, std::num::NonZeroU64::get),
            kept: value.versions.iter().map(|it| it.number).collect(),
        })
    };
    let (mut pins, mut unusable) = (Vec::new(), Vec::new());
    for pinned in spec.values().map(pin) {
        match pinned {
            Ok(pin) => pins.push(pin),
            Err(why) => unusable.push(why),
        }
    }
    if unusable.is_empty() { Ok(pins) } else { Err(unusable) }
}

/// Returns whether tasks with the one set of versions need not be replaced for the other: they differ only where files are
/// replaced in running tasks.
pub(crate) fn same_tasks(spec: &ServiceSpec, one: &[PinnedValue], other: &[PinnedValue]) -> bool {
    let differs = |((_, it), (one, other)): ((ValueKind, &ValueUse), (&PinnedValue, &PinnedValue))| {
        it.signal.is_none() && one != other
    };
    one.len() == other.len() && !spec.values().zip(one.iter().zip(other)).any(differs)
}

/// Returns the versions that a task has now: its own, or that of the service where files are replaced in running tasks.
pub(crate) fn of_task(task: &Task, spec: &ServiceSpec, view: &Tables) -> Vec<PinnedValue> {
    if task.values.is_empty() {
        return Vec::new();
    }
    let service = view.service(&task.service_id);
    let followed = |id: &ValueId| {
        let mut pins = service.into_iter().flat_map(|service| pinned(service));
        pins.find(|(it, pin)| it.signal.is_some() && pin.value == *id).map(|(_, pin)| pin)
    };
    let present = |((_, it), own): ((ValueKind, &ValueUse), &PinnedValue)| {
        it.signal.as_ref().and_then(|_| followed(&own.value)).unwrap_or(own).clone()
    };
    spec.values().zip(&task.values).map(present).collect()
}

/// Returns the names of the services that use each secret and config: by their newest spec, or with a task that has not
/// ended.
pub(crate) fn users(view: &Tables) -> BTreeMap<ValueId, BTreeSet<String>> {
    let mut users: BTreeMap<ValueId, BTreeSet<String>> = BTreeMap::new();
    for service in view.services() {
        for pin in &service.values {
            users.entry(pin.value.clone()).or_default().insert(service.spec.name.clone());
        }
    }
    for task in view.tasks().filter(|task| !task.values.is_empty() && !task.status.state.is_terminal()) {
        let name = view.spec_of(task).map_or_else(|| task.service_id.to_string(), |spec| spec.name.clone());
        for pin in &task.values {
            users.entry(pin.value.clone()).or_default().insert(name.clone());
        }
    }
    users
}

/// Returns whether the templates in a secret or config are filled in.
pub(crate) fn is_template(id: &ValueId, view: &Tables) -> bool {
    let (secret, config) = (view.get::<StoredSecret>(id.as_str()), view.get::<StoredConfig>(id.as_str()));
    secret.is_some_and(|it| it.spec.template) || config.is_some_and(|it| it.spec.template)
}

/// Returns the bytes that a service, one of its kept specs, or a task that has not ended has.
pub(crate) fn held(view: &Tables) -> BTreeSet<ValueDataId> {
    let services = view.services().flat_map(|it| it.values.iter().chain(it.revisions.iter().flat_map(|it| &it.values)));
    let tasks = view.tasks().filter(|task| !task.status.state.is_terminal()).flat_map(|task| &task.values);
    services.chain(tasks).map(|pin| pin.data.clone()).collect()
}

/// Returns the first pin whose bytes are not there any more.
pub(crate) fn missing<'a>(pins: &'a [PinnedValue], view: &Tables) -> Option<&'a PinnedValue> {
    pins.iter().find(|pin| view.get::<ValueData>(pin.data.as_str()).is_none())
}

/// Returns the pins of the service with the newest version of this secret or config where it follows that; `None` if nothing
/// changes. The one run of a job is not done again for it.
pub(crate) fn with_newest(service: &Service, value: &AnyValue) -> Option<Vec<PinnedValue>> {
    if service.spec.mode.is_job() && service.spec.mode.cron().is_none() {
        return None;
    }
    let newest = value.newest()?;
    let next = |(it, pin): (&ValueUse, &PinnedValue)| match it.version {
        None if pin.value == value.id => {
            PinnedValue { version: newest.number, data: newest.data.clone(), ..pin.clone() }
        }
        _ => pin.clone(),
    };
    let pins: Vec<_> = pinned(service).map(next).collect();
    (pins != service.values).then_some(pins)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use flota_api::model::{Revision, ServiceMode, TaskStatus};
    use flota_api::object::StoreObject;
    use flota_api::state::TaskState;

    use super::*;

    /// A secret `db` with so many versions, whose bytes are `d1`, `d2` and so on.
    fn db(versions: u64) -> AnyValue {
        let mut value = AnyValue { id: "v".into(), ..AnyValue::default() };
        value.spec.name = "db".into();
        for number in 1..=versions {
            value = value.with_version(format!("d{number}").into(), b"x".to_vec().into()).0;
        }
        value
    }

    fn spec(uses: Vec<ValueUse>) -> ServiceSpec {
        ServiceSpec { name: "web".into(), secrets: uses, ..ServiceSpec::default() }
    }

    fn pin(version: u64) -> PinnedValue {
        PinnedValue { value: "v".into(), version, data: format!("d{version}").into() }
    }

    fn service(uses: Vec<ValueUse>, version: u64) -> Service {
        let values = uses.iter().map(|_| pin(version)).collect();
        Service { id: "s".into(), spec: Arc::new(spec(uses)), values, ..Service::default() }
    }

    fn signalled() -> ValueUse {
        ValueUse { signal: Some("HUP".into()), ..ValueUse::of("db") }
    }

    #[test]
    fn a_service_keeps_its_version_until_the_secret_is_updated_or_all_tasks_are_replaced() {
        let at = |version| ValueUse { version: NonZeroU64::new(version), ..ValueUse::of("db") };
        let found = |spec: &ServiceSpec, before: Option<&Service>| {
            let known = |kind, name: &str| (kind == ValueKind::Secret && name == "db").then(|| db(3));
            pins(spec, before, &known).map(|pins| pins.iter().map(|it| it.version).collect::<Vec<_>>())
        };
        let plain = spec(vec![ValueUse::of("db")]);
        assert_eq!(found(&plain, None), Ok(vec![3]), "a new service has the newest");
        let old = service(vec![ValueUse::of("db")], 1);
        assert_eq!(found(&plain, Some(&old)), Ok(vec![1]));
        let forced = ServiceSpec { force: 1, ..plain };
        assert_eq!(found(&forced, Some(&old)), Ok(vec![3]));
        assert_eq!(found(&spec(vec![at(2)]), Some(&old)), Ok(vec![2]));
        assert_eq!(
            found(&spec(vec![ValueUse::of("db")]), Some(&service(vec![at(2)], 2))),
            Ok(vec![3]),
            "it was pinned"
        );
        assert_eq!(
            found(&spec(vec![at(3), at(9)]), None),
            Err(vec![Unusable::Version {
                field: "secrets[1].version".into(),
                name: "db".into(),
                version: 9,
                kept: vec![1, 2, 3]
            }])
        );
        let unknown = spec(vec![ValueUse::of("other")]);
        assert_eq!(found(&unknown, None), Err(vec![Unusable::Unknown(ValueKind::Secret, "other".into())]));
    }

    #[test]
    fn a_newer_version_goes_where_it_is_followed() {
        let at = ValueUse { version: NonZeroU64::new(1), ..ValueUse::of("db") };
        let mixed = service(vec![ValueUse::of("db"), at, signalled()], 1);
        let next = with_newest(&mixed, &db(2)).expect("it changes");
        assert_eq!(next.iter().map(|it| it.version).collect::<Vec<_>>(), [2, 1, 2]);
        assert_eq!(with_newest(&mixed, &db(1)), None);
        assert_eq!(with_newest(&mixed, &AnyValue { id: "other".into(), ..db(2) }), None);
        let mut job = service(vec![ValueUse::of("db")], 1);
        let mode = ServiceMode::ReplicatedJob { completions: 1, max_concurrent: None };
        job.spec = Arc::new(ServiceSpec { mode, ..job.spec.as_ref().clone() });
        assert_eq!(with_newest(&job, &db(2)), None, "its run is not done again");
    }

    #[test]
    fn only_files_that_are_replaced_in_place_leave_tasks_as_they_are() {
        let spec = spec(vec![ValueUse::of("db"), signalled()]);
        assert!(same_tasks(&spec, &[pin(1), pin(1)], &[pin(1), pin(2)]));
        assert!(!same_tasks(&spec, &[pin(1), pin(1)], &[pin(2), pin(1)]));
        assert!(!same_tasks(&spec, &[pin(1)], &[pin(1), pin(1)]));
    }

    #[test]
    fn a_task_has_its_own_version_or_that_of_its_service_where_files_are_replaced() {
        let service = service(vec![ValueUse::of("db"), signalled()], 2);
        let task = Task { service_id: "s".into(), values: vec![pin(1), pin(1)], ..Task::default() };
        let spec = Arc::clone(&service.spec);
        let mut view = Tables::default();
        view.put(service.into_object());
        let versions: Vec<_> = of_task(&task, &spec, &view).iter().map(|it| it.version).collect();
        assert_eq!(versions, [1, 2]);
    }

    #[test]
    fn versions_are_held_by_specs_that_are_kept_and_by_tasks_that_have_not_ended() {
        let mut web = service(vec![ValueUse::of("db")], 4);
        web.revisions = vec![Revision { version: 1, values: vec![pin(3)], ..Revision::default() }];
        let mut view = Tables::default();
        view.put(web.into_object());
        for (version, state) in [(2, TaskState::Running), (1, TaskState::Shutdown)] {
            let status = TaskStatus { state, ..TaskStatus::default() };
            let values = vec![pin(version)];
            let id = format!("t{version}").into();
            view.put(Task { id, service_id: "gone".into(), status, values, ..Task::default() }.into_object());
        }
        let held: Vec<_> = held(&view).iter().map(ToString::to_string).collect();
        assert_eq!(held, ["d2", "d3", "d4"]);
        assert_eq!(users(&view)[&"v".into()], ["gone".to_owned(), "web".to_owned()].into());
    }
}
