//! What a program in a task finds around it, as root there and with Docker's defaults. docs/security.md lists what it can't do.

use std::collections::BTreeSet;

use flota_tests::Cluster;

/// Runs a line of shell in the task, and returns what it prints, its errors included.
fn inside(cluster: &Cluster, line: &str) -> String {
    let output = cluster.ctl_args(&["exec", "hard.1", "--", "/busybox", "sh", "-c", &format!("{{ {line}; }} 2>&1")]);
    output.stdout + &output.stderr
}

#[test]
fn a_program_in_a_task_finds_no_way_out() {
    let cluster = Cluster::up(1, 1);
    cluster.pack_busybox();
    cluster.ok("network create inner");
    cluster.ok("service create --name hard --network inner --constraint node.hostname==w1 busybox busybox sleep 1000");
    let field = |name: &str| {
        let line = inside(&cluster, &format!("/busybox grep ^{name}: /proc/self/status"));
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    // The fourteen capabilities of Docker, in every set but the inheritable and the ambient one.
    for (set, expected) in
        [("CapEff", "a80425fb"), ("CapPrm", "a80425fb"), ("CapBnd", "a80425fb"), ("CapInh", "0"), ("CapAmb", "0")]
    {
        assert_eq!(field(set).trim_start_matches('0'), expected.trim_start_matches('0'), "{set}");
    }
    assert_eq!((field("Seccomp"), field("Seccomp_filters")), ("2".into(), "1".into()), "a filter is installed");
    let mut allowed = Vec::new();
    for (what, line, refusal) in [
        ("mount", "/busybox mount -t tmpfs none /tmp", "permission denied"),
        ("make a user namespace", "/busybox unshare -U true", "Operation not permitted"),
        ("trace the kernel's log", "/busybox dmesg", "Operation not permitted"),
        ("set the clock", "/busybox date -s 2000-01-01", "Operation not permitted"),
        ("load a module", "/busybox insmod /busybox", "Operation not permitted"),
        ("write a parameter of the kernel", "echo x > /proc/sys/kernel/core_pattern", "Read-only file system"),
        ("move interrupts", "echo 1 > /proc/irq/default_smp_affinity", "Read-only file system"),
        ("write to sysfs", "echo 1 > /sys/kernel/mm/ksm/run", "Read-only file system"),
        ("join the namespaces of the machine", "/busybox nsenter -t 1 -m -i -u true", "Operation not permitted"),
        ("open a disk that it makes", "/busybox mknod /d b 254 0 && /busybox cat /d", "Operation not permitted"),
        ("use the memory of the machine", "/busybox mknod /m c 1 1 && /busybox cat /m", "Operation not permitted"),
    ] {
        let printed = inside(&cluster, line);
        if !printed.contains(refusal) {
            allowed.push(format!("{what}: {printed}"));
        }
    }
    assert_eq!(allowed, [""; 0], "it can, or fails for another reason");
    for masked in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        assert_eq!(
            inside(&cluster, &format!("[ ! -e {masked} ] || /busybox head -c 1 {masked}")),
            "",
            "{masked} is readable"
        );
    }
    // Neither other processes nor what the daemon has.
    let processes = inside(&cluster, "for it in /proc/[0-9]*; do /busybox cat $it/comm; done");
    assert!(!processes.contains("flotad") && processes.lines().count() < 6, "{processes}");
    assert_eq!(
        inside(&cluster, "/busybox find / -xdev -name 'flota*' -not -path '/proc/*'"),
        "",
        "a file of the daemon is visible"
    );
    assert_eq!(
        inside(&cluster, "/busybox cat /proc/mounts | /busybox grep /var/lib/flota | /busybox grep -v ^overlay"),
        ""
    );
    assert_eq!(
        inside(&cluster, "/busybox cat /proc/self/cgroup | /busybox grep -v ':/$'"),
        "",
        "its own group is the root"
    );
    let devices = inside(&cluster, "/busybox find /dev -type b");
    assert_eq!(devices, "", "a block device is visible");
    // The managers' port, over the network that it has.
    let port = inside(&cluster, "/busybox nc -w 3 198.18.0.10 2377 < /dev/null && echo reached");
    assert!(!port.contains("reached"), "{port}");
    // What a cloud tells a machine about itself, which the machine reaches.
    cluster.sandbox_ok("exec w1 -- busybox ip address add 169.254.169.254/32 dev lo");
    let _metadata =
        cluster.background("w1", &["busybox", "nc", "-ll", "-p", "80", "-e", "busybox", "echo", "metadata"]);
    let ask = "busybox nc -w 3 169.254.169.254 80";
    cluster.wait("the machine reaches it", |it| it.sandbox(&format!("exec w1 -- {ask}")).stdout.contains("metadata"));
    let metadata = inside(&cluster, &format!("/{ask} < /dev/null"));
    assert!(metadata.contains("refused"), "{metadata}");
    let open = inside(&cluster, "/busybox nslookup hard");
    assert!(open.contains("Address"), "its own network works: {open}");
}

#[test]
fn the_root_of_a_task_with_ids_of_its_own_is_nobody_on_its_node() {
    let cluster = Cluster::up(1, 1);
    cluster.pack_busybox();
    cluster.ok("network create inner");
    let made = cluster.ctl_with_input("secret create key -", "hunter2");
    assert_eq!(made.code, 0, "{}", made.stderr);
    cluster.ok("service create --name hard --userns auto --network inner --constraint node.hostname==w1 --replicas 2 --stop-grace-period 1s \
         --mount type=volume,source=data,target=/data --secret source=key,uid=7,gid=7,mode=0400 \
         busybox busybox sleep 1000");
    let ids = |task: &str| {
        let map = cluster.ok(&format!("exec {task} -- /busybox cat /proc/self/uid_map"));
        map.split_whitespace().map(|it| it.parse().expect("a number")).collect::<Vec<u32>>()
    };
    let (first, second) = (ids("hard.1"), ids("hard.2"));
    assert_eq!((first[0], first[2], second[0], second[2]), (0, 65_536, 0, 65_536));
    assert!(first[1].abs_diff(second[1]) >= 65_536, "{first:?} {second:?}");
    // It is root in its own: of its files, of its volume, and of its network.
    for (line, expected) in [
        ("/busybox id -u", "0"),
        ("/busybox stat -c %u:%a / /busybox /etc/hosts /data", "0:755\n0:755\n0:644\n0:755"),
        ("/busybox stat -c %u:%g:%a /run/secrets/key", "7:7:400"),
        ("/busybox cat /run/secrets/key", "hunter2"),
        ("/busybox touch /data/file && /busybox chown 7 /data/file && /busybox stat -c %u /data/file", "7"),
        ("echo out > /dev/stdout", "out"),
        ("/busybox ping -c 1 -W 5 hard > /dev/null && echo answered", "answered"),
    ] {
        assert_eq!(inside(&cluster, line).trim(), expected, "{line}");
    }
    // On its node it has none of the ids of the node.
    let processes = cluster.find("w1", "/proc -maxdepth 1 -name [0-9]* -uid +1000000000 -printf %U\\n");
    let owners: BTreeSet<&str> = processes.iter().map(String::as_str).collect();
    assert_eq!(owners, [first[1], second[1]].map(|it| it.to_string()).iter().map(String::as_str).collect());
    // On disk the ids are those of the container, so that the next task finds the same owners.
    let file = cluster.find("w1", "/var/lib/flota/worker/volumes -name file -printf %U\\n");
    assert_eq!(file, ["7"]);
    assert_eq!(cluster.ok("exec hard.2 -- /busybox stat -c %u /data/file").trim(), "7");
    // A daemon that starts again finds it as it was, and what is removed leaves nothing.
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert_eq!(ids("hard.1"), first);
    assert_eq!(inside(&cluster, "/busybox nslookup hard > /dev/null && echo resolved").trim(), "resolved");
    let files = |it: &Cluster| {
        let folders = ["/run/flota/ids", "/run/flota/namespaces/users", "/run/flota/namespaces/tasks"];
        folders.map(|folder| it.find("w1", &format!("{folder} -mindepth 1")).len())
    };
    assert_eq!(files(&cluster), [2; 3]);
    cluster.ok("service rm hard");
    cluster.wait("nothing is left", |it| files(it) == [0; 3]);
}

#[test]
fn ids_of_its_own_and_those_of_the_node_are_refused_for_one_service() {
    let cluster = Cluster::up(1, 0);
    for (flags, why) in [
        ("--privileged", "user_namespace: a privileged task has the ids of the node"),
        ("--network host", "user_namespace: a task in the network `host` has the node's ids"),
        ("--user 70000", "user: 70000 is not among the ids of a task that has its own"),
    ] {
        let refused = cluster.ctl(&format!("service create --name bad --userns auto {flags} --no-resolve-image none"));
        assert!(refused.stderr.contains(why), "{flags}: {}", refused.stderr);
    }
}

#[test]
#[ignore = "needs a kernel that has loaded deploy/apparmor/flota-default (tests/guest/run.sh)"]
fn a_task_runs_with_apparmors_profile_which_forbids_what_its_capabilities_allow() {
    let cluster = Cluster::up_with(1, 0, "[allow]\nprivileged = true\ncapabilities = [\"SYS_ADMIN\"]\n");
    cluster.pack_busybox();
    assert!(cluster.ok("node inspect m1").contains("\"appArmor\": \"flota-default\""));
    cluster.ok("service create --name hard --cap-add SYS_ADMIN busybox busybox sleep 1000");
    cluster.ok("service create --name free --privileged busybox busybox sleep 1000");
    let profile =
        |task: &str| cluster.ok(&format!("exec {task} -- /busybox cat /proc/1/attr/current /proc/self/attr/current"));
    assert_eq!(profile("hard.1"), "flota-default (enforce)\nflota-default (enforce)\n");
    assert_eq!(profile("free.1"), "unconfined\nunconfined\n");
    let mounted = |task: &str| cluster.ctl(&format!("exec {task} -- /busybox mount -t tmpfs none /proc/fs")).code;
    assert_ne!(mounted("hard.1"), 0);
    assert_eq!(mounted("free.1"), 0, "without the profile it may");
}
