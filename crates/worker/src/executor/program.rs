//! The behaviour of the containers that `FakeExecutor` simulates: how long each act takes, what fails, and how the
//! program reacts to a request to stop. A test sets it for a service, an image or a task (`FakeMachine::set_program`).

use std::time::Duration;

/// The behaviour of the containers of a service, of an image or of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeProgram {
    /// Time until the image is present.
    pub prepare_delay: Duration,
    /// The failure of fetching the image, if any. The task is rejected after some tries, unless a later one succeeds.
    pub prepare_failure: Option<FakeFailure>,
    /// Time until the container runs.
    pub start_delay: Duration,
    /// The failure of the container's start, if any. One that always occurs is final; after any other, another try may
    /// succeed.
    pub start_failure: Option<FakeFailure>,
    /// Time until the daemon learns that the container runs. A daemon that is killed in that time leaves a container
    /// that it has not recorded as running.
    pub answer_delay: Duration,
    /// Time until the program ends by itself; `None` if it runs until it is stopped.
    pub runs: Option<Duration>,
    /// Exit code of the program when it ends by itself.
    pub exit_code: i32,
    /// Reaction of the program to a request to stop.
    pub on_stop: OnStop,
    /// The result of health checks.
    pub health: FakeHealth,
    /// The CPU that it uses, in 10^-9 cores. A running program has that of the program that is set now.
    pub nano_cpus: u64,
    /// The memory that it uses, in bytes.
    pub memory_bytes: u64,
    /// The failure of sending a signal to the container, if any.
    pub signal_failure: Option<FakeFailure>,
    /// Time until what the program has sent has arrived, once it has ended.
    pub flush_delay: Duration,
    /// Time that the removal of an ended container's data takes.
    pub undo_delay: Duration,
    /// The failure of that removal, if any.
    pub undo_failure: Option<FakeFailure>,
}

/// An action on a task that fails, always or a number of times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeFailure {
    /// Text of the error.
    pub error: String,
    /// Number of failures for each task before it succeeds; `None` if it always fails.
    pub times: Option<u32>,
}

impl FakeFailure {
    /// Returns a failure that always occurs.
    pub fn always(error: &str) -> Self {
        Self { error: error.to_owned(), times: None }
    }

    /// Returns a failure that occurs the first `times` times for each task.
    pub fn first(times: u32, error: &str) -> Self {
        Self { error: error.to_owned(), times: Some(times) }
    }
}

impl Default for FakeProgram {
    /// Returns a program that starts at once, runs until it is stopped, and stops at once.
    fn default() -> Self {
        Self {
            prepare_delay: Duration::ZERO,
            prepare_failure: None,
            start_delay: Duration::ZERO,
            start_failure: None,
            answer_delay: Duration::ZERO,
            runs: None,
            exit_code: 0,
            on_stop: OnStop::Exit { after: Duration::ZERO, code: 143 },
            health: FakeHealth::Good,
            nano_cpus: 0,
            memory_bytes: 0,
            signal_failure: None,
            flush_delay: Duration::ZERO,
            undo_delay: Duration::ZERO,
            undo_failure: None,
        }
    }
}

/// The reaction of a program to a request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// It ends.
    Exit {
        /// Time until it ends.
        after: Duration,
        /// Its exit code.
        code: i32,
    },
    /// It continues until it is killed.
    Ignore,
    /// It continues until everything in its control groups is killed, as one whose supervisor hangs.
    Hang,
}

/// The result of the health checks of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeHealth {
    /// They succeed.
    Good,
    /// They succeed from this age of the container on.
    From(Duration),
    /// They succeed up to this age.
    Until(Duration),
    /// They do not end.
    Hangs,
}
