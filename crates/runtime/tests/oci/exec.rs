//! Further processes in a running container.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Bundle, only_v2, read, wait_for};

fn idle() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    bundle
}

#[test]
fn a_process_is_in_all_namespaces_and_groups_of_its_container() {
    let bundle = idle();
    let own = bundle.exec("for n in pid net ipc uts mnt cgroup user time; do readlink /proc/self/ns/$n; done");
    let theirs = bundle.exec("for n in pid net ipc uts mnt cgroup user time; do readlink /proc/1/ns/$n; done");
    assert_eq!((own.lines().count(), &own), (8, &theirs));
    let run = bundle.spawn(&mut bundle.command(&["exec", &bundle.id, "sleep", "1001"]));
    let pid =
        wait_for("the process", || {
            bundle.census().processes.into_iter().find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it == "sleep\u{0}1001\u{0}")
            })
        });
    let groups = |pid: i32| read(format!("/proc/{pid}/cgroup"));
    assert_eq!(groups(pid), groups(bundle.pid()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(run.wait().code, 137);
}

#[test]
fn environment_folder_and_user_are_as_asked_for() {
    let bundle = idle();
    let flags = ["exec", "--env", "ONE=1", "--env", "PATH=/bin:/x", "--cwd", "/proc", "--user", "1000:1001"];
    let script = "echo $ONE $PATH; pwd; id -u; id -g; id -G";
    let more = ["-g", "2000", "-g", "2001", &bundle.id, "/bin/sh", "-c", script];
    let printed = bundle.call(&[&flags[..], &more].concat()).ok();
    assert_eq!(printed, "1 /bin:/x\n/proc\n1000\n1001\n1001 2000 2001\n");
}

#[test]
fn a_code_is_passed_on_and_a_missing_program_is_127() {
    let bundle = idle();
    assert_eq!(bundle.call(&["exec", &bundle.id, "sh", "-c", "exit 42"]).code, 42);
    assert!(bundle.call(&["exec", &bundle.id, "/nope"]).fails(127).contains("/nope"));
    fs::write(bundle.rootfs().join("plain"), "text").unwrap();
    assert!(bundle.call(&["exec", &bundle.id, "/plain"]).fails(126).contains("/plain"));
    assert!(bundle.call(&["exec", &bundle.id]).fails(255).contains("no program"));
}

#[test]
fn a_capability_is_added_to_what_the_container_has_and_to_no_other_process() {
    let bundle = idle();
    let caps = |flags: &[&str]| {
        let args = [&["exec"], flags, &[&bundle.id, "grep", "^Cap", "/proc/self/status"]].concat();
        bundle.call(&args).ok()
    };
    // Audit write, kill, bind to low ports; and raw sockets.
    let (three, four) = ("0000000020000420", "0000000020002420");
    assert!(caps(&[]).contains(&format!("CapEff:\t{three}")));
    let more = caps(&["--cap", "CAP_NET_RAW"]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(more.contains(&format!("{set}:\t{four}")), "{more}");
    }
    assert!(more.contains("CapInh:\t0000000000000000"), "{more}");
    assert!(caps(&[]).contains(&format!("CapEff:\t{three}")));
}

#[test]
fn a_process_of_a_file_has_the_containers_rights_and_limits_unless_it_names_its_own() {
    let mut bundle = Bundle::new();
    bundle.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]));
    bundle.set("/process/capabilities/bounding", json!(["CAP_CHOWN"]));
    for set in ["effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_CHOWN"]));
    }
    bundle.idle().start();
    let path = bundle.dir.join("process.json");
    let printed = |process: Value| {
        fs::write(&path, process.to_string()).unwrap();
        bundle.call(&["exec", "--process", path.to_str().unwrap(), &bundle.id]).ok()
    };
    let args = ["sh", "-c", "ulimit -n; grep CapEff /proc/self/status"];
    let plain = || json!({"args": args, "cwd": "/", "env": ["PATH=/bin"]});
    assert_eq!(printed(plain()), "77\nCapEff:\t0000000000000001\n");
    let mut own = plain();
    own["capabilities"] = json!({});
    own["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 55}]);
    assert_eq!(printed(own), "55\nCapEff:\t0000000000000000\n");
}

#[test]
fn added_capability_is_not_inheritable_even_if_others_are() {
    let mut bundle = Bundle::new();
    bundle.set("/process/capabilities/inheritable", json!(["CAP_KILL"])).idle().start();
    let args = ["exec", "--cap", "CAP_NET_RAW", &bundle.id, "grep", "^CapInh", "/proc/self/status"];
    assert_eq!(bundle.call(&args).ok(), "CapInh:\t0000000000000020\n");
}

#[test]
fn process_has_the_personality_of_its_container() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/personality", json!({"domain": "LINUX32"})).idle().start();
    // PER_LINUX32 is 8 (personality(2)).
    assert_eq!(bundle.exec("cat /proc/self/personality"), "00000008\n");
}

#[test]
fn process_runs_in_the_named_subgroup_which_must_exist() {
    let bundle = idle();
    let named = if only_v2() { "/inner" } else { "memory:/inner" };
    let run = |program: &[&str]| bundle.call(&[&["exec", "--cgroup", named, &bundle.id], program].concat());
    assert!(run(&["true"]).fails(255).contains("does not exist"));
    fs::create_dir(bundle.cgroup("memory", "inner", "inner")).unwrap();
    let run = run(&["cat", "/proc/self/cgroup"]).ok();
    let own = run.lines().find(|it| if only_v2() { it.starts_with("0::") } else { it.contains(":memory:") });
    assert!(own.is_some_and(|it| it.ends_with("/inner")), "{run}");
    fs::remove_dir(bundle.cgroup("memory", "inner", "inner")).unwrap();
}

#[test]
fn a_detached_process_goes_on_and_its_pid_file_names_it() {
    let bundle = idle();
    let path = bundle.dir.join("pid");
    let args = ["exec", "--detach", "--pid-file", path.to_str().unwrap(), &bundle.id, "sleep", "1001"];
    bundle.call(&args).ok();
    assert_eq!(read(format!("/proc/{}/cmdline", read(&path))), "sleep\u{0}1001\u{0}");
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_process_file_says_all_of_it() {
    let bundle = idle();
    let path = bundle.dir.join("process.json");
    let process = json!({
        "args": ["/bin/sh", "-c", "echo $A; id -u; umask; ulimit -n; grep NoNewPrivs /proc/self/status"],
        "env": ["A=b", "PATH=/bin"], "cwd": "/bin", "user": {"uid": 5, "gid": 6, "umask": 63},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}], "noNewPrivileges": true,
    });
    fs::write(&path, process.to_string()).unwrap();
    let printed = bundle.call(&["exec", "--process", path.to_str().unwrap(), &bundle.id]).ok();
    assert_eq!(printed, "b\n5\n0077\n77\nNoNewPrivs:\t1\n");
    fs::write(&path, r#"{"args": ["true"], "cwd": "relative"}"#).unwrap();
    let printed = bundle.call(&["exec", "--process", path.to_str().unwrap(), &bundle.id]).fails(255);
    assert!(printed.contains("process.cwd"), "{printed}");
}

#[test]
fn a_created_container_takes_processes_and_a_stopped_one_none() {
    let mut bundle = Bundle::new();
    bundle.idle().make("create", &[]).ok();
    assert_eq!(bundle.exec("echo here"), "here\n");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    assert!(bundle.call(&["exec", &bundle.id, "true"]).fails(255).contains("not running"));
}

#[test]
fn signals_to_exec_reach_its_process() {
    let bundle = idle();
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let exec = bundle.spawn(&mut bundle.command(&["exec", &bundle.id, "sh", "-c", script]));
    exec.wait_for("ready");
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.wait().code, 9);
    assert_eq!(bundle.status(), "running");
}

#[test]
fn a_process_with_a_filter_of_the_container_is_bound_by_it() {
    let mut bundle = Bundle::new();
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99});
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    bundle.idle().start();
    let printed = bundle.call(&["exec", &bundle.id, "mkdir", "/made"]);
    assert!(printed.code == 1 && printed.err.contains("mkdir"), "{printed:?}");
    assert!(!bundle.rootfs().join("made").exists());
}

#[test]
fn cpus_of_an_exec_are_bound_before_and_after() {
    let mut bundle = Bundle::new();
    bundle.set("/process/execCPUAffinity", json!({"initial": "0", "final": "1"})).idle().start();
    assert_eq!(bundle.exec("grep Cpus_allowed_list /proc/self/status"), "Cpus_allowed_list:\t1\n");
}

#[test]
fn a_process_without_an_oom_score_of_its_own_has_the_containers() {
    let mut bundle = Bundle::new();
    bundle.set("/process/oomScoreAdj", json!(321)).idle().start();
    assert_eq!(bundle.exec("cat /proc/self/oom_score_adj"), "321\n");
    let path = bundle.dir.join("process.json");
    let process = |adjustment: Option<i32>| {
        let script = "cat /proc/self/oom_score_adj";
        let mut process = json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]});
        process["oomScoreAdj"] = adjustment.into();
        fs::write(&path, process.to_string()).unwrap();
        bundle.call(&["exec", "--process", path.to_str().unwrap(), &bundle.id]).ok()
    };
    assert_eq!(process(None), "321\n");
    assert_eq!(process(Some(500)), "500\n");
}

#[test]
fn a_process_that_is_killed_before_it_runs_is_an_error() {
    let mut bundle = Bundle::new();
    // The calls of `sleep` alone: a process that still has rights to give up when its filter is set needs more.
    let names =
        ["read", "write", "execve", "exit_group", "brk", "arch_prctl", "mprotect", "mmap", "readlink", "getrandom"]
            .into_iter()
            .chain([
                "set_tid_address",
                "set_robust_list",
                "rseq",
                "prlimit64",
                "prctl",
                "getuid",
                "nanosleep",
                "clock_nanosleep",
            ]);
    let allowed = json!([{"names": names.collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"}]);
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": allowed})).idle().start();
    assert_eq!(bundle.status(), "running");
    let (path, pid_file) = (bundle.dir.join("process.json"), bundle.dir.join("pid"));
    fs::write(&path, json!({"args": ["sleep", "0"], "cwd": "/", "env": ["PATH=/bin"]}).to_string()).unwrap();
    fs::write(&pid_file, "another's").unwrap();
    let flags = ["--pid-file", pid_file.to_str().unwrap(), "--process", path.to_str().unwrap()];
    for detach in [&[][..], &["--detach"]] {
        let printed = bundle.call(&[&["exec"], detach, &flags[..], &[&bundle.id]].concat()).fails(255);
        assert!(printed.contains("killed before it ran"), "{printed}");
        assert_eq!(read(&pid_file), "another's");
    }
}
