//! `linux`: namespaces, devices, limits, names and the rest, as the container then has them.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::{Bundle, only_v2, read, wait_for};

const KINDS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("user", "user"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

fn namespace(pid: impl std::fmt::Display, file: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().display().to_string()
}

#[test]
fn every_kind_of_namespace_is_new_when_it_is_asked_for() {
    for (kind, file) in KINDS {
        let mut bundle = Bundle::new();
        bundle.namespace(json!({"type": kind}));
        bundle.idle().start();
        assert_ne!(namespace(bundle.pid(), file), namespace("self", file), "{kind}");
    }
}

#[test]
fn every_kind_of_namespace_is_joined_by_its_path() {
    let mut other = Bundle::new();
    for (kind, _) in KINDS {
        other.namespace(json!({"type": kind}));
    }
    other.idle().start();
    for (kind, file) in KINDS.into_iter().filter(|it| it.0 != "mount") {
        let mut bundle = Bundle::new();
        let path = format!("/proc/{}/ns/{file}", other.pid());
        bundle.namespace(json!({"type": kind, "path": path}));
        if kind == "user" {
            // Everything else belongs to the user namespace that is joined.
            bundle.unset("/linux/resources");
        }
        bundle.idle().start();
        assert_eq!(namespace(bundle.pid(), file), namespace(other.pid(), file), "{kind}");
    }
}

#[test]
fn loopback_is_up_in_a_network_namespace_that_is_joined() {
    let mut owner = std::process::Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", owner.id());
    wait_for("a network namespace", || {
        (std::fs::read_link(&path).ok() != std::fs::read_link("/proc/self/ns/net").ok()).then_some(())
    });
    let mut bundle = Bundle::new();
    bundle.namespace(json!({"type": "network", "path": path}));
    let printed = bundle.sh("ip addr show lo").output();
    let _ = owner.kill();
    let _ = owner.wait();
    assert!(printed.contains("LOOPBACK,UP") && printed.contains("127.0.0.1/8"), "{printed}");
}

#[test]
fn a_namespace_that_is_not_named_is_the_callers() {
    let mut bundle = Bundle::new();
    bundle
        .set("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid"}, {"type": "network"}]))
        .unset("/hostname");
    bundle.idle().start();
    for file in ["ipc", "uts", "user", "cgroup", "time"] {
        assert_eq!(namespace(bundle.pid(), file), namespace("self", file), "{file}");
    }
}

fn user_namespace() -> Bundle {
    let mut bundle = Bundle::new();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 5000, "hostID": 200_000, "size": 1}]);
    bundle.namespace(json!({"type": "user"})).set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    nix::unistd::chown(&bundle.rootfs(), Some(100_000.into()), Some(100_000.into())).unwrap();
    bundle
}

#[test]
fn a_user_namespace_maps_ids_and_owns_files_by_them() {
    use std::os::unix::fs::MetadataExt;
    let mut bundle = user_namespace();
    bundle.sh("cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; touch /mine; id -u; echo x >/dev/null");
    assert_eq!(bundle.output(), " 0 100000 1000\n 5000 200000 1\n 0 100000 1000\n 5000 200000 1\n0\n");
    let made = fs::metadata(bundle.rootfs().join("mine")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 100_000));
}

#[test]
fn a_user_namespace_takes_exec_limits_and_further_ids() {
    let mut bundle = user_namespace();
    bundle.set("/linux/resources/pids", json!({"limit": 9})).idle().start();
    assert_eq!(read(bundle.cgroup("pids", "pids.max", "pids.max")), "9");
    let printed = bundle.call(&["exec", "--user", "5000:5000", &bundle.id, "sh", "-c", "id -u; id -g"]).ok();
    assert_eq!(printed, "5000\n5000\n");
    let line = read(format!("/proc/{}/status", bundle.pid()));
    assert!(line.contains("Uid:\t100000\t100000"), "{line}");
}

#[test]
fn a_time_namespace_has_its_offsets() {
    let mut bundle = Bundle::new();
    bundle.namespace(json!({"type": "time"}));
    bundle.set("/linux/timeOffsets", json!({"boottime": {"secs": 1_000_000, "nanosecs": 5}, "monotonic": {"secs": 7}}));
    let printed = bundle.sh("cut -d. -f1 /proc/uptime; tr -s ' ' </proc/self/timens_offsets").output();
    let mut lines = printed.lines();
    assert!(lines.next().unwrap().parse::<u64>().unwrap() >= 1_000_000, "{printed}");
    let rest: Vec<&str> = lines.collect();
    assert_eq!(rest, ["monotonic 7 0", "boottime 1000000 5"]);
}

#[test]
fn names_of_host_and_domain_are_the_containers_own() {
    let mut bundle = Bundle::new();
    bundle.set("/hostname", json!("box")).set("/domainname", json!("lan"));
    let before = nix::unistd::gethostname().unwrap();
    assert_eq!(bundle.sh("hostname; cat /proc/sys/kernel/domainname").output(), "box\nlan\n");
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
}

#[test]
fn kernel_parameters_are_set_in_the_container_only() {
    let mut bundle = Bundle::new();
    let path = Path::new("/proc/sys/kernel/msgmax");
    let before = read(path);
    let wanted = json!({"kernel.msgmax": "12345", "net.ipv4.ip_unprivileged_port_start": "80"});
    bundle.set("/linux/sysctl", wanted);
    bundle.sh("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_eq!((bundle.output().as_str(), read(path)), ("12345\n80\n", before));
}

#[test]
fn devices_have_their_kind_number_mode_and_owner() {
    let mut bundle = Bundle::new();
    bundle.set(
        "/linux/devices",
        json!([
            {"type": "c", "path": "/dev/char", "major": 10, "minor": 200, "fileMode": 384, "uid": 5, "gid": 6},
            {"type": "b", "path": "/dev/deep/block", "major": 7, "minor": 9},
            {"type": "p", "path": "/dev/pipe", "fileMode": 432},
            {"type": "u", "path": "/dev/unbuffered", "major": 1, "minor": 9},
        ]),
    );
    bundle.sh("cd /dev; stat -c '%F %t:%T %a %u:%g' char deep/block pipe unbuffered null; for l in fd stdin ptmx; do readlink $l; done");
    let expected = "character special file a:c8 600 5:6\nblock special file 7:9 666 0:0\nfifo 0:0 660 0:0\n\
        character special file 1:9 666 0:0\ncharacter special file 1:3 666 0:0\n\
        /proc/self/fd\n/proc/self/fd/0\npts/ptmx\n";
    assert_eq!(bundle.output(), expected);
}

#[test]
fn a_device_without_a_rule_can_be_made_and_not_opened() {
    let mut bundle = Bundle::new();
    bundle.privileged().set("/linux/devices", json!([{"type": "c", "path": "/dev/kmsg", "major": 1, "minor": 11}]));
    bundle.sh("mknod /own c 1 11; head -c1 /own; head -c1 /dev/kmsg; head -c1 /dev/zero | wc -c");
    let ran = bundle.run();
    assert_eq!(ran.err.matches("Operation not permitted").count(), 2, "{ran:?}");
    assert_eq!(ran.out, "1\n", "the default devices work");
    bundle
        .set("/linux/resources/devices/-", json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}));
    bundle.sh("head -c1 /dev/kmsg >/dev/null && echo read; true >/dev/kmsg");
    let ran = bundle.run();
    assert_eq!((ran.out.as_str(), ran.err.contains("not permitted")), ("read\n", true), "{ran:?}");
    // Without any rules it is as with none that allow something.
    for none in [json!({}), json!({"devices": []})] {
        bundle
            .set("/linux/resources", none)
            .sh("head -c1 /dev/kmsg >/dev/null && echo read; head -c1 /dev/zero | wc -c");
        let ran = bundle.run();
        assert_eq!((ran.out.as_str(), ran.err.contains("not permitted")), ("1\n", true), "{ran:?}");
    }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let mut bundle = Bundle::new();
    bundle.set(
        "/linux/resources",
        json!({
            "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296},
            "cpu": {"shares": 100, "quota": 30_000, "period": 60_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 11},
        }),
    );
    bundle.idle().make("create", &[]).ok();
    // Version 2 counts swap alone and not with memory, and weighs CPU on a scale of its own.
    for (controller, v1, in_v1, v2, in_v2) in [
        ("memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"),
        ("memory", "memory.memsw.limit_in_bytes", "100663296", "memory.swap.max", "33554432"),
        ("cpu", "cpu.shares", "100", "cpu.weight", "17"),
        ("cpu", "cpu.cfs_quota_us", "30000", "cpu.max", "30000 60000"),
        ("cpu", "cpu.cfs_period_us", "60000", "cpu.max", "30000 60000"),
        ("cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0", "cpuset.mems", "0"),
        ("pids", "pids.max", "11", "pids.max", "11"),
    ] {
        let expected = if only_v2() { in_v2 } else { in_v1 };
        assert_eq!(read(bundle.cgroup(controller, v1, v2)), expected, "{v1} or {v2}");
    }
    for controller in ["memory", "pids", "freezer", "unified", "systemd"] {
        let procs = bundle.cgroup(controller, "cgroup.procs", "cgroup.procs");
        assert_eq!(read(procs), bundle.pid().to_string(), "{controller}");
    }
}

#[test]
fn limits_of_one_version_of_control_groups_are_set_or_refused_by_their_name() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/resources/memory", json!({"swappiness": 7})).idle();
    if only_v2() {
        let printed = bundle.make("create", &[]).fails(1);
        assert!(printed.contains("linux.resources.memory.swappiness: cgroup v2 has no such limit"), "{printed}");
        bundle.assert_gone();
        bundle.unset("/linux/resources/memory").set("/linux/resources/unified", json!({"memory.high": "33554432"}));
        bundle.make("create", &[]).ok();
        assert_eq!(read(bundle.cgroup("", "", "memory.high")), "33554432");
        return;
    }
    let throttle = json!({"throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 1_048_576}]});
    bundle.set("/linux/resources/blockIO", throttle).make("create", &[]).ok();
    assert_eq!(read(bundle.cgroup("memory", "memory.swappiness", "")), "7");
    assert_eq!(read(bundle.cgroup("blkio", "blkio.throttle.read_bps_device", "")), "254:0 1048576");
}

#[test]
fn a_limit_of_processes_holds() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/resources/pids", json!({"limit": 4}));
    let ran = bundle.sh("for i in 1 2 3 4 5 6; do sleep 1000 & done").run();
    assert!(ran.code != 0 && ran.err.contains("fork"), "{ran:?}");
}

#[test]
fn without_a_path_the_groups_are_called_like_the_container() {
    let mut bundle = Bundle::new();
    bundle.unset("/linux/cgroupsPath").idle().start();
    let groups = read(format!("/proc/{}/cgroup", bundle.pid()));
    assert!(groups.lines().all(|line| line.ends_with(&bundle.id)), "{groups}");
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn groups_of_the_container_are_mounted_and_shown_as_its_root() {
    let mut bundle = Bundle::new();
    bundle.namespace(json!({"type": "cgroup"})).set("/linux/resources/pids", json!({"limit": 13}));
    let file = if only_v2() { "/sys/fs/cgroup/pids.max" } else { "/sys/fs/cgroup/pids/pids.max" };
    bundle.sh(&format!("grep -c ':/$' /proc/self/cgroup; cat {file}; echo 5 >{file}"));
    let ran = bundle.run();
    let shown: Vec<&str> = ran.out.lines().collect();
    assert_eq!((shown[0].parse::<usize>().unwrap(), shown[1]), (read("/proc/self/cgroup").lines().count(), "13"));
    assert!(ran.err.contains("Read-only"), "{ran:?}");
}

#[test]
fn a_personality_is_what_uname_says() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/personality", json!({"domain": "LINUX32"}));
    assert_eq!(bundle.sh("uname -m").output(), "i686\n");
}

#[test]
fn what_is_left_out_is_refused_and_not_ignored() {
    for (pointer, value) in [("/linux/intelRdt", json!({"closID": "x"})), ("/linux/netDevices", json!({"lo": {}}))] {
        let mut bundle = Bundle::new();
        let printed = bundle.set(pointer, value).run().fails(1);
        assert!(printed.contains(&pointer[1..].replace('/', ".")), "{printed}");
    }
    assert!(Bundle::new().call(&["checkpoint", "any"]).fails(1).contains("leaves checkpoint"));
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"}));
    let printed = bundle.sh("head -1 /proc/self/numa_maps").output();
    assert_eq!(printed.split_whitespace().nth(1), Some("bind:0"), "{printed}");
}
