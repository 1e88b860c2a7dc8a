//! The data of volumes on this node's disk.
//!
//! ```text
//!   volumes/<volume>/<slot, or "shared">/new     while it is filled; an interrupted filling begins again
//!                                       /data    complete; it is only ever removed as a whole, by order of a user
//! ```
//!
//! The first task that uses a volume makes its data. A volume is dropped when the leader says so and no task of this node
//! uses it any more. Data of volumes that the leader does not mention stays: after a restore of the cluster it may not know
//! them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flota_api::id::{TaskId, VolumeId, is_id};
use flota_api::model::{Assignment, TaskVolume};
use flota_image::{CopyError, ImageStore, remove_folder};

use crate::locks::KeyedLocks;

/// Largest number of volumes of an image. Each is a folder and a mount at every start.
pub(crate) const IMAGE_VOLUMES_BOUND: usize = 100;

/// Pause between two tries to drop a volume that is used, or can't be removed yet.
const DROP_RETRY: Duration = Duration::from_secs(1);

/// Why the data of a volume can't be provided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The assignment lacks it, because a user has removed it.
    #[error("volume `{0}` was removed")]
    Unknown(String),
    /// The image asks for more volumes than a task may have.
    #[error("the image has {0} volumes, more than the bound of {IMAGE_VOLUMES_BOUND}")]
    TooMany(usize),
    /// The address of the server with its files is not known.
    #[error("failed to look up `{server}`, the server of volume `{volume}`")]
    LookUp {
        /// Name of the volume.
        volume: String,
        /// Name of the server.
        server: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The part of it that a task mounts is not there.
    #[error("failed to find `{part}` in volume `{volume}`")]
    Find {
        /// Name of the volume.
        volume: String,
        /// Path in the volume.
        part: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A link in it leads elsewhere.
    #[error("`{part}` of volume `{volume}` leads out of the volume")]
    LeadsOut {
        /// Name of the volume.
        volume: String,
        /// Path in the volume.
        part: String,
    },
    /// Its content can't be copied from the image.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An I/O error.
    #[error("failed to make the folder of a volume")]
    Io(#[from] io::Error),
}

impl VolumeError {
    /// Returns whether another try on this node fails in the same way.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::TooMany(_) | Self::Copy(CopyError::NotFolder(_) | CopyError::Links(_)))
    }
}

/// How long the data of a volume is needed.
#[derive(Clone, Copy, Debug)]
enum Keep {
    /// It must outlive a power failure.
    ForEver,
    /// It goes with the container.
    ForOneStart,
}

/// What a new volume is filled with.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Folders of the image's unpacked layers, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// Path in the image.
    pub(crate) path: PathBuf,
}

/// The volumes of this node. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    dir: PathBuf,
    store: ImageStore,
    /// Held while the data of a volume or of a task is made or removed.
    busy: KeyedLocks,
    /// The volumes that tasks of this node use.
    uses: Arc<Mutex<BTreeMap<TaskId, Vec<VolumeId>>>>,
}

impl Volumes {
    pub(crate) fn new(dir: PathBuf, store: ImageStore) -> Self {
        Self { dir, store, busy: KeyedLocks::default(), uses: Arc::default() }
    }

    /// Records that the task uses its volumes until [`Volumes::release`].
    pub(crate) fn accept(&self, task: &Assignment) {
        let used: Vec<VolumeId> = task.volumes.iter().map(|volume| volume.id.clone()).collect();
        if !used.is_empty() {
            self.uses.lock().expect("no holder panics").insert(task.task_id.clone(), used);
        }
    }

    pub(crate) fn release(&self, task: &TaskId) {
        self.uses.lock().expect("no holder panics").remove(task);
    }

    /// Returns the folder that has, or gets, the data of a volume as its `data`.
    fn folder(&self, volume: &TaskVolume) -> Result<PathBuf, VolumeError> {
        // An id becomes a part of a path.
        if !is_id(volume.id.as_str()) {
            return Err(VolumeError::Unknown(volume.name.clone()));
        }
        let slot = volume.slot.map_or_else(|| "shared".to_owned(), |slot| slot.to_string());
        Ok(self.dir.join(volume.id.as_str()).join(slot))
    }

    /// Returns the folder with the data of a volume, and makes it at first use.
    pub(crate) async fn provide(&self, volume: &TaskVolume, content: Option<Content>) -> Result<PathBuf, VolumeError> {
        self.make(volume.id.as_str(), self.folder(volume)?, content, Keep::ForEver).await
    }

    /// Returns where a part of a volume is, as a path without links. It makes nothing: a volume that began without the
    /// files of the image would never get them.
    pub(crate) async fn find_part(&self, volume: &TaskVolume, part: &str) -> Result<PathBuf, VolumeError> {
        let (data, name, part) = (self.folder(volume)?.join("data"), volume.name.clone(), part.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let place =
                std::fs::canonicalize(&data).and_then(|data| Ok((std::fs::canonicalize(data.join(&part))?, data)));
            match place {
                Ok((place, data)) if place.starts_with(&data) => Ok(place),
                Ok(_) => Err(VolumeError::LeadsOut { volume: name, part }),
                Err(source) => Err(VolumeError::Find { volume: name, part, source }),
            }
        });
        found.await.map_err(io::Error::other)?
    }

    /// Makes the folder of a volume without a name, which belongs to a task.
    pub(crate) async fn provide_anonymous(
        &self,
        task: &TaskId,
        folder: PathBuf,
        content: Option<Content>,
    ) -> Result<PathBuf, VolumeError> {
        self.make(task.as_str(), folder, content, Keep::ForOneStart).await
    }

    async fn make(
        &self,
        key: &str,
        folder: PathBuf,
        content: Option<Content>,
        keep: Keep,
    ) -> Result<PathBuf, VolumeError> {
        let (busy, store) = (self.busy.lock(key).await, self.store.clone());
        let made = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            complete(&folder, keep, |new| match content {
                Some(Content { layers, path }) => Ok(store.copy_folder(&layers, &path, new)?),
                None => Ok(()),
            })
        });
        made.await.map_err(io::Error::other)?
    }

    /// Removes the volumes without a name that a task has.
    pub(crate) async fn remove_anonymous(&self, task: &TaskId, folder: PathBuf) -> io::Result<()> {
        let busy = self.busy.lock(task.as_str()).await;
        let removed = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            remove_folder(&folder)
        });
        removed.await.map_err(io::Error::other)?
    }

    /// Removes all data of a volume, once no task uses it; resolves when nothing is left.
    pub(crate) async fn drop_data(self, volume: VolumeId) {
        if !is_id(volume.as_str()) {
            return;
        }
        let mut has_failed = false;
        loop {
            if !self.is_used(&volume) {
                match self.remove(&volume).await {
                    Ok(()) => {
                        tracing::info!(volume.id = %volume, "a volume that a user has removed is dropped");
                        return;
                    }
                    Err(error) if !has_failed => {
                        tracing::warn!(volume.id = %volume, %error, "failed to drop a volume; it is tried again");
                        has_failed = true;
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(DROP_RETRY).await;
        }
    }

    fn is_used(&self, volume: &VolumeId) -> bool {
        self.uses.lock().expect("no holder panics").values().flatten().any(|used| used == volume)
    }

    async fn remove(&self, volume: &VolumeId) -> io::Result<()> {
        let (dir, busy) = (self.dir.clone(), self.busy.lock(volume.as_str()).await);
        let (folder, going) = (dir.join(volume.as_str()), dir.join(format!("{}.removed", volume.as_str())));
        let removed = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            // A part of the data must never be taken for all of it, so the whole goes out of sight first.
            remove_folder(&going)?;
            if folder.try_exists()? {
                fs_err::rename(&folder, &going)?;
            }
            if dir.try_exists()? {
                fs_err::File::open(&dir)?.sync_all()?;
            }
            remove_folder(&going)
        });
        removed.await.map_err(io::Error::other)?
    }
}

/// Returns `folder/data`. If it is not there, `fill` gets an empty folder, which takes that place once it is on the disk: a
/// crash at any point leaves either no data or all of it.
fn complete(
    folder: &Path,
    keep: Keep,
    fill: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<PathBuf, VolumeError> {
    let [data, new] = ["data", "new"].map(|name| folder.join(name));
    if data.try_exists()? {
        return Ok(data);
    }
    remove_folder(&new)?;
    fs_err::create_dir_all(&new)?;
    fill(&new)?;
    // The files are synced before the rename, because a power failure must not leave a folder with empty files.
    let sync = |folder: &Path| match keep {
        Keep::ForEver => Ok(nix::unistd::syncfs(fs_err::File::open(folder)?).map_err(io::Error::from)?),
        Keep::ForOneStart => Ok::<(), VolumeError>(()),
    };
    sync(&new)?;
    fs_err::rename(&new, &data)?;
    // The names above it may be as new.
    sync(folder)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    const ID: &str = "0123456789abcdefghijklmno";

    /// Writes two files, and stops after so many of them.
    fn fill(folder: &Path, until: usize) -> Result<(), VolumeError> {
        for (number, name) in ["a", "b"].iter().enumerate() {
            if number == until {
                return Err(VolumeError::Io(io::Error::other("cut off")));
            }
            fs::write(folder.join(name), "image")?;
        }
        Ok(())
    }

    #[test]
    fn data_is_filled_once_and_whole_wherever_an_earlier_start_was_cut_off() {
        for cut_at in 0..2 {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let folder = dir.path().join("v/1");
            complete(&folder, Keep::ForEver, |new| fill(new, cut_at)).expect_err("it is cut off");
            assert!(!folder.join("data").exists(), "a part of the content is no data");
            // A file that the image does not have any more, as after an update in between.
            fs::write(folder.join("new/old"), "").expect("the folder was begun");
            let data = complete(&folder, Keep::ForEver, |new| fill(new, 2)).expect("the next start makes it right");
            assert_eq!(fs::read_dir(&data).expect("a folder").count(), 2, "cut off after {cut_at}");
            assert!(!folder.join("new").exists());
            fs::write(data.join("a"), "changed by a task").expect("it is there");
            let is_filled = Cell::new(false);
            let again = complete(&folder, Keep::ForEver, |_| {
                is_filled.set(true);
                Ok(())
            });
            assert_eq!((again.expect("it is there"), is_filled.get()), (data.clone(), false));
            assert_eq!(fs::read_to_string(data.join("a")).expect("it is there"), "changed by a task");
        }
    }

    #[test]
    fn a_crash_before_the_rename_fills_again_and_one_after_it_does_not() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = dir.path().join("v/shared");
        fs::create_dir_all(folder.join("new")).expect("it is new");
        fill(&folder.join("new"), 2).expect("all of it");
        let data = complete(&folder, Keep::ForEver, |new| fill(new, 2)).expect("it is complete");
        assert_eq!(fs::read_dir(&data).expect("a folder").count(), 2);
        // The daemon of the crash left a folder beside complete data.
        fs::create_dir(folder.join("new")).expect("it was renamed");
        assert_eq!(complete(&folder, Keep::ForEver, |_| panic!("it has data")).expect("it is complete"), data);
    }

    fn volumes(dir: &Path) -> Volumes {
        let store = ImageStore::open(&dir.join("images"), true).expect("a store");
        Volumes::new(dir.join("volumes"), store)
    }

    fn used(slot: Option<u64>) -> TaskVolume {
        TaskVolume { name: "db".into(), id: ID.into(), slot, file_system: None }
    }

    #[tokio::test]
    async fn each_slot_has_data_of_its_own_and_a_shared_volume_has_one_for_all() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volumes = volumes(dir.path());
        let mut folders = Vec::new();
        for slot in [None, Some(1), Some(2)] {
            folders.push(volumes.provide(&used(slot), None).await.expect("a folder"));
        }
        let ends: Vec<_> = folders.iter().map(|it| it.strip_prefix(dir.path().join("volumes").join(ID))).collect();
        let expected = ["shared/data", "1/data", "2/data"].map(Path::new);
        assert_eq!(ends.into_iter().map(|it| it.expect("below it")).collect::<Vec<_>>(), expected);
        let outside = TaskVolume { id: "../../etc".into(), ..used(None) };
        let refused = volumes.provide(&outside, None).await.expect_err("it is no id");
        assert!(refused.is_final(), "{refused}");
    }

    #[tokio::test]
    async fn a_part_of_a_volume_is_in_it_wherever_its_links_lead() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volumes = volumes(dir.path());
        let early = volumes.find_part(&used(None), "a").await.expect_err("the volume has no data");
        assert_eq!(early.to_string(), "failed to find `a` in volume `db`");
        assert!(!dir.path().join("volumes").exists(), "the next task with all of the volume fills it");
        let data = volumes.provide(&used(None), None).await.expect("a folder").canonicalize().expect("it exists");
        fs::create_dir_all(data.join("a/b")).expect("it is new");
        for (link, to) in [("in", "a/b"), ("out", "../.."), ("absolute", "/etc"), ("a/up", "../../data/a")] {
            std::os::unix::fs::symlink(to, data.join(link)).expect("it is new");
        }
        for (part, place) in [("a", "a"), ("a/b", "a/b"), ("in", "a/b"), ("a/up/b", "a/b")] {
            assert_eq!(volumes.find_part(&used(None), part).await.expect(part), data.join(place), "{part}");
        }
        for (part, expected) in [
            ("out", "`out` of volume `db` leads out of the volume"),
            ("absolute", "`absolute` of volume `db` leads out of the volume"),
            ("none", "failed to find `none` in volume `db`"),
        ] {
            let error = volumes.find_part(&used(None), part).await.expect_err(part);
            assert_eq!((error.to_string().as_str(), error.is_final()), (expected, false), "a task may still make it");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_was_killed_between_any_two_steps_of_a_removal_drops_all_of_it_and_nothing_else() {
        // What is there after each step, by path below the folder of the volumes: all of it, out of sight, a part gone.
        let steps: [&[&str]; 4] = [
            &["ID/1/data/a", "ID/2/data/b"],
            &["ID.removed/1/data/a", "ID.removed/2/data/b"],
            &["ID.removed/2/data/b"],
            &["ID.removed"],
        ];
        for left in steps {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let volumes = volumes(dir.path());
            for path in left.iter().map(|path| dir.path().join("volumes").join(path.replace("ID", ID))) {
                fs::create_dir_all(path).expect("it is new");
            }
            let other = TaskVolume { id: "other0123456789abcdefghij".into(), ..used(Some(1)) };
            let other = volumes.provide(&other, None).await.expect("a folder");
            volumes.clone().drop_data(ID.into()).await;
            let names = fs::read_dir(dir.path().join("volumes")).expect("a folder").flatten();
            let names: Vec<_> = names.map(|it| it.file_name()).collect();
            assert!(names.len() == 1 && other.exists(), "after {left:?}, these are left: {names:?}");
        }
    }

    #[tokio::test]
    async fn a_volume_whose_removal_was_cut_off_begins_empty_if_it_is_used_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volumes = volumes(dir.path());
        // The daemon was killed when the data was out of sight. A restored cluster knows the volume, and nobody removes it.
        fs::create_dir_all(dir.path().join("volumes").join(format!("{ID}.removed/1/data/a"))).expect("it is new");
        let data = volumes.provide(&used(Some(1)), None).await.expect("a folder");
        assert_eq!(fs::read_dir(data).expect("a folder").count(), 0, "a part of the data is none");
    }

    #[tokio::test]
    async fn a_volume_is_dropped_when_no_task_uses_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volumes = volumes(dir.path());
        let data = volumes.provide(&used(Some(1)), None).await.expect("a folder");
        let task = Assignment { task_id: "t".into(), volumes: vec![used(Some(1))], ..Assignment::default() };
        volumes.accept(&task);
        let dropping = tokio::spawn(volumes.clone().drop_data(ID.into()));
        tokio::task::yield_now().await;
        assert!(data.exists() && !dropping.is_finished(), "the task still runs");
        volumes.release(&"t".into());
        dropping.await.expect("it ends");
        assert!(!dir.path().join("volumes").join(ID).exists());
        // The leader repeats the order until it has the report.
        volumes.drop_data(ID.into()).await;
    }
}
