//! The rules of health as tables and as properties. How a runner uses them is tested in `task_runner/tests/health.rs`.

use std::num::NonZeroU32;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use HealthState::{Healthy, Starting, Unhealthy};
use flota_api::model::HealthTest;

const SECOND: Duration = Duration::from_secs(1);

fn check(retries: u32) -> HealthCheck {
    HealthCheck {
        test: HealthTest::Shell("true".into()),
        interval: 30 * SECOND,
        timeout: 10 * SECOND,
        start_period: 20 * SECOND,
        start_interval: 5 * SECOND,
        retries: NonZeroU32::new(retries).expect("not zero"),
    }
}

fn health(state: HealthState, failing_streak: u32) -> Health {
    Health { state, failing_streak, ..Health::default() }
}

#[test]
fn each_result_has_its_consequence() {
    let table = [
        // state, failures, success, age in seconds → state, failures
        (Starting, 0, true, 1, Healthy, 0),
        (Starting, 0, true, 60, Healthy, 0),
        (Starting, 2, true, 60, Healthy, 0),
        (Healthy, 2, true, 60, Healthy, 0),
        // Failures do not count in the start period, which ends at 20 s.
        (Starting, 0, false, 1, Starting, 0),
        (Starting, 0, false, 19, Starting, 0),
        (Starting, 0, false, 20, Starting, 1),
        (Starting, 1, false, 60, Starting, 2),
        (Starting, 2, false, 60, Unhealthy, 3),
        // They do once a check has succeeded.
        (Healthy, 0, false, 1, Healthy, 1),
        (Healthy, 2, false, 1, Unhealthy, 3),
        // An unhealthy container is started again and not healed.
        (Unhealthy, 3, true, 60, Unhealthy, 3),
        (Unhealthy, 3, false, 60, Unhealthy, 3),
    ];
    for (state, failures, success, age, to, counted) in table {
        let judged = judge(&check(3), &health(state, failures), success, age * SECOND);
        assert_eq!(judged, (to, counted), "{state} {failures} {success} {age}");
    }
    assert_eq!(judge(&check(1), &health(Healthy, 0), false, SECOND), (Unhealthy, 1), "one failure may be enough");
}

#[test]
fn checks_are_more_frequent_in_the_start_period_until_the_first_success() {
    let table = [(Starting, 1, 5), (Starting, 19, 5), (Starting, 20, 30), (Healthy, 1, 30), (Healthy, 60, 30)];
    for (state, age, expected) in table {
        assert_eq!(pause(&check(3), state, age * SECOND), expected * SECOND, "{state} {age}");
    }
}

#[test]
fn a_container_is_unhealthy_after_exactly_as_many_failures_in_a_row_as_are_too_many() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..2_000 {
        let check = check(rng.random_range(1..5));
        let (mut health, mut age, mut in_a_row, mut seen) = (Health::default(), Duration::ZERO, 0, false);
        for _ in 0..30 {
            let success = rng.random_bool(0.4);
            seen |= success;
            let counts = seen || age >= check.start_period;
            in_a_row = if success { 0 } else { in_a_row + u32::from(counts) };
            (health.state, health.failing_streak) = judge(&check, &health, success, age);
            assert_eq!(health.failing_streak, in_a_row, "no result counts twice, and none is left out");
            assert_eq!(health.state == Unhealthy, in_a_row >= check.retries.get());
            if health.state == Unhealthy {
                break;
            }
            age += SECOND * rng.random_range(1..10);
        }
    }
}

#[test]
fn the_reason_names_the_last_output_or_else_the_exit_code() {
    let error = |exit_code, output: &str| {
        let result = HealthResult { exit_code, output: output.into(), ..HealthResult::default() };
        unhealthy_error(&Health { log: vec![HealthResult::default(), result], ..Health::default() })
    };
    assert_eq!(error(Some(1), "no database\n"), "unhealthy: no database");
    assert_eq!(error(Some(7), " "), "unhealthy: the check ended with exit code 7");
    assert_eq!(error(None, "the check did not end within 1s"), "unhealthy: the check did not end within 1s");
}
