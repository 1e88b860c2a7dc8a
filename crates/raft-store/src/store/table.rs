//! One table: the objects of a kind by id and by their unique names, each with its digest. [`super::Tables`] has one for
//! each kind.

use std::sync::Arc;

use imbl::OrdMap;

use crate::digest::ObjectDigest;
use flota_api::id::Id;
use flota_api::object::Object;

/// A text as a key. It is shared, because a change to a map clones whole nodes of it with all their keys.
pub(super) type Key = Arc<str>;

/// An object as a table holds it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) object: Object,
    /// What the object adds to the digest of the tables, so that it is not encoded again when it is replaced. `None` in
    /// the overlay of a planner, which needs no digest.
    pub(super) digest: Option<ObjectDigest>,
}

/// Objects of one kind by id, and by the names that are unique among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    by_id: OrdMap<Id, Held>,
    by_name: OrdMap<Key, Id>,
}

impl Table {
    pub(super) fn get(&self, id: Id) -> Option<&Object> {
        self.by_id.get(&id).map(|held| &held.object)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Object> {
        self.by_name.get(name).and_then(|id| self.get(*id))
    }

    /// Every object, by id.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.by_id.values().map(|held| &held.object)
    }

    /// Every object, by id, from the first one that is not below `id`; those below it come last.
    pub(super) fn objects_from(&self, id: Id) -> impl Iterator<Item = &Object> {
        self.by_id.range(id..).chain(self.by_id.range(..id)).map(|(_, held)| &held.object)
    }

    /// Every object, by id.
    pub(super) fn into_objects(self) -> impl Iterator<Item = Object> {
        self.by_id.into_iter().map(|(_, held)| held.object)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Inserts or replaces an object, and returns the one that it replaces.
    pub(super) fn put(&mut self, new: Held) -> Option<Held> {
        let (id, object) = (new.object.id(), new.object.clone());
        let old = self.by_id.insert(id, new);
        let (names, old_names) = (object.names(), old.as_ref().map(|old| old.object.names()).unwrap_or_default());
        if names != old_names {
            for name in old_names {
                self.by_name.remove(name);
            }
            for name in names {
                self.by_name.insert(name.into(), id);
            }
        }
        old
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Held> {
        let held = self.by_id.remove(&id)?;
        for name in held.object.names() {
            self.by_name.remove(name);
        }
        Some(held)
    }
}
