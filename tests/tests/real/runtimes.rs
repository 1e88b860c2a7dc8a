//! Runtime classes: the same service on the embedded runtime, on runc and on crun; and an init in front of it.

use std::os::unix::fs::PermissionsExt;

use flota_tests::Cluster;

/// crun 1.8 refuses a machine with control groups of both versions: it is shown the one only.
const CRUN: &str = "#!/bin/sh\nexec unshare -m sh -c 'umount /sys/fs/cgroup/unified; exec crun \"$@\"' sh \"$@\"\n";

#[test]
fn any_oci_runtime_runs_services_as_the_embedded_one_does() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let wrapper = cluster.data("w1").with_file_name("crun");
    std::fs::write(&wrapper, CRUN).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|it| std::path::Path::new(it).exists());
    let runc = runc.expect("runc is installed");
    cluster.set("w1", &format!("[runtimes]\ncrun = \"{}\"\nrunc = \"{runc}\"\n", wrapper.display()));
    cluster.ok("service create --detach --name none --runtime runsc --entrypoint /busybox busybox true");
    cluster.wait("who waits for a runtime says so", |it| {
        it.rows("service ps none")
            .iter()
            .any(|task| task["error"].as_str().unwrap_or_default().contains("without the runtime"))
    });
    for runtime in ["flota", "crun", "runc"] {
        let mut words = vec!["service", "create", "--name", runtime, "--runtime", runtime, "--stop-signal", "KILL"];
        words.extend(["--constraint", "node.role==worker", "--limit-memory", "64m", "--env", "COLOUR=red"]);
        words.extend(["--entrypoint", "/busybox", "busybox", "sh", "-c", "echo begun; exec sleep 1000000"]);
        let created = cluster.ctl_args(&words);
        assert_eq!(created.code, 0, "{runtime}: {}", created.stderr);
        assert!(cluster.ok(&format!("service logs {runtime}")).contains("begun"), "{runtime}");
        let printed = cluster.ok(&format!("exec -e SHAPE=round {runtime} -- /busybox env"));
        assert!(printed.contains("COLOUR=red") && printed.contains("SHAPE=round"), "{runtime}: {printed}");
        let ended = cluster.ctl_args(&["exec", runtime, "--", "/busybox", "sh", "-c", "exit 42"]);
        assert_eq!(ended.code, 42, "{runtime}: {}", ended.stderr);
        let rights = cluster.ok(&format!("exec -u 1000 {runtime} -- /busybox grep CapEff /proc/self/status"));
        assert_eq!(rights.trim(), "CapEff:\t0000000000000000", "{runtime}: another user has no rights of root's");
        let limit = cluster.ok(&format!("exec {runtime} -- /busybox cat /sys/fs/cgroup/memory/memory.limit_in_bytes"));
        assert_eq!(limit.trim(), "67108864", "{runtime}");
        let before = cluster.running(runtime)[0]["id"].clone();
        cluster.ok(&format!("task rm {}", before.as_str().unwrap()));
        cluster.wait(&format!("{runtime}: another task runs"), |it| {
            it.running(runtime).first().is_some_and(|task| task["id"] != before)
        });
        cluster.ok(&format!("service rm {runtime}"));
    }
    for runtime in ["flota", "crun", "runc"] {
        let name = format!("end-{runtime}");
        let mut words = vec!["service", "create", "--detach", "--name", &name, "--restart-condition", "none"];
        words.extend(["--runtime", runtime, "--entrypoint", "/busybox", "busybox", "sh", "-c", "exit 7"]);
        assert_eq!(cluster.ctl_args(&words).code, 0);
        cluster.wait(&format!("{runtime}: it ends with its code"), |it| {
            it.rows(&format!("service ps end-{runtime}"))
                .iter()
                .any(|task| task["state"] == "failed" && task["exitCode"] == 7)
        });
        cluster.ok(&format!("service rm end-{runtime}"));
    }
    cluster.ok("service rm none");
    cluster.wait("nothing is left", |it| it.find("w1", "/run/flota/tasks -mindepth 1").is_empty());
}

#[test]
fn an_init_takes_the_first_place_hands_signals_on_and_reaps() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    cluster.ok("service create --name box --init --entrypoint /busybox busybox sleep 1000000");
    let first = cluster.ok("exec box -- /busybox cat /proc/1/cmdline");
    assert!(first.starts_with("/dev/init\0init\0--\0/busybox\0sleep"), "{first:?}");
    // An orphan that ends does not stay a zombie.
    assert_eq!(cluster.ctl_args(&["exec", "box", "--", "/busybox", "sh", "-c", "/busybox true &"]).code, 0);
    cluster.wait("no zombie stays", |it| !it.ok("exec box -- /busybox ps -o stat").contains('Z'));
    // It ends by the stop signal, well before its grace period.
    let begun = std::time::Instant::now();
    cluster.ok("service rm box");
    assert!(begun.elapsed() < std::time::Duration::from_secs(8), "sleep ends by SIGTERM only through an init");
}
