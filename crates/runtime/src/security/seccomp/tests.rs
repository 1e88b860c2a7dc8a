//! Tests that run filters with a small interpreter. This file tests single rules; the comparison with libseccomp is in
//! `reference.rs` and `generated.rs`.

mod generated;
mod interpreter;
mod model;
mod random;
mod reference;

use super::actions::{NOTIFY, SPEC_ALLOW};
use super::architectures::{ALL, Architecture};
use super::{Filter, HEADER, MAX_INSTRUCTIONS, calls};
use crate::oci::{Argument, Seccomp, SyscallRule};
use crate::security::default_profile::default_profile;
use interpreter::{Data, run};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x5_0001;
const KILL: u32 = 0;

fn rule(names: &[&str], action: &str) -> SyscallRule {
    let names = names.iter().map(|&it| it.to_owned()).collect();
    SyscallRule { names, action: action.to_owned(), ..SyscallRule::default() }
}

fn argument(index: u32, op: &str, value: u64, value_two: u64) -> Argument {
    Argument { index, value, value_two, op: op.to_owned() }
}

fn rule_if(name: &str, action: &str, args: &[Argument]) -> SyscallRule {
    SyscallRule { args: args.to_vec(), ..rule(&[name], action) }
}

/// Returns a profile that fails every call except by these rules.
fn profile(rules: &[SyscallRule]) -> Seccomp {
    Seccomp { default_action: "SCMP_ACT_ERRNO".into(), syscalls: rules.to_vec(), ..Seccomp::default() }
}

fn compile(profile: &Seccomp) -> Filter {
    Filter::compile_for(profile, Architecture::X86_64).unwrap()
}

fn refusal(profile: &Seccomp) -> String {
    Filter::compile_for(profile, Architecture::X86_64).unwrap_err().to_string()
}

fn call(filter: &Filter, name: &str, arguments: [u64; 6], on: Architecture) -> u32 {
    let number = calls::find(name).unwrap().number(on).unwrap();
    run(&filter.program, &Data { number, audit: on.audit(), arguments }, on.is_big_endian())
}

#[test]
fn operators_compare_all_bits() {
    let five = 5 << 32 | 5;
    let holding = [
        ("SCMP_CMP_NE", five, 0, [five - 1, 5, 5 << 32], [five, five, five]),
        ("SCMP_CMP_LT", five, 0, [five - 1, 4 << 32 | 9, 9], [five, five + 1, 6 << 32]),
        ("SCMP_CMP_LE", five, 0, [five, 4 << 32 | 9, 9], [five + 1, 5 << 32 | 9, 6 << 32]),
        ("SCMP_CMP_EQ", five, 0, [five, five, five], [5, 5 << 32, five + 1]),
        ("SCMP_CMP_GE", five, 0, [five, five + 1, 6 << 32], [five - 1, 4 << 32 | 9, 9]),
        ("SCMP_CMP_GT", five, 0, [five + 1, 6 << 32, u64::MAX], [five, 5 << 32, 9]),
        ("SCMP_CMP_MASKED_EQ", five, 1 << 32 | 4, [1 << 32 | 4, 0xf3 << 32 | 0x1e, 3 << 32 | 6], [4, 1 << 32, five]),
        // Bits of the value outside of the mask are ignored.
        ("SCMP_CMP_MASKED_EQ", 0xf, 0xff, [0xf, 0x1f, 1 << 32 | 0xf], [0, 0xe, 0xf0]),
    ];
    for (op, value, value_two, holds, fails) in holding {
        let filter = compile(&profile(&[rule_if("ioctl", "SCMP_ACT_ALLOW", &[argument(2, op, value, value_two)])]));
        let answer = |it| call(&filter, "ioctl", [0, 0, it, 0, 0, 0], Architecture::X86_64);
        assert_eq!(holds.map(answer), [ALLOW; 3], "{op}");
        assert_eq!(fails.map(answer), [EPERM; 3], "{op}");
    }
}

#[test]
fn all_conditions_have_to_hold_but_those_on_one_argument_are_alternatives() {
    let both = [argument(0, "SCMP_CMP_EQ", 1, 0), argument(1, "SCMP_CMP_EQ", 2, 0)];
    let either = [argument(0, "SCMP_CMP_EQ", 1, 0), argument(0, "SCMP_CMP_EQ", 2, 0), argument(1, "SCMP_CMP_EQ", 3, 0)];
    let rules = [rule_if("ioctl", "SCMP_ACT_ALLOW", &both), rule_if("fcntl", "SCMP_ACT_ALLOW", &either)];
    let filter = compile(&profile(&rules));
    let answer = |name, first, second| call(&filter, name, [first, second, 0, 0, 0, 0], Architecture::X86_64);
    assert_eq!([answer("ioctl", 1, 2), answer("ioctl", 1, 3), answer("ioctl", 0, 2)], [ALLOW, EPERM, EPERM]);
    assert_eq!([answer("fcntl", 1, 0), answer("fcntl", 2, 0), answer("fcntl", 0, 3)], [ALLOW, ALLOW, ALLOW]);
    assert_eq!(answer("fcntl", 3, 0), EPERM);
}

#[test]
fn an_unconditional_rule_wins_and_of_several_the_first() {
    let conditional = rule_if("ioctl", "SCMP_ACT_TRAP", &[argument(0, "SCMP_CMP_EQ", 1, 0)]);
    let (allow, kill) = (rule(&["ioctl"], "SCMP_ACT_ALLOW"), rule(&["ioctl"], "SCMP_ACT_KILL"));
    let answer = |rules: &[SyscallRule]| call(&compile(&profile(rules)), "ioctl", [1; 6], Architecture::X86_64);
    assert_eq!(answer(&[conditional.clone(), allow.clone(), kill.clone()]), ALLOW);
    assert_eq!(answer(&[kill, conditional.clone(), allow]), KILL);
    assert_eq!(answer(&[conditional, rule(&["ioctl"], "SCMP_ACT_ERRNO")]), 0x3_0000);
}

#[test]
fn architectures_that_are_not_listed_are_killed() {
    let all = profile(&[rule(&["read", "socket"], "SCMP_ACT_ALLOW")]);
    let filter = compile(&all);
    let listed = [Architecture::X86_64, Architecture::X86, Architecture::X32];
    for on in ALL.into_iter().filter(|it| !it.is_big_endian()) {
        let alone = if on == Architecture::X86_64 { ALLOW } else { KILL };
        assert_eq!(call(&filter, "read", [0; 6], on), alone, "{on:?}");
        let with = Seccomp { architectures: vec!["SCMP_ARCH_X86".into(), "SCMP_ARCH_X32".into()], ..all.clone() };
        let answer = if listed.contains(&on) { ALLOW } else { KILL };
        assert_eq!(call(&compile(&with), "read", [0; 6], on), answer, "{on:?}");
        let socketcall = |first| {
            let data = Data { number: 102, audit: Architecture::X86.audit(), arguments: [first, 0, 0, 0, 0, 0] };
            run(&compile(&with).program, &data, false)
        };
        assert_eq!([socketcall(1), socketcall(2)], [ALLOW, EPERM]);
    }
    let skipped = Data { number: u32::MAX, audit: Architecture::X86_64.audit(), arguments: [0; 6] };
    assert_eq!(run(&filter.program, &skipped, false), EPERM, "a tracer skips calls with -1");
}

#[test]
fn calls_that_are_newer_than_the_profile_do_not_exist() {
    let enosys = 0x5_0026;
    let answer = |profile: &Seccomp, on: Architecture, number| {
        run(&compile(profile).program, &Data { number, audit: on.audit(), arguments: [0; 6] }, false)
    };
    // `read` is 0, `statx` 332 and `close_range` 436; x86 has 383 for statx.
    let named = profile(&[rule(&["read", "statx"], "SCMP_ACT_ALLOW"), rule(&["close_range"], "SCMP_ACT_ERRNO")]);
    let answers = [1, 331, 436, 437, 500, 1000, 0x3fff_ffff].map(|it| answer(&named, Architecture::X86_64, it));
    assert_eq!(answers, [EPERM, EPERM, EPERM, enosys, enosys, enosys, enosys]);
    let both = Seccomp { architectures: vec!["SCMP_ARCH_X86".into(), "SCMP_ARCH_X32".into()], ..named.clone() };
    assert_eq!([436, 437].map(|it| answer(&both, Architecture::X86, it)), [EPERM, enosys]);
    assert_eq!([436, 437].map(|it| answer(&both, Architecture::X32, it | 1 << 30)), [EPERM, enosys]);
    for (action, expected) in
        [("SCMP_ACT_KILL_PROCESS", enosys), ("SCMP_ACT_ALLOW", ALLOW), ("SCMP_ACT_LOG", 0x7ffc_0000)]
    {
        let other = Seccomp { default_action: action.into(), ..named.clone() };
        assert_eq!(answer(&other, Architecture::X86_64, 500), expected, "{action}");
    }
    assert_eq!(answer(&profile(&[]), Architecture::X86_64, 500), EPERM, "it knows no call at all");
    let moby = default_profile(&[]);
    assert_eq!(
        [425, 500, 600, 1000].map(|it| answer(&moby, Architecture::X86_64, it)),
        [EPERM, enosys, enosys, enosys]
    );
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let condition = |op: &str, index| rule_if("read", "SCMP_ACT_ALLOW", &[argument(index, op, 0, 0)]);
    let contrary = |value, action| rule_if("read", action, &[argument(0, "SCMP_CMP_EQ", value, 0)]);
    let errno = SyscallRule { errno_ret: Some(70_000), ..rule(&["read"], "SCMP_ACT_ERRNO") };
    let cases = [
        (
            Seccomp { default_action: "ALLOW".into(), ..profile(&[]) },
            "linux.seccomp.defaultAction: unknown action `ALLOW`",
        ),
        (Seccomp { default_action: "SCMP_ACT_NOTIFY".into(), ..profile(&[]) }, "can't be the default action"),
        (Seccomp { flags: vec!["X".into()], ..profile(&[]) }, "linux.seccomp.flags[0]: unknown flag `X`"),
        (Seccomp { architectures: vec!["VAX".into()], ..profile(&[]) }, "architectures[0]: unknown architecture `VAX`"),
        (Seccomp { architectures: vec!["SCMP_ARCH_S390X".into()], ..profile(&[]) }, "another byte order"),
        (profile(&[rule(&["read"], "X")]), "linux.seccomp.syscalls[0].action: unknown action `X`"),
        (profile(&[rule(&["write"], "SCMP_ACT_NOTIFY")]), "cannot be used for the write syscall"),
        (profile(&[rule(&["read", ""], "SCMP_ACT_ALLOW")]), "linux.seccomp.syscalls[0].names[1]: an empty name"),
        (profile(&[condition("X", 0)]), "linux.seccomp.syscalls[0].args[0].op: unknown operator `X`"),
        (profile(&[condition("SCMP_CMP_EQ", 6)]), "linux.seccomp.syscalls[0].args[0].index: 6 is larger than 5"),
        (profile(&[errno]), "linux.seccomp.syscalls[0].errnoRet: 70000 is larger than 65535"),
        (
            profile(&[contrary(1, "SCMP_ACT_ALLOW"), contrary(2, "SCMP_ACT_KILL"), contrary(1, "SCMP_ACT_KILL")]),
            "linux.seccomp.syscalls[2]: for `read` it contradicts linux.seccomp.syscalls[0]",
        ),
    ];
    for (profile, text) in cases {
        assert!(refusal(&profile).contains(text), "{}", refusal(&profile));
    }
}

#[test]
fn calls_that_no_architecture_has_are_left_out_with_a_warning() {
    let filter = compile(&profile(&[rule(&["read", "frobnicate"], "SCMP_ACT_ALLOW")]));
    assert_eq!(filter.warnings(), ["linux.seccomp.syscalls[0].names[1]: no architecture has the call `frobnicate`"]);
}

/// Returns this many different rules for one call.
fn many(count: u64) -> Seccomp {
    let one = |it| rule_if("ioctl", "SCMP_ACT_ALLOW", &[argument(1, "SCMP_CMP_EQ", it * 3, 0)]);
    let calls = rule(&["read", "write", "openat2", "mount"], "SCMP_ACT_ALLOW");
    profile(&(0..count).map(one).chain([calls]).collect::<Vec<_>>())
}

#[test]
fn jumps_reach_farther_than_a_byte_counts() {
    let filter = compile(&many(1000));
    assert!(filter.program.len() > 4000, "{}", filter.program.len());
    let answer = |name, second| call(&filter, name, [0, second, 0, 0, 0, 0], Architecture::X86_64);
    for it in 0..1000 {
        assert_eq!([answer("ioctl", it * 3), answer("ioctl", it * 3 + 1)], [ALLOW, EPERM], "{it}");
    }
    let names = ["read", "write", "openat2", "mount", "umount2", "open", "statx"];
    let expected = [ALLOW, ALLOW, ALLOW, ALLOW, EPERM, EPERM, EPERM];
    assert_eq!(names.map(|name| answer(name, 0)), expected);
}

#[test]
fn a_filter_is_no_longer_than_the_kernel_takes() {
    let text = refusal(&many(1100));
    assert!(text.contains(&format!("and the kernel takes {MAX_INSTRUCTIONS}")), "{text}");
    assert!(refusal(&many(5000)).contains("more than 4096 rules for a call"));
}

#[test]
fn flags_are_those_of_runc() {
    assert_eq!(compile(&profile(&[])).flags, SPEC_ALLOW);
    let flags = |names: &[&str]| Seccomp { flags: names.iter().map(|&it| it.into()).collect(), ..profile(&[]) };
    assert_eq!(compile(&flags(&["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])).flags, 0b11);
    let useless = compile(&flags(&["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]));
    assert_eq!((useless.flags, useless.warnings().len()), (0, 1));
}

#[test]
fn kept_filters_are_read_again() {
    let filter = Filter::compile(&default_profile(&[])).unwrap();
    let bytes = filter.to_bytes();
    assert_eq!(Filter::from_bytes(&bytes).unwrap(), filter);
    for length in [0, 7, HEADER - 1, HEADER, HEADER + 4, bytes.len() - 8, bytes.len() - 1] {
        assert!(Filter::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    for at in 0..16 {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        assert!(Filter::from_bytes(&damaged).is_err(), "{at}");
    }
    assert!(Filter::from_bytes(&[&bytes[..], &[0; 8]].concat()).is_err());
}

#[test]
fn the_kernel_takes_filters() {
    // A filter applies to one thread, and this one ends with the test.
    let bound = std::thread::spawn(|| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let mut rules = profile(&[rule(&["getsid"], "SCMP_ACT_ERRNO")]);
        rules.default_action = "SCMP_ACT_ALLOW".into();
        rules.syscalls[0].errno_ret = Some(libc::EXDEV.unsigned_abs());
        assert_eq!(Filter::compile(&rules).unwrap().install().unwrap(), None);
        let refused = nix::unistd::getsid(None).unwrap_err();
        rules.syscalls = vec![rule(&["setdomainname"], "SCMP_ACT_NOTIFY")];
        rules.flags = vec!["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".into(), "SECCOMP_FILTER_FLAG_LOG".into()];
        let filter = Filter::compile(&rules).unwrap();
        assert!(filter.uses_notify() && filter.program.iter().any(|it| it.value == NOTIFY));
        let descriptor = filter.install().unwrap().unwrap();
        nix::unistd::close(descriptor).unwrap();
        refused
    });
    assert_eq!(bound.join().unwrap(), nix::errno::Errno::EXDEV);
}
