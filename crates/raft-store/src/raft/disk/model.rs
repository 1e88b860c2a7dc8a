//! A disk in memory that behaves as badly as a real one can. Until a sync, each sector of a write may or may not have
//! reached the disk, in any order, and names are durable only after their own sync. The disk can fill up, slow down and
//! fail. After a sync that failed, readers still see what was written, but no later sync writes it: Linux marks the pages
//! clean (fsync(2), EIO).
//!
//! A crash ([`ModelDisk::crash`]) keeps everything that was synced, and keeps the rest at random. Afterwards, the
//! handles of the crashed process fail, because a dead process must not write to the disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flota_api::clock::Random;
use rand::Rng;

use super::{Disk, DiskFile};

/// Bytes that a disk writes atomically.
const SECTOR: u64 = 512;

/// Faults of a disk that are on at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// Minimum duration of a sync; it takes at most twice as long.
    pub delay: Duration,
    /// Total bytes that the disk can hold; writes and allocations beyond that fail. `None`: no limit.
    pub capacity: Option<u64>,
    /// Every write and sync fails.
    pub broken: bool,
    /// Every sync fails, and what it was to write is given up.
    pub failing_syncs: bool,
    /// A sync reports success without doing anything.
    pub lies: bool,
}

/// One file: its content as a reader sees it, its content after a crash, and the writes that are not synced yet.
#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// The names after each change since the last sync of names.
    pending_names: Vec<BTreeMap<String, u64>>,
    next: u64,
    /// Number of crashes and restarts. Handles of an earlier life fail.
    life: u64,
    faults: DiskFaults,
    operations: u64,
    /// The disk stops at this operation, as on a power failure.
    stop_at: Option<u64>,
}

impl Platter {
    /// Fails if the disk has no room for this file to have so many bytes.
    fn check_room(&self, file: u64, length: usize) -> io::Result<()> {
        let used: usize = self.files.values().map(|content| content.bytes.len()).sum();
        let more = length.saturating_sub(self.files.get(&file).map_or(0, |content| content.bytes.len()));
        let needed = u64::try_from(used + more).unwrap_or(u64::MAX);
        if more > 0 && self.faults.capacity.is_some_and(|most| needed > most) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"));
        }
        Ok(())
    }
}

/// A handle to one simulated disk. Clones share it until a crash or restart returns a new handle.
#[derive(Clone)]
pub struct ModelDisk {
    platter: Arc<Mutex<Platter>>,
    random: Random,
    life: u64,
}

impl std::fmt::Debug for ModelDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelDisk({})", self.life)
    }
}

impl ModelDisk {
    /// Creates an empty disk that draws its random choices from `random`.
    pub fn new(random: Random) -> Self {
        Self { platter: Arc::default(), random, life: 0 }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().expect("no holder panics")
    }

    /// Sets the faults of the disk.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.platter().faults = faults;
    }

    /// Number of writes, syncs and changes of names so far.
    pub fn operations(&self) -> u64 {
        self.platter().operations
    }

    /// Makes the `operation`th write, sync or change of names fail, and all later ones, as on a power failure.
    pub fn stop_at(&self, operation: u64) {
        self.platter().stop_at = Some(operation);
    }

    /// Simulates the death of the process without losing data: all handles fail. Returns the handle for the next
    /// process.
    pub fn restart(&self) -> Self {
        let mut platter = self.platter();
        platter.life += 1;
        platter.stop_at = None;
        Self { life: platter.life, ..self.clone() }
    }

    /// Simulates a power failure: each unsynced sector is kept or lost at random. Returns the handle for the next
    /// process.
    pub fn crash(&self) -> Self {
        let next = self.restart();
        let mut platter = self.platter();
        let kept = self.random.draw(|rng| rng.random_range(0..=platter.pending_names.len()));
        let names = match kept {
            0 => platter.durable_names.clone(),
            count => platter.pending_names[count - 1].clone(),
        };
        platter.names.clone_from(&names);
        platter.durable_names = names;
        platter.pending_names.clear();
        for content in platter.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut content.pending) {
                keep_by_chance(&mut content.durable, offset, &bytes, &self.random);
            }
            content.bytes.clone_from(&content.durable);
        }
        let named: Vec<u64> = platter.names.values().copied().collect();
        platter.files.retain(|id, _| named.contains(id));
        drop(platter);
        next
    }

    /// Flips one bit of the durable content of a file, as decay of the medium does.
    ///
    /// # Panics
    /// There is no such file, or it is shorter than `offset`.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) {
        let mut platter = self.platter();
        let id = platter.names[name];
        let content = platter.files.get_mut(&id).expect("a name has a file");
        let at = usize::try_from(offset).expect("files are small");
        content.bytes[at] ^= 1 << bit;
        content.durable[at] ^= 1 << bit;
    }

    /// Counts one operation that changes the disk. Fails if the disk has stopped or the handle is of an earlier life.
    fn operate(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.platter();
        if platter.life != self.life {
            return Err(io::Error::other("the process of this handle has died"));
        }
        platter.operations += 1;
        if platter.faults.broken || platter.stop_at.is_some_and(|at| platter.operations >= at) {
            return Err(io::Error::other("the disk has failed"));
        }
        Ok(platter)
    }

    fn rename_with(&self, change: impl FnOnce(&mut Platter) -> io::Result<()>) -> io::Result<()> {
        let mut platter = self.operate()?;
        change(&mut platter)?;
        let names = platter.names.clone();
        platter.pending_names.push(names);
        Ok(())
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no file `{name}`"))
}

/// Keeps or loses each sector of a write at random.
fn keep_by_chance(durable: &mut Vec<u8>, offset: u64, bytes: &[u8], random: &Random) {
    let start = usize::try_from(offset).expect("files are small");
    let sector = usize::try_from(SECTOR).expect("it is small");
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + sector - (start + at) % sector).min(bytes.len());
        if random.draw(|rng| rng.random_bool(0.5)) {
            write(durable, start + at, &bytes[at..end]);
        }
        at = end;
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

impl Disk for ModelDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.platter().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = *self.platter().names.get(name).ok_or_else(|| missing(name))?;
        Ok(Arc::new(ModelFile { disk: self.clone(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut created = 0;
        self.rename_with(|platter| {
            created = platter.next;
            platter.next += 1;
            platter.files.insert(created, Content::default());
            platter.names.insert(name.to_owned(), created);
            Ok(())
        })?;
        Ok(Arc::new(ModelFile { disk: self.clone(), id: created }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_with(|platter| {
            let id = platter.names.remove(from).ok_or_else(|| missing(from))?;
            platter.names.insert(to.to_owned(), id);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.rename_with(|platter| platter.names.remove(name).map(drop).ok_or_else(|| missing(name)))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut platter = self.operate()?;
        if !platter.faults.lies {
            platter.durable_names = platter.names.clone();
            platter.pending_names.clear();
        }
        Ok(())
    }

    fn delay(&self) -> Duration {
        let delay = self.platter().faults.delay;
        delay.mul_f64(self.random.draw(|rng| rng.random_range(1.0..2.0)))
    }
}

struct ModelFile {
    disk: ModelDisk,
    id: u64,
}

impl std::fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelFile({})", self.id)
    }
}

fn gone() -> io::Error {
    io::Error::other("the file was lost in a crash")
}

impl DiskFile for ModelFile {
    fn length(&self) -> io::Result<u64> {
        let platter = self.disk.platter();
        let content = platter.files.get(&self.id).ok_or_else(gone)?;
        u64::try_from(content.bytes.len()).map_err(io::Error::other)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut platter = self.disk.operate()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        platter.check_room(self.id, length)?;
        let content = platter.files.get_mut(&self.id).ok_or_else(gone)?;
        for bytes in [&mut content.bytes, &mut content.durable] {
            if bytes.len() < length {
                bytes.resize(length, 0);
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let platter = self.disk.platter();
        let content = platter.files.get(&self.id).ok_or_else(gone)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = content.bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut platter = self.disk.operate()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        platter.check_room(self.id, start + bytes.len())?;
        let content = platter.files.get_mut(&self.id).ok_or_else(gone)?;
        write(&mut content.bytes, start, bytes);
        content.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut platter = self.disk.operate()?;
        let DiskFaults { lies, failing_syncs, .. } = platter.faults;
        let content = platter.files.get_mut(&self.id).ok_or_else(gone)?;
        if failing_syncs {
            content.pending.clear();
            return Err(io::Error::other("the disk has failed"));
        }
        if !lies {
            for (offset, bytes) in std::mem::take(&mut content.pending) {
                write(&mut content.durable, usize::try_from(offset).expect("files are small"), &bytes);
            }
        }
        Ok(())
    }
}
