//! No file is longer than a reader can hold.

use std::path::{Path, PathBuf};

const MOST_LINES: usize = 600;

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_source_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let all: Vec<PathBuf> =
        ["crates", "tests/src", "tests/tests", "deploy"].iter().flat_map(|it| files(&root.join(it))).collect();
    assert!(all.len() > 100, "the sources were found");
    for path in all {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines", path.display());
    }
}
