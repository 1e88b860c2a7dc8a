//! Seeds of all kinds: everything that must hold does, and the same seed gives the same history.

use std::sync::Mutex;
use std::{iter, thread};

use flota_tests::sim::run::{Options, Outcome};

use crate::simulate;

/// Seeds that each run of the tests tries.
const SEEDS: std::ops::Range<u64> = 1..15;

/// What must happen in the seeds together, by the line of the log that says so, and how often at least.
const HAPPENS: [(&str, usize); 8] = [
    ("wrote a snapshot", 200),
    ("purged the log", 200),
    ("installed the snapshot of another manager", 10),
    ("the set of managers is complete", 4),
    ("the set of managers changes: ", 15),
    ("the set of managers changes: Promote", 1),
    ("the set of managers changes: RotateCa", 1),
    ("the demoted manager votes no more", 1),
];

#[test]
fn everything_holds_whatever_goes_wrong() {
    // Two at a time, as tests are.
    let seeds = Mutex::new(SEEDS);
    let next = || seeds.lock().unwrap().next();
    let simulated = || iter::from_fn(next).map(|seed| simulate(Options::new(seed))).collect::<Vec<Outcome>>();
    let outcomes = thread::scope(|scope| {
        let other = scope.spawn(simulated);
        [simulated(), other.join().unwrap()].concat()
    });
    let failed: Vec<String> = outcomes.iter().filter(|it| it.violation.is_some()).map(Outcome::report).collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n\n"));
    for (text, least) in HAPPENS {
        let count = outcomes.iter().flat_map(|it| &it.log).filter(|line| line.contains(text)).count();
        assert!(count >= least, "`{text}` is in the logs {count} times only");
    }
}

#[test]
fn the_same_seed_gives_the_same_log_to_the_byte() {
    let options = Options { trouble: 10_000, ..Options::new(42) };
    let (first, second) = (simulate(options), simulate(options));
    let differ = first.log.iter().zip(&second.log).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{:?}", differ.map(|line| (&first.log[line], &second.log[line])));
    assert_eq!(first.log.len(), second.log.len());
    assert!(first.log.len() > 100, "there is something to compare");
}

#[test]
fn another_seed_gives_another_log() {
    let run = |seed| simulate(Options { trouble: 2_000, ..Options::new(seed) }).log;
    assert_ne!(run(1), run(2));
}
