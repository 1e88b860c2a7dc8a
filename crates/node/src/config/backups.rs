//! Settings for backups on a schedule: `[backup]`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use flota_api::model::Secret;

/// Each backup has the whole state of the cluster.
const SHORTEST: Duration = Duration::from_secs(60);
const KEEP: NonZeroUsize = NonZeroUsize::new(7).expect("it is not zero");

/// `[backup]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Settings {
    folder: PathBuf,
    every: String,
    #[serde(default)]
    keep: Option<NonZeroUsize>,
    #[serde(default)]
    passphrase_file: Option<PathBuf>,
}

/// Where and how often a manager writes backups.
#[derive(Clone, Debug)]
pub(crate) struct BackupSchedule {
    pub(crate) folder: PathBuf,
    /// Time between two backups.
    pub(crate) every: Duration,
    /// Number of backups of the cluster that are kept.
    pub(crate) keep: NonZeroUsize,
    /// Encrypts them, if it is given.
    pub(crate) passphrase: Option<Secret>,
}

/// Checks the settings and reads the passphrase. Errors name the entry.
pub(super) fn resolve(it: Settings) -> anyhow::Result<BackupSchedule> {
    if !it.folder.is_absolute() {
        bail!("backup.folder: `{}` is not an absolute path", it.folder.display());
    }
    let every = humantime::parse_duration(&it.every);
    let every = every.with_context(|| format!("backup.every: `{}` is not a duration", it.every))?;
    if every < SHORTEST {
        bail!("backup.every: {} is less than {SHORTEST:?}", it.every);
    }
    let passphrase = it.passphrase_file.map(|path| {
        let text = fs_err::read_to_string(path).context("backup.passphrase-file")?;
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Secret::from(line.to_owned())),
            _ => bail!("backup.passphrase-file: its first line is empty"),
        }
    });
    let keep = it.keep.unwrap_or(KEEP);
    Ok(BackupSchedule { folder: it.folder, every, keep, passphrase: passphrase.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<BackupSchedule, String> {
        let settings = toml::from_str(text).map_err(|error| error.to_string())?;
        resolve(settings).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn mistakes_name_their_place() {
        for (text, error) in [
            ("folder = 'b'\nevery = '1d'", "backup.folder: `b` is not an absolute path"),
            ("folder = '/b'\nevery = 'often'", "backup.every: `often` is not a duration"),
            ("folder = '/b'\nevery = '59s'", "backup.every: 59s is less than 60s"),
            ("folder = '/b'\nevery = '1d'\nkeep = 0", "nonzero"),
            (
                "folder = '/b'\nevery = '1d'\npassphrase-file = '/nowhere'",
                "backup.passphrase-file: failed to open file",
            ),
            ("folder = '/b'\nevery = '1d'\npassphrase-file = '/dev/null'", "its first line is empty"),
            ("folder = '/b'", "missing field `every`"),
            ("folder = '/b'\nevery = '1d'\npassphrase = 'x'", "unknown field `passphrase`"),
        ] {
            let found = resolved(text).expect_err(text);
            assert!(found.contains(error), "{text}: {found}");
        }
        let schedule = resolved("folder = '/b'\nevery = '1d'").expect("legal");
        assert_eq!((schedule.every, schedule.keep.get()), (Duration::from_secs(86_400), 7));
    }
}
