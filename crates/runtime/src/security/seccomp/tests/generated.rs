//! Tests with profiles that are generated from a seed and compiled both by us and by libseccomp.
//!
//! libseccomp 2.5.4 to 2.6.1 answers a few calls in ten thousand wrongly: a block of its program that is reached on
//! two paths expects the accumulator of the first one, so it compares the wrong half or the architecture (one rule on
//! `semop` for x86; `> 0xffffffff` beside `< 0x100000000`). Our filters follow the rules there, so a third evaluation
//! of the profile decides which answer is correct.

use super::model::OPERATORS;
use super::random::Random;
use super::reference::{Compared, MACHINES, compare};
use super::{argument, rule};
use crate::oci::{Seccomp, SyscallRule};

const ACTIONS: [(&str, Option<u32>); 9] = [
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ERRNO", None),
    ("SCMP_ACT_ERRNO", Some(38)),
    ("SCMP_ACT_KILL", None),
    ("SCMP_ACT_KILL_PROCESS", None),
    ("SCMP_ACT_LOG", None),
    ("SCMP_ACT_TRACE", Some(7)),
    ("SCMP_ACT_TRAP", None),
    // This is the last one, because it can't be the default.
    ("SCMP_ACT_NOTIFY", None),
];

/// Calls of all kinds: on all architectures, multiplexed, on one architecture only, unknown.
const NAMES: [&str; 24] = [
    "read",
    "open",
    "close",
    "clone",
    "ioctl",
    "fcntl",
    "socket",
    "accept",
    "send",
    "recvmsg",
    "shmat",
    "semop",
    "semget",
    "personality",
    "execve",
    "getuid32",
    "mmap2",
    "_llseek",
    "newfstatat",
    "set_tls",
    "arch_prctl",
    "statx",
    "riscv_flush_icache",
    "no_such_call",
];

const VALUES: [u64; 12] = [0, 1, 2, 5, 7, 0xff, 1 << 31, 0xffff_ffff, 1 << 32, 5 << 32 | 1, 1 << 63, u64::MAX];

/// Operators for overlapping rules: upper bounds or lower bounds. If both compare with one number, or several `!=`
/// exclude each other, libseccomp's choice depends on the order in which it got the rules.
const UPPER: [&str; 4] = ["SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"];
const LOWER: [&str; 4] = ["SCMP_CMP_GT", "SCMP_CMP_GE", "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"];

/// Parameters of generated profiles.
struct Kind {
    /// Number of names that occur.
    names: usize,
    /// Number of arguments that occur in conditions.
    arguments: usize,
    /// Operators that occur.
    operators: &'static [&'static str],
    /// Largest number of rules.
    rules: usize,
    /// Largest number of conditions of a rule.
    conditions: usize,
    /// Whether each name is in only one rule.
    once: bool,
    /// Whether rules have different actions.
    mixed: bool,
}

fn profile(kind: &Kind, random: &mut Random) -> Seccomp {
    let default = random.pick(&ACTIONS[..8]);
    let one = random.pick(&ACTIONS);
    let mut left = NAMES[..kind.names].to_vec();
    let mut rules = Vec::new();
    for _ in 0..=random.below(kind.rules) {
        let (action, errno_ret) = if kind.mixed { random.pick(&ACTIONS) } else { one };
        let mut names = Vec::new();
        for _ in 0..=random.below(3).min(left.len().saturating_sub(1)) {
            let at = random.below(left.len().max(1));
            names.extend(left.get(at));
            if kind.once && at < left.len() {
                left.remove(at);
            }
        }
        let first = random.below(kind.arguments);
        let args = (0..random.below(kind.conditions + 1)).map(|at| {
            // Some conditions repeat an argument.
            let index = if !kind.once && random.below(8) == 0 { first } else { (first + at) % kind.arguments };
            let index = u32::try_from(index).unwrap();
            argument(index, random.pick(kind.operators), random.pick(&VALUES), random.pick(&VALUES))
        });
        rules.push(SyscallRule { errno_ret, args: args.collect(), ..rule(&names, action) });
    }
    let (action, errno) = default;
    Seccomp { default_action: action.into(), default_errno_ret: errno, syscalls: rules, ..Seccomp::default() }
}

/// Compares many profiles of a kind, generated from `seed`.
fn compare_all(kind: &Kind, seed: u64) -> Compared {
    let mut random = Random(seed);
    let mut all = Compared::default();
    for _ in 0..6 {
        let profile = profile(kind, &mut random);
        // S390x is left out, because libseccomp 2.5.4 swaps the bytes of some answers twice when it writes for another
        // byte order.
        for (_, block) in &MACHINES[..5] {
            let compared =
                compare(&profile, block, &mut random).unwrap_or_else(|it| panic!("seed {seed}: {block:?}: {it}"));
            all.calls += compared.calls;
            all.library_wrong += compared.library_wrong;
            all.other_rule += compared.other_rule;
        }
    }
    // In rare cases it compares a word that is not loaded; see the head of this file.
    assert!(all.library_wrong < all.calls / 500, "seed {seed}: libseccomp is wrong {} times", all.library_wrong);
    all
}

#[test]
fn rules_without_conditions_answer_as_those_of_the_library() {
    let kind =
        Kind { names: 24, arguments: 6, operators: &OPERATORS, rules: 60, conditions: 0, once: false, mixed: true };
    let compared = compare_all(&kind, 1);
    assert_eq!((compared.library_wrong, compared.other_rule), (0, 0));
}

#[test]
fn one_rule_for_a_call_answers_as_that_of_the_library() {
    let kind =
        Kind { names: 24, arguments: 6, operators: &OPERATORS, rules: 24, conditions: 6, once: true, mixed: true };
    assert_eq!(compare_all(&kind, 2).other_rule, 0);
}

#[test]
fn several_rules_with_one_action_answer_as_those_of_the_library() {
    let kind =
        Kind { names: 24, arguments: 6, operators: &OPERATORS, rules: 60, conditions: 3, once: false, mixed: false };
    assert_eq!(compare_all(&kind, 3).other_rule, 0);
}

#[test]
fn of_several_actions_the_one_that_the_library_takes_counts() {
    for (arguments, operators) in [(1, &UPPER), (1, &LOWER), (3, &UPPER), (3, &LOWER)] {
        let kind = Kind { names: 3, arguments, operators, rules: 24, conditions: 1, once: false, mixed: true };
        for seed in 1..3 {
            assert_eq!(compare_all(&kind, seed).other_rule, 0, "seed {seed}: {arguments} {operators:?}");
        }
    }
}

#[test]
fn several_actions_with_many_conditions_follow_a_rule_that_matches() {
    let kind =
        Kind { names: 24, arguments: 6, operators: &OPERATORS, rules: 60, conditions: 3, once: false, mixed: true };
    let compared = compare_all(&kind, 5);
    assert!(compared.other_rule < compared.calls / 2000, "{} others", compared.other_rule);
}
