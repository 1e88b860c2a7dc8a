//! Why a container could not be made. The text travels from the container's own init to whoever asked.

use std::fmt;

/// A step that failed: what was done, and to what.
#[derive(Debug)]
pub struct StepError {
    act: String,
    source: std::io::Error,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.act, describe(&self.source))
    }
}

impl std::error::Error for StepError {}

/// The kernel's words without "(os error 2)": that is for programmers.
fn describe(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

impl StepError {
    /// A refusal of our own.
    pub fn refuse(act: impl Into<String>, why: impl Into<String>) -> Self {
        Self { act: act.into(), source: std::io::Error::other(why.into()) }
    }

    /// The kernel's error number, where it was the kernel.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Adds the act to an error.
pub(crate) trait Act<T> {
    /// `act` completes the sentence "failed to …".
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<std::io::Error>> Act<T> for Result<T, E> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError { act: act(), source: error.into() })
    }
}

/// Why a container did not start, as its supervisor says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RunError(pub String);
