//! Computes the answer for each call's number from a profile: which rules are ignored, and which one applies.
//!
//! This follows runc's handling of a profile (libcontainer/seccomp/seccomp_linux.go) and libseccomp's handling of the
//! result (src/db.c). If two rules of one call can match, their order in the profile does not matter: an unconditional
//! rule always wins, the first of several; otherwise the rule that is first in libseccomp's tree wins.

use std::cmp::Reverse;

use super::actions::{ERRNO, NOTIFY, Operator, action, is_permissive};
use super::architectures::Architecture;
use super::calls::{Call, Multiplexed, find};
use super::conditions::Condition;
use super::{MAX_INSTRUCTIONS, refuse};
use crate::error::StepError;
use crate::oci::{Seccomp, SyscallRule};

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same answer in all cases.
    Always(u32),
    /// The first rule whose conditions all hold, else the default. The architecture determines the width of arguments.
    First(Architecture, Vec<Rule>),
}

/// An answer with at least one condition; the conditions are sorted by argument.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) answer: u32,
    pub(super) conditions: Vec<Condition>,
    /// Its position in the profile, for errors.
    place: usize,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.answer == other.answer && self.conditions == other.conditions
    }
}

impl Eq for Rule {}

/// A profile's rules, parsed once for all architectures.
pub(super) struct Rules<'a> {
    /// The answer for calls that no rule names.
    pub(super) default: u32,
    /// Names that no architecture has.
    pub(super) warnings: Vec<String>,
    rules: Vec<Rule>,
    calls: Vec<Named<'a>>,
    /// Every call that the profile names, also with the default action.
    known: Vec<&'static Call>,
}

/// A call that a rule names.
struct Named<'a> {
    name: &'a str,
    call: &'static Call,
    rule: usize,
}

/// One rule for one number.
struct Entry {
    number: u32,
    rule: usize,
    named: usize,
    on: Architecture,
    /// Required value of a multiplexing call's first argument.
    through: Option<u8>,
}

/// Parses the rules of a profile.
pub(super) fn read(profile: &Seccomp) -> Result<Rules<'_>, StepError> {
    let fields = ["defaultAction", "defaultErrnoRet"];
    let default = action("linux.seccomp", fields, &profile.default_action, profile.default_errno_ret)?;
    if default == NOTIFY {
        // As in runc: no process could pass the descriptor on.
        return Err(refuse("linux.seccomp.defaultAction: SCMP_ACT_NOTIFY can't be the default action".into()));
    }
    let mut read = Rules {
        default,
        warnings: Vec::new(),
        rules: Vec::new(),
        calls: Vec::with_capacity(512),
        known: Vec::with_capacity(512),
    };
    for (place, rule) in profile.syscalls.iter().enumerate() {
        read.add(place, rule)?;
    }
    Ok(read)
}

impl<'a> Rules<'a> {
    fn add(&mut self, place: usize, rule: &'a SyscallRule) -> Result<(), StepError> {
        let at = format!("linux.seccomp.syscalls[{place}]");
        let answer = action(&at, ["action", "errnoRet"], &rule.action, rule.errno_ret)?;
        let read = |(index, it)| Condition::read(it, || format!("{at}.args[{index}]"));
        let mut conditions = rule.args.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        if let Some(index) = rule.names.iter().position(String::is_empty) {
            return Err(refuse(format!("{at}.names[{index}]: an empty name")));
        }
        if answer == NOTIFY && rule.names.iter().any(|it| it == "write") {
            // As in runc: the process writes to pass the descriptor on before any agent listens to it.
            return Err(refuse(format!("{at}.action: SCMP_ACT_NOTIFY cannot be used for the write syscall")));
        }
        self.known.extend(rule.names.iter().filter_map(|it| find(it)));
        if answer == self.default {
            return Ok(());
        }
        let first = self.rules.len();
        let repeated = |(index, it): (usize, &Condition)| conditions[..index].iter().any(|e| e.argument == it.argument);
        // As in runc: if conditions repeat an argument, all of the rule's conditions are alternatives.
        if conditions.iter().enumerate().any(repeated) {
            self.rules.extend(conditions.iter().map(|it| Rule { answer, conditions: vec![*it], place }));
        } else {
            conditions.sort_by_key(|it| it.argument);
            self.rules.push(Rule { answer, conditions, place });
        }
        for (index, name) in rule.names.iter().enumerate() {
            match find(name) {
                None => self.warnings.push(format!("{at}.names[{index}]: no architecture has the call `{name}`")),
                Some(call) => self.calls.extend((first..self.rules.len()).map(|rule| Named { name, call, rule })),
            }
        }
        Ok(())
    }

    /// Returns the newest call of an architecture that the profile names. If there is none, nothing is newer.
    pub(super) fn newest(&self, on: Architecture) -> Option<u32> {
        let through = |it: &Call| it.multiplexed.filter(|_| on.multiplexes()).map(|it| it.number());
        let numbers = self.known.iter().flat_map(|it| [it.number(on), through(it)]).flatten();
        numbers.filter(|it| *it < on.end()).max()
    }

    /// Returns the answer for calls that are newer than the profile: ENOSYS, after which C libraries use an older call,
    /// unless the profile allows what it does not name. runc adds this to libseccomp's filter, too
    /// (libcontainer/seccomp/patchbpf).
    pub(super) fn answer_for_newer(&self) -> u32 {
        if is_permissive(self.default) { self.default } else { ERRNO | libc::ENOSYS.unsigned_abs() }
    }

    /// Returns the verdicts for all numbers of a block of architectures with the same audit number, in order.
    pub(super) fn verdicts(&self, block: &[Architecture]) -> Result<Vec<(u32, Verdict)>, StepError> {
        let mut entries = Vec::with_capacity(self.calls.len() * block.len());
        for &on in block {
            for (named, it) in self.calls.iter().enumerate() {
                let entry = Entry { number: 0, rule: it.rule, named, on, through: None };
                match it.call.multiplexed.filter(|_| on.multiplexes()) {
                    Some(through @ (Multiplexed::Socket(place) | Multiplexed::Ipc(place))) => {
                        entries.push(Entry { number: through.number(), through: Some(place), ..entry });
                    }
                    None => {}
                }
                entries.extend(it.call.number(on).map(|number| Entry { number, through: None, ..entry }));
            }
        }
        // The sort is stable, so rules of one call keep the profile's order.
        entries.sort_by_key(|it| it.number);
        let groups = entries.chunk_by(|left, right| left.number == right.number);
        groups.map(|group| Ok((group[0].number, self.verdict(group)?))).collect()
    }

    fn verdict(&self, group: &[Entry]) -> Result<Verdict, StepError> {
        let on = group[0].on;
        let mut kept: Vec<Rule> = Vec::new();
        let mut always = None;
        for entry in group {
            let rule = self.effective(entry);
            if always.is_some() {
                continue;
            }
            if rule.conditions.is_empty() {
                always = Some(rule.answer);
                continue;
            }
            // A rule that begins with all conditions of another rule can't match without that one.
            let covered = kept.iter().find(|it| rule.conditions.starts_with(&it.conditions));
            let contrary =
                kept.iter().find(|it| it.answer != rule.answer && it.conditions.starts_with(&rule.conditions));
            if let Some(earlier) = contrary {
                let name = self.calls[entry.named].name;
                return Err(refuse(format!(
                    "linux.seccomp.syscalls[{}]: for `{name}` it contradicts linux.seccomp.syscalls[{}]",
                    rule.place, earlier.place
                )));
            }
            if covered.is_none() {
                kept.push(rule);
            }
            if kept.len() > MAX_INSTRUCTIONS {
                return Err(refuse(format!("linux.seccomp.syscalls: more than {MAX_INSTRUCTIONS} rules for a call")));
            }
        }
        Ok(match always {
            Some(answer) => Verdict::Always(answer),
            None => Verdict::First(on, ordered(kept, on.is_wide())),
        })
    }

    /// Returns a rule as it applies to an architecture.
    fn effective(&self, entry: &Entry) -> Rule {
        let rule = &self.rules[entry.rule];
        let mut conditions = rule.conditions.clone();
        if let Some(place) = entry.through {
            // As in libseccomp: a condition on the first argument is dropped, and conditions on others apply to the
            // multiplexing call's own arguments.
            conditions.retain(|it| it.argument != 0);
            conditions.insert(0, Condition::equal(0, place.into()));
        }
        if !entry.on.is_wide() {
            conditions.iter_mut().for_each(|it| *it = it.narrow());
        }
        conditions.retain(|it| !it.always_holds());
        Rule { conditions, ..*rule }
    }
}

/// The sort key of a condition; see [`ordered`].
type Rank = (Reverse<u32>, u8, u64, usize, u64, usize);

/// Sorts rules into the order of libseccomp's tree (src/db.c, `_db_chain_lt`): a higher argument comes first, then
/// equality, then the smallest upper bound, then the largest lower bound; a rule comes before those with additional
/// conditions. Rules that libseccomp does not order keep the profile's order. Where nodes of `<`, `>` or `!=` with the
/// same constant are shared in its tree, its order is accidental and is not reproduced.
fn ordered(mut rules: Vec<Rule>, wide: bool) -> Vec<Rule> {
    if rules.iter().all(|it| it.answer == rules[0].answer) {
        return rules;
    }
    let all: Vec<Condition> = rules.iter().flat_map(|it| it.conditions.iter().copied()).collect();
    let first = |like: &dyn Fn(&Condition) -> bool| all.iter().position(like).unwrap_or(all.len());
    let rank = |it: &Condition| -> Rank {
        let seen = first(&|other| other == it);
        match class(it) {
            // The tree has a node for each upper half, and below it one for each lower half.
            0 if wide => {
                let masked = |it: &Condition| it.operator == Operator::MaskedEqual;
                let upper = |it: &Condition| (it.argument, class(it), masked(it), it.mask >> 32, it.value >> 32);
                let node = first(&|other| upper(other) == upper(it));
                (Reverse(it.argument), 0, !(it.value >> 32), node, !it.value, seen)
            }
            1 => (Reverse(it.argument), 1, it.value, 0, 0, seen),
            class => (Reverse(it.argument), class, !it.value, 0, 0, seen),
        }
    };
    rules.sort_by_cached_key(|rule| rule.conditions.iter().map(rank).collect::<Vec<_>>());
    rules
}

fn class(it: &Condition) -> u8 {
    match it.operator {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => 0,
        Operator::Less | Operator::LessOrEqual => 1,
        Operator::Greater | Operator::GreaterOrEqual => 2,
    }
}
