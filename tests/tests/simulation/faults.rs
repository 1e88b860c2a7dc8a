//! Faults that are put in on purpose are found, each within the seeds of one run of the tests, and by a check of the
//! promise that the fault breaks.

use flota_raft_store::faults::Fault;
use flota_tests::sim::run::Options;
use flota_tests::sim::violation::Kind;

use crate::simulate;

/// Seeds that are tried for each fault.
const SEEDS: std::ops::Range<u64> = 1..25;

/// Requires that the first violation with this fault is of one of these kinds.
fn is_found(fault: Fault, kinds: &[Kind]) {
    let outcomes = SEEDS.map(|seed| simulate(Options { fault: Some(fault), ..Options::new(seed) }));
    let found = outcomes.filter_map(|outcome| Some((outcome.options.seed, outcome.violation?))).next();
    let (seed, violation) = found.unwrap_or_else(|| panic!("{fault:?} was not found within {SEEDS:?}"));
    eprintln!("{fault:?}: seed {seed}: {violation}");
    assert!(kinds.contains(&violation.kind), "{fault:?} was not found for what it breaks: seed {seed}: {violation}");
}

/// Requires that some seed with this fault ends with a violation of this kind; others may end with another one.
fn is_found_later(fault: Fault, kind: Kind) {
    let mut outcomes = SEEDS.map(|seed| simulate(Options { fault: Some(fault), ..Options::new(seed) }));
    let found = outcomes.find(|outcome| outcome.violation.as_ref().is_some_and(|it| it.kind == kind));
    let found = found.unwrap_or_else(|| panic!("{fault:?} was not found as {kind:?} within {SEEDS:?}"));
    eprintln!("{fault:?}: seed {}: {kind:?}", found.options.seed);
}

#[test]
fn a_leader_that_is_restored_without_an_election_is_found() {
    is_found(Fault::LeaderRestore, &[Kind::EntriesDiffer, Kind::TablesDiffer, Kind::NotLinearizable]);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    // The library panics when it finds that its log went back.
    let kinds = [Kind::EntriesDiffer, Kind::TablesDiffer, Kind::NotLinearizable, Kind::Panicked];
    is_found(Fault::EarlyAcknowledgement, &kinds);
}

#[test]
fn a_read_before_the_own_terms_entry_is_found() {
    // The control loops plan from the old view too.
    is_found(Fault::EarlyRead, &[Kind::NotLinearizable, Kind::SlotWantedTwice]);
}

#[test]
fn a_lost_wakeup_is_found() {
    // A task that nobody stops may be in the way of a service of the same name first.
    is_found_later(Fault::LostWakeup, Kind::NotConverged);
}

#[test]
fn a_double_placement_is_found() {
    is_found(Fault::DoublePlacement, &[Kind::SlotWantedTwice]);
}

#[test]
fn a_service_that_starts_before_its_dependencies_is_found() {
    is_found(Fault::EarlyStart, &[Kind::StartedTooEarly]);
}

#[test]
fn a_run_that_begins_a_second_time_is_found() {
    is_found(Fault::RunAgain, &[Kind::WrongRun]);
}

#[test]
fn data_of_a_slot_on_two_nodes_is_found() {
    is_found(Fault::LostPlaces, &[Kind::VolumeTwice]);
}

#[test]
fn an_address_that_is_given_twice_is_found() {
    is_found(Fault::DoubleAddress, &[Kind::WrongAddress]);
}

#[test]
fn a_node_that_confirms_what_it_was_not_told_is_found() {
    is_found(Fault::LostNews, &[Kind::FalseConfirmation]);
}

#[test]
fn a_node_that_is_told_nothing_of_tasks_that_end_is_found() {
    // A node that is told nothing may also keep the cluster from converging, so a seed may fail before this check does.
    is_found_later(Fault::NoNews, Kind::StaleConnections);
}

#[test]
fn a_refusal_of_a_deposed_leader_is_found() {
    is_found(Fault::RefusalWithoutProof, &[Kind::NotLinearizable]);
}

#[test]
fn an_age_that_is_too_small_is_found() {
    is_found(Fault::AgeOfContact, &[Kind::NotLinearizable]);
}
