//! Backups: the tables after one entry in a file that any later build can read, encrypted with a passphrase if there is one.
//!
//! ```text
//! "flota-backup\n" │ format (4) │ 0                               │ frames │ SHA-256 of everything before it
//! "flota-backup\n" │ format (4) │ 1 │ salt (16) │ iterations (4)   │ frames │ SHA-256 of everything before it
//! ```
//!
//! A frame is a length (4 bytes, as all numbers with the highest byte first) and a record: first the description of the
//! backup, then the records of the tables as in a snapshot, and last the number of frames before it. With a passphrase each
//! record is sealed with a key that PBKDF2 derives from it, together with everything before the frames and its own number,
//! so that frames can't be exchanged, left out or taken from another backup. The checksum is judged before the passphrase:
//! a file that a transfer has cut or changed is never taken for a wrong passphrase.

use std::io::{self, Write};
use std::num::NonZeroU32;

use prost::Message;
use ring::{digest, pbkdf2, rand};

use flota_api::FEATURE_LEVEL;
use flota_api::proto::raft::BackupHead;
use flota_api::seal::Sealer;
use flota_api::version::Timestamp;

use crate::store::{SnapshotError, Tables};

const MAGIC: &[u8; 13] = b"flota-backup\n";
/// Format of the files that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
const SALT: usize = 16;
const CHECKSUM: usize = 32;
/// Number of iterations of PBKDF2-HMAC-SHA256 (OWASP Password Storage Cheat Sheet): about half a second.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not zero");
/// Most iterations that a file may ask for, so that a file from elsewhere can't keep a node busy for ever.
const MOST_ITERATIONS: u32 = 10_000_000;

/// Why a file can't be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It does not begin like a backup.
    #[error("the file is not a backup of Flota")]
    NotABackup,
    /// It has a format of a later version of Flota.
    #[error("the backup has the format {found}, and this version of Flota reads formats up to {FORMAT}")]
    NewerFormat {
        /// Its format.
        found: u32,
    },
    /// It uses what only a later version of Flota knows.
    #[error("the backup was made by version {version} of Flota, and this one does not know all that is in it")]
    NewerLevel {
        /// The version that made it.
        version: String,
    },
    /// The checksum is wrong.
    #[error("the backup is incomplete or was changed: its checksum is wrong")]
    Damaged,
    /// The checksum is right, and the content is not. Somebody has changed both.
    #[error("the backup was changed: {0}")]
    Changed(&'static str),
    /// It is encrypted, and there is no passphrase.
    #[error("the backup is encrypted, and needs its passphrase")]
    NoPassphrase,
    /// There is a passphrase, and it is not encrypted.
    #[error("the backup is not encrypted, and needs no passphrase")]
    NotEncrypted,
    /// The passphrase opens nothing.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The backup has no cluster.
    #[error("the backup has no cluster in it")]
    NoCluster,
    /// The tables can't be read.
    #[error(transparent)]
    Tables(#[from] SnapshotError),
}

/// What a backup has.
#[derive(Debug)]
pub struct Backup {
    /// The tables.
    pub tables: Tables,
    /// When it was made, by the clock of the manager that made it.
    pub made_at: Timestamp,
}

/// Writes a backup of these tables to `out`, and returns its size in bytes.
///
/// # Errors
/// `out` can't be written.
pub fn write_backup(
    tables: &Tables,
    made_at: Timestamp,
    passphrase: Option<&str>,
    out: &mut impl Write,
) -> io::Result<u64> {
    write(tables, made_at, passphrase.map(|it| (it, ITERATIONS)), out)
}

fn write(
    tables: &Tables,
    made_at: Timestamp,
    passphrase: Option<(&str, NonZeroU32)>,
    out: &mut impl Write,
) -> io::Result<u64> {
    let mut start = MAGIC.to_vec();
    start.extend_from_slice(&FORMAT.to_be_bytes());
    let cover = match passphrase {
        None => {
            start.push(PLAIN);
            Cover { start, key: None }
        }
        Some((passphrase, iterations)) => {
            let salt: [u8; SALT] =
                rand::generate(&rand::SystemRandom::new()).map_err(|_| io::Error::other("no random bytes"))?.expose();
            start.push(SEALED);
            start.extend_from_slice(&salt);
            start.extend_from_slice(&iterations.get().to_be_bytes());
            Cover { start, key: Some(derive(passphrase, &salt, iterations)) }
        }
    };
    let cluster = tables.cluster();
    let head = BackupHead {
        cluster_id: cluster.map(|it| it.id.to_string()).unwrap_or_default(),
        epoch: cluster.map_or(0, |it| it.epoch),
        index: tables.version,
        at: made_at.0,
        program_version: flota_api::VERSION.into(),
        feature_level: cluster.map_or(0, |it| it.feature_level),
        digest: tables.digest().to_bytes().to_vec().into(),
    };
    let mut out = Counted { out, hash: digest::Context::new(&digest::SHA256), bytes: 0 };
    out.write_all(&cover.start)?;
    let mut count = 0;
    for record in std::iter::once(head.encode_to_vec()).chain(tables.records()) {
        out.frame(&cover.put(count, record))?;
        count += 1;
    }
    out.frame(&cover.put(count, count.to_be_bytes().to_vec()))?;
    let checksum = out.hash.clone().finish();
    out.write_all(checksum.as_ref())?;
    out.flush()?;
    Ok(out.bytes)
}

/// Reads a backup and verifies all of it.
///
/// # Errors
/// It is not a whole and unchanged backup that this build knows, or the passphrase is not its own.
pub fn read_backup(bytes: &[u8], passphrase: Option<&str>) -> Result<Backup, BackupError> {
    let mut rest = Rest(bytes.strip_prefix(MAGIC).ok_or(match MAGIC.starts_with(bytes) && !bytes.is_empty() {
        true => BackupError::Damaged,
        false => BackupError::NotABackup,
    })?);
    let found = u32::from_be_bytes(rest.array()?);
    if found > FORMAT {
        return Err(BackupError::NewerFormat { found });
    }
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(BackupError::Damaged)?;
    if digest::digest(&digest::SHA256, content).as_ref() != checksum || found == 0 {
        return Err(BackupError::Damaged);
    }
    rest.0 = rest.0.strip_suffix(checksum).ok_or(BackupError::Damaged)?;
    let [kind] = rest.array()?;
    let settings = match kind {
        PLAIN => None,
        SEALED => Some((rest.array::<SALT>()?, u32::from_be_bytes(rest.array()?))),
        _ => return Err(BackupError::Changed("it is covered in an unknown way")),
    };
    let start = content[..content.len() - rest.0.len()].to_vec();
    let key = match (settings, passphrase) {
        (None, None) => None,
        (None, Some(_)) => return Err(BackupError::NotEncrypted),
        (Some(_), None) => return Err(BackupError::NoPassphrase),
        (Some((salt, iterations)), Some(passphrase)) => {
            let iterations = NonZeroU32::new(iterations).filter(|it| it.get() <= MOST_ITERATIONS);
            let iterations = iterations.ok_or(BackupError::Changed("it asks for too many or no iterations"))?;
            Some(derive(passphrase, &salt, iterations))
        }
    };
    let cover = Cover { start, key };
    let mut records = Vec::new();
    while !rest.0.is_empty() {
        let length = usize::try_from(u32::from_be_bytes(rest.array()?)).map_err(|_| BackupError::Damaged)?;
        let number = u64::try_from(records.len()).expect("it is counted in memory");
        records.push(cover.take(number, rest.slice(length)?)?);
    }
    let last = records.pop().ok_or(BackupError::Changed("it has no frames"))?;
    let count = u64::try_from(records.len()).expect("it is counted in memory");
    if last != count.to_be_bytes() {
        return Err(BackupError::Changed("frames are missing"));
    }
    let (head, records) = records.split_first().ok_or(BackupError::Changed("it has no description"))?;
    let head =
        BackupHead::decode(head.as_slice()).map_err(|_| BackupError::Changed("its description can't be read"))?;
    if head.feature_level > FEATURE_LEVEL {
        return Err(BackupError::NewerLevel { version: head.program_version });
    }
    let tables = Tables::from_records(records.iter().map(Vec::as_slice))?;
    if tables.digest().to_bytes() != head.digest.as_ref() {
        return Err(BackupError::Changed("its tables are not those of its description"));
    }
    if tables.cluster().is_none() {
        return Err(BackupError::NoCluster);
    }
    Ok(Backup { tables, made_at: Timestamp(head.at) })
}

fn derive(passphrase: &str, salt: &[u8], iterations: NonZeroU32) -> Sealer {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, passphrase.as_bytes(), &mut key);
    Sealer::new(&key)
}

/// How the records of a backup are covered.
struct Cover {
    /// Everything before the frames.
    start: Vec<u8>,
    /// `None` if the backup is not encrypted.
    key: Option<Sealer>,
}

impl Cover {
    fn what(&self, number: u64) -> Vec<u8> {
        [self.start.as_slice(), &number.to_be_bytes()].concat()
    }

    fn put(&self, number: u64, record: Vec<u8>) -> Vec<u8> {
        match &self.key {
            Some(key) => key.seal(&self.what(number), &record),
            None => record,
        }
    }

    fn take(&self, number: u64, frame: &[u8]) -> Result<Vec<u8>, BackupError> {
        let Some(key) = &self.key else { return Ok(frame.to_vec()) };
        key.open(&self.what(number), frame).map_err(|_| match number {
            0 => BackupError::WrongPassphrase,
            _ => BackupError::Changed("a frame does not open"),
        })
    }
}

/// Writes, counts and hashes.
struct Counted<'a, W> {
    out: &'a mut W,
    hash: digest::Context,
    bytes: u64,
}

impl<W: Write> Counted<'_, W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += u64::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.write_all(bytes)
    }

    fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.write_all(&length.to_be_bytes())?;
        self.write_all(frame)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The part of a file that is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(BackupError::Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], BackupError> {
        let (slice, rest) = self.0.split_at_checked(length).ok_or(BackupError::Damaged)?;
        self.0 = rest;
        Ok(slice)
    }
}

#[cfg(test)]
mod tests;
