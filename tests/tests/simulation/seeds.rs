//! Seeds of all kinds: everything that must hold does.

use flota_tests::sim::run::{Options, simulate};

/// Runs one seed with its log on standard error: `FLOTA_SEED=N`. Without one there is nothing to run.
#[test]
fn the_seed_from_the_environment() {
    let Some(seed) = std::env::var("FLOTA_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    let outcome = simulate(Options { echo: true, ..Options::new(seed) });
    assert!(outcome.violation.is_none(), "{}", outcome.report());
}
