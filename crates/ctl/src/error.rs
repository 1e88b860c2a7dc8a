//! Errors as users read them, and their exit codes, which are computed only here.
#![expect(clippy::print_stderr, reason = "errors go to standard error")]

use std::process::ExitCode;

use flota_api::model::ServiceSpec;
use flota_api::reason::Reason;
use flota_api::text::printable_lines;
use flota_api::validate::violations;
use tonic::{Code, Status};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const UNREACHABLE: u8 = 5;
/// Exit code after SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// Maps the reason of a refusal to the exit code. This is the only such table.
fn exit_code(reason: Reason) -> u8 {
    match reason {
        Reason::NotAManager
        | Reason::Invalid
        | Reason::WrongState
        | Reason::TooLarge
        | Reason::InUse
        | Reason::NodeLeads
        | Reason::NodeIsManager
        | Reason::NodeNotDown
        | Reason::TaskUnreachable
        | Reason::MajorityNeeded
        | Reason::Denied
        | Reason::BadToken
        | Reason::EventsGone
        | Reason::ReaderTooSlow
        | Reason::NodeNotReady
        | Reason::NodeRemoved => FAILED,
        Reason::Ambiguous | Reason::UnknownFilter => USAGE,
        Reason::NotFound | Reason::RemovedMeanwhile => NOT_FOUND,
        Reason::AlreadyExists | Reason::ChangedMeanwhile | Reason::RefusedBefore => CONFLICT,
        Reason::Starting
        | Reason::NoLeader
        | Reason::LeadershipMoved
        | Reason::Unproven
        | Reason::OutcomeUnknown
        | Reason::NoClusterYet
        | Reason::Locked
        | Reason::Busy => UNREACHABLE,
    }
}

/// The user ended the wait with Ctrl-C; the change itself was already accepted.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: the change continues in the background")]
pub(crate) struct Interrupted;

/// The command was used wrongly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Returns a usage error if a command names no object to act on.
pub(crate) fn named(names: &[String]) -> Result<(), Usage> {
    if names.is_empty() { Err(Usage("no name is given: give at least one".into())) } else { Ok(()) }
}

/// Fails with all errors of these at once, if there are any. That is a wrong usage if one of them is.
pub(crate) fn all(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut errors: Vec<anyhow::Error> = results.into_iter().filter_map(Result::err).collect();
    if errors.len() < 2 {
        return errors.pop().map_or(Ok(()), Err);
    }
    let text = errors.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ");
    if errors.iter().any(|error| code(error) == USAGE) {
        Err(Usage(text).into())
    } else {
        Err(anyhow::Error::msg(text))
    }
}

/// Fails if flags of a spec are wrong, with the rules that the spec breaks without them. A manager judges a spec whose flags
/// are right.
pub(crate) fn all_of_spec(flags: anyhow::Result<()>, spec: &ServiceSpec) -> anyhow::Result<()> {
    if flags.is_err() { judged(flags, spec) } else { Ok(()) }
}

/// Fails with what is wrong with the flags of a spec, and with the rules that the spec breaks.
pub(crate) fn judged(flags: anyhow::Result<()>, spec: &ServiceSpec) -> anyhow::Result<()> {
    let broken = violations(spec).into_iter().map(|it| Err(Usage(it.to_string()).into()));
    all(std::iter::once(flags).chain(broken))
}

/// A refusal by `ctl` itself.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refused {
    /// The reason, which determines the exit code.
    pub(crate) reason: Reason,
    /// The message for the user.
    pub(crate) text: String,
}

/// A refusal by a manager or by the node.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub(crate) struct Failed(pub(crate) Status);

/// An error with a hint at the next step.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Hinted {
    pub(crate) error: anyhow::Error,
    pub(crate) hint: String,
}

/// Returns the reason of an error, if it is a refusal with a reason.
pub(crate) fn reason(error: &anyhow::Error) -> Option<Reason> {
    error.chain().find_map(|cause| {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Some(refused.reason);
        }
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return reason(&hinted.error);
        }
        cause.downcast_ref::<Failed>().and_then(|failed| Reason::of(&failed.0))
    })
}

/// Returns whether no manager could be reached, or none was able to answer.
pub(crate) fn is_unreachable(error: &anyhow::Error) -> bool {
    code(error) == UNREACHABLE
}

/// Returns the exit code of an error.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if let Some(reason) = reason(error) {
        return exit_code(reason);
    }
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return USAGE;
        }
        if cause.is::<Interrupted>() {
            return INTERRUPTED;
        }
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return code(&hinted.error);
        }
        if let Some(Failed(status)) = cause.downcast_ref::<Failed>() {
            // A status without a reason comes from the connection, or from a node that does not reach a manager.
            let lost = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
            return if lost { UNREACHABLE } else { FAILED };
        }
    }
    FAILED
}

/// Prints the error and returns the exit code.
pub(crate) fn print(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        // The message goes below the line of progress that is still on the terminal.
        eprintln!("\n{error}");
        return ExitCode::from(INTERRUPTED);
    }
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()).map(|it| it.hint.clone());
    eprintln!("error: {}", printable_lines(&format!("{error:#}")));
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code(error))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// Checks the exit code that docs/cli.md gives to each reason.
    #[test]
    fn every_reason_has_the_exit_code_of_the_contract() {
        let wanted = |reason: Reason| match format!("{reason:?}").as_str() {
            "Ambiguous" | "UnknownFilter" => 2,
            "NotFound" | "RemovedMeanwhile" => 3,
            "AlreadyExists" | "ChangedMeanwhile" | "RefusedBefore" => 4,
            "Starting" | "NoLeader" | "LeadershipMoved" | "Unproven" | "OutcomeUnknown" | "NoClusterYet" | "Busy"
            | "Locked" => 5,
            _ => 1,
        };
        for reason in Reason::ALL {
            // The reason decides, not the gRPC code.
            let failed = anyhow::Error::new(Failed(reason.attach(Status::internal("text"))));
            let hinted = Hinted { error: failed, hint: "hint".into() };
            let error = anyhow::Error::new(hinted).context("failed to do it");
            assert_eq!(code(&error), wanted(*reason), "{reason:?}");
            let local = anyhow::Error::new(Refused { reason: *reason, text: "text".into() });
            assert_eq!(code(&local), wanted(*reason), "{reason:?}");
        }
    }

    #[test]
    fn an_error_without_a_reason_has_the_exit_code_of_its_kind() {
        let of = |error: anyhow::Error| code(&error);
        assert_eq!(of(Failed(Status::unavailable("the connection broke")).into()), 5);
        assert_eq!(of(Failed(Status::failed_precondition("no")).into()), 1);
        assert_eq!(of(Err::<(), _>(Usage("no".into())).context("failed").expect_err("it is one")), 2);
        assert_eq!(of(Interrupted.into()), 130);
        assert_eq!(of(anyhow::anyhow!("no")), 1);
    }
}
