//! Health checks of real containers: programs, shells, HTTP and TCP, and checks that misbehave.

use flota_tests::Cluster;
use serde_json::Value;

use crate::archives;

/// A node with an image that has a shell and, as its health check, whether `/well` exists.
fn node() -> Cluster {
    let cluster = Cluster::bare(1, 0);
    let folder = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import {}", archives::checked_busybox(folder.path())));
    cluster
}

/// Creates the service `box` of that image, with these flags, and does not wait for it.
fn create(cluster: &Cluster, flags: &[&str]) {
    let base = ["service", "create", "--detach", "--name", "box", "--health-interval", "200ms"];
    let created = cluster.ctl_args(&[&base[..], flags, &["saved:1"]].concat());
    assert_eq!(created.code, 0, "{}", created.stderr);
}

fn rows(cluster: &Cluster) -> Vec<Value> {
    cluster.rows("service ps box")
}

/// The row of the first task of a service; null if it has none yet.
fn first(cluster: &Cluster, service: &str) -> Value {
    cluster.rows(&format!("service ps {service}")).into_iter().next().unwrap_or_default()
}

/// Waits until the task of `box` has this state and health; its row.
fn wait(cluster: &Cluster, state: &str, health: &str) -> Value {
    let is = |row: &Value| row["state"] == state && row["health"] == health;
    cluster.wait(&format!("it is {state} and {health}"), |it| rows(it).iter().any(is));
    rows(cluster).into_iter().find(is).unwrap_or_default()
}

/// The last results of the checks of the task of `box`, as its node knows them.
fn results(cluster: &Cluster) -> Vec<Value> {
    let task: Value = serde_json::from_str(&cluster.ok("task inspect box.1")).unwrap();
    task[0]["status"]["health"]["log"].as_array().unwrap().clone()
}

#[test]
fn the_check_of_the_image_decides_and_an_unhealthy_task_is_restarted_with_the_reason() {
    let cluster = node();
    create(&cluster, &["--health-retries", "2", "--health-start-period", "1m", "--health-start-interval", "200ms"]);
    wait(&cluster, "starting", "starting");
    cluster.ok("exec box.1 -- /bin/busybox touch /well");
    wait(&cluster, "running", "healthy");
    let last = results(&cluster).pop().unwrap();
    assert_eq!((&last["exitCode"], &last["output"]), (&0.into(), &"all is well ".into()));
    assert!(cluster.ok("service ps box").contains("running (healthy)"));
    // Its state does not change any more, so only its node knows them.
    cluster.wait("the last five results are shown", |it| results(it).len() == 5);
    cluster.ok("exec box.1 -- /bin/busybox rm /well");
    cluster.wait("it is restarted", |it| first(it, "box")["attempt"] == 2);
    cluster.wait("it says why", |it| first(it, "box")["error"] == "unhealthy: it is not well");
    cluster.ok("service update --detach --no-healthcheck box");
    cluster.wait("without a check it runs", |it| {
        rows(it).iter().any(|row| row["state"] == "running" && row["health"].is_null())
    });
}

#[test]
fn a_check_that_hangs_and_starts_daemons_leaves_none_of_them() {
    let cluster = node();
    let line = "echo x >> /count; /bin/busybox setsid /bin/busybox sleep 5000 & /bin/busybox sleep 6000";
    create(&cluster, &["--health-cmd", line, "--health-timeout", "300ms", "--health-retries", "1000"]);
    wait(&cluster, "starting", "starting");
    let count = |it: &Cluster| it.ctl("exec box.1 -- /bin/busybox cat /count").stdout.lines().count();
    cluster.wait("several checks have begun", |it| count(it) > 3);
    let processes = cluster.ok("exec box.1 -- /bin/busybox ps -o args");
    for sleep in ["sleep 5000", "sleep 6000"] {
        let left = processes.lines().filter(|it| it.starts_with("/bin/busybox") && it.ends_with(sleep)).count();
        assert!(left <= 1, "{processes}");
    }
    cluster.ok("service rm box");
    assert!(cluster.rows("task ls").is_empty());
    let groups = cluster.find("m1", "/sys/fs/cgroup -type d -name flota-check");
    assert!(groups.is_empty(), "no cgroup is left: {groups:?}");
}

#[test]
fn a_check_that_writes_megabytes_is_read_to_its_end_and_its_beginning_is_kept() {
    let cluster = node();
    create(&cluster, &["--health-cmd", "/bin/busybox yes | /bin/busybox head -c 20000000"]);
    wait(&cluster, "running", "healthy");
    let output = results(&cluster)[0]["output"].as_str().unwrap().to_owned();
    assert!(output.starts_with("y y y") && output.len() <= 4_096, "{} bytes", output.len());
}

#[test]
fn a_check_that_is_killed_or_can_not_be_run_has_failed() {
    let cluster = node();
    create(&cluster, &["--health-cmd", "kill -KILL $$", "--health-retries", "1", "--restart-condition", "none"]);
    cluster.wait("it has failed", |it| first(it, "box")["state"] == "failed");
    assert_eq!(first(&cluster, "box")["error"], "unhealthy: the check ended with exit code 137");
    let file = tempfile::NamedTempFile::new().unwrap();
    let check = "healthcheck: { test: [CMD, /no/such], interval: 100ms, retries: 1 }";
    let policy = "deploy: { restart_policy: { condition: none } }";
    let text = format!("services:\n  web:\n    image: saved:1\n    {check}\n    {policy}\n");
    std::fs::write(file.path(), text).unwrap();
    cluster.ok(&format!("stack deploy --detach -c {} shop", file.path().display()));
    cluster.wait("it has failed", |it| first(it, "shop_web")["state"] == "failed");
    let error = first(&cluster, "shop_web")["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("unhealthy: ") && error.contains("/no/such"), "{error}");
}

#[test]
fn programs_http_and_tcp_are_checked_inside_of_the_task() {
    let cluster = Cluster::up(1, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let service = |name: &str, check: &str| {
        format!("  {name}:\n    image: whoami\n    healthcheck: {{ interval: 100ms, retries: 2, {check} }}\n")
    };
    let good = [
        service("command", "test: [CMD, /whoami, get, 'http://127.0.0.1/']"),
        service("http", "x-flota-http: 'http://:80/'"),
        service("tcp", "x-flota-tcp: 80"),
    ];
    std::fs::write(file.path(), format!("services:\n{}", good.concat())).unwrap();
    cluster.ok(&format!("stack deploy -c {} shop", file.path().display()));
    for row in cluster.rows("task ls") {
        assert_eq!((&row["state"], &row["health"]), (&"running".into(), &"healthy".into()), "{row}");
    }
    for (name, flags, expected) in [
        ("http", "--health-http http://:81/", "unhealthy: failed to connect to port 81: Connection refused"),
        ("tcp", "--health-tcp 81", "unhealthy: failed to connect to port 81: Connection refused"),
    ] {
        let times = "--health-interval 100ms --health-retries 1 --restart-condition none";
        cluster.ok(&format!("service create --detach --name bad-{name} {flags} {times} whoami"));
        cluster.wait("it has failed", |it| first(it, &format!("bad-{name}"))["state"] == "failed");
        let error = first(&cluster, &format!("bad-{name}"))["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_healthy_task_stays_healthy_while_its_daemon_restarts() {
    let cluster = Cluster::up(1, 1);
    let flags = "--health-tcp 80 --health-interval 200ms --constraint node.role==worker";
    cluster.ok(&format!("service create --name web {flags} whoami"));
    let before = cluster.rows("service ps web").remove(0);
    assert_eq!(before["health"], "healthy");
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    let after = cluster.rows("service ps web").remove(0);
    for key in ["id", "state", "health", "attempt"] {
        assert_eq!(before[key], after[key], "{key}");
    }
}
