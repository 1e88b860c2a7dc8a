//! Daemons, machines and links that fail, and the recovery from it.

use std::os::unix::fs::FileExt;

use flota_tests::Cluster;

use super::timeline;

#[test]
fn machine_that_comes_back_starts_none_of_the_tasks_that_were_replaced() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --name web --replicas 3 whoami");
    assert!(cluster.running("web").iter().any(|task| task["node"] == "w1"));
    cluster.kill("w1");
    cluster.wait("all run elsewhere", |it| it.running("web").iter().filter(|task| task["node"] != "w1").count() == 3);
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    cluster.wait("its old tasks have ended", |it| {
        it.rows("service ps web --filter node=w1").iter().all(|task| task["state"] != "running")
    });
    assert!(cluster.find("w1", "/run/flota/tasks -mindepth 1").is_empty());
}

#[test]
fn a_node_that_was_cut_off_stops_what_was_replaced_or_removed_before_anything_of_it_serves_again() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("network create front");
    cluster.ok("service create --name web --network front --replicas 2 --replicas-max-per-node 1 \
                --constraint node.role==worker --env ID={{.Task.ID}} whoami");
    cluster.ok("service create --name gone --network front --publish 8080:80 --constraint node.hostname==w1 whoami");
    cluster.ok("service create --name client --network front --constraint node.role==manager whoami");
    let stack = "services: { db: { image: whoami, deploy: { placement: { constraints: [node.hostname==w1] } } } }";
    let deployed = cluster.ctl_with_input("stack deploy -c - shop", stack);
    assert_eq!(deployed.code, 0, "{}", deployed.stderr);
    let lost = cluster.running("web").into_iter().find(|task| task["node"] == "w1").expect("one is on w1");
    cluster.sandbox_ok("partition w1");
    cluster.wait_state("w1", "down");
    cluster.ok("service update --detach --replicas-max-per-node 0 web");
    cluster.wait("both run on w2", |it| it.running("web").iter().filter(|task| task["node"] == "w2").count() == 2);
    cluster.ok("service rm --detach gone");
    let waits = cluster.ctl("stack rm --timeout 2s shop");
    let why = "networks shop_default wait for the last tasks that use them; those on w1, which is down,";
    assert!(waits.code == 1 && waits.stderr.contains(why), "{}", waits.stderr);
    let old = lost["id"].as_str().expect("a task has an id").to_owned();
    assert!(cluster.alive("w1", &old), "what is cut off runs on");

    cluster.sandbox_ok("heal");
    cluster.wait_state("w1", "ready");
    // From the first moment on, the name leads to none of them: the one that was replaced is told to stop before its node
    // gets anything else.
    for _ in 0..8 {
        let answered = cluster.ok("exec client.1 -- /whoami get http://web/");
        assert!(answered.contains("ID=") && !answered.contains(&old), "{answered}");
    }
    cluster
        .wait("nothing of both services is left on w1", |it| it.find("w1", "/run/flota/tasks -mindepth 1").is_empty());
    assert!(!cluster.alive("w1", &old));
    cluster.wait("nor of the stack", |it| it.rows("network ls --filter name=shop_default").is_empty());
    let events = timeline::tasks(&cluster);
    let replaced = |event: &&serde_json::Value| event["id"] == old.as_str() && event["action"] == "start";
    assert_eq!(events.iter().filter(replaced).count(), 1, "it has not started again");
    assert!(cluster.sandbox("exec w1 -- curl -sf -m 5 http://127.0.0.1:8080/").code != 0, "its port is free");
}

#[test]
fn node_that_was_removed_forgets_the_cluster() {
    let cluster = Cluster::bare(1, 1);
    let refused = cluster.ctl("node rm w1");
    assert!(refused.code == 1 && refused.stderr.contains("is ready, not down"), "{}", refused.stderr);
    cluster.ok("node rm --force w1");
    cluster.wait("it has forgotten the cluster", |it| it.ctl_on("w1", "system info").stdout.contains("cluster: none"));
}

#[test]
fn a_daemon_that_is_killed_or_stopped_leaves_its_containers_running() {
    let cluster = Cluster::up(1, 1);
    cluster.ok("service create --name web --constraint node.hostname==w1 whoami");
    let task = cluster.running("web")[0].clone();
    let id = task["id"].as_str().unwrap().to_owned();
    let pid = || {
        let state = cluster.sandbox_ok(&format!("exec w1 -- cat /run/flota/tasks/{id}/state.json"));
        serde_json::from_str::<serde_json::Value>(&state).unwrap()["pid"].clone()
    };
    let before = pid();
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.wait_state("w1", "unknown");
    assert!(cluster.alive("w1", &id), "it runs on without the daemon");
    assert_eq!(pid(), before);
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert!(cluster.alive("w1", &id));
    assert_eq!(pid(), before, "the same process, taken over");
    // In order: it says that it comes back, and its tasks stay where they are.
    cluster.sandbox_ok("stop --daemon-only w1");
    cluster.wait("the reason is known", |it| it.rows("node ls --filter stateReason=restarting").len() == 1);
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    assert_eq!((pid(), cluster.running("web")[0]["restarts"].clone()), (before, 0.into()));
    // An exit that happens while no daemon watches is not lost.
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok(&format!("exec w1 -- kill -9 {}", pid()));
    cluster.sandbox_ok("start w1");
    cluster.wait("it was started again, with its exit code", |it| {
        it.running("web").iter().any(|task| task["attempt"] == 2 && task["exitCode"] == 137)
    });
}

#[test]
fn a_machine_that_shuts_down_is_down_at_once() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --name web --replicas 3 whoami");
    cluster.sandbox_ok("stop w1");
    // Not waited for: had it been found out by silence, it would be unknown now.
    let node = &cluster.rows("node ls --filter name=w1")[0];
    assert_eq!((node["state"].as_str(), node["stateReason"].as_str()), (Some("down"), Some("shut down")));
    cluster.wait("its task runs elsewhere", |it| it.running("web").len() == 3);
}

#[test]
fn a_cluster_whose_machines_all_died_comes_back_with_every_service() {
    let cluster = Cluster::up(3, 2);
    cluster.ok("service create --name web --replicas 5 whoami");
    cluster.sandbox_ok("kill m1 m2 m3 w1 w2");
    cluster.sandbox_ok("start m1 m2 m3 w1 w2");
    cluster.wait("every task runs", |it| it.ctl("service ls").code == 0 && it.running("web").len() == 5);
    let node = cluster.leader();
    assert!(cluster.ok("node ls").contains(&node));
}

#[test]
fn a_manager_whose_log_or_raft_id_is_lost_comes_back_under_a_new_raft_id() {
    let cluster = Cluster::up(3, 0);
    cluster.ok("service create --detach --name kept --replicas 0 whoami");
    let victim = ["m1", "m2", "m3"].into_iter().find(|name| **name != *cluster.leader()).unwrap();
    let raft_id = |it: &Cluster| {
        let text = it.ok(&format!("node inspect {victim}"));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[0]["raftId"].as_u64().unwrap()
    };
    let data = cluster.data(victim);
    // Flipped bits in the middle of what was acknowledged, in the first log that this id has begun.
    let flip = || {
        let mut logs: Vec<_> = std::fs::read_dir(data.join("raft")).unwrap().map(|it| it.unwrap().path()).collect();
        logs.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log."));
        let log = std::fs::OpenOptions::new().write(true).open(logs.iter().min().unwrap()).unwrap();
        (512..1 << 20).step_by(512).for_each(|offset| log.write_all_at(&[0xff; 64], offset).unwrap());
    };
    let lose_id = || std::fs::remove_file(data.join("raft-id")).unwrap();
    let lose_log = || std::fs::remove_dir_all(data.join("raft")).unwrap();
    let lose_both = || [&lose_id as &dyn Fn(), &lose_log].iter().for_each(|lose| lose());
    for (what, damage) in
        [("is damaged", &flip as &dyn Fn()), ("is damaged", &lose_log), ("", &lose_id), ("", &lose_both)]
    {
        let before = raft_id(&cluster);
        cluster.sandbox_ok(&format!("kill --daemon-only {victim}"));
        damage();
        cluster.sandbox_ok(&format!("start {victim}"));
        cluster.wait("it has a new Raft id", |it| raft_id(it) > before);
        cluster.wait_state(victim, "ready");
        let knows = |it: &Cluster| it.ctl_on(victim, "service ls --stale").stdout.contains("kept");
        cluster.wait("it knows what was acknowledged", knows);
        let logs = cluster.sandbox_ok(&format!("logs {victim}"));
        assert!(logs.contains(what), "{logs}");
    }
}

#[test]
fn two_damaged_managers_of_three_say_what_they_need_and_come_back_once_they_are_healed() {
    let cluster = Cluster::bare(3, 0);
    cluster.ok("service create --detach --name kept --replicas 0 whoami");
    let every_manager = |verb: &str| {
        ["m1", "m2", "m3"].into_iter().for_each(|manager| drop(cluster.sandbox(&format!("{verb} {manager}"))));
    };
    every_manager("kill --daemon-only");
    let folders = |victim: &str| (cluster.data(victim).join("raft"), cluster.data(victim).join("raft.away"));
    for victim in ["m1", "m2"] {
        let (raft, away) = folders(victim);
        std::fs::rename(raft, away).unwrap();
    }
    every_manager("start");
    for victim in ["m1", "m2"] {
        cluster.wait(&format!("{victim} says what it needs"), |it| {
            let logs = it.sandbox_ok(&format!("logs {victim}"));
            logs.contains("the log of this manager is gone") && logs.contains("a majority of managers with intact logs")
        });
    }
    assert_ne!(cluster.ctl_on("m3", "service ls").code, 0, "one of three is no majority");
    // Nothing was decided without a majority, so the folders can be put back. The daemons of the two may have ended by
    // themselves, so it does not matter whether a kill succeeds.
    every_manager("kill --daemon-only");
    for victim in ["m1", "m2"] {
        let (raft, away) = folders(victim);
        if raft.exists() {
            std::fs::remove_dir_all(&raft).unwrap();
        }
        std::fs::rename(away, raft).unwrap();
    }
    every_manager("start");
    cluster.wait("the cluster serves", |it| it.ctl("service ls").stdout.contains("kept"));
}

#[test]
fn the_log_is_cut_off_behind_a_snapshot_and_a_manager_that_was_away_comes_back_by_it() {
    use flota_api::proto::control::{CreateServiceRequest, RemoveRequest};
    use flota_api::proto::specs::ServiceSpec;
    let cluster = Cluster::bare(3, 0);
    let away = ["m1", "m2", "m3"].into_iter().find(|name| **name != *cluster.leader()).unwrap();
    cluster.ok("service create --detach --name kept --replicas 0 whoami");
    cluster.kill(away);
    // More entries than are kept: 16 at once, each a service that comes and goes.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let socket = cluster.socket(&cluster.leader());
    runtime.block_on(async {
        let control = flota_tests::connect(&socket).await.unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16 {
            let mut control = control.clone();
            writers.spawn(async move {
                for number in 0..400 {
                    let name = format!("n{writer}-{number}");
                    let env = vec![format!("X={}", "x".repeat(4_000))];
                    let spec = ServiceSpec { name: name.clone(), image: "a".into(), env, ..ServiceSpec::default() };
                    let spec = Some(ServiceSpec { restart: Some(Default::default()), ..spec });
                    let request = CreateServiceRequest { spec, ..CreateServiceRequest::default() };
                    control.create_service(request).await.unwrap();
                    control.remove_service(RemoveRequest { name, ..RemoveRequest::default() }).await.unwrap();
                }
            });
        }
        while let Some(writer) = writers.join_next().await {
            writer.unwrap();
        }
    });
    let raft = |it: &Cluster, node: &str| -> Vec<String> {
        let entries = std::fs::read_dir(it.data(node).join("raft")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let leader = cluster.leader();
    cluster.wait("a snapshot was made", |it| raft(it, &leader).iter().any(|name| name.starts_with("snap.")));
    cluster.wait("the log has few segments", |it| {
        let kept =
            raft(it, &leader).iter().filter(|name| name.starts_with("log.") || name.starts_with("spare.")).count();
        kept <= 6
    });
    cluster.sandbox_ok(&format!("start {away}"));
    cluster.wait_state(away, "ready");
    cluster.wait("it has what was kept, and nothing of what went", |it| {
        let list = it.ctl_on(away, "service ls --stale --format json").stdout;
        list.contains("\"kept\"") && serde_json::from_str::<Vec<serde_json::Value>>(&list).unwrap().len() == 1
    });
    cluster.wait("it came by a snapshot", |it| raft(it, away).iter().any(|name| name.starts_with("snap.")));
}
