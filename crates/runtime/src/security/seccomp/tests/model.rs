//! A second, slow evaluation of a profile, against which filters are checked.

use std::collections::BTreeSet;

use super::interpreter::Data;
use crate::oci::{Argument, Seccomp, SyscallRule};
use crate::security::seccomp::actions::{KILL_THREAD, action};
use crate::security::seccomp::architectures::{Architecture, IPC, SOCKETCALL, X32_BIT};
use crate::security::seccomp::calls::{self, Call, Multiplexed};

/// All operators, in libseccomp's order.
pub(super) const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

/// Returns the kernel's value for an action.
pub(super) fn answer_of(name: &str, errno: Option<u32>) -> u32 {
    action("test", ["", ""], name, errno).unwrap()
}

/// A rule that runc passes to `seccomp_rule_add_array`: the rule and name that it comes from, and its text for the
/// reference.
pub(super) struct LibraryRule {
    pub(super) place: usize,
    pub(super) name: String,
    pub(super) line: String,
}

/// Splits a profile into rules as runc does.
pub(super) fn rules_for_library(profile: &Seccomp) -> Vec<LibraryRule> {
    let default = answer_of(&profile.default_action, profile.default_errno_ret);
    let condition = |it: &Argument| {
        let operator = OPERATORS.iter().position(|op| *op == it.op).unwrap() + 1;
        format!(" {} {operator} {} {}", it.index, it.value, it.value_two)
    };
    let mut rules = Vec::new();
    for (place, rule) in profile.syscalls.iter().enumerate() {
        let answer = answer_of(&rule.action, rule.errno_ret);
        if answer == default {
            continue;
        }
        for name in &rule.names {
            for args in alternatives(rule) {
                let conditions: String = args.iter().map(condition).collect();
                let line = format!("rule {answer} {name} {}{conditions}\n", args.len());
                rules.push(LibraryRule { place, name: name.clone(), line });
            }
        }
    }
    rules
}

/// Returns the alternatives of a rule: conditions that repeat an argument are alternatives.
fn alternatives(rule: &SyscallRule) -> Vec<&[Argument]> {
    let distinct: BTreeSet<u32> = rule.args.iter().map(|it| it.index).collect();
    if distinct.len() == rule.args.len() { vec![&rule.args] } else { rule.args.chunks(1).collect() }
}

/// Returns the architecture of a block whose call it is.
pub(super) fn architecture_of(block: &[Architecture], data: &Data) -> Option<Architecture> {
    let is_x32 = data.audit == Architecture::X86_64.audit() && data.number >= X32_BIT;
    let matching = |it: &&Architecture| it.audit() == data.audit && (**it == Architecture::X32) == is_x32;
    block.iter().find(matching).copied()
}

/// Returns the answers of all rules that match, of which a filter may give any, or the default if none matches. An
/// unconditional rule excludes the others.
pub(super) fn possible_answers(profile: &Seccomp, block: &[Architecture], data: &Data) -> Vec<u32> {
    let default = answer_of(&profile.default_action, profile.default_errno_ret);
    let Some(on) = architecture_of(block, data) else {
        // A tracer's -1 belongs to every architecture.
        let skipped = data.number == u32::MAX && block.iter().any(|it| it.audit() == data.audit);
        return vec![if skipped { default } else { KILL_THREAD }];
    };
    let mut answers = Vec::new();
    for rule in &profile.syscalls {
        let answer = answer_of(&rule.action, rule.errno_ret);
        for call in rule.names.iter().filter_map(|it| calls::find(it)).filter(|_| answer != default) {
            for args in alternatives(rule) {
                match matches(call, args, data, on) {
                    Some(Match::Always) => return vec![answer],
                    Some(Match::Conditions) => answers.push(answer),
                    None => {}
                }
            }
        }
    }
    if answers.is_empty() { vec![answer_to_newer(profile, on, data.number).unwrap_or(default)] } else { answers }
}

/// Returns the answer to a call that is newer than all that the profile names, as runc adds it to libseccomp's filter;
/// `None` for other calls.
pub(super) fn answer_to_newer(profile: &Seccomp, on: Architecture, number: u32) -> Option<u32> {
    answer_above(profile, on, newest(profile, on), number)
}

/// Returns the same, if `newest` is the newest call that the profile names.
pub(super) fn answer_above(profile: &Seccomp, on: Architecture, newest: Option<u32>, number: u32) -> Option<u32> {
    let permissive = ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"].contains(&profile.default_action.as_str());
    let is_newer = !permissive && newest.is_some_and(|newest| number > newest && number < end(on));
    is_newer.then(|| answer_of("SCMP_ACT_ERRNO", Some(libc::ENOSYS.unsigned_abs())))
}

/// Returns the number of the newest call that the profile names.
pub(super) fn newest(profile: &Seccomp, on: Architecture) -> Option<u32> {
    let mut newest = None;
    for call in profile.syscalls.iter().flat_map(|it| &it.names).filter_map(|it| calls::find(it)) {
        let through = match call.multiplexed.filter(|_| on.multiplexes()) {
            Some(Multiplexed::Socket(_)) => Some(SOCKETCALL),
            Some(Multiplexed::Ipc(_)) => Some(IPC),
            None => None,
        };
        newest = newest.max(call.number(on).filter(|it| *it < end(on))).max(through);
    }
    newest
}

/// Returns the number at which the architecture's ordinary calls end.
fn end(on: Architecture) -> u32 {
    match on {
        Architecture::X86_64 => X32_BIT,
        Architecture::Arm => 0xf_0000,
        _ => u32::MAX,
    }
}

enum Match {
    Always,
    Conditions,
}

fn matches(call: &Call, args: &[Argument], data: &Data, on: Architecture) -> Option<Match> {
    let through = match call.multiplexed.filter(|_| on.multiplexes()) {
        Some(Multiplexed::Socket(place)) if data.number == SOCKETCALL => Some(place),
        Some(Multiplexed::Ipc(place)) if data.number == IPC => Some(place),
        _ => None,
    };
    if through.is_none() && call.number(on) != Some(data.number) {
        return None;
    }
    if through.is_some_and(|place| narrow(data.arguments[0], on) != u64::from(place)) {
        return None;
    }
    let means_something = |it: &&Argument| it.op != "SCMP_CMP_MASKED_EQ" || narrow(it.value, on) != 0;
    let looks = |it: &&Argument| through.is_none() || it.index != 0;
    let mut args = args.iter().filter(looks).filter(means_something).peekable();
    if args.peek().is_none() && through.is_none() {
        return Some(Match::Always);
    }
    args.all(|it| holds(it, data, on)).then_some(Match::Conditions)
}

fn narrow(value: u64, on: Architecture) -> u64 {
    if on.is_wide() { value } else { value & 0xffff_ffff }
}

fn holds(it: &Argument, data: &Data, on: Architecture) -> bool {
    let [left, right, second] = [data.arguments[it.index as usize], it.value, it.value_two].map(|it| narrow(it, on));
    match it.op.as_str() {
        "SCMP_CMP_NE" => left != right,
        "SCMP_CMP_LT" => left < right,
        "SCMP_CMP_LE" => left <= right,
        "SCMP_CMP_EQ" => left == right,
        "SCMP_CMP_GE" => left >= right,
        "SCMP_CMP_GT" => left > right,
        _ => left & right == second & right,
    }
}
