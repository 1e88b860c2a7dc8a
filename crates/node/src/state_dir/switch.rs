//! Replaces a manager's Raft folder and its Raft id by others. The new folder is written beside the old one; the file
//! [`MARK`] decides that it counts. A crash before that leaves the manager as it was, and after it the next start of the
//! daemon goes on with the steps, each of which can be done again.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;

use super::{StateDir, remove};

/// The new folder, until it takes the place of the old one.
const NEXT: &str = "raft.next";
/// Holds the Raft id of the manager in the new folder.
const MARK: &str = "raft-next";
/// Beginning of the names of the folders that were replaced.
const BEFORE: &str = "raft.before.";

/// What is left to do once the new folder counts, in order.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Renames the old folder. It is kept, so that it can be inspected.
    PutOldAside,
    /// Renames the new folder.
    PutNewInPlace,
    /// Writes the Raft id.
    Id,
    /// Makes this node know itself as the only manager: the others may be alive, and would give it their assignments.
    Managers,
    /// Removes the mark.
    Finish,
}

const STEPS: [Step; 5] = [Step::PutOldAside, Step::PutNewInPlace, Step::Id, Step::Managers, Step::Finish];

impl StateDir {
    /// Returns the path at which a new folder is to be written, and removes what an earlier attempt has left there.
    pub(crate) fn next_raft(&self) -> anyhow::Result<PathBuf> {
        let path = self.root.join(NEXT);
        match fs_err::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(path),
        }
    }

    /// Decides that the folder at [`StateDir::next_raft`], which is whole and on disk, is that of this manager under the Raft
    /// id `id`. [`StateDir::finish_switch`] then puts it in place.
    pub(crate) fn decide_switch(&self, id: u64) -> anyhow::Result<()> {
        File::open(self.root.join(NEXT))?.sync_all()?;
        File::open(&self.root)?.sync_all()?;
        self.write(MARK, &id.to_string()).context("failed to decide for the new Raft log")
    }

    /// Puts the new folder in place if it was decided for, and removes it otherwise. To be called before Raft starts.
    pub(crate) fn finish_switch(&self) -> anyhow::Result<()> {
        let Some(id) = self.read(MARK) else { return self.next_raft().map(drop) };
        for step in STEPS {
            self.switch(step, &id).context("failed to put the new Raft log in place")?;
        }
        Ok(())
    }

    fn switch(&self, step: Step, id: &str) -> anyhow::Result<()> {
        let next = self.root.join(NEXT);
        match step {
            Step::PutOldAside if next.exists() => self.put_raft_aside_as(BEFORE).map(drop),
            Step::PutNewInPlace if next.exists() => {
                fs_err::rename(next, self.raft())?;
                Ok(File::open(&self.root)?.sync_all()?)
            }
            Step::PutOldAside | Step::PutNewInPlace => Ok(()),
            Step::Id => self.write("raft-id", id),
            Step::Managers => self.write("worker/managers", &self.read("address").unwrap_or_default()),
            Step::Finish => remove(&self.root.join(MARK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Makes the data folder of a manager with the Raft id 1, and a new Raft folder for the id 77.
    fn begin(dir: &Path) -> StateDir {
        let state = StateDir::open(dir).expect("it is unlocked");
        for (name, text) in [("raft-id", "1"), ("address", "m1:1"), ("worker/managers", "m2:1\nm3:1\nm1:1")] {
            state.write(name, text).expect("there is room");
        }
        fs_err::create_dir_all(state.raft()).expect("a folder");
        fs_err::write(state.raft().join("log"), "old").expect("a file");
        let next = state.next_raft().expect("there is none");
        fs_err::create_dir_all(&next).expect("a folder");
        fs_err::write(next.join("log"), "new").expect("a file");
        state
    }

    /// Returns the log, the Raft id and the known managers that a start finds.
    fn started(state: &StateDir) -> [String; 3] {
        state.finish_switch().expect("it goes on");
        ["raft/log", "raft-id", "worker/managers"].map(|name| state.read(name).expect("it is there"))
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs_err::read_dir(dir).expect("it is there").flatten();
        let mut names: Vec<_> = names.map(|it| it.file_name().into_string().expect("a name")).collect();
        names.retain(|name| name.starts_with("raft"));
        names.sort();
        names
    }

    #[test]
    fn a_crash_before_the_decision_leaves_the_manager_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = begin(dir.path());
        assert_eq!(started(&state), ["old", "1", "m2:1\nm3:1\nm1:1"]);
        assert_eq!(names(dir.path()), ["raft", "raft-id"], "the new folder is gone");
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_new_manager_whole() {
        for done in 0..=STEPS.len() {
            let dir = tempfile::tempdir().expect("a folder");
            let state = begin(dir.path());
            state.decide_switch(77).expect("there is room");
            for step in &STEPS[..done] {
                state.switch(*step, "77").expect("there is room");
            }
            for _ in 0..2 {
                assert_eq!(started(&state), ["new", "77", "m1:1"], "after {done} steps");
            }
            assert_eq!(names(dir.path()), ["raft", "raft-id", "raft.before.1"], "after {done} steps");
            let old = fs_err::read_to_string(dir.path().join("raft.before.1/log")).expect("it is kept");
            assert_eq!(old, "old", "after {done} steps");
        }
    }

    #[test]
    fn a_crash_within_a_step_is_as_one_before_it() {
        // The only step that is more than one change of the disk: the names are not synced, or the file has its other name.
        let dir = tempfile::tempdir().expect("a folder");
        let state = begin(dir.path());
        state.decide_switch(77).expect("there is room");
        fs_err::write(dir.path().join("raft-id.new"), "7").expect("there is room");
        assert_eq!(started(&state), ["new", "77", "m1:1"]);
    }

    #[test]
    fn another_switch_keeps_each_old_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut state = begin(dir.path());
        for _ in 0..2 {
            state.decide_switch(77).expect("there is room");
            state.finish_switch().expect("it goes on");
            drop(state);
            state = begin(dir.path());
        }
        assert!(names(dir.path()).contains(&"raft.before.2".to_owned()));
        state.forget_cluster().expect("everything can be removed");
        assert_eq!(names(dir.path()), [] as [&str; 0], "all of them have the cluster's secrets");
    }
}
