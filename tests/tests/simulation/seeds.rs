//! Seeds of all kinds: everything that must hold does, and the same seed gives the same history.

use flota_tests::sim::run::Options;

use crate::simulate;

/// Seeds that each run of the tests tries.
const SEEDS: std::ops::Range<u64> = 1..25;

#[test]
fn everything_holds_whatever_goes_wrong() {
    let outcomes = SEEDS.map(|seed| simulate(Options::new(seed)));
    let failed: Vec<String> = outcomes.filter(|it| it.violation.is_some()).map(|it| it.report()).collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n\n"));
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
