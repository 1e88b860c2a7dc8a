//! Maps: tables in the kernel that programs read and that this process writes.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::system::{
    MAP_CREATE, MAP_DELETE, MAP_DELETE_BATCH, MAP_LOOKUP, MAP_NEXT_KEY, MAP_UPDATE, MAP_UPDATE_BATCH, NAME, bpf,
    inform, number, own, padded, unless_missing,
};

/// How a map looks up its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapKind {
    /// A hash table whose entries are allocated when they are added.
    Hash,
    /// A hash table that drops the entries that have not been used for longest when it is full.
    LeastRecentlyUsed,
}

impl MapKind {
    /// Returns the type and the flags (BPF_MAP_TYPE_HASH with BPF_F_NO_PREALLOC, BPF_MAP_TYPE_LRU_HASH).
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Hash => (1, 1),
            Self::LeastRecentlyUsed => (9, 0),
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    most: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; NAME],
    interface: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    position: u64,
    next_position: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default, PartialEq)]
struct MapRecord {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    most: u32,
    flags: u32,
    name: [u8; NAME],
}

/// The name and the shape of a map. A map of another shape under the same name is another version's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// At most 15 letters, digits and underscores.
    pub(super) name: &'static str,
    pub(super) kind: MapKind,
    pub(super) most: u32,
}

/// A map with keys of `K` bytes and values of `V` bytes.
#[derive(Debug)]
pub(super) struct Map<const K: usize, const V: usize> {
    descriptor: OwnedFd,
    content: PhantomData<([u8; K], [u8; V])>,
}

impl<const K: usize, const V: usize> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// Creates an empty map.
    pub(super) fn create(shape: &Shape) -> io::Result<Self> {
        let (kind, flags) = shape.kind.numbers();
        let (key_size, value_size) = (K as u32, V as u32);
        let name = padded(shape.name);
        let mut create = Create { kind, key_size, value_size, most: shape.most, flags, name, ..Create::default() };
        Ok(Self { descriptor: own(bpf(MAP_CREATE, &mut create)?), content: PhantomData })
    }

    /// Returns the map that has this shape, from a number of maps.
    pub(super) fn find(shape: &Shape, maps: &[OwnedFd]) -> io::Result<Option<Self>> {
        let (kind, flags) = shape.kind.numbers();
        for map in maps {
            let id = map_record(map.as_fd())?;
            let wanted = MapRecord {
                kind,
                id: id.id,
                key_size: K as u32,
                value_size: V as u32,
                most: shape.most,
                flags,
                name: padded(shape.name),
            };
            if id == wanted {
                return Ok(Some(Self { descriptor: map.try_clone()?, content: PhantomData }));
            }
        }
        Ok(None)
    }

    fn entry(&self, key: &[u8; K], value: u64) -> MapElement {
        MapElement {
            map: number(self.descriptor.as_raw_fd()),
            key: key.as_ptr() as u64,
            value,
            ..MapElement::default()
        }
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        let mut value = [0; V];
        let mut entry = self.entry(key, value.as_mut_ptr() as u64);
        Ok(unless_missing(bpf(MAP_LOOKUP, &mut entry))?.map(|_| value))
    }

    /// Sets the value of a key.
    pub(super) fn set(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        bpf(MAP_UPDATE, &mut self.entry(key, value.as_ptr() as u64)).map(drop)
    }

    /// Removes a key. Does nothing if the map does not have it.
    pub(super) fn remove(&self, key: &[u8; K]) -> io::Result<()> {
        unless_missing(bpf(MAP_DELETE, &mut self.entry(key, 0))).map(drop)
    }

    /// Returns all keys and values.
    pub(super) fn entries(&self) -> io::Result<Vec<([u8; K], [u8; V])>> {
        let mut found = Vec::new();
        let mut next = [0; K];
        let mut step = MapElement { map: number(self.descriptor.as_raw_fd()), ..MapElement::default() };
        step.value = next.as_mut_ptr() as u64;
        while unless_missing(bpf(MAP_NEXT_KEY, &mut step))?.is_some() {
            if let Some(value) = self.get(&next)? {
                found.push((next, value));
            }
            // The kernel reads the key before it writes the next one, so both can be in the same place.
            step.key = next.as_mut_ptr() as u64;
        }
        Ok(found)
    }

    /// Sets the values of many keys. If it fails, the first ones may be set.
    pub(super) fn set_all(&self, keys: &[[u8; K]], values: &[[u8; V]]) -> io::Result<()> {
        debug_assert_eq!(keys.len(), values.len());
        if keys.is_empty() {
            return Ok(());
        }
        let mut batch = self.batch(keys)?;
        batch.values = values.as_ptr() as u64;
        bpf(MAP_UPDATE_BATCH, &mut batch).map(drop)
    }

    /// Removes many keys. Skips those that the map does not have.
    pub(super) fn remove_all(&self, mut keys: &[[u8; K]]) -> io::Result<()> {
        while !keys.is_empty() {
            let mut batch = self.batch(keys)?;
            if unless_missing(bpf(MAP_DELETE_BATCH, &mut batch))?.is_some() {
                break;
            }
            // The kernel stops at a missing key, and says how many it has removed before.
            keys = keys.get(batch.count as usize + 1..).unwrap_or_default();
        }
        Ok(())
    }

    fn batch(&self, keys: &[[u8; K]]) -> io::Result<Batch> {
        let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
        let map = number(self.descriptor.as_raw_fd());
        Ok(Batch { keys: keys.as_ptr() as u64, count, map, ..Batch::default() })
    }
}

fn map_record(map: BorrowedFd<'_>) -> io::Result<MapRecord> {
    let mut record = MapRecord::default();
    inform(map, &mut record)?;
    Ok(record)
}
