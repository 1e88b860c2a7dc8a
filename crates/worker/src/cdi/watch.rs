//! Looks which CDI devices this node has, and looks again as long as somebody wants to know. Files that can't be used are
//! logged here, once; who needs one of their devices learns the reason as well (`CdiError`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use flota_api::model::CdiName;

use super::catalog::{self, Catalog};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// What tells two states of a file apart: its inode, size, and times of change in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64, i64, i64);

/// The last look at the folders.
#[derive(Debug)]
pub(crate) struct CdiWatch {
    folders: Vec<PathBuf>,
    /// The files that were there; `None` for those that can't be looked at.
    seen: Option<BTreeMap<PathBuf, Option<Stamp>>>,
    /// Files that can't be used, and why.
    broken: BTreeMap<PathBuf, String>,
    conflicts: BTreeMap<CdiName, (PathBuf, PathBuf)>,
}

impl CdiWatch {
    /// Returns the devices of this node, sorted, and follows their changes until every receiver is dropped. Must be called
    /// within a tokio runtime.
    pub(crate) fn start(folders: Vec<PathBuf>) -> watch::Receiver<Vec<CdiName>> {
        let mut last = Self { folders, seen: None, broken: BTreeMap::new(), conflicts: BTreeMap::new() };
        let (sender, receiver) = watch::channel(last.look().unwrap_or_default());
        let follow = async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let look = move || {
                    let names = last.look();
                    (last, names)
                };
                let Ok((looked, names)) = tokio::task::spawn_blocking(look).await else { return };
                last = looked;
                if let Some(names) = names {
                    sender.send_if_modified(|known| std::mem::replace(known, names) != *known);
                }
            }
        };
        tokio::spawn(follow.in_current_span());
        receiver
    }

    /// Returns the devices of this node, if a file has changed since the last look.
    fn look(&mut self) -> Option<Vec<CdiName>> {
        let files = self.folders.iter().flat_map(|folder| catalog::paths(folder).unwrap_or_default());
        let seen = files.map(|path| (path.clone(), stamp(&path))).collect();
        if self.seen.as_ref() == Some(&seen) {
            return None;
        }
        let catalog = Catalog::read(&self.folders);
        self.log(&catalog);
        self.seen = Some(seen);
        Some(catalog.names())
    }

    fn log(&mut self, catalog: &Catalog) {
        for (path, why) in &catalog.broken {
            if self.broken.get(path) != Some(why) {
                tracing::warn!(path = %path.display(), error = why, "a CDI file can't be used, nor can its devices");
            }
        }
        let conflicts = catalog.conflicts();
        for (device, (first, second)) in &conflicts {
            if !self.conflicts.contains_key(device) {
                let (first, second) = (first.display(), second.display());
                tracing::warn!(%device, %first, %second, "a CDI device is in two files, and can't be used");
            }
        }
        self.broken.clone_from(&catalog.broken);
        self.conflicts = conflicts;
    }
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.ino(), about.size(), about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        format!(
            "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"v.com/c\", \"devices\": [{{\"name\": \"{name}\", \
             \"containerEdits\": {{\"env\": [\"A=1\"]}}}}]}}"
        )
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("cdi");
        let mut names = CdiWatch::start(vec![folder.clone()]);
        assert!(names.borrow_and_update().is_empty());
        std::fs::create_dir(&folder).expect("a folder");
        for (file, content, expected) in [
            ("b.json", text("n"), &["v.com/c=n"][..]),
            ("a.json", text("mm"), &["v.com/c=mm", "v.com/c=n"]),
            // Now two files of one folder have it.
            ("b.json", text("mm"), &[]),
            ("b.json", text("longer"), &["v.com/c=longer", "v.com/c=mm"]),
            ("a.json", "{".to_owned(), &["v.com/c=longer"]),
        ] {
            std::fs::write(folder.join(file), content).expect("a file");
            let seen = names.wait_for(|names| names.iter().map(|it| it.text().as_str()).eq(expected.iter().copied()));
            tokio::time::timeout(Duration::from_secs(600), seen).await.expect("it is noticed").expect("it goes on");
        }
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("a.json"), text("n")).expect("a file");
        let folders = vec![dir.path().to_owned()];
        let mut last = CdiWatch { folders, seen: None, broken: BTreeMap::new(), conflicts: BTreeMap::new() };
        assert_eq!(last.look().map(|names| names.len()), Some(1));
        assert_eq!(last.look(), None);
        std::fs::remove_file(dir.path().join("a.json")).expect("it is there");
        assert_eq!(last.look(), Some(Vec::new()));
    }
}
