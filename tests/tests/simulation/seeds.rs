//! Seeds of all kinds: everything that must hold does, and the same seed gives the same history.

use flota_tests::sim::run::{Options, simulate};

/// Seeds that each run of the tests tries.
const SEEDS: std::ops::Range<u64> = 1..25;

/// Runs one seed with its log on standard error: `FLOTA_SEED=N`. Without one there is nothing to run.
#[test]
fn the_seed_from_the_environment() {
    let Some(seed) = std::env::var("FLOTA_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    let outcome = simulate(Options { echo: true, ..Options::new(seed) });
    assert!(outcome.violation.is_none(), "{}", outcome.report());
}

#[test]
fn everything_holds_whatever_goes_wrong() {
    let failed: Vec<String> = SEEDS
        .map(|seed| simulate(Options::new(seed)))
        .filter(|it| it.violation.is_some())
        .map(|it| it.report())
        .collect();
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
