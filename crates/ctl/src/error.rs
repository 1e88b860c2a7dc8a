//! What went wrong, as users read it, and the exit code that it has: computed here alone.
#![expect(clippy::print_stderr, reason = "errors go to standard error")]

use std::process::ExitCode;

use tonic::{Code, Status};

/// 0 done · 1 failed · 2 wrong usage · 3 not found · 4 conflict · 5 no manager reachable or no quorum.
pub(crate) const UNREACHABLE: u8 = 5;
pub(crate) const CONFLICT: u8 = 4;
pub(crate) const NOT_FOUND: u8 = 3;
/// As a shell reports a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// The user ended the waiting with Ctrl-C; the change itself was accepted before.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: the change goes on in the background")]
pub(crate) struct Interrupted;

/// What was wrong with how the command was used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Refuses a command that names nothing to act on.
pub(crate) fn named(names: &[String]) -> Result<(), Usage> {
    if names.is_empty() { Err(Usage("say which: give at least one name".into())) } else { Ok(()) }
}

/// A next step for the user.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Hinted {
    pub(crate) error: anyhow::Error,
    pub(crate) hint: String,
}

/// The exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return 2;
        }
        if cause.is::<Interrupted>() {
            return INTERRUPTED;
        }
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return code(&hinted.error);
        }
        if let Some(status) = cause.downcast_ref::<Failed>() {
            return match status.0.code() {
                Code::NotFound => NOT_FOUND,
                Code::AlreadyExists | Code::Aborted => CONFLICT,
                Code::Unavailable | Code::DeadlineExceeded => UNREACHABLE,
                _ => 1,
            };
        }
    }
    1
}

/// What a manager or the node answered.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub(crate) struct Failed(pub(crate) Status);

/// Prints the error; the exit code.
pub(crate) fn say(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        // Below the line of progress that is still on the terminal.
        eprintln!("\n{error}");
        return ExitCode::from(INTERRUPTED);
    }
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()).map(|it| it.hint.clone());
    eprintln!("error: {error:#}");
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code(error))
}
