//! Services on a healthy cluster.

use flota_tests::Cluster;

#[test]
fn a_service_goes_from_create_to_processes_on_many_nodes_and_back() {
    let cluster = Cluster::up(3, 2);
    cluster.ok("service create --name web --replicas 5 --env NODE={{.Node.Hostname}} --env TASK={{.Task.Name}} whoami");
    let tasks = cluster.running("web");
    let nodes: std::collections::BTreeSet<_> = tasks.iter().map(|task| task["node"].to_string()).collect();
    assert_eq!((tasks.len(), nodes.len()), (5, 5), "one task on each node");

    // Exec works in any task, on whichever node it runs.
    for task in &tasks {
        let name = task["name"].as_str().unwrap();
        let printed = cluster.ok(&format!("exec {name} -- /whoami get http://127.0.0.1/"));
        assert!(printed.contains(&format!("NODE={}", task["node"].as_str().unwrap())), "{printed}");
        assert!(printed.contains(&format!("TASK={name}.{}", task["id"].as_str().unwrap())), "{printed}");
        assert!(printed.contains("addresses: 127.0.0.1 172.17.0."), "a task has loopback and a way out: {printed}");
    }
    let logs = cluster.ok("service logs web");
    assert_eq!(logs.matches("GET / HTTP/1.1").count(), 5, "{logs}");
    assert_eq!(cluster.ctl("exec web.1 -- /whoami fail 42").code, 42, "the command's own exit code");

    cluster.ok("service scale web=8");
    assert_eq!(cluster.running("web").len(), 8);
    cluster.ok("service scale web=2");
    assert_eq!(cluster.running("web").len(), 2);
    cluster.ok("service rm web");
    assert!(cluster.rows("task ls").is_empty(), "nothing is left of a removed service");
    for node in ["m1", "m2", "m3", "w1", "w2"] {
        // A node removes what is left of a task after the leader has deleted the task.
        let folders = "/run/flota/tasks /var/lib/flota/worker/tasks -mindepth 1";
        cluster.wait(&format!("nothing is left on {node}"), |it| it.find(node, folders).is_empty());
        let groups = cluster.find(node, "/sys/fs/cgroup -type d");
        let of_task = |path: &&String| path.split_once("/flota/").is_some_and(|(_, rest)| rest.contains('/'));
        assert_eq!(groups.iter().find(of_task), None, "no cgroup is left on {node}");
    }
}

#[test]
fn a_crash_loop_is_shown_as_one_and_explained_with_the_last_output() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    let create = "service create --detach --name loop --entrypoint /busybox busybox sh -c";
    let script = "echo no such table; exit 4";
    let created = cluster.ctl_args(&create.split_whitespace().chain([script]).collect::<Vec<_>>());
    assert_eq!(created.code, 0, "{}", created.stderr);
    cluster.wait("the task is in a crash loop", |it| {
        // The service has no task yet when `create --detach` returns.
        it.rows("service ps loop").first().is_some_and(|task| task["crashLoop"] == true)
    });
    let table = cluster.ok("service ps loop");
    assert!(table.contains("ready (crash loop)") && table.contains("exit code 4"), "{table}");
    let explained = cluster.ok("service explain loop");
    for part in ["is ready (crash loop): exit code 4", "its next start is at", "no such table"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}

#[test]
fn output_of_a_task_that_has_ended_is_there_until_its_service_is_removed() {
    let cluster = Cluster::bare(1, 1);
    cluster.pack_busybox();
    for (name, node, end) in [("good", "m1", "complete"), ("bad", "w1", "failed")] {
        let create = format!(
            "service create --detach --restart-condition none --name {name} --constraint node.hostname=={node} \
                --entrypoint /busybox busybox sh -c"
        );
        let script = if end == "complete" { "echo last words" } else { "echo last words; exit 3" };
        let created = cluster.ctl_args(&create.split_whitespace().chain([script]).collect::<Vec<_>>());
        assert_eq!(created.code, 0, "{}", created.stderr);
        let ended = format!("service ps {name} --filter state={end}");
        cluster.wait(&format!("{name} is {end}"), |it| !it.rows(&ended).is_empty());
    }
    // The record of a task outlives the daemon.
    cluster.sandbox_ok("restart w1");
    cluster.wait_state("w1", "ready");
    for name in ["good", "bad"] {
        let logs = cluster.ok(&format!("service logs {name}"));
        assert!(logs.contains("last words"), "{name}: {logs}");
        cluster.ok(&format!("service rm {name}"));
    }
    for node in ["m1", "w1"] {
        let folder = "/var/lib/flota/worker/tasks -mindepth 1";
        cluster.wait(&format!("nothing is left on {node}"), |it| it.find(node, folder).is_empty());
    }
}

#[test]
fn exec_runs_as_asked_with_input_user_and_folder() {
    let cluster = Cluster::bare(1, 0);
    cluster.pack_busybox();
    cluster.ok("service create --name box --entrypoint /busybox busybox sleep 1000000");
    let id = cluster.ok("exec -u 1000:1001 -w /tmp box -- /busybox id");
    assert!(id.starts_with("uid=1000 gid=1001"), "{id}");
    assert_eq!(cluster.ok("exec -w /tmp box -- /busybox pwd"), "/tmp\n");
    assert_eq!(cluster.ok("exec box -- /busybox hostname"), "box.1\n");
    // Things that a container must not see or do.
    let processes = cluster.ok("exec box -- /busybox ps -o comm");
    assert!(!processes.contains("flotad"), "a PID namespace of its own: {processes}");
    let mount = cluster.ctl("exec box -- /busybox mount -t tmpfs none /tmp");
    assert_ne!(mount.code, 0, "mounting is refused by seccomp and capabilities");
    let caps = cluster.ok("exec box -- /busybox grep -E CapEff|NoNewPrivs|Seccomp: /proc/1/status");
    // Docker's defaults.
    assert!(caps.contains("00000000a80425fb"), "{caps}");
    assert!(caps.contains("NoNewPrivs:\t0") && caps.contains("Seccomp:\t2"), "{caps}");
    let missing = cluster.ctl("exec box -- /no/such");
    assert_eq!(missing.code, 127);
    assert!(missing.stderr.contains("failed to run `/no/such`: No such file or directory"), "{}", missing.stderr);
}

#[test]
fn limits_hold_and_a_container_that_is_killed_for_memory_says_so() {
    let cluster = Cluster::up(1, 0);
    cluster.ok("service create --detach --name eat --limit-memory 32m --restart-condition none whoami eat 200");
    cluster.wait("the task has failed", |it| !it.rows("task ls --filter state=failed").is_empty());
    let task = &cluster.rows("task ls")[0];
    assert_eq!(task["exitCode"], 137);
    assert_eq!(task["error"], "killed by the out-of-memory killer (exit code 137)");
    cluster.ok("service create --name few --limit-pids 20 --limit-cpu 0.5 whoami");
    let task = cluster.running("few")[0]["id"].as_str().unwrap().to_owned();
    let node = cluster.rows("node ls")[0]["id"].as_str().unwrap().to_owned();
    // Of whichever version this machine has: the other one's file is not there.
    let read = |v1: &str, v2: &str| {
        let (controller, file) = v1.split_once('/').unwrap();
        let old = cluster.sandbox(&format!("exec m1 -- cat /sys/fs/cgroup/{controller}/flota/{node}/{task}/{file}"));
        let new = cluster.sandbox(&format!("exec m1 -- cat /sys/fs/cgroup/flota/{node}/{task}/{v2}"));
        old.stdout + &new.stdout
    };
    assert_eq!(read("pids/pids.max", "pids.max"), "20\n");
    assert!(["50000\n", "50000 100000\n"].contains(&read("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
}

#[test]
fn what_is_pending_says_why() {
    let cluster = Cluster::up(1, 1);
    cluster.ok("service create --detach --name big --reserve-memory 900g whoami");
    cluster.wait("a reason is given", |it| {
        it.rows("service ps big").iter().any(|task| task["error"] == "no node fits: 2 of 2 without enough memory")
    });
    let timed_out = cluster.ctl("service scale big=2 --timeout 1s");
    assert_eq!(timed_out.code, 1);
    assert!(timed_out.stderr.contains("big.1 and 1 more are pending: no node fits"), "{}", timed_out.stderr);
}

#[test]
fn an_important_task_gets_the_room_of_another_one_which_is_back_when_it_has_gone() {
    let cluster = Cluster::up(1, 1);
    let node: serde_json::Value = serde_json::from_str(&cluster.ok("node inspect m1")).unwrap();
    let memory = node[0]["description"]["resources"]["memoryBytes"].as_u64().unwrap();
    // Both nodes are on this machine, and each has room for one such task.
    let reserve = format!("--reserve-memory {}", memory / 10 * 6);
    cluster.ok(&format!("service create --name low --replicas 2 {reserve} whoami"));
    cluster.ok(&format!("service create --name high --priority 10 {reserve} whoami"));
    assert_eq!((cluster.running("high").len(), cluster.running("low").len()), (1, 1));
    let reason = "preempted by high.1, whose priority is higher";
    cluster.wait("both tasks of the slot say why", |it| {
        let tasks = it.rows("service ps low");
        let is = |state: &str, error: &str| tasks.iter().any(|task| task["state"] == state && task["error"] == error);
        is("shutdown", reason) && is("pending", "no node fits: 2 of 2 without enough memory")
    });
    let explained = cluster.ok("service explain low");
    assert!(explained.contains(reason), "{explained}");
    cluster.ok("service rm high");
    cluster.wait("it is back", |it| it.running("low").len() == 2);
}

#[test]
fn a_stack_is_deployed_changed_and_removed_as_one() {
    let cluster = Cluster::up(1, 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.yaml");
    let deploy = |text: &str| {
        std::fs::write(&file, text).unwrap();
        cluster.ctl(&format!("stack deploy --prune -c {} shop", file.display()))
    };
    let first = deploy("services: { web: { image: whoami, deploy: { replicas: 2 } }, api: { image: whoami } }");
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!((cluster.running("shop_web").len(), cluster.running("shop_api").len()), (2, 1));
    let before = cluster.running("shop_web")[0]["id"].clone();
    let second = deploy("services: { web: { image: whoami, deploy: { replicas: 3 } } }");
    assert_eq!(second.code, 0, "{}", second.stderr);
    cluster.wait("the service that the file lost is gone", |it| it.rows("service ls").len() == 1);
    assert!(cluster.running("shop_web").iter().any(|task| task["id"] == before), "scaling replaces nothing");
    let refused = deploy("services: { web: { image: whoami, links: [a] } }");
    let why = format!("{}:1: services.web.links: this key is not supported", file.display());
    assert!(refused.code == 1 && refused.stderr.contains(&why), "{}", refused.stderr);
    cluster.ok("stack rm shop");
    assert!(cluster.rows("task ls").is_empty() && cluster.rows("stack ls").is_empty());
}

#[test]
fn what_is_large_is_cut_and_no_message_is_too_small_for_it() {
    let cluster = Cluster::up(3, 1);
    // One transaction, nearly as large as one may be: through both ends of the Raft transport.
    let text = "x".repeat(50_000);
    let file = |services: usize| {
        let label = |number: usize| format!("        l{number}: {text}\n");
        let labels: String = (0..5).map(label).collect();
        let service = |number: usize| {
            let placed = "      placement:\n        constraints: [node.hostname==w1]\n";
            format!("  s{number}:\n    image: whoami\n    deploy:\n{placed}      labels:\n{labels}")
        };
        format!("services:\n{}", (0..services).map(service).collect::<String>())
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.yaml");
    std::fs::write(&path, file(40)).unwrap();
    let refused = cluster.ctl(&format!("stack deploy -c {} big", path.display()));
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("8388608"), "the bound is named: {}", refused.stderr);
    assert!(cluster.rows("service ls").is_empty(), "nothing was made");
    // Stack and services each have every spec: half of what an entry may have, twice.
    std::fs::write(&path, file(16)).unwrap();
    cluster.ok(&format!("stack deploy -c {} big", path.display()));
    cluster.ok(&format!("stack deploy -c {} more", path.display()));
    for manager in ["m1", "m2", "m3"] {
        cluster.wait(&format!("{manager} has it too"), |it| {
            let list = it.ctl_on(manager, "service ls -q --stale").stdout;
            list.lines().count() == 32
        });
    }
    // Replicas that share a spec share it on the wire: 20 times this would be more than any message.
    for number in 0..16 {
        cluster.ok(&format!("service scale --detach big_s{number}=20"));
    }
    cluster.wait("all of them run", |it| it.running_count() == 16 * 20 + 16);
    // The whole set once more, to a daemon that starts again.
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    // The containers ran on without a daemon. One more of them shows that the new daemon has taken the set.
    cluster.ok("service scale big_s0=21");
    // A busy machine may have lost the node while its daemon was away, and then its tasks are being replaced.
    cluster.wait("all of them run, and one more", |it| it.running_count() == 16 * 20 + 16 + 1);
    cluster.ok("stack rm big more");
    // A busy machine may have lost its node for a moment, whose tasks the command does not wait for.
    cluster.wait("all of them have gone", |it| it.rows("task ls").is_empty());
}

#[test]
fn a_supervisor_goes_on_while_processes_run_in_its_container_and_takes_it_along_when_it_is_killed() {
    let cluster = Cluster::bare(1, 0);
    let dir = tempfile::tempdir().unwrap();
    cluster.ok(&format!("image import --tag box {}", crate::archives::busybox(dir.path())));
    // A command that is relative to the working directory, and a user who is not root.
    cluster.ok(
        "service create --name box --stop-signal KILL --workdir /app --user web --entrypoint ./busybox box sleep 1000",
    );
    let id = cluster.running("box")[0]["id"].as_str().unwrap().to_owned();
    // More than any pipe holds, before the process ends.
    let large = cluster.ok("exec box -- /app/busybox dd if=/dev/zero bs=1000 count=3000");
    assert_eq!(large.len(), 3_000_000);
    // A process that does not end does not block the container.
    let programs = flota_tests::programs();
    // Ctrl-C may be ignored where the tests run, for example in the background of a script.
    let mut exec = std::process::Command::new("env");
    exec.arg("--default-signal=INT").arg(programs.join("ctl"));
    exec.args(["exec", "box", "--", "/app/busybox", "sleep", "1000"]);
    exec.env("FLOTA_HOST", format!("unix://{}", cluster.socket("m1").display()));
    let mut exec = exec.stdin(std::process::Stdio::null()).spawn().unwrap();
    let sleepers = |it: &Cluster| {
        let list = it.ctl("exec box -- /app/busybox ps -o args").stdout;
        list.lines().filter(|line| line.contains("sleep 1000")).count()
    };
    cluster.wait("it runs in there", |it| sleepers(it) == 2);
    assert_eq!(cluster.ok("exec box -- /app/busybox id -u"), "33\n");
    // The command ends with the user who started it (Ctrl-C).
    nix_kill(exec.id());
    cluster.wait("it is gone", |it| sleepers(it) == 1);
    let _ = exec.wait();
    // A container does not outlive its supervisor, whatever its user is; another one takes its place.
    let state = cluster.sandbox_ok(&format!("exec m1 -- cat /run/flota/tasks/{id}/state.json"));
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert!(cluster.alive("m1", &id));
    cluster.sandbox_ok(&format!("exec m1 -- kill -9 {}", state["supervisor"]));
    cluster.wait("it was started again, and says why", |it| {
        it.running("box").iter().any(|task| task["attempt"] == 2 && task["exitCode"] == 137)
    });
    assert!(cluster.sandbox(&format!("exec m1 -- test -d /proc/{}", state["pid"])).code != 0, "the old one has gone");
    cluster.ok("service rm box");
    cluster.wait("nothing of it is left", |it| it.find("m1", "/run/flota/tasks -mindepth 1").is_empty());
}

/// As Ctrl-C in its terminal.
fn nix_kill(pid: u32) {
    let killed = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}

#[test]
fn lists_are_for_people_and_programs() {
    let cluster = Cluster::up(1, 0);
    cluster.ok("service create --detach --name web --replicas 2 --label a=b --env A=1 whoami");
    cluster.wait("both run", |it| it.running("web").len() == 2);
    let services = cluster.rows("service ls");
    let id = services[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.ok("service ls -q").trim(), id);
    assert_eq!((&services[0]["mode"], &services[0]["replicas"]["running"]), (&"replicated".into(), &2.into()));
    let stale = cluster.ctl("service ls --stale");
    assert!(
        stale.code == 0 && stale.stdout.contains("web") && stale.stderr.contains("stale: this may be"),
        "{stale:?}"
    );
    let table = cluster.ok("service ls");
    assert!(table.contains(&id[..12]) && !table.contains(&id), "{table}");
    assert!(cluster.ok("service ls --no-trunc").contains(&id));
    let keys: Vec<String> = cluster.rows("service ps web")[0].as_object().unwrap().keys().cloned().collect();
    let expected = [
        "addresses",
        "attempt",
        "createdAt",
        "desiredState",
        "error",
        "exitCode",
        "health",
        "id",
        "image",
        "name",
        "node",
        "paused",
        "restarts",
        "service",
        "slot",
        "state",
        "updatedAt",
    ];
    assert_eq!(keys, expected, "the contract's fields");
    let node: Vec<String> = cluster.rows("node ls")[0].as_object().unwrap().keys().cloned().collect();
    let expected =
        ["address", "availability", "id", "leader", "name", "role", "state", "stateReason", "stateSince", "version"];
    assert_eq!(node, expected);
    assert_eq!(cluster.rows("service ps web --filter slot=2 --filter state=running").len(), 1);
    for (words, why) in [("--filter state", "it is KEY=VALUE"), ("--filter colour=red", "the keys are")] {
        let refused = cluster.ctl(&format!("service ps web {words}"));
        assert_eq!((refused.code, refused.stderr.contains(why)), (2, true), "{}", refused.stderr);
    }
    // By the beginning of an id; and for people.
    let pretty = cluster.ok(&format!("service inspect --pretty {}", &id[..5]));
    assert!(pretty.contains("name: web") && pretty.contains("- A=1"), "{pretty}");
    cluster.ok("service update --env-rm A --label-rm a --label-add c=d web");
    let spec = cluster.ok("service inspect web");
    let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    assert_eq!(spec[0]["spec"]["env"], serde_json::json!([]));
    assert_eq!(spec[0]["spec"]["labels"], serde_json::json!({ "c": "d" }));
    for words in ["node drain", "node rm", "task rm", "stack rm", "image rm", "service inspect"] {
        assert_eq!(cluster.ctl(words).code, 2, "{words}: there is nothing to act on");
    }
}
