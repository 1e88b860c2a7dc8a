//! Rights of a task beyond the defaults: devices, capabilities, privileges, as each node allows; devices by id.

use flota_tests::Cluster;

/// A service of busybox that stays. With `--detach`: it may have to wait.
fn create(cluster: &Cluster, name: &str, flags: &str) {
    let command = "--stop-signal KILL --entrypoint /busybox busybox sleep 1000000";
    cluster.ok(&format!("service create --detach --name {name} {flags} {command}"));
}

fn reason(cluster: &Cluster, service: &str) -> String {
    let rows = cluster.rows(&format!("service ps {service}"));
    rows.iter().map(|it| it["error"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>().join("; ")
}

fn wait_running(cluster: &Cluster, service: &str, count: usize) {
    cluster.wait(&format!("{count} tasks of {service} run"), |it| it.running(service).len() == count);
}

#[test]
fn devices_capabilities_and_privileges_go_where_a_node_allows_them() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    create(&cluster, "fuse", "--device /dev/fuse:/dev/file:r");
    create(&cluster, "net", "--cap-add NET_ADMIN --cap-drop CHOWN");
    create(&cluster, "all", "--privileged");
    let reasons = [
        ("fuse", "not allowing a device"),
        ("net", "not allowing a capability"),
        ("all", "not allowing privileged tasks"),
    ];
    for (service, why) in reasons {
        cluster.wait(&format!("{service} says why it waits"), |it| reason(it, service).contains(why));
    }

    cluster.set("w1", "[allow]\nprivileged = true\ndevices = [\"/dev/fuse\"]\ncapabilities = [\"NET_ADMIN\"]\n");
    for (service, _) in reasons {
        wait_running(&cluster, service, 1);
        assert_eq!(cluster.running(service)[0]["node"], "w1", "the node that allows it");
    }
    // The device is there under its new name, to be read and not to be written.
    cluster.ok("exec fuse -- /busybox dd if=/dev/file of=/dev/null count=0");
    let written = cluster.ctl("exec fuse -- /busybox dd if=/dev/zero of=/dev/file count=0");
    assert!(written.stderr.contains("Operation not permitted"), "{}", written.stderr);
    // Another container can make the same node, and not open it.
    let made = "exec net -- /busybox mknod /dev/own c 10 229";
    cluster.ok(made);
    let opened = cluster.ctl("exec net -- /busybox dd if=/dev/own of=/dev/null count=0");
    assert!(opened.stderr.contains("Operation not permitted"), "{}", opened.stderr);
    // Docker's set with NET_ADMIN (bit 12) and without CHOWN (bit 0); all of the machine's for the privileged.
    let bounding = |service: &str| {
        let line = cluster.ok(&format!("exec {service} -- /busybox grep CapBnd /proc/self/status"));
        u64::from_str_radix(line.trim().rsplit('\t').next().unwrap(), 16).unwrap()
    };
    assert_eq!(bounding("net"), (0xa804_25fb | 1 << 12) & !1);
    assert_eq!(bounding("all") & (1 << 21), 1 << 21, "CAP_SYS_ADMIN");
    cluster.ok("exec all -- /busybox mount -t tmpfs none /dev/shm");
    cluster.ok("exec all -- /busybox test -c /dev/fuse");
    assert_ne!(cluster.ctl("exec net -- /busybox test -e /dev/fuse").code, 0, "it is not privileged");
}

#[test]
fn devices_are_handed_out_by_id_each_to_one_task() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let settings = "[[devices]]\nkind = \"card\"\nid = \"a\"\npaths = [\"/dev/fuse\"]\n\
                    [[devices]]\nkind = \"card\"\nid = \"b\"\npaths = [\"/dev/net/tun\"]\n";
    cluster.set("w1", settings);
    create(&cluster, "one", "--generic-resource card=1 --replicas 3");
    wait_running(&cluster, "one", 2);
    cluster.wait("the third says why it waits", |it| reason(it, "one").contains("without enough free devices"));

    let held = |cluster: &Cluster| {
        let mut ids: Vec<String> = Vec::new();
        for task in cluster.running("one") {
            let name = task["name"].as_str().unwrap();
            let nodes = cluster.ok(&format!("exec {name} -- /busybox find /dev -name fuse -o -name tun"));
            let inspected = cluster.ok(&format!("task inspect {}", task["id"].as_str().unwrap()));
            let id = if inspected.contains("\"id\": \"a\"") { "a" } else { "b" };
            assert_eq!(nodes.trim(), if id == "a" { "/dev/fuse" } else { "/dev/net/tun" }, "its own and no other");
            ids.push(id.to_owned());
        }
        ids.sort();
        ids
    };
    assert_eq!(held(&cluster), ["a", "b"]);
    // A device that becomes free goes to the task that waits.
    let first = cluster.running("one")[0]["id"].as_str().unwrap().to_owned();
    cluster.ok(&format!("task rm --shrink {first}"));
    cluster.wait("the one that waited runs", |it| {
        it.running("one").len() == 2 && reason(it, "one").trim_matches([';', ' ']).is_empty()
    });
    assert_eq!(held(&cluster), ["a", "b"]);
}

#[test]
fn cdi_devices_bring_what_their_files_say_where_they_are() {
    let cluster = Cluster::bare(1, 2);
    cluster.pack_busybox();
    let allow = "[allow]\ndevices = [\"flota.test/card=*\"]\n";
    let devices = "[[devices]]\nkind = \"card\"\nid = \"flota.test/card=0\"\n";
    cluster.set("w1", &format!("cdi-spec-dirs = [\"/var/lib/flota/cdi\"]\n{devices}{allow}"));
    cluster.set("w2", allow);
    create(&cluster, "named", "--device flota.test/card=0 --replicas 2");
    create(&cluster, "counted", "--generic-resource card=1 --replicas 2");
    cluster.wait("it says why it waits", |it| reason(it, "named").contains("2 of 3 without a CDI device"));

    // The file is noticed, without a restart.
    let folder = cluster.data("w1").join("cdi");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("library"), "a driver\n").unwrap();
    let file = r#"{"cdiVersion": "0.6.0", "kind": "flota.test/card",
        "containerEdits": {"mounts": [{"hostPath": "/var/lib/flota/cdi/library", "containerPath": "/lib/driver", "options": ["ro", "bind"]}],
            "hooks": [{"hookName": "createRuntime", "path": "/bin/touch", "args": ["touch", "/var/lib/flota/cdi/hooked"]}]},
        "devices": [{"name": "0", "containerEdits": {"env": ["FLOTA_CARD=0"],
            "deviceNodes": [{"path": "/dev/flota0", "hostPath": "/dev/null"}]}}]}"#;
    std::fs::write(folder.join("card.json"), file).unwrap();
    wait_running(&cluster, "named", 2);
    wait_running(&cluster, "counted", 1);
    let running = ["named", "counted"].map(|service| cluster.running(service)).concat();
    for task in &running {
        assert_eq!(task["node"], "w1", "no other node has it");
        let exec = |words: &str| cluster.ok(&format!("exec {} -- /busybox {words}", task["name"].as_str().unwrap()));
        assert!(exec("env").contains("FLOTA_CARD=0\n"));
        assert_eq!(exec("cat /lib/driver"), "a driver\n");
        exec("dd if=/dev/zero of=/dev/flota0 count=1");
    }
    assert!(folder.join("hooked").exists(), "the hook has run");
    cluster.wait("each device is handed out once", |it| reason(it, "counted").contains("without enough free devices"));

    // What is gone is offered no longer, and tasks that have it stay.
    std::fs::remove_file(folder.join("card.json")).unwrap();
    create(&cluster, "late", "--device flota.test/card=0");
    cluster.wait("it says why it waits", |it| reason(it, "late").contains("2 of 3 without a CDI device"));
    assert_eq!(cluster.running("named").len(), 2);
    let refused = cluster.ctl("service create --detach --device flota.test/card --name bad busybox");
    assert_ne!(refused.code, 0);
}
