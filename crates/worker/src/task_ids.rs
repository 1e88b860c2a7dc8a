//! The user and group ids of tasks that have their own: a range of the machine's ids for each of them, which no other has at
//! the same time.
//!
//! A range in use is a link in a folder in memory, named by its first id, to the name of the task. The kernel makes a link
//! of one name once, so nothing else is needed to give a range to one task, also across daemons.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;

use flota_api::defaults::TASK_IDS;
use flota_api::id::{TaskId, is_id};
use flota_runtime::IdRange;

/// The first id of the first range. Above it useradd(8) gives none to users, and up to the last range systemd keeps them
/// for containers (<https://systemd.io/UIDS-GIDS/>).
const FIRST: u32 = 1 << 30;
/// Number of ranges.
const RANGES: u32 = (0x7000_0000 - FIRST) / TASK_IDS;

/// The ranges of this node's tasks.
#[derive(Clone, Debug)]
pub(crate) struct TaskIds {
    folder: PathBuf,
}

/// The ids of a task, and the namespaces that belong to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnIds {
    /// The ids.
    pub range: IdRange,
    /// File of the user namespace.
    pub user: PathBuf,
    /// File of a network namespace that belongs to it.
    pub network: PathBuf,
}

impl TaskIds {
    /// Returns the ranges that are recorded in this folder. Does not check that it exists.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Returns the range of the task, which gets one if it has none. Tasks begin to look at different places, so that what
    /// one leaves behind is not the next one's.
    ///
    /// # Errors
    /// It can't be recorded, or none is free.
    pub(crate) fn take(&self, task: &TaskId) -> io::Result<IdRange> {
        if let Some(range) = self.of(task)? {
            return Ok(range);
        }
        fs_err::create_dir_all(&self.folder)?;
        let mut hasher = DefaultHasher::new();
        task.as_str().hash(&mut hasher);
        let start = u32::try_from(hasher.finish() % u64::from(RANGES)).unwrap_or_default();
        for index in (start..RANGES).chain(0..start) {
            let first = FIRST + index * TASK_IDS;
            match std::os::unix::fs::symlink(task.as_str(), self.folder.join(first.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| IdRange { first, count: TASK_IDS }),
            }
        }
        Err(io::Error::other("all ids for user namespaces are in use"))
    }

    /// Returns the range of the task, if it has one.
    ///
    /// # Errors
    /// The record can't be read.
    pub(crate) fn of(&self, task: &TaskId) -> io::Result<Option<IdRange>> {
        let found = self.entries()?.into_iter().find(|(_, owner)| owner == task.as_str());
        Ok(found.map(|(first, _)| IdRange { first, count: TASK_IDS }))
    }

    /// Gives back the range of the task. Does nothing if it has none.
    ///
    /// # Errors
    /// The record can't be changed.
    pub(crate) fn give_back(&self, task: &TaskId) -> io::Result<()> {
        for (first, _) in self.entries()?.into_iter().filter(|(_, owner)| owner == task.as_str()) {
            match std::fs::remove_file(self.folder.join(first.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the tasks that have a range.
    pub(crate) fn tasks(&self) -> Vec<TaskId> {
        let entries = self.entries().unwrap_or_default().into_iter();
        entries.map(|(_, owner)| owner).filter(|it| is_id(it)).map(Into::into).collect()
    }

    /// Returns the first id of each range in use, and its task.
    fn entries(&self) -> io::Result<Vec<(u32, String)>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let first = entry.file_name().to_string_lossy().parse();
            let owner = match std::fs::read_link(entry.path()) {
                // It was given back in the meantime, or it is not a record.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => continue,
                owner => owner?,
            };
            found.extend(first.ok().zip(owner.into_os_string().into_string().ok()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_task_has_a_range_of_its_own_until_it_gives_it_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let ids = TaskIds::at(dir.path().join("ids"));
        let task = |number: u32| TaskId::from(format!("{number:025}").as_str());
        assert_eq!(ids.of(&task(1)).expect("nothing is there yet"), None);
        ids.give_back(&task(1)).expect("there is nothing to give back");
        let taken: Vec<IdRange> = (0..200).map(|number| ids.take(&task(number)).expect("most are free")).collect();
        let firsts: BTreeSet<u32> = taken.iter().map(|it| it.first).collect();
        assert_eq!(firsts.len(), 200, "no two tasks have the same");
        assert!(
            firsts.iter().all(|first| (FIRST..0x7000_0000).contains(first) && (first - FIRST).is_multiple_of(TASK_IDS))
        );
        // Another daemon finds the same ones.
        let next = TaskIds::at(dir.path().join("ids"));
        assert_eq!(next.take(&task(7)).expect("it has one"), taken[7]);
        assert_eq!(next.of(&task(7)).expect("it has one"), Some(taken[7]));
        ids.give_back(&task(7)).expect("it has one");
        std::fs::write(dir.path().join("ids/stray"), "").expect("it is new");
        assert_eq!(next.of(&task(7)).expect("the record is readable"), None);
    }

    #[test]
    fn a_range_that_is_in_use_is_passed_over_and_the_last_one_is_followed_by_the_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let ids = TaskIds::at(dir.path().to_owned());
        let wanted = ids.take(&"a".into()).expect("all are free").first;
        ids.give_back(&"a".into()).expect("it has one");
        let name = |first: u32| dir.path().join(first.to_string());
        let link = |first: u32| std::os::unix::fs::symlink("other", name(first)).expect("it is free");
        // All that follow it are in use.
        let last = FIRST + (RANGES - 1) * TASK_IDS;
        (wanted..=last).step_by(TASK_IDS as usize).for_each(link);
        assert_eq!(ids.take(&"a".into()).expect("the first ones are free").first, FIRST);
    }
}
