//! Settings of tasks that a program sees: its root, its limits, its kernel parameters, its groups, its terminal, its log.

use std::fs;
use std::path::Path;

use flota_tests::Cluster;
use serde_json::{Value, json};

use crate::archives::{archive, tar};

/// Starts a cluster of one node with an image `box`: busybox with a shell, users and groups.
fn cluster() -> Cluster {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import --tag box {}", image(dir.path())));
    cluster
}

fn image(dir: &Path) -> String {
    let busybox = fs::read("/bin/busybox").unwrap();
    let layer = tar(&[
        ("bin/busybox", &busybox),
        ("bin/sh", &busybox),
        ("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nweb:x:33:33:web:/:/bin/sh\n"),
        ("etc/group", b"root:x:0:\nweb:x:33:\nlog:x:4:\n"),
    ]);
    archive(dir, &["/bin/busybox"], &[&layer])
}

/// Runs a service of the image with these flags and this script for its shell.
fn create(cluster: &Cluster, name: &str, flags: &str, script: &str) {
    let entrypoint = format!("/bin/sh -c \"{script}\"");
    let words = ["service", "create", "--name", name, "--stop-signal", "KILL", "--entrypoint", &entrypoint];
    let words: Vec<&str> = words.into_iter().chain(flags.split_whitespace()).chain(["box"]).collect();
    let created = cluster.ctl_args(&words);
    assert_eq!(created.code, 0, "{words:?}: {}", created.stderr);
}

const SLEEP: &str = "exec /bin/busybox sleep 1000000";

fn inspected(cluster: &Cluster, what: &str) -> Value {
    serde_json::from_str::<Value>(&cluster.ok(what)).unwrap()[0].clone()
}

#[test]
fn root_limits_parameters_and_groups_are_as_the_service_says() {
    let cluster = cluster();
    let flags = "--read-only --workdir /made --shm-size 1m --ulimit nofile=100:200 --ulimit core=-1 \
                 --sysctl net.core.somaxconn=123 --sysctl kernel.msgmax=4096 --group log --group 777 \
                 --oom-score-adj 500 --limit-memory 32m --memory-swap 48m --container-label team=shop";
    create(&cluster, "box", flags, SLEEP);
    let run = |command: &str| cluster.ok(&format!("exec box -- /bin/busybox {command}"));
    let written = cluster.ctl("exec box -- /bin/busybox touch /file");
    assert!(written.stderr.contains("Read-only file system"), "{}", written.stderr);
    run("touch /dev/shm/file");
    assert_eq!(run("readlink /proc/1/cwd"), "/made\n", "the folder is made before the root is read-only");
    let mount = run("grep /dev/shm /proc/mounts");
    assert!(mount.contains("size=1024k"), "{mount}");
    let limits = run("cat /proc/1/limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|it| it.starts_with(name)).unwrap().strip_prefix(name).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["100", "200"]);
    assert_eq!(limit("Max core file size"), ["unlimited", "unlimited"]);
    assert_eq!(run("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax"), "123\n4096\n");
    assert_eq!(run("cat /proc/1/oom_score_adj"), "500\n");
    let groups = |text: &str| text.split_whitespace().filter_map(|it| it.parse().ok()).collect::<Vec<u32>>();
    assert_eq!(groups(&run("grep Groups /proc/1/status")), [0, 4, 777]);
    let of_user = cluster.ok("exec -u web box -- /bin/busybox grep Groups /proc/self/status");
    assert_eq!(groups(&of_user), [4, 33, 777], "another user has them too");
    let task = cluster.running("box")[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(inspected(&cluster, &format!("task inspect {task}"))["containerLabels"], json!({ "team": "shop" }));
    let node = cluster.rows("node ls")[0]["id"].as_str().unwrap().to_owned();
    // Memory and swap together with version 1 of the control groups, and swap alone with version 2. A kernel may count no
    // swap.
    let read = |file: &str| cluster.sandbox(&format!("exec m1 -- cat /sys/fs/cgroup/{file}")).stdout;
    let old = read(&format!("memory/flota/{node}/{task}/memory.memsw.limit_in_bytes"));
    let new = read(&format!("flota/{node}/{task}/memory.swap.max"));
    assert!([old.trim(), new.trim()].contains(&if new.is_empty() { "50331648" } else { "16777216" }), "{old}{new}");

    // What is removed is as it was.
    let update = "--read-only=false --shm-size 0 --ulimit-rm nofile --ulimit-rm core --sysctl-rm net.core.somaxconn \
                  --group-rm log --memory-swap 0 --container-label-rm team";
    cluster.ok(&format!("service update {update} box"));
    run("touch /file");
    let mount = run("grep /dev/shm /proc/mounts");
    assert!(mount.contains("size=65536k"), "{mount}");
    assert_eq!(groups(&run("grep Groups /proc/1/status")), [0, 777]);
    assert_ne!(run("cat /proc/sys/net/core/somaxconn"), "123\n");
}

#[test]
fn privileges_can_be_gained_unless_the_service_its_node_or_the_cluster_forbids_it() {
    let cluster = cluster();
    create(&cluster, "own", "--no-new-privileges", SLEEP);
    create(&cluster, "free", "--no-new-privileges=false", SLEEP);
    create(&cluster, "box", "--update-monitor 0s", SLEEP);
    let forbidden = |service: &str| {
        let line = cluster.ok(&format!("exec {service} -- /bin/busybox grep NoNewPrivs /proc/1/status"));
        line.trim() == "NoNewPrivs:\t1"
    };
    let seen = || ["own", "free", "box"].map(forbidden);
    assert_eq!(seen(), [true, false, false]);
    // What `exec` starts is bound, too.
    let by_exec = cluster.ok("exec own -- /bin/busybox grep NoNewPrivs /proc/self/status");
    assert_eq!(by_exec, "NoNewPrivs:\t1\n");

    // The cluster's default, from the next start on.
    cluster.ok("swarm update --no-new-privileges");
    cluster.ok("service update --force box");
    assert_eq!(seen(), [true, false, true]);
    cluster.ok("service update --no-new-privileges=false box");
    assert!(!forbidden("box"));
    cluster.ok("service update --no-new-privileges=default box");
    assert!(forbidden("box"));
    // The node's setting comes before it.
    cluster.set("m1", "no-new-privileges = false\n");
    cluster.ok("service update --force box");
    assert!(!forbidden("box"));
    cluster.ok("swarm update --no-new-privileges=false");
    cluster.set("m1", "no-new-privileges = true\n");
    cluster.ok("service update --force box");
    assert!(forbidden("box"));
    cluster.ok("service update --no-new-privileges=false own");
    assert!(!forbidden("own"));
}

#[test]
fn a_terminal_and_a_log_are_as_the_service_says() {
    let cluster = cluster();
    create(&cluster, "term", "--tty", &format!("echo at $(busybox tty) with $TERM; {SLEEP}"));
    cluster.wait("the terminal is in the log", |it| it.ok("service logs term").contains("at /dev/pts/0 with xterm"));
    create(&cluster, "plain", "", &format!("test -t 1 || echo no terminal; {SLEEP}"));
    cluster.wait("the other has none", |it| it.ok("service logs plain").contains("no terminal"));

    create(&cluster, "quiet", "--log-driver none", &format!("echo hello; {SLEEP}"));
    let refused = cluster.ctl("service logs quiet");
    let why = "the output of quiet.1 is not kept: its service has the log driver `none`";
    assert!(refused.code == 1 && refused.stderr.contains(why), "{}", refused.stderr);
    let folder = |service: &str| {
        let task = cluster.running(service)[0]["id"].as_str().unwrap().to_owned();
        format!("/var/lib/flota/worker/tasks/{task}")
    };
    let files = |folder: &str| cluster.sandbox_ok(&format!("exec m1 -- find {folder} -maxdepth 1 -name log*"));
    assert_eq!(files(&folder("quiet")), "");

    let script = format!("busybox seq 1 100000; echo last words; {SLEEP}");
    create(&cluster, "small", "--log-opt max-size=64k", &script);
    cluster.wait("it has written all", |it| it.ok("service logs --tail 1 small").contains("last words"));
    let logs = files(&folder("small"));
    assert_eq!(logs.lines().count(), 2, "{logs}");
    let kept = cluster.sandbox_ok(&format!("exec m1 -- cat {}", logs.replace('\n', " "))).len();
    assert!((20_000..=64 << 10).contains(&kept), "{kept} bytes are kept");
}

#[test]
fn variables_come_from_files_and_from_the_shell_and_an_image_can_lose_them() {
    let cluster = cluster();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.env");
    fs::write(&file, "# of the shop\nA=file\nB=\"b c\"\nFLOTA_NOT_SET\n").unwrap();
    let flags = format!("--env-file {} --env A=mine --env FLOTA_HOST", file.display());
    // The environment of `ctl` has the sockets of the cluster.
    create(&cluster, "box", &flags, SLEEP);
    let environment = cluster.ok("exec box -- /bin/busybox env");
    let lines: Vec<&str> = environment.lines().collect();
    assert!(lines.contains(&"A=mine") && lines.contains(&"B=\"b c\""), "{environment}");
    assert!(lines.iter().any(|it| it.starts_with("FLOTA_HOST=unix://")), "{environment}");
    assert!(!environment.contains("FLOTA_NOT_SET"), "{environment}");
    cluster.ok("service update --env FLOTA_NOT_SET --env PATH=/bin --env-rm A box");
    cluster.ok("service update --env-rm PATH --env FLOTA_HOST= box");
    let spec = inspected(&cluster, "service inspect box")["spec"].clone();
    let env: Vec<&str> = spec["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(env.contains(&"FLOTA_NOT_SET") && env.contains(&"FLOTA_HOST=") && !env.contains(&"A=mine"), "{env:?}");
    assert!(!cluster.ok("exec box -- /bin/busybox env").contains("FLOTA_NOT_SET"));
}

#[test]
fn bad_settings_are_refused_all_at_once_and_nothing_is_made() {
    let cluster = Cluster::bare(1, 0);
    let refused = |flags: &str| {
        let refused = cluster.ctl(&format!("service create --no-resolve-image {flags} box"));
        assert_ne!(refused.code, 0, "{flags}");
        refused.stderr
    };
    let error = refused(
        "--stop-signal NONE --memory-swap 1g --sysctl vm.swappiness=1 --oom-score-adj 2000 --group a:b --log-opt max-file=2",
    );
    for field in
        ["stop_signal: ", "memory_swap: ", "sysctls.vm.swappiness: ", "oom_score_adj: ", "groups[0]: ", "log.max_"]
    {
        assert!(error.contains(field), "{field}: {error}");
    }
    let error = refused("--network host --sysctl net.core.somaxconn=1");
    assert!(error.contains("sysctls.net.core.somaxconn: a task in the network `host` has the node's"), "{error}");
    assert!(cluster.rows("service ls").is_empty());
}

#[test]
fn a_stack_file_has_the_settings_under_composes_names() {
    let cluster = cluster();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.env"), "A=file\nB=file\n").unwrap();
    let text = "
services:
  web:
    image: box
    entrypoint: /bin/sh -c 'exec /bin/busybox sleep 1000000'
    stop_signal: SIGKILL
    read_only: true
    shm_size: 2m
    ulimits: { nofile: { soft: 100, hard: 200 } }
    sysctls: [net.core.somaxconn=77]
    group_add: [log]
    oom_score_adj: 300
    env_file: web.env
    environment: { A: mine }
    labels: { of: container }
    logging: { driver: json-file, options: { max-size: 1m, max-file: \"2\" } }
    pull_policy: always
    deploy: { labels: { of: service } }
";
    let file = dir.path().join("stack.yml");
    fs::write(&file, text).unwrap();
    cluster.ok(&format!("stack deploy -c {} shop", file.display()));
    let run = |command: &str| cluster.ok(&format!("exec shop_web -- /bin/busybox {command}"));
    assert_ne!(cluster.ctl("exec shop_web -- /bin/busybox touch /file").code, 0);
    assert!(run("grep /dev/shm /proc/mounts").contains("size=2048k"));
    assert_eq!(run("cat /proc/sys/net/core/somaxconn /proc/1/oom_score_adj"), "77\n300\n");
    let environment = run("env");
    assert!(environment.contains("A=mine\n") && environment.contains("B=file\n"), "{environment}");
    let spec = inspected(&cluster, "service inspect shop_web")["spec"].clone();
    assert_eq!((&spec["labels"]["of"], &spec["containerLabels"]["of"]), (&json!("service"), &json!("container")));
    assert_eq!(spec["log"], json!({ "driver": "json-file", "maxSize": 1 << 20, "maxFile": 2 }));
    assert_eq!(spec["ulimits"], json!([{ "name": "nofile", "soft": 100, "hard": 200 }]));
    assert_eq!(spec["pull"], "always");
}
