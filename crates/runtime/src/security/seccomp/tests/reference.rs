//! The test that matters: our filters and libseccomp's give the same answers.
//!
//! Both are run by the interpreter over all numbers and over arguments around the constants of the profile. Where the
//! installed libseccomp does not know a call yet, its number is left out.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::interpreter::{Data, run};
use super::random::Random;
use super::{argument, rule};
use crate::oci::{Seccomp, SyscallRule};
use crate::security::default_profile::profile_for;
use crate::security::seccomp::actions::{ACTION, ERRNO, action};
use crate::security::seccomp::architectures::{ALL, Architecture, IPC, SOCKETCALL, X32_BIT};
use crate::security::seccomp::assembler::Instruction;
use crate::security::seccomp::{Filter, calls};

use Architecture::{Aarch64, Arm, Ppc64le, Riscv64, S390x, X32, X86, X86_64};

/// Native architectures with their siblings.
const MACHINES: [(&str, &[Architecture]); 6] = [
    ("x86_64", &[X86_64]),
    ("x86_64", &[X86_64, X86, X32]),
    ("aarch64", &[Aarch64, Arm]),
    ("riscv64", &[Riscv64]),
    ("powerpc64", &[Ppc64le]),
    ("s390x", &[S390x]),
];

const OPERATORS: [&str; 7] =
    ["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];

/// The small program, compiled once for all tests.
fn reference() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = std::env::temp_dir().join(format!("flota-seccomp-reference-{}", std::process::id()));
        let mut compiler = Command::new("cc")
            .args(["-O1", "-x", "c", "-", "-o"])
            .arg(&program)
            .arg("-lseccomp")
            .stdin(Stdio::piped())
            .spawn()
            .expect("this test needs a C compiler");
        let source = include_bytes!("reference.c");
        compiler.stdin.take().unwrap().write_all(source).unwrap();
        assert!(compiler.wait().unwrap().success(), "this test needs libseccomp-dev");
        program
    })
}

fn ask(lines: &str) -> String {
    let piped = Command::new(reference()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = piped.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines = lines.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let answer = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(answer.status.success(), "the reference program failed");
    String::from_utf8(answer.stdout).unwrap()
}

fn library_name(architecture: Architecture) -> String {
    architecture.name().trim_start_matches("SCMP_ARCH_").to_lowercase()
}

fn answer_of(name: &str, errno: Option<u32>) -> u32 {
    action("test", ["", ""], name, errno).unwrap()
}

/// One call to `seccomp_rule_add`: the rule that it comes from, and its line.
fn additions(profile: &Seccomp) -> Vec<(usize, String)> {
    let default = answer_of(&profile.default_action, profile.default_errno_ret);
    let mut lines = Vec::new();
    for (place, rule) in profile.syscalls.iter().enumerate() {
        let answer = answer_of(&rule.action, rule.errno_ret);
        if answer == default {
            continue;
        }
        let condition = |it: &crate::oci::Argument| {
            let operator = OPERATORS.iter().position(|op| *op == it.op).unwrap() + 1;
            format!(" {} {operator} {} {}", it.index, it.value, it.value_two)
        };
        let distinct: BTreeSet<u32> = rule.args.iter().map(|it| it.index).collect();
        for name in &rule.names {
            let mut line = |args: &[crate::oci::Argument]| {
                let conditions: String = args.iter().map(condition).collect();
                lines.push((place, format!("rule {answer} {name} {}{conditions}\n", args.len())));
            };
            if distinct.len() == rule.args.len() {
                line(&rule.args);
            } else {
                rule.args.chunks(1).for_each(line);
            }
        }
    }
    lines
}

/// libseccomp's filter, and the rules that it did not take.
fn made_by_library(profile: &Seccomp, block: &[Architecture]) -> (Vec<Instruction>, BTreeSet<usize>) {
    let mut lines = format!("init {}\n", answer_of(&profile.default_action, profile.default_errno_ret));
    block.iter().for_each(|it| lines += &format!("arch {}\n", library_name(*it)));
    let additions = additions(profile);
    if additions.len() > 32 {
        lines += "optimize\n";
    }
    additions.iter().for_each(|it| lines += &it.1);
    let (mut program, mut refused) = (Vec::new(), BTreeSet::new());
    for line in ask(&lines).lines() {
        match line.split_once(' ').unwrap() {
            ("refused", index) => drop(refused.insert(additions[index.parse::<usize>().unwrap()].0)),
            (_, hex) => program = decode(hex, block[0].is_big_endian()),
        }
    }
    (program, refused)
}

fn decode(hex: &str, big_endian: bool) -> Vec<Instruction> {
    let byte = |at: usize| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap();
    let instruction = |at: usize| {
        let code = [byte(at), byte(at + 1)];
        let value = [byte(at + 4), byte(at + 5), byte(at + 6), byte(at + 7)];
        Instruction {
            code: if big_endian { u16::from_be_bytes(code) } else { u16::from_le_bytes(code) },
            when_true: byte(at + 2),
            when_false: byte(at + 3),
            value: if big_endian { u32::from_be_bytes(value) } else { u32::from_le_bytes(value) },
        }
    };
    (0..hex.len() / 2).step_by(8).map(instruction).collect()
}

/// Numbers of calls that the installed libseccomp knows otherwise than we do; all of them are newer than it.
fn unknown_to_library() -> &'static BTreeSet<(u32, u32)> {
    static UNKNOWN: OnceLock<BTreeSet<(u32, u32)>> = OnceLock::new();
    UNKNOWN.get_or_init(|| {
        let names = calls::names();
        let all: Vec<_> = ALL.into_iter().flat_map(|on| names.iter().map(move |name| (on, name))).collect();
        let lines: String = all.iter().map(|(on, name)| format!("number {} {name}\n", library_name(*on))).collect();
        let mut unknown = BTreeSet::new();
        for ((on, name), line) in all.iter().zip(ask(&lines).lines()) {
            let theirs: i64 = line.trim_start_matches("number ").parse().unwrap();
            let call = calls::find(name).unwrap();
            // There the library speaks of a multiplexed call, and not of the number.
            if on.multiplexes() && call.multiplexed.is_some() {
                continue;
            }
            match (call.number(*on), u32::try_from(theirs)) {
                (ours, Ok(theirs)) => assert_eq!(ours, Some(theirs), "{name} on {on:?}"),
                (Some(ours), Err(_)) => drop(unknown.insert((on.audit(), ours))),
                (None, Err(_)) => {}
            }
        }
        unknown
    })
}

/// Values on both sides of each constant, in either half.
fn values(profile: &Seccomp) -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, 1 << 32, u64::from(u32::MAX)];
    for it in profile.syscalls.iter().flat_map(|it| &it.args) {
        for value in [it.value, it.value_two] {
            let shifted = [value, value ^ 1 << 32, value << 32, value >> 32, !value];
            values.extend(shifted.iter().flat_map(|it| [it.wrapping_sub(1), *it, it.wrapping_add(1)]));
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn numbers() -> impl Iterator<Item = u32> {
    let low = (0..1100).chain(0xf_0000..0xf_0010);
    let edges = [X32_BIT - 1, 1 << 31, u32::MAX - 1, u32::MAX];
    low.clone().chain(low.map(|it| it | X32_BIT)).chain(edges)
}

/// Runs both; the first difference is an error in words.
fn compare(profile: &Seccomp, block: &[Architecture], random: &mut Random) -> Result<usize, String> {
    let (theirs, refused) = made_by_library(profile, block);
    let mut profile = profile.clone();
    let mut place = 0;
    profile.syscalls.retain(|_| (!refused.contains(&place), place += 1).0);
    profile.architectures = block.iter().map(|it| it.name().into()).collect();
    let ours = Filter::compile_for(&profile, block[0]).map_err(|error| error.to_string())?.program;
    let judged = conditional_numbers(&profile, block);
    let values = values(&profile);
    let mut compared = 0;
    for audit in ALL.map(Architecture::audit) {
        for number in numbers() {
            if unknown_to_library().contains(&(audit, number)) {
                continue;
            }
            let samples = if judged.contains(&number) { 300 } else { 1 };
            for _ in 0..samples {
                let data = Data { number, audit, arguments: std::array::from_fn(|_| random.pick(&values)) };
                let big_endian = block[0].is_big_endian();
                let answers = [&ours, &theirs].map(|it| run(it, &data, big_endian));
                compared += 1;
                if answers[0] != answers[1] {
                    let rules: Vec<_> = profile.syscalls.iter().map(|it| format!("{it:?}")).collect();
                    let [ours, theirs] = answers;
                    return Err(format!("{data:x?}: {ours:#x}, libseccomp {theirs:#x}\n{}", rules.join("\n")));
                }
            }
        }
    }
    Ok(compared)
}

fn conditional_numbers(profile: &Seccomp, block: &[Architecture]) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::from([SOCKETCALL, IPC]);
    for name in profile.syscalls.iter().filter(|it| !it.args.is_empty()).flat_map(|it| &it.names) {
        let call = calls::find(name);
        numbers.extend(block.iter().filter_map(|on| call?.number(*on)));
    }
    numbers
}

#[test]
fn numbers_of_all_calls_are_those_of_the_library() {
    assert!(unknown_to_library().len() < 300, "more than a few calls are missing in libseccomp");
}

#[test]
fn filters_of_the_default_profile_answer_as_those_of_the_library() {
    let administration = [String::from("CAP_SYS_ADMIN")];
    for (machine, block) in MACHINES {
        for capabilities in [&[][..], &administration] {
            let profile = profile_for(machine, capabilities);
            let compared = compare(&profile, block, &mut Random(1)).unwrap_or_else(|it| panic!("{block:?}: {it}"));
            assert!(compared > 15_000, "{compared}");
        }
    }
}

/// Different actions, one that a rule skips included.
const ACTIONS: [(&str, Option<u32>); 10] = [
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ALLOW", None),
    ("SCMP_ACT_ERRNO", None),
    ("SCMP_ACT_ERRNO", Some(38)),
    ("SCMP_ACT_KILL", None),
    ("SCMP_ACT_KILL_PROCESS", None),
    ("SCMP_ACT_LOG", None),
    ("SCMP_ACT_NOTIFY", None),
    ("SCMP_ACT_TRACE", Some(7)),
    ("SCMP_ACT_TRAP", None),
];

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

const VALUES: [u64; 12] = [0, 1, 2, 5, 7, 0xff, 0x8000_0000, 0xffff_ffff, 1 << 32, 5 << 32 | 1, 1 << 63, u64::MAX];

fn random_profile(random: &mut Random, conditions: usize, mixed: bool) -> Seccomp {
    let mut default = random.pick(&ACTIONS);
    while default.0 == "SCMP_ACT_NOTIFY" {
        default = random.pick(&ACTIONS);
    }
    let one = random.pick(&ACTIONS);
    let count = 1 + random.below(60);
    let rules = (0..count).map(|_| {
        let (action, errno_ret) = if mixed { random.pick(&ACTIONS) } else { one };
        let names = (0..1 + random.below(3)).map(|_| random.pick(&NAMES).to_owned()).collect();
        let first = random.below(6);
        let args = (0..random.below(conditions + 1)).map(|at| {
            let index = if random.below(8) == 0 { first } else { (first + at) % 6 };
            argument(index as u32, random.pick(&OPERATORS), random.pick(&VALUES), random.pick(&VALUES))
        });
        SyscallRule { errno_ret, args: args.collect(), names, ..rule(&[], action) }
    });
    Seccomp {
        default_errno_ret: default.1,
        syscalls: rules.collect(),
        default_action: default.0.into(),
        ..Seccomp::default()
    }
}

#[test]
fn explore() {
    for (conditions, mixed) in [(0, true), (1, false), (3, false), (1, true), (3, true)] {
        let mut random = Random(7);
        let mut bad = 0;
        let mut shown = 0;
        for case in 0..200 {
            let profile = random_profile(&mut random, conditions, mixed);
            for (_, block) in MACHINES {
                if let Err(error) = compare(&profile, block, &mut random) {
                    bad += 1;
                    if shown < 3 {
                        shown += 1;
                        eprintln!("{conditions} {mixed} {case} {block:?} {error}");
                    }
                }
            }
        }
        eprintln!("== {conditions} {mixed}: {bad}");
    }
    let _ = (ACTION, ERRNO);
}
