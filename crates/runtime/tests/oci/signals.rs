//! A runtime that is asked to end, or killed, at any point of what it does.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Bundle, Ran};

/// From the first instruction to after the last: a call takes some 10 ms.
const POINTS: u64 = 30;
const STEP: Duration = Duration::from_micros(350);

/// Calls, and sends a signal after a while that is too short for a timer.
fn interrupted(bundle: &Bundle, verb: &str, signal: Signal, after: Duration) -> Ran {
    let running = bundle.spawn(&mut bundle.make_command(verb, &[]));
    let until = Instant::now() + after;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    running.signal(signal);
    running.wait()
}

fn delays() -> impl Iterator<Item = Duration> {
    (0..POINTS).map(|it| STEP * u32::try_from(it).unwrap())
}

#[test]
fn create_that_is_asked_to_end_leaves_a_whole_container_or_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut bundle = Bundle::new();
        bundle.idle();
        for after in delays() {
            let ran = interrupted(&bundle, "create", signal, after);
            if ran.code == 0 {
                assert_eq!(bundle.status(), "created", "{after:?}");
                bundle.call(&["delete", &bundle.id]).ok();
            }
            bundle.assert_gone();
        }
    }
}

#[test]
fn run_that_is_asked_to_end_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut bundle = Bundle::new();
        // Long enough to be running, and it ends though PID 1 ignores the signal.
        bundle.args(&["sleep", "0.03"]);
        for after in delays() {
            interrupted(&bundle, "run", signal, after);
            bundle.assert_gone();
        }
    }
}

#[test]
fn what_a_killed_create_leaves_delete_removes() {
    let mut bundle = Bundle::new();
    bundle.idle();
    for after in delays() {
        interrupted(&bundle, "create", Signal::SIGKILL, after);
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.assert_gone();
    }
}

#[test]
fn what_a_killed_run_leaves_delete_removes() {
    let mut bundle = Bundle::new();
    bundle.idle();
    for after in delays() {
        interrupted(&bundle, "run", Signal::SIGKILL, after);
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.assert_gone();
    }
}
