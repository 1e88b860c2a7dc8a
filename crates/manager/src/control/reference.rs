//! Resolves a reference that a user typed to one object, with the same rules for every operation and every kind.
//!
//! A reference is an id, a name, or a prefix of an id; an id has precedence over a name, a name over a prefix. If
//! several objects match, none is chosen: [`ControlError::Ambiguous`] names them. A name that a task shares with a
//! service identifies no task.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::id::ServiceId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{Image, Network, Node, Registry, Service, Stack, StoredConfig, StoredSecret, Task, Volume};
use flota_api::naming::task_name;
use flota_api::object::StoreObject;
use flota_api::reason::Candidate;
use flota_raft_store::Tables;

use super::error::ControlError;

/// Shortest prefix of an id that is accepted; shorter ones are soon ambiguous.
const SHORTEST_BEGINNING: usize = 3;
/// Largest number of candidates that an error names.
const CANDIDATES_BOUND: usize = 10;

/// A kind of object that users refer to.
pub(crate) trait Referable: StoreObject {
    /// The objects that have this name.
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>>;
    /// Returns the name that users know the object by.
    fn called(&self, view: &Tables) -> String;
    /// The objects of another kind that have this name, so that it identifies none.
    fn namesakes(_view: &Tables, _name: &str) -> Vec<Candidate> {
        Vec::new()
    }
}

/// Returns the object of the kind that `reference` identifies.
///
/// # Errors
/// No object matches, or several do.
pub(crate) fn resolve<'a, T: Referable>(view: &'a Tables, reference: &str) -> Result<&'a Arc<T>, ControlError> {
    let matches = Matches::<T>::of(view, reference);
    let namesakes = if matches.rank == Rank::Name { T::namesakes(view, reference) } else { Vec::new() };
    match (matches.objects.as_slice(), namesakes.as_slice()) {
        ([], _) => Err(ControlError::NotFound { kind: T::KIND, reference: reference.to_owned() }),
        ([one], []) => Ok(one),
        _ => Err(ambiguous(reference, matches.candidates(view).chain(namesakes))),
    }
}

/// What a reference to where something runs identifies.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// One task.
    Task(&'a Arc<Task>),
    /// A service, which stands for its tasks.
    Service(&'a Arc<Service>),
}

/// Returns the task or the service that `reference` identifies. A reference that names both is ambiguous.
///
/// # Errors
/// No object matches, or several do.
pub(crate) fn resolve_place<'a>(view: &'a Tables, reference: &str) -> Result<Place<'a>, ControlError> {
    let (tasks, services) = (Matches::<Task>::of(view, reference), Matches::<Service>::of(view, reference));
    match tasks.rank.cmp(&services.rank) {
        Ordering::Greater => resolve(view, reference).map(Place::Service),
        Ordering::Equal if !tasks.objects.is_empty() => {
            Err(ambiguous(reference, tasks.candidates(view).chain(services.candidates(view))))
        }
        Ordering::Less | Ordering::Equal => resolve(view, reference).map(Place::Task),
    }
}

/// Returns the task that `reference` identifies, for exec and logs; a service stands for its first running task.
///
/// # Errors
/// No object matches, or several do, or the service has no task.
pub(crate) fn resolve_running<'a>(view: &'a Tables, reference: &str) -> Result<&'a Arc<Task>, ControlError> {
    match resolve_place(view, reference)? {
        Place::Task(task) => Ok(task),
        Place::Service(service) => first_running(view, service),
    }
}

fn first_running<'a>(view: &'a Tables, service: &Service) -> Result<&'a Arc<Task>, ControlError> {
    let first = view.tasks_of_service(&service.id).max_by_key(|task| (task.is_serving(), Reverse(task.slot)));
    first.ok_or_else(|| ControlError::NoTask { service: service.spec.name.clone() })
}

/// How well a reference matches; the best comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Id,
    Name,
    Beginning,
    None,
}

/// The objects of one kind that match best.
struct Matches<'a, T> {
    rank: Rank,
    objects: Vec<&'a Arc<T>>,
}

impl<'a, T: Referable> Matches<'a, T> {
    fn of(view: &'a Tables, reference: &str) -> Self {
        if let Some(object) = view.get::<T>(reference) {
            return Self { rank: Rank::Id, objects: vec![object] };
        }
        let named = T::named(view, reference);
        if !named.is_empty() {
            return Self { rank: Rank::Name, objects: named };
        }
        let begins =
            |object: &&Arc<T>| reference.len() >= SHORTEST_BEGINNING && object.id().as_str().starts_with(reference);
        let objects: Vec<_> = view.all::<T>().filter(begins).collect();
        let rank = if objects.is_empty() { Rank::None } else { Rank::Beginning };
        Self { rank, objects }
    }

    fn candidates(&self, view: &Tables) -> impl Iterator<Item = Candidate> {
        self.objects.iter().map(|object| candidate(object.as_ref(), view))
    }
}

fn candidate<T: Referable>(object: &T, view: &Tables) -> Candidate {
    Candidate { kind: T::KIND.to_string(), id: object.id().to_string(), name: object.called(view) }
}

fn ambiguous(reference: &str, candidates: impl Iterator<Item = Candidate>) -> ControlError {
    ControlError::Ambiguous { reference: reference.to_owned(), candidates: candidates.take(CANDIDATES_BOUND).collect() }
}

impl Referable for Node {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        // Two machines may have the same hostname.
        view.nodes().filter(|node| node.description.hostname == name).collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.description.hostname.clone()
    }
}

impl Referable for Service {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.service_by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for Task {
    /// Returns the task that counts in its slot: live tasks come before those that have ended, then the highest state,
    /// then the newest task. Tasks of a removed service are returned only if no other task has that name.
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        let Some((service, slot)) = parse_task_name(name) else { return Vec::new() };
        if let Some(service) = view.service_by_name(service) {
            let in_slot = view.tasks_of_service(&service.id).filter(|task| task.slot == slot);
            if let Some(task) = in_slot.max_by_key(|task| standing(task)) {
                return vec![task];
            }
        }
        let mut left: BTreeMap<&ServiceId, &Arc<Self>> = BTreeMap::new();
        let has_name =
            |task: &&Arc<Self>| task.slot == slot && view.spec_of(task).is_some_and(|spec| spec.name == service);
        for task in view.tasks().filter(has_name) {
            let best = left.entry(&task.service_id).or_insert(task);
            if standing(task) > standing(best) {
                *best = task;
            }
        }
        left.into_values().collect()
    }

    fn called(&self, view: &Tables) -> String {
        view.spec_of(self).map(|spec| task_name(&spec.name, self.slot)).unwrap_or_default()
    }

    /// A service may be called `a.1`, as the first task of `a` is. Who names one may mean the other.
    fn namesakes(view: &Tables, name: &str) -> Vec<Candidate> {
        view.service_by_name(name).map(|service| candidate(service.as_ref(), view)).into_iter().collect()
    }
}

/// Orders the tasks of a slot; the greatest is the one that counts.
fn standing(task: &Task) -> impl Ord + use<> {
    (task.is_live(), task.status.state, task.meta.order())
}

/// Splits `web.2` into the service and the slot; `None` for a name that [`task_name`] does not create.
fn parse_task_name(name: &str) -> Option<(&str, u64)> {
    let (service, slot) = name.rsplit_once('.')?;
    let slot = slot.parse().ok()?;
    (task_name(service, slot) == name).then_some((service, slot))
}

impl Referable for Stack {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.stack_by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for Image {
    /// Matches the reference in any short form, otherwise the digest.
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        let whole = ImageRef::parse(name).ok().map(|it| it.to_string());
        let is_meant =
            |image: &&Arc<Self>| image.digest == name || whole.as_ref().is_some_and(|it| image.references.contains(it));
        view.images().filter(is_meant).collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.references.first().cloned().unwrap_or_default()
    }
}

impl Referable for Network {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.network_by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for Volume {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.volume_by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for StoredSecret {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for StoredConfig {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.by_name(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.spec.name.clone()
    }
}

impl Referable for Registry {
    fn named<'a>(view: &'a Tables, name: &str) -> Vec<&'a Arc<Self>> {
        view.registry_by_host(name).into_iter().collect()
    }

    fn called(&self, _: &Tables) -> String {
        self.host.clone()
    }
}

#[cfg(test)]
mod tests;
