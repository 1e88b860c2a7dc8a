//! Why a container could not be made. The text travels from the container's own init to whoever asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The exit code for a program that is not there, as a shell has it.
pub const NOT_FOUND: i32 = 127;
/// For one that can't be run.
pub const NOT_EXECUTABLE: i32 = 126;

/// A step that failed: what was done, and to what.
#[derive(Debug)]
pub struct StepError {
    act: String,
    source: std::io::Error,
    /// What a shell would end with, where the program itself is what failed.
    code: Option<i32>,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.act, kernel_words(&self.source))
    }
}

impl std::error::Error for StepError {}

/// The kernel's words without "(os error 2)": that is for programmers.
pub(crate) fn kernel_words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

impl StepError {
    /// A refusal of our own.
    pub fn refuse(act: impl Into<String>, why: impl Into<String>) -> Self {
        Self { act: act.into(), source: std::io::Error::other(why.into()), code: None }
    }

    /// The kernel's error number, where it was the kernel.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The same with what it was a part of in front.
    #[must_use]
    pub fn within(self, act: impl Into<String>) -> Self {
        let why = format!("{}: {}", self.act, kernel_words(&self.source));
        Self { act: act.into(), source: std::io::Error::other(why), code: self.code }
    }

    /// The same, of the program itself.
    #[must_use]
    pub fn with_code(self, code: i32) -> Self {
        Self { code: Some(code), ..self }
    }

    /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`], where the program itself is what failed.
    pub fn code(&self) -> Option<i32> {
        self.code
    }
}

/// Adds the act to an error.
pub(crate) trait Act<T> {
    /// `act` completes the sentence "failed to …".
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<std::io::Error>> Act<T> for Result<T, E> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError { act: act(), source: error.into(), code: None })
    }
}

/// Why a container or a process did not start, as the process reports it that tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{text}")]
pub struct RunError {
    /// One line.
    pub text: String,
    /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`], where the program itself is what failed.
    pub code: Option<i32>,
}

impl From<StepError> for RunError {
    fn from(error: StepError) -> Self {
        Self { text: error.to_string(), code: error.code() }
    }
}

impl RunError {
    /// Of the runtime's own.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: None }
    }
}
