//! Creates libseccomp's filter for a profile, as runc and crun do, and compares its answers with ours.
//!
//! A small C program creates the filter. Numbers of calls that the installed libseccomp does not know yet are left
//! out.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::interpreter::{Data, run};
use super::model::{answer_above, answer_of, architecture_of, newest, possible_answers, rules_for_library};
use super::random::Random;
use crate::oci::Seccomp;
use crate::security::default_profile::profile_for;
use crate::security::seccomp::architectures::{ALL, Architecture, IPC, SOCKETCALL, X32_BIT};
use crate::security::seccomp::assembler::Instruction;
use crate::security::seccomp::{Filter, calls};

use Architecture::{Aarch64, Arm, Ppc64le, Riscv64, S390x, X32, X86, X86_64};

/// Native architectures with their variants, and Rust's name for the machine.
pub(super) const MACHINES: [(&str, &[Architecture]); 6] = [
    ("x86_64", &[X86_64]),
    ("x86_64", &[X86_64, X86, X32]),
    ("aarch64", &[Aarch64, Arm]),
    ("riscv64", &[Riscv64]),
    ("powerpc64", &[Ppc64le]),
    ("s390x", &[S390x]),
];

/// Returns the path of the C program, which is compiled once for all tests. Its file is removed at once; it is run by
/// its descriptor.
fn program() -> String {
    static PROGRAM: OnceLock<File> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("flota-seccomp-reference-{}", std::process::id()));
        let mut compiler = Command::new("cc")
            .args(["-O1", "-x", "c", "-", "-o"])
            .arg(&path)
            .arg("-lseccomp")
            .stdin(Stdio::piped())
            .spawn()
            .expect("this test needs a C compiler");
        let source = include_bytes!("reference.c");
        compiler.stdin.take().unwrap().write_all(source).unwrap();
        assert!(compiler.wait().unwrap().success(), "this test needs libseccomp-dev");
        let program = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        program
    });
    format!("/proc/self/fd/{}", program.as_raw_fd())
}

fn ask(lines: String) -> String {
    let mut child = Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let answer = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(answer.status.success(), "the reference program failed");
    String::from_utf8(answer.stdout).unwrap()
}

fn library_name(architecture: Architecture) -> String {
    architecture.name().trim_start_matches("SCMP_ARCH_").to_lowercase()
}

/// Returns libseccomp's filter. A rule that libseccomp, and therefore runc, refuses is removed from the profile.
fn made_by_library(profile: &mut Seccomp, block: &[Architecture]) -> Vec<Instruction> {
    let mut lines = format!("init {}\n", answer_of(&profile.default_action, profile.default_errno_ret));
    block.iter().for_each(|it| lines += &format!("arch {}\n", library_name(*it)));
    let rules = rules_for_library(profile);
    if rules.len() > 32 {
        lines += "optimize\n";
    }
    rules.iter().for_each(|it| lines += &it.line);
    let (mut program, mut refused) = (Vec::new(), Vec::new());
    for line in ask(lines).lines() {
        match line.split_once(' ').unwrap() {
            ("refused", index) => refused.push(&rules[index.parse::<usize>().unwrap()]),
            (_, hex) => program = decode(hex, block[0].is_big_endian()),
        }
    }
    if refused.is_empty() {
        return program;
    }
    refused.iter().for_each(|rule| profile.syscalls[rule.place].names.retain(|it| *it != rule.name));
    made_by_library(profile, block)
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

/// Returns the numbers of calls that are newer than the installed libseccomp. All other numbers must be the same
/// there.
fn unknown_to_library() -> &'static BTreeSet<(u32, u32)> {
    static UNKNOWN: OnceLock<BTreeSet<(u32, u32)>> = OnceLock::new();
    UNKNOWN.get_or_init(|| {
        let names = calls::names();
        let all: Vec<_> = ALL.into_iter().flat_map(|on| names.iter().map(move |name| (on, name))).collect();
        let lines = all.iter().map(|(on, name)| format!("number {} {name}\n", library_name(*on))).collect();
        let mut unknown = BTreeSet::new();
        for ((on, name), line) in all.iter().zip(ask(lines).lines()) {
            let theirs: i64 = line.trim_start_matches("number ").parse().unwrap();
            let call = calls::find(name).unwrap();
            // For a multiplexed call, libseccomp returns a pseudo number instead of the real one.
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

/// Returns values on both sides of each constant, in either half.
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

/// Returns the calls that have rules with conditions.
fn judged_calls(profile: &Seccomp, block: &[Architecture]) -> BTreeSet<(u32, u32)> {
    let multiplexing = block.iter().filter(|it| it.multiplexes()).map(|it| it.audit());
    let mut numbers: BTreeSet<_> = multiplexing.flat_map(|it| [(it, SOCKETCALL), (it, IPC)]).collect();
    for name in profile.syscalls.iter().filter(|it| !it.args.is_empty()).flat_map(|it| &it.names) {
        let call = calls::find(name);
        numbers.extend(block.iter().filter_map(|on| Some((on.audit(), call?.number(*on)?))));
    }
    numbers
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Number of compared calls.
    pub(super) calls: usize,
    /// Number of calls for which libseccomp's answer is that of no matching rule.
    pub(super) library_wrong: usize,
    /// Number of calls for which both answers come from different matching rules.
    pub(super) other_rule: usize,
}

/// Runs both filters. An answer of ours that no matching rule gives is an error.
pub(super) fn compare(profile: &Seccomp, block: &[Architecture], random: &mut Random) -> Result<Compared, String> {
    let mut profile = profile.clone();
    let theirs = made_by_library(&mut profile, block);
    profile.architectures = block.iter().map(|it| it.name().into()).collect();
    let ours = match Filter::compile_for(&profile, block[0]) {
        Ok(filter) => filter.program,
        // libseccomp does not detect all contradictions.
        Err(error) if error.to_string().contains("contradicts") => return Ok(Compared::default()),
        Err(error) => return Err(error.to_string()),
    };
    let judged = judged_calls(&profile, block);
    let values = values(&profile);
    let big_endian = block[0].is_big_endian();
    let newest: Vec<_> = block.iter().map(|on| (*on, newest(&profile, *on))).collect();
    let mut compared = Compared::default();
    for (audit, number) in ALL.iter().flat_map(|it| numbers().map(|number| (it.audit(), number))) {
        if unknown_to_library().contains(&(audit, number)) {
            continue;
        }
        let judged = judged.contains(&(audit, number));
        for _ in 0..if judged { 60 } else { 1 } {
            let data = Data { number, audit, arguments: std::array::from_fn(|_| random.pick(&values)) };
            let [ours, theirs] = [&ours, &theirs].map(|it| run(it, &data, big_endian));
            let on = newest.iter().find(|(on, _)| architecture_of(block, &data) == Some(*on));
            let newer = on.and_then(|(on, newest)| answer_above(&profile, *on, *newest, number));
            let theirs = newer.unwrap_or(theirs);
            compared.calls += 1;
            if ours == theirs && !judged {
                continue;
            }
            let possible = possible_answers(&profile, block, &data);
            if !possible.contains(&ours) {
                let rules: String = profile.syscalls.iter().map(|it| format!("\n{it:?}")).collect();
                return Err(format!("{data:x?}: {ours:#x} and not {possible:x?}, libseccomp {theirs:#x}{rules}"));
            }
            compared.library_wrong += usize::from(!possible.contains(&theirs));
            compared.other_rule += usize::from(possible.contains(&theirs) && ours != theirs);
        }
    }
    Ok(compared)
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
            // libseccomp 2.5.4 swaps the bytes of some answers twice when it writes for another byte order.
            let sound = block[0].is_big_endian() || (compared.library_wrong, compared.other_rule) == (0, 0);
            assert!(sound, "{block:?}: {compared:?}");
            assert!(compared.calls > 15_000, "{}", compared.calls);
        }
    }
}
