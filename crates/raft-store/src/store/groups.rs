//! The two shapes of an index over the tables: members by key, and counted members by key. The indices in `indices.rs` and
//! `networks.rs` are made of them.

use std::borrow::Borrow;

use imbl::{OrdMap, OrdSet};

/// A set of members for each key that has any.
#[derive(Clone, Debug)]
pub(super) struct Groups<K: Ord, M: Ord>(OrdMap<K, OrdSet<M>>);

/// How often each member was counted for each key.
#[derive(Clone, Debug)]
pub(super) struct Tally<K: Ord, M: Ord>(OrdMap<K, OrdMap<M, u64>>);

impl<K: Ord, M: Ord> Default for Groups<K, M> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord, M: Ord> Default for Tally<K, M> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord + Clone, M: Ord + Clone> Groups<K, M> {
    /// Moves a member from its old key to its new one.
    pub(super) fn update(&mut self, old: Option<(K, M)>, new: Option<(K, M)>) {
        if old == new {
            return;
        }
        if let Some((key, member)) = old
            && let Some(members) = self.0.get_mut(&key)
        {
            members.remove(&member);
            if members.is_empty() {
                self.0.remove(&key);
            }
        }
        if let Some((key, member)) = new {
            self.0.entry(key).or_default().insert(member);
        }
    }

    /// The members of a key, in order.
    pub(super) fn of<Q: Ord + ?Sized>(&self, key: &Q) -> impl Iterator<Item = &M> + use<'_, Q, K, M>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).into_iter().flatten()
    }

    /// The members of a key from `first` to `last`, in order.
    pub(super) fn range(&self, key: &K, first: M, last: M) -> impl Iterator<Item = &M> {
        self.0.get(key).into_iter().flat_map(move |members| members.range(first.clone()..=last.clone()))
    }

    /// Keys that have members, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

impl<K: Ord + Clone, M: Ord + Clone> Tally<K, M> {
    /// Counts a member for its new key instead of its old one.
    pub(super) fn update(&mut self, old: Option<(K, M)>, new: Option<(K, M)>) {
        if old == new {
            return;
        }
        if let Some((key, member)) = old
            && let Some(counts) = self.0.get_mut(&key)
        {
            match counts.get_mut(&member) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(&member)),
            }
            if counts.is_empty() {
                self.0.remove(&key);
            }
        }
        if let Some((key, member)) = new {
            *self.0.entry(key).or_default().entry(member).or_default() += 1;
        }
    }

    /// The members of a key with their counts, in order.
    pub(super) fn of<Q: Ord + ?Sized>(&self, key: &Q) -> impl Iterator<Item = (&M, u64)> + use<'_, Q, K, M>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).into_iter().flatten().map(|(member, count)| (member, *count))
    }

    /// How often this member is counted for the key.
    pub(super) fn count(&self, key: &K, member: &M) -> u64 {
        self.0.get(key).and_then(|counts| counts.get(member)).copied().unwrap_or_default()
    }
}
