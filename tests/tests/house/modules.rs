//! The planning parts of the manager speak only through the store.

use std::path::Path;

#[test]
fn planners_do_not_import_each_other() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/manager/src");
    let parts = ["orchestrator", "scheduler", "dispatcher", "images"];
    let mut read = 0;
    for part in parts {
        for file in super::sizes::files(&source).into_iter().filter(|path| {
            let below = path.strip_prefix(&source).unwrap();
            below.starts_with(part) || below == Path::new(&format!("{part}.rs"))
        }) {
            read += 1;
            let text = std::fs::read_to_string(&file).unwrap();
            for other in parts.into_iter().filter(|other| *other != part) {
                assert!(!text.contains(&format!("use crate::{other}")), "{} imports {other}", file.display());
            }
        }
    }
    assert!(read > 10, "the sources were found");
}
