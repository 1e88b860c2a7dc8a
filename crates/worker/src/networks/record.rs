//! The file that keeps the leader's description of the networks, encrypted as all records are. With it, a daemon that
//! starts without a manager keeps the networks of its tasks as they are. The file is replaced by rename, so it is
//! complete; it is not synced, because the leader sends everything again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flota_api::model::NetworkUpdate;
use flota_api::seal::Sealer;

use crate::disk_thread::DiskThread;

/// The associated data that binds the seal to its purpose.
const SEALED_AS: &[u8] = b"networks";

/// The record of a node's networks.
#[derive(Debug)]
pub(crate) struct NetworkRecord {
    path: PathBuf,
    sealer: Sealer,
    disk: Arc<DiskThread>,
    /// The changes that are not written yet.
    pending: Arc<Mutex<Option<NetworkUpdate>>>,
}

impl NetworkRecord {
    /// Returns the record in a worker's folder.
    pub(crate) fn new(folder: &Path, sealer: Sealer, disk: Arc<DiskThread>) -> Self {
        Self { path: folder.join("networks"), sealer, disk, pending: Arc::default() }
    }

    /// Returns the last record. One that can't be read is logged and counts as missing.
    pub(super) fn load(&self) -> Option<NetworkUpdate> {
        match self.try_load() {
            Ok(update) => Some(update),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, "the record of this node's networks can't be read");
                None
            }
        }
    }

    fn try_load(&self) -> io::Result<NetworkUpdate> {
        let sealed = std::fs::read(&self.path)?;
        let plain = self.sealer.open(SEALED_AS, &sealed).map_err(io::Error::other)?;
        NetworkUpdate::decode(&plain).map_err(io::Error::other)
    }

    /// Replaces the record, soon. If that fails, the failure is logged.
    pub(super) fn save(&self, everything: NetworkUpdate) {
        if self.pending.lock().expect("no holder panics").replace(everything).is_some() {
            return;
        }
        let (path, sealer, pending) = (self.path.clone(), self.sealer.clone(), Arc::clone(&self.pending));
        self.disk.run(move || {
            let Some(everything) = pending.lock().expect("no holder panics").take() else { return };
            let sealed = sealer.seal(SEALED_AS, &everything.encode());
            if let Err(error) = replace(&path, &sealed) {
                tracing::warn!(%error, "failed to record this node's networks");
            }
        });
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs_err::write(&temporary, bytes)?;
    fs_err::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_outlives_the_daemon_and_can_be_read_with_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let record = |key| {
            let disk = Arc::new(DiskThread::start().unwrap());
            (NetworkRecord::new(dir.path(), Sealer::new(&[key; 32]), Arc::clone(&disk)), disk)
        };
        let (first, disk) = record(7);
        assert_eq!(first.load(), None);
        let everything =
            NetworkUpdate { version: 9, full: true, removed_networks: vec!["n".into()], ..Default::default() };
        first.save(NetworkUpdate::default());
        first.save(everything.clone());
        disk.drain();
        assert_eq!(record(7).0.load(), Some(everything));
        assert_eq!(record(8).0.load(), None, "another key");
    }
}
