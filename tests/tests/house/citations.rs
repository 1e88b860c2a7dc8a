//! A reader of the repository can open everything that a comment or a document cites: a file that is in it, or a public
//! source. Papers, lists and numbers that were only at hand when the code was written are not cited.

use std::path::{Path, PathBuf};

/// Folders with files that are not ours or not for readers.
const SKIPPED: [&str; 3] = ["target", ".git", "third_party"];
/// Endings of the names of files that are read.
const READ: [&str; 7] = ["rs", "md", "proto", "toml", "sh", "yml", "py"];
/// Papers that are not in the repository, by the names under which they were cited.
const PAPERS: [&str; 2] = ["DESIGN", "INTERFACE"];
/// Documents of the OCI runtime specification, which is public.
const OCI: [&str; 6] =
    ["config.md", "config-linux.md", "features.md", "features-linux.md", "runtime.md", "runtime-linux.md"];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !SKIPPED.iter().any(|it| name == *it) {
            files(&path, found);
        } else if path.extension().is_some_and(|it| READ.iter().any(|ending| it == *ending)) {
            found.push(path);
        }
    }
}

/// Returns the comments of a source file, or the whole text of a document.
fn comments(text: &str, ending: &str) -> String {
    let mark = match ending {
        "md" => return text.to_owned(),
        "rs" | "proto" => "//",
        _ => "#",
    };
    text.lines().filter_map(|line| line.split_once(mark)).map(|(_, comment)| format!("{comment}\n")).collect()
}

fn is_numbered(word: &str) -> bool {
    word.starts_with(|it: char| it.is_ascii_digit())
}

/// Splits a text into words, which may be names, numbers or paths.
fn words(text: &str) -> Vec<&str> {
    let is_part = |character: char| character.is_alphanumeric() || "_./-".contains(character);
    text.split(|character| !is_part(character)).map(|it| it.trim_end_matches('.')).collect()
}

/// Returns the citations in comments that lead nowhere. `exists` says whether a path of a document does.
fn lost_citations(comments: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let words = words(comments);
    let mut lost = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1).copied().unwrap_or_default();
        let lists = ["lesson", "lessons", "issue", "issues"];
        if lists.contains(&word.to_ascii_lowercase().as_str()) && is_numbered(next) {
            lost.push(format!("{word} {next}"));
        } else if PAPERS.contains(word) || word.ends_with(".md") && !OCI.contains(word) && !exists(word) {
            lost.push((*word).to_owned());
        }
    }
    lost
}

/// Returns names in code that only a list explains, such as `lesson_28`.
fn numbered_names(code: &str) -> Vec<String> {
    let is_listed = |word: &&str| word.strip_prefix("lesson_").is_some_and(is_numbered);
    words(code).into_iter().filter(is_listed).map(str::to_owned).collect()
}

/// Returns the tests that a document names as `path.rs: name`, where `exists` says whether a file of that path has one.
fn lost_tests(document: &str, exists: impl Fn(&str, &str) -> bool) -> Vec<&str> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted.filter(|it| it.split_once(".rs: ").is_some_and(|(path, name)| !exists(path, name))).collect()
}

#[test]
fn nothing_is_cited_that_a_reader_can_not_open() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = vec![root.join("Makefile")];
    files(&root, &mut all);
    assert!(all.len() > 200, "the sources were found");
    let own = Path::new(file!()).file_name();
    for path in all.iter().filter(|path| path.file_name() != own) {
        let folder = path.parent().unwrap();
        let exists = |cited: &str| [&root, &root.join("docs"), folder].iter().any(|it| it.join(cited).exists());
        let text = std::fs::read_to_string(path).unwrap();
        let ending = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        let lost = [lost_citations(&comments(&text, ending), exists), numbered_names(&text)].concat();
        assert!(lost.is_empty(), "{} cites {lost:?}", path.display());
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut sources, mut documents) = (Vec::new(), Vec::new());
    files(&root, &mut sources);
    files(&root.join("docs"), &mut documents);
    let exists = |path: &str, name: &str| {
        let mut named = sources.iter().filter(|source| source.ends_with(format!("{path}.rs")));
        named.any(|source| std::fs::read_to_string(source).unwrap().contains(&format!("fn {name}(")))
    };
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        let lost = lost_tests(&text, exists);
        assert!(lost.is_empty(), "{} names {lost:?}", path.display());
    }
    assert_eq!(lost_tests("`a.rs: b`, `c.rs`, and `d.rs: e`", |path, _| path == "a"), ["d.rs: e"]);
}

#[test]
fn papers_numbers_and_missing_documents_are_found() {
    let lost = |text: &str| lost_citations(text, |path| path == "docs/store.md");
    for bad in ["DESIGN, decision 14", "see INTERFACE.", "lesson 28", "Issue 7", "docs/none.md"] {
        assert_eq!(lost(bad).len(), 1, "{bad}");
    }
    for good in
        ["docs/store.md.", "config.md,", "moby#28", "an issue of time", "RFC 9110", "the design", "NUMA_INTERFACE"]
    {
        assert_eq!(lost(good), [""; 0], "{good}");
    }
}
