//! Simulated clusters: real managers and agents in one process, from one seed each. docs/testing.md says how to
//! replay one.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests say why they fail")]

#[path = "../cluster/mod.rs"]
mod cluster;
mod faults;
mod parts;
mod seeds;

use std::path::Path;

use flota_tests::sim::run::{Options, Outcome};

/// Runs a simulation in a process of its own.
fn simulate(options: Options) -> Outcome {
    flota_tests::sim::child::simulate(Path::new(env!("CARGO_BIN_EXE_flota-simulate")), options)
}
