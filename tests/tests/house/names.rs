//! No two types of one crate have the same name, so that a name tells a reader which type is meant.

use std::collections::BTreeMap;
use std::path::Path;

use crate::sizes::files;

/// Returns the types that a source file defines outside of its tests.
fn types(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")).map_or(line, |(_, rest)| rest);
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let (keyword, rest) = line.split_once(' ')?;
        let name = rest.split(|it: char| !it.is_alphanumeric()).next()?;
        // A macro that defines types has no name here.
        (["struct", "enum", "trait"].contains(&keyword) && !name.is_empty()).then_some(name)
    })
}

#[test]
fn no_two_types_of_a_crate_have_the_same_name() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut seen = BTreeMap::new();
    for path in files(&crates) {
        let local = path.strip_prefix(&crates).unwrap();
        let is_of_tests = local.components().any(|it| matches!(it.as_os_str().to_str(), Some("tests" | "tests.rs")));
        // The programs in src/bin are crates of their own.
        let root = local.ancestors().find(|it| it.parent().is_some_and(|it| it.ends_with("bin")));
        let root = root.or_else(|| local.components().next().map(|it| Path::new(it.as_os_str()))).unwrap().to_owned();
        if is_of_tests {
            continue;
        }
        for name in types(&std::fs::read_to_string(&path).unwrap()) {
            let place = local.display().to_string();
            let other = seen.insert((root.clone(), name.to_owned()), place.clone());
            assert!(other.is_none(), "{name} is defined in {place} and in {}", other.unwrap_or_default());
        }
    }
    assert!(seen.len() > 500, "the types were found: {}", seen.len());
}

#[test]
fn types_are_found_in_code_and_not_in_tests() {
    let text = "pub struct A;\n    pub(in crate::a) enum B<T> {\ntrait C: D {}\n// struct E\n#[cfg(test)]\nmod tests {\n struct F;";
    assert_eq!(types(text).collect::<Vec<_>>(), ["A", "B", "C"]);
}
