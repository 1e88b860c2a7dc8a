//! From `create` to `delete`, and what can be asked and changed in between.

use std::fs;

use flota_runtime::Container;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Bundle, Running, only_v2, read, wait_for};

#[test]
fn a_container_goes_from_created_to_running_to_stopped_and_leaves_nothing() {
    let mut bundle = Bundle::new();
    let flag = bundle.rootfs().join("ran");
    bundle.sh("touch /ran; exec sleep 1000");
    bundle.make("create", &[]).ok();
    assert_eq!(bundle.status(), "created");
    assert!(!flag.exists(), "the program waits for start");
    assert_eq!(bundle.census().processes.len(), 1);
    bundle.call(&["start", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    wait_for("the program runs", || flag.exists().then_some(()));
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
    assert!(bundle.call(&["state", &bundle.id]).fails(1).contains("does not exist"));
}

#[test]
fn the_state_has_the_words_of_the_specification() {
    let mut bundle = Bundle::new();
    bundle.idle().set("/annotations", json!({"org.test.key": "value"})).start();
    let state = bundle.state();
    assert_eq!(state["ociVersion"], bundle.config["ociVersion"]);
    assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("running")));
    assert_eq!(state["bundle"], json!(bundle.dir.join("bundle")));
    assert_eq!(state["annotations"], json!({"org.test.key": "value"}));
    let line = read(format!("/proc/{}/cmdline", state["pid"]));
    assert!(line.starts_with("sleep"), "{line}");
}

#[test]
fn each_step_out_of_order_is_refused_and_changes_nothing() {
    let mut bundle = Bundle::new();
    bundle.idle();
    bundle.make("create", &[]).ok();
    assert!(bundle.make("create", &[]).fails(1).contains("already exists"));
    bundle.call(&["start", &bundle.id]).ok();
    assert!(bundle.call(&["start", &bundle.id]).fails(1).contains("running"));
    assert!(bundle.call(&["resume", &bundle.id]).fails(1).contains("the container is running"));
    assert!(bundle.call(&["delete", &bundle.id]).fails(1).contains("not stopped"));
    assert_eq!(bundle.status(), "running");
    bundle.call(&["kill", &bundle.id, "9"]).ok();
    bundle.wait_status("stopped");
    for verb in ["start", "pause", "kill"] {
        let printed = bundle.call(&[verb, &bundle.id]).fails(1);
        assert!(printed.contains("not running") || printed.contains("stopped"), "{printed}");
    }
}

#[test]
fn a_created_container_is_deleted_without_force_and_a_running_one_with_it() {
    let mut bundle = Bundle::new();
    bundle.idle().make("create", &[]).ok();
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
    bundle.start();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(bundle.call(&["delete", &bundle.id]).fails(1).contains("does not exist"));
}

#[test]
fn container_that_was_killed_is_deleted_at_once_however_long_its_end_takes() {
    let mut bundle = Bundle::new();
    // The kernel ends all of these before the init.
    bundle.sh("for i in $(seq 200); do sleep 1000 & done; touch /ready; wait").start();
    wait_for("its processes", || bundle.rootfs().join("ready").exists().then_some(()));
    let container = Container::load(&bundle.states(), &bundle.id).unwrap();
    let refused = container.delete(false, drop).unwrap_err().to_string();
    assert!(refused.contains("not stopped: running"), "{refused}");
    container.kill(libc::SIGKILL).unwrap();
    container.delete(false, drop).unwrap();
    bundle.assert_gone();
}

#[test]
fn a_container_that_ends_while_it_is_deleted_is_deleted() {
    let mut bundle = Bundle::new();
    // Its end meets each step of the deletion, which takes some milliseconds.
    for after in (0..4000).step_by(80) {
        bundle.args(&["usleep", &after.to_string()]);
        bundle.make("run", &["--detach"]).ok();
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.assert_gone();
    }
}

#[test]
fn run_ends_as_its_program_does_and_leaves_nothing() {
    let mut bundle = Bundle::new();
    // PID 1 of a namespace has no default actions: its own signal does not end it, a child's does.
    let cases = [("true", 0), ("exit 7", 7), ("kill -9 $$; exit 3", 3), ("sh -c 'kill -TERM $$'; exit $?", 143)];
    for (script, code) in cases {
        let ran = bundle.sh(script).run();
        assert_eq!(ran.code, code, "{script}: {ran:?}");
        bundle.assert_gone();
    }
}

#[test]
fn run_passes_signals_on_and_ends_with_128_and_the_number() {
    let mut bundle = Bundle::new();
    bundle.sh("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 1; done");
    let run = bundle.spawn(&mut bundle.make_command("run", &[]));
    run.wait_for("ready");
    run.signal(Signal::SIGUSR1);
    let ran = run.wait();
    assert_eq!((ran.code, ran.out.contains("got")), (5, true));
    let run = idle_run(&mut bundle);
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    assert_eq!(run.wait().code, 128 + 9);
    bundle.assert_gone();
}

fn idle_run(bundle: &mut Bundle) -> Running {
    bundle.sh("echo ready; exec sleep 1000");
    let run = bundle.spawn(&mut bundle.make_command("run", &[]));
    run.wait_for("ready");
    run
}

#[test]
fn a_detached_run_returns_at_once_and_one_that_is_kept_can_be_asked_afterwards() {
    let mut bundle = Bundle::new();
    bundle.idle().make("run", &["--detach"]).ok();
    assert_eq!(bundle.status(), "running");
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    bundle.sh("exit 3");
    assert_eq!(bundle.make("run", &["--keep"]).code, 3);
    assert_eq!(bundle.status(), "stopped");
}

#[test]
fn signals_are_known_by_name_and_number_and_others_refused() {
    let mut bundle = Bundle::new();
    bundle.sh(
        "for s in HUP USR1 USR2 TERM; do trap \"echo $s >>/got\" $s; done; touch /got; while :; do sleep 0.01; done",
    );
    bundle.start();
    let got = bundle.rootfs().join("got");
    wait_for("the traps are set", || got.exists().then_some(()));
    for (given, name) in [("HUP", "HUP"), ("SIGUSR1", "USR1"), ("12", "USR2"), ("sigterm", "TERM")] {
        bundle.call(&["kill", &bundle.id, given]).ok();
        wait_for(&format!("{name} was caught"), || read(&got).contains(name).then_some(()));
    }
    for odd in ["NOPE", "99", "-1x"] {
        let printed = bundle.call(&["kill", &bundle.id, "--", odd]).fails(1);
        assert!(printed.contains("signal"), "{printed}");
    }
}

#[test]
fn kill_all_reaches_processes_that_are_not_the_first() {
    let mut bundle = Bundle::new();
    bundle.sh("trap : TERM; sleep 1000 & sleep 1001 & while :; do sleep 0.01; done").start();
    let sleeping = || {
        let lines = bundle.census().processes.into_iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")));
        lines.flatten().filter(|line| line.starts_with("sleep\u{0}100")).count()
    };
    // Before its program runs, a child has the shell's trap.
    wait_for("both sleep", || (sleeping() == 2).then_some(()));
    bundle.call(&["kill", "--all", &bundle.id, "TERM"]).ok();
    wait_for("both sleepers have ended", || (sleeping() == 0).then_some(()));
    assert_eq!(bundle.status(), "running");
}

#[test]
fn a_container_in_the_machines_pid_namespace_takes_its_children_along() {
    let mut bundle = Bundle::new();
    let namespaces = bundle.config["linux"]["namespaces"].as_array().unwrap();
    let others = namespaces.iter().filter(|it| it["type"] != "pid").cloned().collect();
    bundle.set("/linux/namespaces", others);
    bundle.sh("sleep 1000 & sleep 1000 & exec sleep 1000").start();
    wait_for("three processes", || (bundle.census().processes.len() == 3).then_some(()));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let mut bundle = Bundle::new();
    bundle.sh("while :; do echo x >>/n; sleep 0.01; done").start();
    let count = || fs::read(bundle.rootfs().join("n")).unwrap_or_default().len();
    wait_for("it writes", || (count() > 4).then_some(()));
    bundle.call(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    let state = read(bundle.cgroup("freezer", "freezer.state", "cgroup.freeze"));
    assert!(state == "FROZEN" || state == "1", "{state}");
    let printed = bundle.call(&["exec", &bundle.id, "true"]).fails(255);
    assert!(printed.contains("paused"), "{printed}");
    let before = count();
    bundle.call(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    wait_for("it writes again", || (count() > before + 4).then_some(()));
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    bundle.call(&["pause", &bundle.id]).ok();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
    bundle.start();
    bundle.call(&["pause", &bundle.id]).ok();
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait_status("stopped");
}

#[test]
fn ps_shows_the_containers_processes_and_no_others() {
    let mut bundle = Bundle::new();
    bundle.sh("sleep 1000 & exec sleep 1000").start();
    wait_for("two processes", || (bundle.census().processes.len() == 2).then_some(()));
    let mut found = bundle.call(&["ps", "--format", "json", &bundle.id]).json();
    found.as_array_mut().unwrap().sort_by_key(serde_json::Value::as_i64);
    assert_eq!(found, json!(bundle.census().processes));
    let table = bundle.call(&["ps", &bundle.id]).ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.lines().next().unwrap().contains("PID"));
}

#[test]
fn list_shows_every_container_as_table_json_and_ids() {
    let mut bundle = Bundle::new();
    assert_eq!(bundle.call(&["list", "--format", "json"]).json(), json!([]));
    bundle.idle().make("create", &[]).ok();
    let rows = bundle.call(&["list", "--format", "json"]).json();
    assert_eq!((&rows[0]["id"], &rows[0]["status"]), (&json!(bundle.id), &json!("created")));
    assert_eq!(bundle.call(&["list", "--quiet"]).ok(), format!("{}\n", bundle.id));
    let table = bundle.call(&["list"]).ok();
    assert!(table.starts_with("ID ") && table.contains(&bundle.id), "{table}");
}

#[test]
fn events_tell_how_much_is_used_and_that_memory_ran_out() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    let stats = bundle.call(&["events", "--stats", &bundle.id]).json();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(bundle.id)));
    assert_eq!(stats["data"]["pids"]["current"], 1, "{stats}");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{stats}");
    bundle.call(&["update", "--memory", "16m", "--memory-swap", "16m", &bundle.id]).ok();
    let events = bundle.spawn(&mut bundle.command(&["events", "--interval", "50ms", &bundle.id]));
    events.wait_for("\"stats\"");
    let eaten = bundle.call(&["exec", &bundle.id, "sh", "-c", "head -c 64m /dev/zero | tail -c 64m | wc -c"]);
    assert_ne!(eaten.out.trim(), "67108864", "the limit holds");
    events.wait_for("\"oom\"");
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    assert_eq!(events.wait().code, 0, "it ends with the container");
}

#[test]
fn update_changes_limits_that_the_kernel_then_has() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    let flags = ["--memory", "64m", "--pids-limit", "20", "--cpu-period", "50000", "--cpu-quota", "25000"];
    bundle.call(&[&["update"], &flags[..], &["--cpu-share", "512", &bundle.id]].concat()).ok();
    let value = |controller: &str, v1: &str, v2: &str| read(bundle.cgroup(controller, v1, v2));
    let memory_and_pids =
        || (value("memory", "memory.limit_in_bytes", "memory.max"), value("pids", "pids.max", "pids.max"));
    assert_eq!(memory_and_pids(), ((64 << 20).to_string(), "20".into()));
    let by_version = |v1: &str, v2: &str| if only_v2() { v2.to_owned() } else { v1.to_owned() };
    assert_eq!(value("cpu", "cpu.cfs_period_us", "cpu.max"), by_version("50000", "25000 50000"));
    assert_eq!(value("cpu", "cpu.cfs_quota_us", "cpu.max"), by_version("25000", "25000 50000"));
    assert_eq!(value("cpu", "cpu.shares", "cpu.weight"), by_version("512", "59"));
    let path = bundle.dir.join("resources.json");
    let rules = r#"[{"allow": false, "access": "rwm"}]"#;
    fs::write(&path, format!(r#"{{"memory": {{"limit": 33554432}}, "pids": {{"limit": 7}}, "devices": {rules}}}"#))
        .unwrap();
    bundle.call(&["update", "--resources", path.to_str().unwrap(), &bundle.id]).ok();
    assert_eq!(memory_and_pids(), ("33554432".into(), "7".into()));
    bundle.call(&["exec", &bundle.id, "sh", "-c", "echo it is still there >/dev/null"]).ok();
    assert!(bundle.call(&["update", "--memory", "much", &bundle.id]).fails(1).contains("--memory"));
}

#[test]
fn spec_writes_a_configuration_once() {
    let bundle = Bundle::new();
    let dir = bundle.dir.join("other");
    fs::create_dir(&dir).unwrap();
    let folder = dir.to_str().unwrap();
    bundle.call(&["spec", "--bundle", folder]).ok();
    let text = read(dir.join("config.json"));
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(bundle.call(&["spec", "--bundle", folder]).fails(1).contains("exists"));
    assert_eq!(read(dir.join("config.json")), text, "what is there stays");
}

#[test]
fn features_and_version_are_told() {
    let bundle = Bundle::new();
    let features = bundle.call(&["features"]).json();
    assert_eq!(features["ociVersionMax"], "1.2.1");
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("time")));
    assert!(bundle.call(&["--version"]).ok().contains("spec: 1.2.1"));
    assert_eq!(bundle.call(&["no-such-verb"]).code, 2);
}

#[test]
fn a_log_file_gets_errors_as_json() {
    let bundle = Bundle::new();
    let log = bundle.dir.join("log");
    bundle.call(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"]).fails(1);
    let line: serde_json::Value = serde_json::from_str(&read(&log)).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist"), "{line}");
}

#[test]
fn the_pid_file_names_the_first_process_and_goes_when_creating_fails() {
    let mut bundle = Bundle::new();
    let path = bundle.dir.join("pid");
    bundle.idle().make("create", &["--pid-file", path.to_str().unwrap()]).ok();
    assert_eq!(read(&path), bundle.pid().to_string());
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    bundle.args(&["/no/such"]).make("create", &["--pid-file", path.to_str().unwrap()]).fails(127);
    assert!(!path.exists());
}

#[test]
fn an_init_of_its_own_starts_its_services_and_shuts_down() {
    let mut container = Bundle::new();
    let root = container.rootfs();
    std::os::unix::fs::symlink("busybox", root.join("bin/init")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    let inittab = "::sysinit:/bin/touch /up\n::respawn:sleep 1000\n::shutdown:/bin/touch /down\n";
    fs::write(root.join("etc/inittab"), inittab).unwrap();
    container.privileged().args(&["/bin/init"]);
    let running = container.spawn(&mut container.make_command("run", &[]));
    wait_for("it is up", || root.join("up").exists().then_some(()));
    wait_for("its service runs", || container.exec("ps").contains("sleep 1000").then_some(()));
    // busybox's word for "power off": reboot(2) in a PID namespace ends its init by a signal.
    container.call(&["kill", &container.id, "USR2"]).ok();
    assert_eq!(running.wait().code, 128 + libc::SIGINT);
    assert!(root.join("down").exists(), "it shut down in order");
    container.assert_gone();
}

#[test]
fn what_is_being_created_is_its_creators() {
    let mut bundle = Bundle::new();
    let go = bundle.dir.join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    bundle.set("/hooks/createRuntime", json!([{"path": "/bin/sh", "args": ["sh", "-c", wait]}])).idle();
    let creating = bundle.spawn(&mut bundle.make_command("create", &[]));
    wait_for("its state is there", || (bundle.call(&["state", &bundle.id]).code == 0).then_some(()));
    assert_eq!(bundle.status(), "creating");
    for words in [&["delete"][..], &["start"], &["exec"], &["pause"]] {
        let program: &[&str] = if words == ["exec"] { &["true"] } else { &[] };
        let printed =
            bundle.call(&[words, &[&bundle.id], program].concat()).fails(if words == ["exec"] { 255 } else { 1 });
        assert!(printed.contains("creat"), "{words:?}: {printed}");
    }
    fs::write(&go, "").unwrap();
    creating.wait().ok();
    assert_eq!(bundle.status(), "created", "nothing was done to it");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn delete_by_force_ends_what_is_being_created() {
    let mut bundle = Bundle::new();
    bundle.idle();
    for _ in 0..20 {
        let creating = bundle.spawn(&mut bundle.make_command("create", &[]));
        wait_for("its state is there", || (bundle.call(&["state", &bundle.id]).code == 0).then_some(()));
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        let created = creating.wait();
        assert!(created.code == 0 || created.err.contains("killed"), "{created:?}");
        bundle.assert_gone();
    }
}
