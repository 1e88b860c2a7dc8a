//! Small configurations, good and broken, and mutations of them: reading and checking one never panics. Finding more of
//! them is the work of `crates/runtime/fuzz`, which begins with the same files.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use flota_runtime::oci::{Spec, parse_json};
use flota_runtime::validate;

use crate::census::entries;

const MUTATIONS: usize = 20_000;

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oci/corpus");
    entries(&folder).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Reads a configuration as `create` does, and returns why it is not valid.
fn check(text: &[u8]) -> Result<(), String> {
    let spec: Spec = parse_json(text, "it").map_err(|error| error.to_string())?;
    validate(&spec).map_err(|error| error.to_string())?;
    // A specification can be written and read again: `exec` and the supervisor do so.
    let again = serde_json::to_vec(&spec).map_err(|error| error.to_string())?;
    let read: Spec = parse_json(again.as_slice(), "it").map_err(|error| error.to_string())?;
    assert_eq!(read, spec);
    Ok(())
}

#[test]
fn files_called_good_pass_and_files_called_bad_are_refused_in_one_line() {
    let corpus = corpus();
    assert!(corpus.len() >= 60, "{} files", corpus.len());
    for (path, text) in corpus {
        let good = path.file_name().unwrap().to_str().unwrap().starts_with("good-");
        match check(&text) {
            Ok(()) => assert!(good, "{} is taken", path.display()),
            Err(error) => {
                assert!(!good, "{}: {error}", path.display());
                assert!(error.starts_with("failed to ") && !error.contains('\n'), "{}: {error}", path.display());
            }
        }
    }
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }
}

/// Words that a configuration is sensitive to.
const WORDS: [&str; 16] = [
    "null",
    "[]",
    "{}",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "\"\\u0000\"",
    "true",
    "\"/\"",
    "\"..\"",
    "[[[[",
    "\"CAP_KILL\"",
    "9007199254740993",
    "\"\\ud800\"",
];

fn mutate(random: &mut Random, text: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(text.len() + 1);
    let end = (at + random.below(12)).min(text.len());
    match random.below(6) {
        0 if !text.is_empty() => {
            let at = at.min(text.len() - 1);
            text[at] = u8::try_from(random.below(256)).unwrap();
        }
        1 => drop(text.drain(at..end)),
        2 => drop(text.splice(at..end, WORDS[random.below(WORDS.len())].bytes())),
        3 => {
            let from = random.below(other.len());
            let piece = other[from..(from + random.below(64)).min(other.len())].to_vec();
            drop(text.splice(at..at, piece));
        }
        4 => {
            // A value for another, by the text's own structure.
            let colons: Vec<usize> = (0..text.len()).filter(|index| text[*index] == b':').collect();
            if !colons.is_empty() {
                let colon = colons[random.below(colons.len())] + 1;
                let stop = text[colon..].iter().position(|it| b",}]".contains(it)).map_or(text.len(), |it| colon + it);
                drop(text.splice(colon..stop, WORDS[random.below(WORDS.len())].bytes()));
            }
        }
        _ => text.truncate(at),
    }
}

#[test]
fn mutated_configurations_never_panic() {
    let corpus = corpus();
    let mut random = Random(0x0c1_f107a);
    let mut passed = 0;
    for number in 0..MUTATIONS {
        let (path, text) = &corpus[random.below(corpus.len())];
        let mut text = text.clone();
        for _ in 0..=random.below(3) {
            let other = random.below(corpus.len());
            mutate(&mut random, &mut text, &corpus[other].1);
        }
        let result = catch_unwind(|| check(&text));
        let Ok(result) = result else {
            panic!("mutation {number} of {}: {}", path.display(), String::from_utf8_lossy(&text))
        };
        passed += usize::from(result.is_ok());
    }
    assert!(passed > 100 && passed < MUTATIONS - 100, "{passed} passed: the mutations are too wild or too tame");
}
