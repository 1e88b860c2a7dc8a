//! The names in a profile other than those of calls: actions, operators, flags and architectures, with the kernel's
//! values for them (seccomp(2), linux/seccomp.h).

use super::architectures::{ALL, Architecture};
use super::refuse;
use crate::error::StepError;

/// Kills the thread. It is also the answer for an architecture that the filter does not have.
pub(super) const KILL_THREAD: u32 = 0;
/// Fails the call.
pub(super) const ERRNO: u32 = 0x0005_0000;
/// Notifies a supervisor in user space.
pub(super) const NOTIFY: u32 = 0x7fc0_0000;
/// Notifies a tracer.
const TRACE: u32 = 0x7ff0_0000;
/// Allows the call.
const ALLOW: u32 = 0x7fff_0000;
/// Allows the call and logs it.
const LOG: u32 = 0x7ffc_0000;

/// Mask of the action in an answer; the other bits are its data.
pub(super) const ACTION: u32 = 0xffff_0000;

const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", ALLOW),
    ("SCMP_ACT_ERRNO", ERRNO),
    ("SCMP_ACT_KILL", KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
    ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
    ("SCMP_ACT_LOG", LOG),
    ("SCMP_ACT_NOTIFY", NOTIFY),
    ("SCMP_ACT_TRACE", TRACE),
    ("SCMP_ACT_TRAP", 0x0003_0000),
];

/// Applies the filter to every thread.
pub(super) const TSYNC: u32 = 1 << 0;
/// Disables speculation mitigations for the filter.
pub(super) const SPEC_ALLOW: u32 = 1 << 2;
/// Returns a descriptor that receives notified calls.
pub(super) const NEW_LISTENER: u32 = 1 << 3;
/// Reports a thread that can't be synchronised as ESRCH, so that the result can hold the descriptor.
pub(super) const TSYNC_ESRCH: u32 = 1 << 4;
/// Lets only fatal signals interrupt a notified call.
pub(super) const WAIT_KILLABLE_RECV: u32 = 1 << 5;

const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE_RECV),
];

/// All flags that a filter may pass to the kernel.
pub(super) const ALL_FLAGS: u32 = 0x3f & !(NEW_LISTENER | TSYNC_ESRCH);

/// Comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `==`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
    /// `& mask ==`
    MaskedEqual,
}

const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
    ("SCMP_CMP_NE", Operator::NotEqual),
];

fn find<T: Copy>(list: &[(&str, T)], name: &str, field: impl FnOnce() -> String, what: &str) -> Result<T, StepError> {
    let found = list.iter().find(|it| it.0 == name).map(|it| it.1);
    found.ok_or_else(|| refuse(format!("{}: unknown {what} `{name}`", field())))
}

/// Returns the kernel's answer for an action. `at` is the path of the object that holds the fields.
pub(super) fn action(at: &str, fields: [&str; 2], name: &str, errno: Option<u32>) -> Result<u32, StepError> {
    let action = find(&ACTIONS, name, || format!("{at}.{}", fields[0]), "action")?;
    // As in runc: the default is EPERM, and a number that the action does not use is ignored.
    if action != ERRNO && action != TRACE {
        return Ok(action);
    }
    match errno {
        None => Ok(action | libc::EPERM.unsigned_abs()),
        Some(number) if number <= u32::from(u16::MAX) => Ok(action | number),
        Some(number) => Err(refuse(format!("{at}.{}: {number} is larger than {}", fields[1], u16::MAX))),
    }
}

/// Returns whether an answer lets the call happen, or leaves it to a tracer, which can handle calls that it does not know.
pub(super) fn is_permissive(answer: u32) -> bool {
    matches!(answer & ACTION, ALLOW | LOG | TRACE)
}

/// Returns the operator with that name.
pub(super) fn operator(name: &str, field: impl FnOnce() -> String) -> Result<Operator, StepError> {
    find(&OPERATORS, name, field, "operator")
}

/// Returns the kernel's flags for those of a profile.
pub(super) fn flags(names: &[String]) -> Result<u32, StepError> {
    // This is runc's and crun's default.
    if names.is_empty() {
        return Ok(SPEC_ALLOW);
    }
    let one = |(index, name): (usize, &String)| find(&FLAGS, name, || format!("linux.seccomp.flags[{index}]"), "flag");
    names.iter().enumerate().map(one).try_fold(0, |all, flag| Ok(all | flag?))
}

/// Returns the architectures of a profile's list: the native one first, whether listed or not.
pub(super) fn architectures(names: &[String], native: Architecture) -> Result<Vec<Architecture>, StepError> {
    let mut all = vec![native];
    for (index, name) in names.iter().enumerate() {
        let field = || format!("linux.seccomp.architectures[{index}]");
        let Some(found) = ALL.into_iter().find(|it| it.name() == name) else {
            return Err(refuse(format!("{}: unknown architecture `{name}`", field())));
        };
        if found.is_big_endian() != native.is_big_endian() {
            return Err(refuse(format!("{}: `{name}` has another byte order than this machine", field())));
        }
        if !all.contains(&found) {
            all.push(found);
        }
    }
    Ok(all)
}

/// Returns the names of all actions, as the command `features` lists them.
pub(crate) fn known_actions() -> Vec<&'static str> {
    ACTIONS.iter().map(|it| it.0).collect()
}

/// Returns the names of all operators.
pub(crate) fn known_operators() -> Vec<&'static str> {
    OPERATORS.iter().map(|it| it.0).collect()
}

/// Returns the names of all architectures that a filter can have.
pub(crate) fn known_architectures() -> Vec<&'static str> {
    let mut names: Vec<_> = ALL.iter().map(|it| it.name()).collect();
    names.sort_unstable();
    names
}

/// Returns the names of all flags.
pub(crate) fn known_flags() -> Vec<&'static str> {
    FLAGS.iter().map(|it| it.0).collect()
}
