//! `process`: who it is, what it may, what it gets.

use serde_json::json;

use crate::harness::{Bundle, read};

#[test]
fn user_groups_and_umask_are_set() {
    let mut bundle = Bundle::new();
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [2000, 3000], "umask": 55}));
    assert_eq!(bundle.sh("id -u; id -g; id -G; umask").output(), "1000\n1001\n1001 2000 3000\n0067\n");
}

#[test]
fn all_five_sets_of_capabilities_are_as_configured() {
    let mut bundle = Bundle::new();
    // CHOWN is bit 0, KILL 5, NET_RAW 13, SYS_ADMIN 21.
    bundle.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_ADMIN"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_CHOWN", "CAP_NET_RAW"],
            "ambient": ["CAP_CHOWN"],
        }),
    );
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000})).idle().start();
    let status = read(format!("/proc/{}/status", bundle.pid()));
    // After exec by a user that is not root, permitted and effective are what is ambient (capabilities(7)).
    for line in ["CapInh:\t0000000000002001", "CapPrm:\t0000000000000001", "CapEff:\t0000000000000001"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    for line in ["CapBnd:\t0000000000202021", "CapAmb:\t0000000000000001"] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

#[test]
fn root_has_the_permitted_capabilities_and_without_any_none() {
    let mut bundle = Bundle::new();
    assert!(bundle.sh("grep CapEff /proc/self/status").output().ends_with("0000000020000420\n"));
    bundle.unset("/process/capabilities");
    let printed = bundle.sh("grep Cap /proc/self/status | cut -f2 | uniq").output();
    assert_eq!(printed, "0000000000000000\n");
}

#[test]
fn limits_of_resources_are_set_and_hold_for_children() {
    let mut bundle = Bundle::new();
    bundle.set(
        "/process/rlimits",
        json!([
            {"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 18_446_744_073_709_551_615_u64},
        ]),
    );
    let printed = bundle.sh("grep -E 'open files|core file|stack' /proc/self/limits | tr -s ' '").output();
    assert!(printed.contains("open files 50 60"), "{printed}");
    assert!(printed.contains("core file size 0 0"), "{printed}");
    assert!(printed.contains("stack size 1048576 unlimited"), "{printed}");
}

#[test]
fn new_privileges_are_forbidden_when_asked_for() {
    for (value, expected) in [(true, "1"), (false, "0")] {
        let mut bundle = Bundle::new();
        bundle.set("/process/noNewPrivileges", json!(value));
        assert_eq!(bundle.sh("grep NoNewPrivs /proc/self/status").output(), format!("NoNewPrivs:\t{expected}\n"));
    }
}

#[test]
fn the_kernels_choice_when_memory_is_out_is_told() {
    let mut bundle = Bundle::new();
    bundle.set("/process/oomScoreAdj", json!(321));
    assert_eq!(bundle.sh("cat /proc/self/oom_score_adj").output(), "321\n");
}

#[test]
fn the_scheduler_is_as_configured() {
    // sched(7): SCHED_BATCH is 3, SCHED_IDLE 5.
    for (scheduler, policy, priority) in [
        (json!({"policy": "SCHED_BATCH", "nice": 5}), 3, 125),
        (json!({"policy": "SCHED_IDLE"}), 5, 120),
        (json!({"policy": "SCHED_OTHER", "nice": -3}), 0, 117),
    ] {
        let mut bundle = Bundle::new();
        bundle.set("/process/scheduler", scheduler.clone()).idle().start();
        let sched = read(format!("/proc/{}/sched", bundle.pid()));
        let value = |name: &str| {
            let line = sched.lines().find(|it| it.starts_with(name)).unwrap_or_default();
            line.rsplit(' ').next().unwrap().parse::<i32>().unwrap()
        };
        assert_eq!((value("policy"), value("prio")), (policy, priority), "{scheduler}");
    }
}

#[test]
fn the_priority_of_input_and_output_is_as_configured() {
    let mut bundle = Bundle::new();
    bundle.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 6})).idle().start();
    assert_eq!(io_priority(bundle.pid()), 3 << 13 | 6);
}

#[expect(unsafe_code, reason = "ioprio_get(2) has no wrapper")]
fn io_priority(pid: i32) -> i64 {
    // SAFETY: the call takes two integers; 1 is IOPRIO_WHO_PROCESS.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) }
}

#[test]
fn the_working_folder_is_made_where_the_image_has_none() {
    let mut bundle = Bundle::new();
    bundle.set("/process/cwd", json!("/srv/app"));
    assert_eq!(bundle.sh("pwd").output(), "/srv/app\n");
}

#[test]
fn home_is_from_the_images_user_table() {
    let mut bundle = Bundle::new();
    let etc = bundle.rootfs().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n").unwrap();
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    assert_eq!(bundle.sh("echo $HOME").output(), "/home/me\n");
}

#[test]
fn signals_are_as_a_new_program_expects_them() {
    let mut bundle = Bundle::new();
    bundle.args(&["grep", "^Sig\\(Blk\\|Ign\\|Cgt\\)", "/proc/self/status"]);
    let zero = "0000000000000000";
    assert_eq!(bundle.output(), format!("SigBlk:\t{zero}\nSigIgn:\t{zero}\nSigCgt:\t{zero}\n"));
}
