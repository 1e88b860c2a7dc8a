//! The keys by which this node takes part in encrypted networks. The node makes them, and their secret parts never leave
//! its state folder.
//!
//! There is one key, or two while a new one takes the place of another: the node receives for both, and sends with the older
//! one until the leader says that all nodes know the newer one. So no packet is lost, however long that takes.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use flota_api::model::TunnelKey as ApiTunnelKey;
use flota_api::version::Timestamp;
use flota_network::{NetworkError, PublicKey, SecretKey, TunnelKey};

/// How long a key is used unless the node's owner says otherwise. WireGuard changes the keys of its sessions every two
/// minutes; this is the one that identifies the node.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Pause after a new key could not be made.
const RETRY: Duration = Duration::from_secs(60);
/// The UDP ports of the keys: the usual one of WireGuard, and another for the time in which there are two.
const PORTS: [u16; 2] = [51_820, 51_821];

/// Computes a public key; `None` if this node can't encrypt.
pub(super) type Derive = fn(&SecretKey) -> Result<Option<PublicKey>, NetworkError>;

/// A key as the file has it.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    secret: [u8; 32],
    port: u16,
    /// In milliseconds since 1970.
    made: u64,
}

/// Why the keys can't be read or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("failed to use the file of this node's keys")]
    File(#[from] io::Error),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("the kernel has no WireGuard any more")]
    NoWireGuard,
}

/// A key and when it was made.
#[derive(Debug)]
struct AgedKey {
    key: TunnelKey,
    made: Timestamp,
}

/// The keys of this node, oldest first.
#[derive(Debug)]
pub(super) struct KeyRing {
    path: PathBuf,
    life: Duration,
    derive: Derive,
    keys: Vec<AgedKey>,
    /// When a new key could not be made.
    failed: Option<Timestamp>,
}

impl KeyRing {
    /// Reads the keys from a file, and makes the first if there is none. Returns `None` if the kernel can't encrypt.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub(super) fn open(
        path: PathBuf,
        life: Option<Duration>,
        derive: Derive,
        now: Timestamp,
    ) -> Result<Option<Self>, KeyError> {
        if derive(&random()?)?.is_none() {
            return Ok(None);
        }
        let mut ring = Self { path, life: life.unwrap_or(LIFE), derive, keys: Vec::new(), failed: None };
        for stored in read(&ring.path)? {
            let key = ring.key(SecretKey::new(stored.secret), stored.port)?;
            ring.keys.push(AgedKey { key, made: Timestamp(stored.made) });
        }
        if ring.keys.is_empty() {
            ring.add(now)?;
        }
        Ok(Some(ring))
    }

    /// The keys, oldest first. The node sends with the first.
    pub(super) fn keys(&self) -> Vec<TunnelKey> {
        self.keys.iter().map(|it| it.key.clone()).collect()
    }

    /// The public parts of the keys, oldest first.
    pub(super) fn public_keys(&self) -> Vec<ApiTunnelKey> {
        self.keys.iter().map(|it| ApiTunnelKey { public: it.key.public.0, port: it.key.port }).collect()
    }

    /// Returns whether another key should take the place of the one that there is.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let [only] = &self.keys[..] else { return false };
        // A clock that was ahead when the key was made must not keep it for years.
        let is_old = only.made > now || only.made.until(now) >= self.life;
        is_old && self.failed.is_none_or(|failed| failed > now || failed.until(now) >= RETRY)
    }

    /// Adds a new key.
    ///
    /// # Errors
    /// The key can't be written to disk. It is not added then.
    pub(super) fn add(&mut self, now: Timestamp) -> Result<(), KeyError> {
        let port = PORTS.into_iter().find(|port| self.keys.iter().all(|it| it.key.port != *port));
        let key = self.key(random()?, port.unwrap_or(PORTS[0]))?;
        self.keys.push(AgedKey { key, made: now });
        self.failed = None;
        self.save().inspect_err(|_| self.keys.truncate(self.keys.len() - 1))
    }

    /// Removes the newest of two keys, which can't be used. Another is made later.
    ///
    /// # Errors
    /// The file can't be written. The key is removed nevertheless.
    pub(super) fn cancel(&mut self, now: Timestamp) -> Result<(), KeyError> {
        self.failed = Some(now);
        self.keys.truncate(1);
        self.save()
    }

    /// Removes all keys that are older than this one, because every node knows it. Returns whether there were any.
    ///
    /// # Errors
    /// The file can't be written. The keys are removed nevertheless: after a restart, the leader says it again.
    pub(super) fn settle(&mut self, public: [u8; 32]) -> Result<bool, KeyError> {
        match self.keys.iter().position(|it| it.key.public.0 == public) {
            None | Some(0) => Ok(false),
            Some(older) => {
                self.keys.drain(..older);
                self.save().map(|()| true)
            }
        }
    }

    fn key(&self, secret: SecretKey, port: u16) -> Result<TunnelKey, KeyError> {
        let public = (self.derive)(&secret)?.ok_or(KeyError::NoWireGuard)?;
        Ok(TunnelKey { secret, public, port })
    }

    fn save(&self) -> Result<(), KeyError> {
        let stored = |it: &AgedKey| StoredKey { secret: *it.key.secret.bytes(), port: it.key.port, made: it.made.0 };
        let keys: Vec<_> = self.keys.iter().map(stored).collect();
        let text = serde_json::to_vec(&keys).map_err(io::Error::other)?;
        let temporary = self.path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        Ok(fs_err::rename(&temporary, &self.path)?)
    }
}

/// Returns the keys in a file. Those of one that is damaged are lost: the node makes another, and other nodes know it before
/// they send.
fn read(path: &Path) -> io::Result<Vec<StoredKey>> {
    let text = match fs_err::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "the file of this node's keys for encrypted networks is damaged; making another key");
        Vec::new()
    }))
}

fn random() -> io::Result<SecretKey> {
    let mut bytes = [0; 32];
    let none = |_| io::Error::other("the kernel provides no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    Ok(SecretKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A kernel in which every key is its own public part.
    fn same(secret: &SecretKey) -> Result<Option<PublicKey>, NetworkError> {
        Ok(Some(PublicKey(*secret.bytes())))
    }

    fn at(hours: u64) -> Timestamp {
        Timestamp(hours * 3_600_000)
    }

    fn ring(folder: &tempfile::TempDir, hours: u64) -> KeyRing {
        let opened = KeyRing::open(folder.path().join("keys"), Some(12 * HOUR), same, at(hours));
        opened.unwrap().expect("the kernel can encrypt")
    }

    #[test]
    fn a_kernel_without_wireguard_gets_no_keys() {
        let folder = tempfile::tempdir().unwrap();
        let none = KeyRing::open(folder.path().join("keys"), None, |_| Ok(None), at(0)).unwrap();
        assert!(none.is_none() && std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_key_outlives_the_daemon_in_a_file_that_only_root_reads() {
        let folder = tempfile::tempdir().unwrap();
        let first = ring(&folder, 100).public_keys();
        assert_eq!((first.len(), first[0].port), (1, PORTS[0]));
        assert_eq!(ring(&folder, 200).public_keys(), first, "age alone makes no other key at the start");
        let mode = std::fs::metadata(folder.path().join("keys")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.path().join("keys"), "damaged").unwrap();
        assert_ne!(ring(&folder, 200).public_keys(), first);
    }

    #[test]
    fn another_key_is_due_when_the_only_one_is_old_or_of_the_future() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = ring(&folder, 100);
        for (hours, is_due) in [(100, false), (111, false), (112, true), (99, true)] {
            assert_eq!(ring.is_due(at(hours)), is_due, "{hours}");
        }
        ring.add(at(112)).unwrap();
        assert!(!ring.is_due(at(200)), "the nodes do not know the second yet");
        ring.cancel(at(112)).unwrap();
        assert!(!ring.is_due(at(112)), "it has just failed");
        assert!(ring.is_due(at(113)));
    }

    #[test]
    fn a_key_takes_the_place_of_another_when_it_is_known_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = ring(&folder, 100);
        before.add(at(112)).unwrap();
        let keys = before.public_keys();
        assert_eq!([keys[0].port, keys[1].port], PORTS);
        let mut after = ring(&folder, 113);
        assert_eq!(after.public_keys(), keys, "it sends with the older one still");
        assert!(!after.settle([7; 32]).unwrap() && !after.settle(keys[0].public).unwrap());
        assert!(after.settle(keys[1].public).unwrap());
        assert_eq!(after.public_keys(), keys[1..]);
        assert_eq!(ring(&folder, 114).public_keys(), keys[1..]);
        after.add(at(124)).unwrap();
        assert_eq!(after.public_keys()[1].port, PORTS[0], "the port of the former key is free");
    }
}
