//! What a program in a task finds around it, as root there and with Docker's defaults. docs/security.md lists what it can't do.

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
    let open = inside(&cluster, "/busybox nslookup hard");
    assert!(open.contains("Address"), "its own network works: {open}");
}
