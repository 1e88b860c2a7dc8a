//! Filters (config-linux.md, "Seccomp"), and the agent that a call is put to.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::harness::Bundle;

fn filtered(rule: Value) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    bundle
}

#[test]
fn a_call_fails_with_the_error_of_its_rule() {
    let mut bundle = filtered(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}));
    let ran = bundle.sh("mkdir /x; touch /y").run();
    assert!(ran.err.contains("Read-only file system"), "{ran:?}");
    assert!(bundle.rootfs().join("y").exists(), "other calls succeed");
    let mut bundle = filtered(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}));
    assert!(bundle.sh("mkdir /x").run().err.contains("Operation not permitted"));
}

#[test]
fn a_call_ends_the_process_where_its_rule_says_so() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut bundle = filtered(json!({"names": ["mkdir", "mkdirat"], "action": action}));
        let ran = bundle.sh("mkdir /x; echo $?").run();
        // SIGSYS is 31.
        assert_eq!(ran.out, "159\n", "{action}: {ran:?}");
    }
}

#[test]
fn a_call_that_is_logged_goes_on() {
    let mut bundle = filtered(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG"}));
    assert_eq!(bundle.sh("mkdir /x && echo made").output(), "made\n");
}

#[test]
fn a_default_that_forbids_leaves_what_is_named() {
    let mut bundle = Bundle::new();
    let names = [
        "read",
        "write",
        "execve",
        "exit",
        "exit_group",
        "brk",
        "arch_prctl",
        "mmap",
        "munmap",
        "mprotect",
        "uname",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "getpid",
        "getppid",
        "rt_sigaction",
        "rt_sigprocmask",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "getrandom",
        "readlink",
        "readlinkat",
        "newfstatat",
        "stat",
        "fstat",
        "close",
        "open",
        "openat",
        "prctl",
        "capset",
        "setuid",
        "setgid",
        "setgroups",
        "futex",
        "fcntl",
        "access",
        "faccessat",
        "faccessat2",
        "getcwd",
        "ioctl",
        "sigaltstack",
        "poll",
        "chdir",
        "umask",
        "lseek",
    ];
    let rule = json!({"names": names.as_slice(), "action": "SCMP_ACT_ALLOW"});
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [rule]}));
    let ran = bundle.args(&["/bin/busybox", "mkdir", "/x"]).run();
    assert!(ran.err.contains("Function not implemented"), "{ran:?}");
}

#[test]
fn arguments_decide_with_every_operator() {
    // kill(2) of process 1 with signal 0 and of all (-1): the second argument is the signal.
    for (op, value, two, denied) in [
        ("SCMP_CMP_EQ", 0, 0, true),
        ("SCMP_CMP_NE", 0, 0, false),
        ("SCMP_CMP_LT", 1, 0, true),
        ("SCMP_CMP_LE", 0, 0, true),
        ("SCMP_CMP_GT", 0, 0, false),
        ("SCMP_CMP_GE", 1, 0, false),
        ("SCMP_CMP_MASKED_EQ", 1, 0, true),
        ("SCMP_CMP_MASKED_EQ", 1, 1, false),
    ] {
        let args = json!([{"index": 1, "op": op, "value": value, "valueTwo": two}]);
        let mut bundle = filtered(json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args}));
        let ran = bundle.sh("kill -0 1").run();
        assert_eq!(ran.err.contains("not permitted"), denied, "{op} {value} {two}: {ran:?}");
    }
}

#[test]
fn a_filter_holds_for_user_and_root_and_with_and_without_new_privileges() {
    for (uid, forbidden) in [(0, true), (0, false), (1000, true), (1000, false)] {
        let mut bundle = filtered(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}));
        bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
        bundle.set("/process/noNewPrivileges", json!(forbidden));
        let ran = bundle.sh("mkdir /tmp-x; grep Seccomp: /proc/self/status").run();
        assert!(ran.err.contains("Read-only") && ran.out.ends_with("\t2\n"), "{uid} {forbidden}: {ran:?}");
    }
}

/// Receives the state that an agent gets, and the descriptor that comes with it.
fn receive(listener: &UnixListener) -> (Value, OwnedFd) {
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = [0; 8192];
    let mut room = nix::cmsg_space!([i32; 2]);
    let (count, raw) = {
        let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut room), MsgFlags::empty()).unwrap();
        let rights = message.cmsgs().unwrap().find_map(|it| match it {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        (message.bytes, rights.expect("a descriptor comes along"))
    };
    let mut text = buffer[..count].to_vec();
    let _ = (&stream).read_to_end(&mut text);
    (serde_json::from_slice(&text).unwrap(), take(raw))
}

#[expect(unsafe_code, reason = "a descriptor that was received is a number")]
fn take(raw: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: recvmsg(2) has just made it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Answers the next call with this error (seccomp_unotify(2)). Returns the call's number.
#[expect(unsafe_code, reason = "the ioctls of a listener have no wrapper")]
fn refuse_one(listener: &OwnedFd, errno: i32) -> i32 {
    // `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND` (linux/seccomp.h).
    const RECEIVE: libc::Ioctl = 0xc050_2100;
    const SEND: libc::Ioctl = 0xc018_2101;
    // SAFETY: plain data for which zero is a legal value; the kernel asks for zeroes.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: `call` is a whole structure that lives through the call.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) };
    nix::errno::Errno::result(received).unwrap();
    let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -errno, flags: 0 };
    // SAFETY: `answer` is a whole structure that lives through the call.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
    nix::errno::Errno::result(sent).unwrap();
    call.data.nr
}

#[test]
fn an_agent_gets_the_listener_with_the_state_and_decides() {
    let mut bundle = filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}));
    let path = bundle.dir.join("agent");
    let agent = UnixListener::bind(&path).unwrap();
    bundle.set("/linux/seccomp/listenerPath", json!(path)).set("/linux/seccomp/listenerMetadata", json!("mine"));
    bundle.sh("mkdir /x; echo end");
    let run = bundle.spawn(&mut bundle.make_command("run", &[]));
    let (state, listener) = receive(&agent);
    assert_eq!((&state["fds"], &state["metadata"]), (&json!(["seccompFd"]), &json!("mine")));
    assert_eq!((&state["state"]["id"], &state["state"]["status"]), (&json!(bundle.id), &json!("creating")));
    assert!(state["pid"].as_i64().unwrap() > 0 && state["ociVersion"].is_string(), "{state}");
    let number = refuse_one(&listener, libc::EDOM);
    assert_eq!(i64::from(number), libc::SYS_mkdir);
    let ran = run.wait();
    assert!(ran.err.contains("Numerical argument out of domain") && ran.out == "end\n", "{ran:?}");
}

#[test]
fn without_an_agent_the_container_is_not_made() {
    let mut bundle = filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}));
    assert!(bundle.run().fails(1).contains("listenerPath"));
    bundle.set("/linux/seccomp/listenerPath", json!("/no/agent"));
    assert!(bundle.run().fails(1).contains("/no/agent"));
    bundle.assert_gone();
}
