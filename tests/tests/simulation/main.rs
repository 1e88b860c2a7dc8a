//! Simulated clusters: real managers and agents in one process, from one seed each. docs/testing.md says how to
//! replay one.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests say why they fail")]

mod cluster;
mod faults;
mod seeds;
