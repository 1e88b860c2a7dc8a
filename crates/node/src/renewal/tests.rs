use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const ISSUED: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

fn validity(life: Duration) -> Validity {
    Validity { issued_at: ISSUED, expires_at: ISSUED + life }
}

#[test]
fn nodes_renew_at_points_of_their_own_between_half_and_four_fifths_of_the_life() {
    for life in [HOUR, HOUR * 24 * 90] {
        let waits: Vec<f64> = (0..1_000)
            .map(|seed| {
                let schedule = Schedule::new(validity(life), ISSUED, &mut StdRng::seed_from_u64(seed));
                schedule.wait(ISSUED).as_secs_f64() / life.as_secs_f64()
            })
            .collect();
        assert!(waits.iter().all(|it| (0.499..=0.801).contains(it)));
        let in_tenths = |from: f64| waits.iter().filter(|it| (from..from + 0.1).contains(*it)).count();
        assert!([0.5, 0.6, 0.7].into_iter().all(|from| in_tenths(from) > 250), "they spread");
    }
}

#[test]
fn a_certificate_is_due_once_its_point_is_reached_and_stays_due_when_it_has_expired() {
    let schedule = Schedule { point: 0.6, ..Schedule::new(validity(HOUR), ISSUED, &mut StdRng::seed_from_u64(1)) };
    let minutes = |count: u64| ISSUED + Duration::from_secs(count * 60);
    assert_eq!(schedule.wait(minutes(30)), Duration::from_secs(6 * 60));
    assert_eq!(schedule.wait(minutes(36)), Duration::ZERO);
    assert!(!schedule.has_expired(minutes(59)) && schedule.has_expired(minutes(60)));
    assert_eq!(schedule.wait(minutes(60 * 24 * 300)), Duration::ZERO, "it was off for long");
}

#[test]
fn a_clock_that_is_off_changes_nothing_while_the_daemon_runs() {
    for off in [ISSUED + HOUR * 5, Timestamp(ISSUED.0 - 5 * 3_600_000)] {
        let schedule = Schedule::new(validity(HOUR), off, &mut StdRng::seed_from_u64(1));
        assert_eq!(schedule.wait(off).as_millis(), HOUR.mul_f64(schedule.point).as_millis());
        assert!(!schedule.has_expired(off));
    }
}

#[test]
fn a_certificate_from_the_future_is_due_at_once_also_after_a_restart() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut schedule = Schedule::new(validity(HOUR * 24 * 90), ISSUED, &mut rng);
    let before = |time: Duration| Timestamp(ISSUED.0 - u64::try_from(time.as_millis()).expect("it is small"));
    assert!(schedule.wait(before(CLOCK_SKEW)) > HOUR, "others take it");
    let now = before(CLOCK_SKEW * 365);
    assert_eq!(schedule.wait(now), Duration::ZERO);
    schedule.failed(now, &mut rng);
    assert!(!schedule.wait(now).is_zero(), "and after a pause again");
}

#[test]
fn a_clock_that_was_not_set_yet_makes_no_certificate_due() {
    let schedule = Schedule::new(validity(HOUR * 24 * 90), ISSUED, &mut StdRng::seed_from_u64(1));
    for boot in [Timestamp(0), Timestamp(SOONEST.0 - 1)] {
        assert!(schedule.wait(boot) > HOUR, "{boot}");
    }
    assert_eq!(schedule.wait(SOONEST), Duration::ZERO, "one that is set is believed");
}

#[test]
fn a_node_that_is_told_to_renew_does_so_soon_and_pauses_after_failures_all_the_same() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut schedule = Schedule::new(validity(HOUR), ISSUED, &mut rng);
    assert!(schedule.wait(ISSUED) > TOLD_SPREAD);
    schedule.told(ISSUED, &mut rng);
    assert!(schedule.wait(ISSUED) <= TOLD_SPREAD);
    let step_back = Timestamp(ISSUED.0 - 3_600_000);
    assert!(schedule.wait(step_back) <= TOLD_SPREAD, "the clock has stepped back");
    assert!(schedule.wait(ISSUED + TOLD_SPREAD).is_zero());
    (0..10).for_each(|_| schedule.failed(ISSUED + TOLD_SPREAD, &mut rng));
    assert!(schedule.wait(ISSUED + TOLD_SPREAD) > TOLD_SPREAD);
    let due = Schedule { point: 0.0, told_for: Some(ISSUED + TOLD_SPREAD), pause_until: None, ..schedule };
    assert!(due.wait(ISSUED).is_zero(), "it is due anyway");
}

#[test]
fn pauses_grow_and_stay_short_beside_the_life_of_the_certificate() {
    let mut rng = StdRng::seed_from_u64(1);
    for (life, longest) in [(HOUR, Duration::from_secs(72)), (HOUR * 24 * 90, MOST_PAUSE)] {
        let mut schedule = Schedule::new(validity(life), ISSUED, &mut rng);
        let now = ISSUED + life.mul_f64(LATEST);
        let pauses: Vec<Duration> = (0..40)
            .map(|_| {
                schedule.failed(now, &mut rng);
                schedule.wait(now)
            })
            .collect();
        assert!(pauses[0] <= LEAST_PAUSE && !pauses[0].is_zero());
        assert!(pauses.iter().all(|it| *it <= longest), "{pauses:?}");
        assert!(pauses[20..].iter().all(|it| *it >= longest.mul_f64(0.49)), "{pauses:?}");
    }
}

#[test]
fn a_clock_that_steps_back_during_a_pause_does_not_make_it_longer() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut schedule = Schedule::new(validity(HOUR), ISSUED, &mut rng);
    schedule.failed(ISSUED + HOUR * 24, &mut rng);
    assert!(schedule.wait(ISSUED + HOUR) <= MOST_PAUSE);
}

#[test]
fn a_judgement_is_final_and_an_answer_that_may_change_is_not() {
    let refused = Reason::Denied.attach(tonic::Status::permission_denied("not you"));
    assert!(matches!(outcome(Err(refused)), Err(RenewError::Refused(why)) if why == "not you"));
    let later = Reason::NoLeader.attach(tonic::Status::unavailable("no leader"));
    assert!(matches!(outcome(Err(later)), Err(RenewError::Unanswered(_))));
    assert!(matches!(outcome(Err(tonic::Status::unavailable("reset"))), Err(RenewError::Unanswered(_))));
}
