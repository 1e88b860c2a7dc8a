//! A request that can't be carried out is refused with one line that names the cause, and leaves nothing.

use std::fs;

use serde_json::{Value, json};

use crate::census::Census;
use crate::harness::Bundle;

/// Where, what instead, and what the error has to name.
type Case = (&'static str, Value, &'static str);

fn broken() -> Vec<Case> {
    [process(), linux(), mounts_and_hooks()].concat()
}

fn process() -> Vec<Case> {
    let rlimit = |kind: &str, soft: u64| json!({"type": kind, "soft": soft, "hard": 9});
    vec![
        ("/ociVersion", json!(7), "ociVersion"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/ociVersion", Value::Null, "ociVersion"),
        ("/process", json!("sh"), "process"),
        ("/process/args", json!("sh"), "process.args"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([1]), "process.args[0]"),
        ("/process/args", json!(["a\0b"]), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/env", json!(["A"]), "process.env"),
        ("/process/env", json!({"A": "b"}), "process.env"),
        ("/process/env", json!(["A=b\0c"]), "process.env"),
        ("/process/user/uid", json!("root"), "process.user.uid"),
        ("/process/user/gid", json!(-1), "process.user.gid"),
        ("/process/user/additionalGids", json!(["wheel"]), "process.user.additionalGids[0]"),
        ("/process/terminal", json!("no"), "process.terminal"),
        ("/process/rlimits", json!([rlimit("RLIMIT_ODD", 1)]), "process.rlimits[0].type"),
        ("/process/rlimits", json!([rlimit("RLIMIT_CPU", 10)]), "process.rlimits[0]"),
        ("/process/rlimits", json!([rlimit("RLIMIT_CPU", 1), rlimit("RLIMIT_CPU", 1)]), "process.rlimits[1]"),
        ("/process/capabilities", json!(["CAP_KILL"]), "process.capabilities"),
        ("/process/oomScoreAdj", json!("low"), "process.oomScoreAdj"),
        ("/process/scheduler", json!({"policy": "SCHED_ODD"}), "process.scheduler.policy"),
        ("/process/scheduler", json!({"policy": "SCHED_IDLE", "flags": ["ODD"]}), "process.scheduler.flags"),
        ("/process/ioPriority", json!({"class": "ODD"}), "process.ioPriority.class"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), "process.ioPriority.priority"),
        ("/process/execCPUAffinity", json!({"initial": "x"}), "process.execCPUAffinity.initial"),
        ("/process/apparmorProfile", json!("any"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("any"), "process.selinuxLabel"),
        ("/root", Value::Null, "root"),
        ("/root/path", json!(""), "root.path"),
        ("/root/path", json!("nowhere"), "root.path"),
        ("/root/path", json!("config.json"), "root.path"),
        ("/root/readonly", json!("yes"), "root.readonly"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
    ]
}

fn linux() -> Vec<Case> {
    let seccomp = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let compared = |op: &str, index: u32| {
        seccomp(json!({"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": index, "op": op, "value": 1}]}))
    };
    vec![
        ("/linux/namespaces", json!([{"type": "mount"}]), "hostname"),
        ("/linux/namespaces/0", json!({"type": "odd"}), "linux.namespaces[0].type"),
        ("/linux/namespaces/-", json!({"type": "pid"}), "linux.namespaces"),
        ("/linux/namespaces/0", json!({"type": "pid", "path": "x"}), "linux.namespaces[0].path"),
        ("/linux/namespaces/0", json!({"type": "pid", "path": "/nope"}), "/nope"),
        ("/linux/namespaces/0", json!({"type": "pid", "path": "/proc/self/ns/net"}), "/proc/self/ns/net"),
        ("/linux/namespaces/0", json!({"type": "pid", "path": "/etc/passwd"}), "/etc/passwd"),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]), "linux.uidMappings"),
        ("/linux/timeOffsets", json!({"monotonic": {"secs": 1}}), "linux.timeOffsets"),
        ("/linux/devices", json!([{"type": "x", "path": "/dev/x"}]), "linux.devices[0].type"),
        ("/linux/devices", json!([{"type": "c", "path": "x"}]), "linux.devices[0].path"),
        ("/linux/devices", json!([{"type": "c", "path": "/dev/x", "major": "1"}]), "linux.devices[0].major"),
        ("/linux/cgroupsPath", json!("/../up"), "linux.cgroupsPath"),
        ("/linux/cgroupsPath", json!("a.slice:b:c"), "linux.cgroupsPath"),
        ("/linux/resources/memory", json!({"limit": "1G"}), "linux.resources.memory.limit"),
        ("/linux/resources/pids", json!("many"), "linux.resources.pids"),
        ("/linux/resources/cpu", json!({"shares": -1}), "linux.resources.cpu.shares"),
        ("/linux/resources/cpu", json!({"cpus": "4096"}), "linux.resources.cpu.cpus"),
        ("/linux/resources/cpu", json!({"period": 1, "quota": 1}), "linux.resources.cpu"),
        ("/linux/resources/hugepageLimits", json!([{"pageSize": "2XB", "limit": 1}]), "linux.resources.hugepageLimits"),
        ("/linux/resources/rdma", json!({"hca": {"hcaHandles": 1}}), "linux.resources.rdma"),
        ("/linux/resources/network", json!({"classID": 1}), "linux.resources.network"),
        ("/linux/resources/devices", json!([{"allow": true, "type": "q"}]), "linux.resources.devices[0].type"),
        ("/linux/resources/devices", json!([{"allow": true, "access": "xyz"}]), "linux.resources.devices[0].access"),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "linux.sysctl `vm.swappiness`"),
        ("/linux/sysctl", json!({"kernel.hostname": "x"}), "linux.sysctl `kernel.hostname`"),
        ("/linux/sysctl", json!({"net.ipv4.ip_forward": 1}), "linux.sysctl"),
        ("/linux/sysctl", json!({"net.no.such": "1"}), "linux.sysctl `net.no.such`"),
        ("/linux/seccomp", json!({"defaultAction": "ODD"}), "linux.seccomp.defaultAction"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction"),
        ("/linux/seccomp", seccomp(json!({"names": ["read"], "action": "ODD"})), "linux.seccomp.syscalls[0].action"),
        ("/linux/seccomp", compared("ODD", 0), "linux.seccomp.syscalls[0].args[0].op"),
        ("/linux/seccomp", compared("SCMP_CMP_EQ", 6), "linux.seccomp.syscalls[0].args[0].index"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ODD"]}),
            "linux.seccomp.architectures[0]",
        ),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["ODD"]}), "linux.seccomp.flags[0]"),
        ("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
        ("/linux/maskedPaths", json!("/proc"), "linux.maskedPaths"),
        ("/linux/personality", json!({"domain": "ODD"}), "linux.personality.domain"),
        ("/linux/memoryPolicy", json!({"mode": "ODD"}), "linux.memoryPolicy.mode"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
    ]
}

fn mounts_and_hooks() -> Vec<Case> {
    vec![
        ("/mounts", json!({"destination": "/x"}), "mounts"),
        ("/mounts/-", json!({"type": "tmpfs"}), "mounts[7].destination"),
        ("/mounts/-", json!({"destination": "/x", "type": "no-such"}), "mounts[7]"),
        ("/mounts/-", json!({"destination": "/x", "source": "/nowhere", "options": ["bind"]}), "mounts[7]"),
        ("/mounts/-", json!({"destination": "/x"}), "mounts[7]"),
        ("/mounts/-", json!({"destination": "/x", "type": "tmpfs", "options": ["odd=1"]}), "mounts[7]"),
        ("/mounts/-", json!({"destination": "/x", "type": "tmpfs", "options": [7]}), "mounts[7].options[0]"),
        ("/mounts/-", json!({"destination": "/etc/../bin/busybox", "type": "tmpfs"}), "mounts[7]"),
        ("/hooks", json!({"prestart": [{"path": "relative"}]}), "hooks.prestart[0].path"),
        ("/hooks", json!({"poststop": [{"path": "/x", "timeout": 0}]}), "hooks.poststop[0].timeout"),
        ("/hooks", json!({"poststart": [{"path": "/x", "env": ["A"]}]}), "hooks.poststart[0].env"),
        ("/hooks", json!({"createRuntime": [{"path": "/nope"}]}), "hooks.createRuntime[0]"),
        ("/annotations", json!({"a": 1}), "annotations.a"),
    ]
}

#[test]
fn a_broken_configuration_is_refused_by_the_name_of_its_field() {
    let mut bundle = Bundle::new();
    let good = bundle.config.clone();
    let mut wrong = Vec::new();
    for (pointer, value, field) in broken() {
        bundle.config = good.clone();
        let what = format!("{pointer} {value}");
        bundle.set(pointer, value).sh_unless_set(pointer);
        let ran = bundle.run();
        let lines: Vec<&str> = ran.err.lines().collect();
        let names = lines.len() == 1 && lines[0].starts_with("error: failed to ") && lines[0].contains(field);
        if ran.code != 1 || !names || !ran.out.is_empty() {
            wrong.push(format!("{what}: {ran:?}"));
        }
        let census = bundle.census();
        if census != Census::default() {
            wrong.push(format!("{what}: {census:?} is left"));
            bundle.call(&["delete", "-f", &bundle.id]);
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), broken().len(), wrong.join("\n"));
}

impl Bundle {
    /// A program that says that it was run, where the case is not about that itself.
    fn sh_unless_set(&mut self, pointer: &str) {
        if !["/process", "/process/args"].contains(&pointer) {
            self.sh("echo ran");
        }
    }
}

#[test]
fn what_is_not_known_but_harmless_is_warned_of_or_ignored() {
    let mut bundle = Bundle::new();
    bundle.set("/process/capabilities/bounding/-", json!("CAP_FUTURE")).set("/novelty", json!({"x": [1]}));
    bundle.set("/linux/novelty", json!(true)).set("/process/novelty", Value::Null);
    let rule = json!({"names": ["call_of_the_future", "mkdir"], "action": "SCMP_ACT_ERRNO"});
    bundle.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    let log = bundle.dir.join("log");
    let folder = bundle.sh("echo ran").write().dir.join("bundle");
    let (log, folder, id) = (log.to_str().unwrap(), folder.to_str().unwrap(), bundle.id.clone());
    let ran = bundle.call(&["--log", log, "run", "--bundle", folder, &id]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "ran\n", ""));
    let printed = fs::read_to_string(log).unwrap();
    let ran = bundle.run();
    let words = ran.err.lines().map(|it| it.strip_prefix("warning: ").unwrap()).collect::<Vec<_>>().join(" ");
    assert!(words.contains("CAP_FUTURE") && words.contains("call_of_the_future"), "{words}");
    assert!(printed.contains("CAP_FUTURE") && printed.contains("call_of_the_future"), "{printed}");
    assert!(printed.lines().all(|it| it.contains("level=warning")), "{printed}");
}

#[test]
fn a_file_that_is_no_configuration_is_refused_by_its_name() {
    let mut bundle = Bundle::new();
    let path = bundle.write().dir.join("bundle/config.json");
    let good = fs::read(&path).unwrap();
    let large = [&good[..], " ".repeat(9 << 20).as_bytes()].concat();
    let deep = "[".repeat(100_000);
    for text in [&b""[..], b"{", b"[]", b"null", b"{}{}", b"\xff\xfe", &good[..good.len() / 2], &large, deep.as_bytes()]
    {
        fs::write(&path, text).unwrap();
        let folder = bundle.dir.join("bundle");
        let printed = bundle.call(&["run", "--bundle", folder.to_str().unwrap(), &bundle.id]).fails(1);
        assert!(printed.contains("failed to read"), "{printed}");
    }
    fs::remove_file(&path).unwrap();
    let folder = bundle.dir.join("bundle");
    assert!(bundle.call(&["run", "-b", folder.to_str().unwrap(), &bundle.id]).fails(1).contains("config.json"));
    fs::create_dir(&path).unwrap();
    assert!(bundle.call(&["run", "-b", folder.to_str().unwrap(), &bundle.id]).fails(1).contains("config.json"));
    assert!(bundle.call(&["run", "-b", "/nowhere", &bundle.id]).fails(1).contains("/nowhere"));
    bundle.assert_gone();
    fs::remove_dir(&path).unwrap();
    fs::remove_dir_all(bundle.rootfs()).unwrap();
    assert!(bundle.sh("true").run().fails(1).contains("root.path"));
    bundle.assert_gone();
}

#[test]
fn a_program_that_is_missing_is_127_and_one_that_can_not_run_126() {
    let mut bundle = Bundle::new();
    let root = bundle.rootfs();
    fs::write(root.join("plain"), "#!/bin/sh\n").unwrap();
    for (name, text) in [("garbage", "no program\0"), ("script", "#!/no/such\n")] {
        fs::write(root.join(name), text).unwrap();
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(root.join(name), all).unwrap();
    }
    let cases = [("/nope", 127), ("nope", 127), ("/bin/sh/x", 127), ("/plain", 126), ("/bin", 126), ("/garbage", 126)];
    for (name, code) in cases.into_iter().chain([("/script", 127)]) {
        let printed = bundle.args(&[name]).run().fails(code);
        assert!(printed.contains(&format!("`{name}`")), "{printed}");
        bundle.assert_gone();
    }
    bundle.args(&["nope"]);
    bundle.make("create", &[]).fails(127);
    bundle.assert_gone();
}

#[test]
fn a_start_that_fails_leaves_nothing_however_fast_its_init_ends() {
    let mut bundle = Bundle::new();
    bundle.args(&["/nope"]);
    for _ in 0..100 {
        bundle.run().fails(127);
        assert_eq!(bundle.census(), Census::default(), "something is left");
    }
}

#[test]
fn ids_that_are_no_names_are_refused_by_every_verb() {
    let mut bundle = Bundle::new();
    bundle.idle().write();
    let long = "x".repeat(2000);
    for id in ["../x", "", "a/b", "/abs", ".", "..", "a b", "ä", &long] {
        for verb in ["run", "create", "state", "start", "delete", "pause", "ps"] {
            let mut command = bundle.command(&[verb]);
            if ["run", "create"].contains(&verb) {
                command.arg("--bundle").arg(bundle.dir.join("bundle"));
            }
            let printed = bundle.spawn(command.arg(id)).wait().fails(1);
            assert!(printed.contains("the container id"), "{verb} {id}: {printed}");
        }
    }
    bundle.assert_gone();
}

#[test]
fn an_id_in_use_leaves_what_uses_it_alone() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    let (before, pid) = (bundle.census(), bundle.pid());
    assert!(bundle.run().fails(1).contains("already exists"));
    assert_eq!((bundle.census(), bundle.pid(), bundle.status()), (before, pid, "running".into()));
}

#[test]
fn control_groups_in_use_are_not_taken() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    let other = format!("{}other", bundle.id);
    let folder = bundle.dir.join("bundle");
    let printed = bundle.call(&["run", "--bundle", folder.to_str().unwrap(), &other]).fails(1);
    assert!(printed.contains("has processes"), "{printed}");
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.exec("echo alive"), "alive\n");
}
