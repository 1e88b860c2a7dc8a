//! The content of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A description of each file, by path.
pub(crate) struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    pub(crate) fn read(root: &Path) -> Self {
        let mut tree = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let at = root.join(&path);
            if at.is_dir() && !at.is_symlink() {
                left.extend(fs::read_dir(&at).unwrap().map(|it| path.join(it.unwrap().file_name())));
            }
            tree.insert(path, describe(&at));
        }
        Self(tree)
    }
}

fn describe(path: &Path) -> String {
    let about = fs::symlink_metadata(path).unwrap();
    let mut text = format!("mode {:o} owner {}:{}", about.mode(), about.uid(), about.gid());
    if about.is_symlink() {
        text += &format!(" to {}", fs::read_link(path).unwrap().display());
    } else if about.is_file() {
        let digest = Sha256::digest(fs::read(path).unwrap());
        text += &format!(" {} bytes {digest:x}", about.len());
    } else if !about.is_dir() {
        text += &format!(" device {:x}", about.rdev());
    }
    if !about.is_dir() {
        // Tools differ in what they do to the time of a folder when they put files into it, and file systems in its links.
        text += &format!(" links {} time {}.{:09}", about.nlink(), about.mtime(), about.mtime_nsec());
    }
    let mut names: Vec<_> = xattr::list(path).unwrap().collect();
    names.sort();
    for name in names.iter().filter(|it| !it.to_string_lossy().starts_with("trusted.overlay.")) {
        text += &format!(" {}={:?}", name.display(), xattr::get(path, name).unwrap().unwrap());
    }
    text
}

/// Returns the paths at which two trees differ, with what each has there.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = left.0.keys().chain(right.0.keys()).collect();
    let differing = paths.into_iter().filter(|path| left.0.get(*path) != right.0.get(*path));
    let none = "nothing".to_owned();
    let line = |path: &PathBuf| {
        let [left, right] = [left, right].map(|tree| tree.0.get(path).unwrap_or(&none));
        format!("{path:?}:\n  {left}\n  {right}")
    };
    differing.map(line).collect()
}
