//! Faults that are put in on purpose are found, each within the seeds of one run of the tests.

use flota_raft_store::faults::Fault;
use flota_tests::sim::run::Options;

use crate::simulate;

/// Seeds that are tried for each fault.
const SEEDS: std::ops::Range<u64> = 1..25;

fn is_found(fault: Fault) {
    let mut outcomes = SEEDS.map(|seed| simulate(Options { fault: Some(fault), ..Options::new(seed) }));
    let found = outcomes.find(|outcome| outcome.violation.is_some());
    let found = found.unwrap_or_else(|| panic!("{fault:?} was not found within {SEEDS:?}"));
    eprintln!("{fault:?}: seed {}: {}", found.options.seed, found.violation.unwrap_or_default());
}

#[test]
fn a_leader_that_is_restored_without_an_election_is_found() {
    is_found(Fault::LeaderRestore);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found(Fault::EarlyAcknowledgement);
}

#[test]
fn a_read_before_the_own_terms_entry_is_found() {
    is_found(Fault::EarlyRead);
}

#[test]
fn a_lost_wakeup_is_found() {
    is_found(Fault::LostWakeup);
}

#[test]
fn a_double_placement_is_found() {
    is_found(Fault::DoublePlacement);
}

#[test]
fn an_address_that_is_given_twice_is_found() {
    is_found(Fault::DoubleAddress);
}

#[test]
fn a_node_that_confirms_what_it_was_not_told_is_found() {
    is_found(Fault::LostNews);
}

#[test]
fn a_node_that_is_told_nothing_of_tasks_that_end_is_found() {
    is_found(Fault::NoNews);
}
