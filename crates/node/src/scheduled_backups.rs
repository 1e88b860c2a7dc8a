//! Writes backups on a schedule (`[backup]` in the settings). Each manager that has the settings writes its own; managers that
//! share a folder share the schedule, because the newest file there counts. Only what a majority has confirmed is written, so
//! a manager that is cut off never replaces good backups by old ones.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use flota_api::clock::Clock;
use flota_api::defaults::CLOCK_SKEW;
use flota_api::id::ClusterId;
use flota_api::model::Role;
use flota_api::version::Timestamp;
use flota_manager::Manager;
use flota_raft_store::write_backup;

use crate::backups::{BackupSource, backup_source};
use crate::config::BackupSchedule;

/// Longest wait without a look at the clock and the folder, and the pause after a failure.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const ENDING: &str = ".backup";

/// When the newest backup was written, for the metrics. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackupAge(Arc<Mutex<Option<Timestamp>>>);

impl BackupAge {
    /// Says that backups are written from now on.
    pub(crate) fn begin(&self) {
        self.0.lock().expect("no holder panics").get_or_insert_default();
    }

    /// Returns when the newest was written, or 1970 if none is known yet; `None` if none are to be written.
    pub(crate) fn newest(&self) -> Option<Timestamp> {
        *self.0.lock().expect("no holder panics")
    }

    fn learn(&self, at: Timestamp) {
        *self.0.lock().expect("no holder panics") = Some(at);
    }
}

/// Writes a backup each time that one is due, until `shutdown` is cancelled.
pub(crate) async fn run(
    schedule: BackupSchedule,
    manager: Manager,
    node: String,
    age: BackupAge,
    shutdown: CancellationToken,
) {
    let clock = Clock::system();
    let mut was_logged = false;
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait.min(LOOK_EVERY)) => {}
        }
        let (schedule, node) = (schedule.clone(), node.clone());
        match write_if_due(schedule, &manager, node, &age, &clock).await {
            Ok(next) => (wait, was_logged) = (next, false),
            Err(error) => {
                // Each further failure would say the same.
                if !was_logged {
                    tracing::warn!(error = format!("{error:#}"), "failed to write a backup; retrying");
                }
                (wait, was_logged) = (LOOK_EVERY, true);
            }
        }
    }
}

/// Writes a backup if one is due. Returns the time until the next one is.
async fn write_if_due(
    schedule: BackupSchedule,
    manager: &Manager,
    node: String,
    age: &BackupAge,
    clock: &Clock,
) -> anyhow::Result<Duration> {
    let view = manager.store().view();
    // A manager that has just joined.
    let Some(cluster) = view.cluster().map(|it| it.id.clone()) else { return Ok(LOOK_EVERY) };
    let managers = view.nodes().filter(|it| it.role == Role::Manager).map(|it| it.id.as_str());
    let every = schedule.every + turn(managers, &node);
    let (folder, now) = (Folder { path: schedule.folder.clone(), cluster, node }, clock.now());
    let newest = folder.newest(now + every)?;
    newest.into_iter().for_each(|at| age.learn(at));
    let wait = due_after(newest, every, now);
    if !wait.is_zero() {
        return Ok(wait);
    }
    let source = backup_source(manager).await?;
    anyhow::ensure!(source.is_newest, "no majority of managers confirms that this one has the newest state");
    let every = tokio::task::spawn_blocking(move || {
        let passphrase = schedule.passphrase.as_ref().map(|it| it.as_text());
        let (path, bytes) = folder.write(&source, passphrase)?;
        tracing::info!(path = %path.display(), bytes, entry = source.view.version, "wrote a backup");
        folder.prune(schedule.keep.get(), &path, source.made_at)?;
        anyhow::Ok(schedule.every)
    });
    let every = every.await??;
    age.learn(now);
    Ok(every)
}

/// Returns how much longer than the schedule says this manager waits: those that share a folder take turns, so that each
/// finds the backup of the one before it.
fn turn<'a>(managers: impl Iterator<Item = &'a str>, own: &str) -> Duration {
    let before = managers.filter(|it| *it < own).count();
    LOOK_EVERY * u32::try_from(before).unwrap_or(u32::MAX)
}

/// Returns how long it takes until a backup is due. One whose time is a little ahead of this clock, as a file server's may be,
/// was written now.
fn due_after(newest: Option<Timestamp>, every: Duration, now: Timestamp) -> Duration {
    newest.map_or(Duration::ZERO, |newest| now.until(newest.min(now) + every))
}

/// The folder with the backups of a cluster. Other files in it are left alone.
struct Folder {
    path: PathBuf,
    cluster: ClusterId,
    node: String,
}

impl Folder {
    fn prefix(&self) -> String {
        format!("flota-{}-", self.cluster)
    }

    /// Returns the names of the cluster's backups, the oldest first.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs_err::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|it| it.starts_with(&self.prefix()) && it.ends_with(ENDING)).collect();
        names.sort();
        Ok(names)
    }

    /// Returns when the newest backup was written, without those that were written after `until`: a clock was ahead then.
    fn newest(&self, until: Timestamp) -> io::Result<Option<Timestamp>> {
        let mut newest = None;
        for name in self.names()? {
            let at = match fs_err::metadata(self.path.join(name)) {
                // Another manager has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                about => about?.modified()?,
            };
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let at = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            newest = newest.max(Some(at).filter(|at| *at <= until));
        }
        Ok(newest)
    }

    /// Writes a backup. It has its name only when it is whole and on disk.
    fn write(&self, source: &BackupSource, passphrase: Option<&str>) -> anyhow::Result<(PathBuf, u64)> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        // Of this node alone, and replaced by the next attempt if a crash leaves it.
        let temporary = self.path.join(format!(".flota-{}.part", self.node));
        let _ = std::fs::remove_file(&temporary);
        let written = self.write_whole(&temporary, source, passphrase);
        if written.is_err() {
            // The disk may be full.
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    fn write_whole(
        &self,
        temporary: &Path,
        source: &BackupSource,
        passphrase: Option<&str>,
    ) -> anyhow::Result<(PathBuf, u64)> {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        let mut out = io::BufWriter::new(file);
        let bytes = write_backup(&source.view, source.made_at, passphrase, &mut out)?;
        out.into_inner()?.sync_all()?;
        let path = self.path.join(self.name_of(source.made_at));
        fs_err::rename(temporary, &path)?;
        fs_err::File::open(&self.path)?.sync_all()?;
        Ok((path, bytes))
    }

    /// Removes the oldest backups, so that so many are left, with the one at `written`. Those whose time is far later than that
    /// count as the oldest: some clock was ahead when they were made.
    fn prune(&self, keep: usize, written: &Path, made_at: Timestamp) -> io::Result<()> {
        let mut names = self.names()?;
        let count = names.len().saturating_sub(keep);
        let latest = self.name_of(made_at + CLOCK_SKEW);
        names.retain(|name| self.path.join(name) != written);
        names.sort_by_key(|name| *name <= latest);
        names.iter().take(count).try_for_each(|name| fs_err::remove_file(self.path.join(name)))
    }

    /// Returns the name of a backup that was made then.
    fn name_of(&self, made_at: Timestamp) -> String {
        let time: String = made_at.to_string().chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{}{time}{ENDING}", self.prefix())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use flota_api::model::Cluster;
    use flota_raft_store::{Entry, Store, WriteTx, read_backup};

    fn source(at: u64) -> BackupSource {
        let store = Store::default();
        let mut tx = WriteTx::new(store.view(), None);
        tx.create(Cluster { id: "c".into(), ..Cluster::default() });
        store.apply(1, Entry { transactions: vec![tx.finish()], ..Entry::default() });
        BackupSource { view: Arc::clone(&store.view()), made_at: Timestamp(at), is_newest: true }
    }

    fn all(path: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(path).expect("it is there");
        let mut names: Vec<_> =
            entries.map(|it| it.expect("listed").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_is_due_when_the_newest_is_old() {
        let (every, now) = (Duration::from_secs(100), Timestamp(1_000_000));
        for (newest, expected) in [
            (None, 0),
            (Some(1_000_000), 100_000),
            (Some(950_000), 50_000),
            (Some(900_000), 0),
            (Some(1), 0),
            (Some(1_050_000), 100_000),
        ] {
            let wait = due_after(newest.map(Timestamp), every, now);
            assert_eq!(wait, Duration::from_millis(expected), "{newest:?}");
        }
    }

    #[test]
    fn the_newest_backups_of_the_cluster_are_kept_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("new/folder");
        let folder = Folder { path: path.clone(), cluster: "c".into(), node: "n".into() };
        assert_eq!(folder.newest(Timestamp(u64::MAX)).expect("there is no folder yet"), None);
        let hour = 3_600_000;
        folder.write(&source(0), None).expect("there is room");
        for other in ["flota-other-1.backup", "flota-c-1.text", ".flota-m.part"] {
            fs_err::write(path.join(other), "").expect("there is room");
        }
        // As a crash leaves it.
        fs_err::write(path.join(".flota-n.part"), "half").expect("there is room");
        for number in 1..4 {
            let (written, _) = folder.write(&source(number * hour), Some("p")).expect("there is room");
            folder.prune(2, &written, Timestamp(number * hour)).expect("they can be removed");
        }
        // A clock is a year ahead for a while, and right again.
        for at in [365 * 24 * hour, 4 * hour] {
            let (written, _) = folder.write(&source(at), Some("p")).expect("there is room");
            folder.prune(2, &written, Timestamp(at)).expect("they can be removed");
        }
        let kept = ["flota-c-19700101T0300", "flota-c-19700101T0400"];
        let names = all(&path);
        assert_eq!(names.len(), 5, "{names:?}");
        for name in kept {
            let found = names.iter().find(|it| it.starts_with(name)).unwrap_or_else(|| panic!("{name}: {names:?}"));
            let about = fs_err::metadata(path.join(found)).expect("it is there");
            assert_eq!(about.permissions().mode() & 0o777, 0o600);
            let bytes = fs_err::read(path.join(found)).expect("it can be read");
            read_backup(&bytes, Some("p")).expect("it is whole");
        }
        let newest = folder.newest(Timestamp(u64::MAX)).expect("it is there").expect("one is kept");
        assert_eq!(folder.newest(newest).expect("it is there"), Some(newest));
        assert_eq!(folder.newest(Timestamp(1)).expect("it is there"), None, "both are from the future then");
    }

    #[test]
    fn a_backup_from_the_future_does_not_hide_the_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder { path: dir.path().into(), cluster: "c".into(), node: "n".into() };
        for (number, seconds) in [(1, 1_000), (2, 2_000), (3, 9_000_000)] {
            let (path, _) = folder.write(&source(number * 3_600_000), None).expect("there is room");
            let file = fs_err::OpenOptions::new().write(true).open(path).expect("it is there");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect("it is ours");
        }
        assert_eq!(folder.newest(Timestamp(3_000_000)).expect("it is there"), Some(Timestamp(2_000_000)));
    }

    #[test]
    fn managers_that_share_a_folder_take_turns() {
        let turns = ["a", "b", "c"].map(|own| turn(["b", "c", "a"].into_iter(), own).as_secs());
        assert_eq!(turns, [0, 30, 60]);
    }
}
