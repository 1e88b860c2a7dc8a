//! No two modules of a crate import each other in a circle, and the planning parts of the manager speak only through the
//! store.
//!
//! The rule holds in every folder: its members don't import each other in a circle, directly or by way of others. A member
//! is a file together with the folder of its name, so a file anywhere below counts for the member. A parent and its own
//! children are one member of the folder above and may use each other: a child is a part that was moved out of a long file.
//! Every form of `use` and every qualified path counts, for the module that defines the name. Tests may import what they
//! like.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::graph::Graph;
use super::sizes::files;

/// The parts of the manager that plan; each sees the others' work in the store alone.
const PLANNERS: [&str; 9] = [
    "orchestrator",
    "allocator",
    "scheduler",
    "dispatcher",
    "images",
    "volumes",
    "autoscaler",
    "stack_values",
    "ca_rotation",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok()
}

/// Returns the root files of all crates: of libraries, programs and test programs.
fn roots() -> Vec<PathBuf> {
    let is_root = |file: &PathBuf| {
        let (folder, name) = (file.parent().unwrap(), file.file_name().unwrap());
        name == "main.rs" || (name == "lib.rs" && folder.ends_with("src")) || folder.ends_with("bin")
    };
    ["crates", "tests"].iter().flat_map(|it| files(&repository().join(it))).filter(is_root).collect()
}

/// Returns the imports of one planning part from another.
fn imports_among(parts: &[&str], graph: &Graph) -> Vec<String> {
    let part = |module: &[String]| module.first().filter(|name| parts.contains(&name.as_str())).cloned();
    let among = graph.edges.iter().filter(|((from, to), _)| match (part(from), part(to)) {
        (Some(from), Some(to)) => from != to,
        _ => false,
    });
    among.map(|((from, _), path)| format!("{} imports {path}", from.join("::"))).collect()
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let roots = roots();
    assert!(roots.len() > 15, "the crates were found");
    let mut found = Vec::new();
    for root in roots {
        for circle in Graph::of_crate(&root, &read).circles() {
            let shown = root.strip_prefix(repository()).unwrap().display().to_string();
            found.push(format!("{shown}:\n    {}", circle.join("\n    ")));
        }
    }
    assert!(found.is_empty(), "{} circles of modules:\n{}", found.len(), found.join("\n"));
}

#[test]
fn planners_do_not_import_each_other() {
    let graph = Graph::of_crate(&repository().join("crates/manager/src/lib.rs"), &read);
    for part in PLANNERS {
        assert!(graph.edges.keys().any(|(from, _)| from.first().is_some_and(|it| it == part)), "{part} was found");
    }
    assert_eq!(imports_among(&PLANNERS, &graph), [""; 0]);
}

/// Reads a crate from `(file, text)`; the first file is its root.
fn graph(sources: &[(&str, &str)]) -> Graph {
    let sources: BTreeMap<PathBuf, &str> =
        sources.iter().map(|(file, text)| (Path::new("src").join(file), *text)).collect();
    Graph::of_crate(Path::new("src/lib.rs"), &|file| sources.get(file).map(|text| (*text).to_owned()))
}

#[test]
fn a_circle_is_found_in_every_form_of_import() {
    let root = ("lib.rs", "mod a; mod b;");
    for text in [
        "use crate::b::B;",
        "use crate::{b::{self, B}};",
        "use super::{b as other, unrelated};",
        "pub(crate) use super::b::*;",
        "fn f() { use crate::b; }",
        "fn f() -> crate::b::B { todo!() }",
        "fn f() { assert!(super::b::g()); }",
        "use self::super::b::B;",
        "#[cfg(unix)] use crate::b::B;",
        "mod inner { use super::super::b::B; }",
    ] {
        let circles = graph(&[root, ("a.rs", text), ("b.rs", "pub struct B; use crate::a;")]).circles();
        assert_eq!(circles.len(), 1, "{text}");
    }
}

#[test]
fn a_circle_is_found_by_way_of_other_modules_folders_and_reexports() {
    for sources in [
        // Three modules.
        &[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b;"),
            ("b.rs", "use crate::c;"),
            ("c.rs", "use crate::a;"),
        ][..],
        // Other files of two folders.
        &[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod x; mod y; pub use y::Y;"),
            ("a/x.rs", "use crate::b::Z;"),
            ("a/y.rs", "pub struct Y;"),
            ("b.rs", "mod z; pub use z::Z;"),
            ("b/z.rs", "pub struct Z; use crate::a::Y;"),
        ],
        // Siblings that import each other from their parent.
        &[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod x; mod y; use x::X; use y::*;"),
            ("a/x.rs", "pub struct X; use super::Y;"),
            ("a/y.rs", "pub struct Y; use super::X;"),
        ],
        // A module that is reached by its name in scope.
        &[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod x;"),
            ("a/x.rs", "use crate::b; fn f() { b::g() }"),
            ("b.rs", "use super::a;"),
        ],
    ] {
        assert_eq!(graph(sources).circles().len(), 1, "{sources:?}");
    }
}

#[test]
fn what_is_no_circle_is_not_reported() {
    for sources in [
        &[
            ("lib.rs", "mod a; mod b; pub use a::A; pub const C: u8 = 0;"),
            ("a.rs", "pub struct A; use crate::C;"),
            ("b.rs", "use crate::A;"),
        ][..],
        // A parent and its child.
        &[("lib.rs", "mod a;"), ("a.rs", "mod x; pub struct A; use x::X;"), ("a/x.rs", "pub struct X; use super::A;")],
        // The parent re-exports what the sibling defines.
        &[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod x; pub use x::X; pub use crate::b::B;"),
            ("a/x.rs", "pub struct X; use super::B;"),
            ("b.rs", "pub struct B;"),
        ],
        // Tests.
        &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b;"), ("b.rs", "#[cfg(test)] mod tests { use crate::a; }")],
        // Another crate's module of the same name.
        &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b;"), ("b.rs", "use other::a; fn f() { a::g() }")],
    ] {
        assert_eq!(graph(sources).circles(), [[""; 0]; 0], "{sources:?}");
    }
}

#[test]
fn a_planner_that_imports_another_is_found_in_every_form() {
    let root = ("lib.rs", "mod images; mod plan; mod scheduler;");
    for text in [
        "use crate::images::Images;",
        "use crate::{images, plan::Plan};",
        "use crate::{plan::{self, Plan}, images::{Images}};",
        "use super::images as other;",
        "fn f() { crate::images::wanted(); }",
    ] {
        let graph = graph(&[
            root,
            ("images.rs", "pub struct Images;"),
            ("plan.rs", "pub struct Plan;"),
            ("scheduler.rs", text),
        ]);
        assert_eq!(imports_among(&PLANNERS, &graph).len(), 1, "{text}");
    }
    let graph = graph(&[root, ("images.rs", ""), ("plan.rs", ""), ("scheduler.rs", "use crate::{plan};")]);
    assert_eq!(imports_among(&PLANNERS, &graph), [""; 0]);
}
