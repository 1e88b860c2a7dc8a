//! Errors of creating a container. Their text travels from the container's own init to the caller.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit code for a missing program, as in a shell.
pub const NOT_FOUND: i32 = 127;
/// Exit code for a program that can't be executed, as in a shell.
pub const NOT_EXECUTABLE: i32 = 126;

/// A failed step: what was done, and to what.
#[derive(Debug)]
pub struct StepError {
    act: String,
    source: std::io::Error,
    /// The exit code of a shell, if the program itself is the cause.
    code: Option<i32>,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.act, kernel_words(&self.source))
    }
}

impl std::error::Error for StepError {}

/// Returns the system's error text without "(os error 2)".
pub(crate) fn kernel_words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

impl StepError {
    /// Returns an error for a refusal by the runtime itself.
    pub fn refuse(act: impl Into<String>, why: impl Into<String>) -> Self {
        Self { act: act.into(), source: std::io::Error::other(why.into()), code: None }
    }

    /// Returns the kernel's error number, if the error came from the kernel.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Adds the surrounding operation in front of the error.
    #[must_use]
    pub fn within(self, act: impl Into<String>) -> Self {
        let why = format!("{}: {}", self.act, kernel_words(&self.source));
        Self { act: act.into(), source: std::io::Error::other(why), code: self.code }
    }

    /// Marks the error as caused by the program itself, with this exit code.
    #[must_use]
    pub fn with_code(self, code: i32) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Returns [`NOT_FOUND`] or [`NOT_EXECUTABLE`] if the program itself is the cause.
    pub fn code(&self) -> Option<i32> {
        self.code
    }
}

/// Adds the failed action to an error.
pub(crate) trait Act<T> {
    /// `act` completes the sentence "failed to …".
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<std::io::Error>> Act<T> for Result<T, E> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| StepError { act: act(), source: error.into(), code: None })
    }
}

/// Why a container or a process did not start, as the process that tried reports it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{text}")]
pub struct RunError {
    /// The text, one line.
    pub text: String,
    /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`] if the program itself is the cause.
    pub code: Option<i32>,
}

impl From<StepError> for RunError {
    fn from(error: StepError) -> Self {
        Self { text: error.to_string(), code: error.code() }
    }
}

impl RunError {
    /// Returns an error of the runtime itself.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: None }
    }
}
