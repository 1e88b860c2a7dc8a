//! Faults that are put in on purpose are found, each within the seeds of one run of the tests, and by a check of the
//! promise that the fault breaks. For those that need a rare moment, the focus of the simulation brings it about.

use flota_raft_store::faults::Fault;
use flota_tests::sim::focus::Focus;
use flota_tests::sim::run::Options;
use flota_tests::sim::violation::Kind;

use crate::simulate;

/// Seeds that are tried for each fault.
const SEEDS: std::ops::Range<u64> = 1..25;

/// Returns how a fault is looked for where all kinds of things go wrong.
fn everywhere(fault: Fault) -> Options {
    Options { fault: Some(fault), ..Options::new(0) }
}

/// Returns how a fault is looked for where only a part goes wrong, for so many seconds.
fn within(focus: Focus, seconds: u64, fault: Fault) -> Options {
    Options { focus, trouble: seconds * 1_000, ..everywhere(fault) }
}

/// Requires that the first violation with this fault is of one of these kinds.
fn is_found(options: Options, kinds: &[Kind]) {
    let outcomes = SEEDS.map(|seed| simulate(Options { seed, ..options }));
    let found = outcomes.filter_map(|outcome| Some((outcome.options.seed, outcome.violation?))).next();
    let (seed, violation) = found.unwrap_or_else(|| panic!("{options:?} was not found within {SEEDS:?}"));
    eprintln!("{:?}: seed {seed}: {violation}", options.fault);
    assert!(kinds.contains(&violation.kind), "{options:?} was not found for what it breaks: seed {seed}: {violation}");
}

/// Requires that some seed with this fault ends with a violation of this kind; others may end with another one.
fn is_found_later(options: Options, kind: Kind) {
    let mut outcomes = SEEDS.map(|seed| simulate(Options { seed, ..options }));
    let found = outcomes.find(|outcome| outcome.violation.as_ref().is_some_and(|it| it.kind == kind));
    let found = found.unwrap_or_else(|| panic!("{options:?} was not found as {kind:?} within {SEEDS:?}"));
    eprintln!("{:?}: seed {}: {kind:?}", options.fault, found.options.seed);
}

#[test]
fn a_leader_that_is_restored_without_an_election_is_found() {
    let options = within(Focus::Restarts, 20, Fault::LeaderRestore);
    is_found(options, &[Kind::EntriesDiffer, Kind::TablesDiffer, Kind::NotLinearizable]);
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    // A vote that is lost may be given again. The library panics when it finds that its log went back.
    let kinds = [Kind::EntriesDiffer, Kind::TablesDiffer, Kind::NotLinearizable, Kind::TwoLeaders, Kind::Panicked];
    is_found(everywhere(Fault::EarlyAcknowledgement), &kinds);
}

#[test]
fn a_read_before_the_own_terms_entry_is_found() {
    // The control loops plan from the old view too.
    is_found(within(Focus::Splits, 20, Fault::EarlyRead), &[Kind::NotLinearizable, Kind::SlotWantedTwice]);
}

#[test]
fn a_lost_wakeup_is_found() {
    // A task that nobody stops may be in the way of a service of the same name first.
    is_found_later(within(Focus::Sessions, 15, Fault::LostWakeup), Kind::NotConverged);
}

#[test]
fn a_double_placement_is_found() {
    is_found(everywhere(Fault::DoublePlacement), &[Kind::SlotWantedTwice]);
}

#[test]
fn a_service_that_starts_before_its_dependencies_is_found() {
    is_found(everywhere(Fault::EarlyStart), &[Kind::StartedTooEarly]);
}

#[test]
fn a_run_that_begins_a_second_time_is_found() {
    // A minute begins in that time.
    is_found(within(Focus::Runs, 65, Fault::RunAgain), &[Kind::WrongRun]);
}

#[test]
fn data_of_a_slot_on_two_nodes_is_found() {
    is_found(everywhere(Fault::LostPlaces), &[Kind::VolumeTwice]);
}

#[test]
fn an_address_that_is_given_twice_is_found() {
    is_found(everywhere(Fault::DoubleAddress), &[Kind::WrongAddress]);
}

#[test]
fn a_node_that_confirms_what_it_was_not_told_is_found() {
    is_found(within(Focus::Sessions, 30, Fault::LostNews), &[Kind::FalseConfirmation]);
}

#[test]
fn a_node_that_is_told_nothing_of_tasks_that_end_is_found() {
    // A node that is told nothing may also keep the cluster from converging, so a seed may fail before this check does.
    is_found_later(within(Focus::Sessions, 30, Fault::NoNews), Kind::StaleConnections);
}

#[test]
fn a_refusal_of_a_deposed_leader_is_found() {
    is_found(within(Focus::Splits, 30, Fault::RefusalWithoutProof), &[Kind::NotLinearizable]);
}

#[test]
fn an_age_that_is_too_small_is_found() {
    is_found(everywhere(Fault::AgeOfContact), &[Kind::NotLinearizable]);
}

#[test]
fn an_update_that_does_not_wait_for_its_own_tasks_is_found() {
    let options = within(Focus::Rollouts, 20, Fault::OverlappingUpdate);
    is_found(options, &[Kind::TooFewTasks, Kind::TooManyTasks]);
}

#[test]
fn an_old_task_that_stops_before_the_new_one_serves_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::EarlyStop), &[Kind::TooFewTasks]);
}

#[test]
fn a_new_task_that_starts_before_the_old_one_has_ended_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::EarlySuccessor), &[Kind::TooManyTasks]);
}

#[test]
fn a_node_with_more_slots_of_a_service_than_it_may_have_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::CrowdedNode), &[Kind::TooManyOnNode]);
}

#[test]
fn another_task_than_the_one_that_a_user_takes_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::WrongShrink), &[Kind::BadLog]);
}

#[test]
fn a_job_that_does_its_work_again_is_found() {
    is_found(within(Focus::Jobs, 20, Fault::JobAgain), &[Kind::WorkedTwice]);
}

#[test]
fn a_job_with_more_tasks_at_once_than_may_be_is_found() {
    is_found(within(Focus::Jobs, 20, Fault::CrowdedJob), &[Kind::TooManyAtOnce]);
}

#[test]
fn a_load_that_is_taken_for_none_because_it_is_not_known_is_found() {
    is_found(within(Focus::Scaling, 40, Fault::SilentTasks), &[Kind::WrongScale]);
}

#[test]
fn control_loops_that_outlive_the_leadership_of_their_manager_are_found() {
    is_found(within(Focus::Splits, 20, Fault::LingeringLoops), &[Kind::LoopsRunOn]);
}

#[test]
fn a_paused_update_that_goes_on_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::DeafPause), &[Kind::WrongUpdate]);
}

#[test]
fn an_update_that_goes_on_after_too_many_failures_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::LenientUpdate), &[Kind::WrongUpdate]);
}

#[test]
fn an_update_that_does_not_wait_for_the_health_of_its_tasks_is_found() {
    is_found(within(Focus::Rollouts, 20, Fault::BlindUpdate), &[Kind::TooFewTasks, Kind::TooManyTasks]);
}

#[test]
fn tasks_that_count_as_healthy_without_a_check_are_found() {
    is_found(within(Focus::Rollouts, 20, Fault::BlindWorker), &[Kind::FalseHealth]);
}

#[test]
fn a_changed_label_of_a_service_that_replaces_its_tasks_is_found() {
    is_found(within(Focus::Labels, 20, Fault::LabelUpdate), &[Kind::NeedlessMove]);
}

#[test]
fn a_task_that_leaves_a_node_for_a_label_that_says_nothing_is_found() {
    is_found(within(Focus::Labels, 20, Fault::JumpyMoves), &[Kind::NeedlessMove]);
}

#[test]
fn data_that_is_left_of_a_removed_volume_is_found() {
    is_found(within(Focus::Volumes, 20, Fault::EarlyForget), &[Kind::VolumeLeft]);
}

#[test]
fn data_that_goes_although_nobody_has_removed_its_volume_is_found() {
    is_found(within(Focus::Volumes, 20, Fault::EagerDrop), &[Kind::VolumeLost]);
}

#[test]
fn a_manager_that_goes_and_leaves_no_majority_is_found() {
    is_found(within(Focus::Roles, 30, Fault::CarelessDeparture), &[Kind::NoMajority]);
}

#[test]
fn a_former_ca_that_counts_for_nothing_too_early_is_found() {
    is_found(within(Focus::Roles, 30, Fault::EarlyCa), &[Kind::CaTooEarly]);
}
