//! Clusters that have lost the majority of their managers, or all of them. The commands are those of the pages in
//! deploy/runbooks, as they stand there.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use flota_tests::{Cluster, programs};
use serde_json::Value;

use super::runbook::{Runbook, wipe};

/// Ids and processes of the containers that run on a node, with the tasks' names.
pub(super) fn containers(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let rows = cluster.rows("task ls --filter state=running --filter desiredState=running");
    let mut found: Vec<_> = rows
        .iter()
        .filter(|task| task["node"] == node)
        .map(|task| {
            let id = task["id"].as_str().unwrap().to_owned();
            let state = cluster.sandbox_ok(&format!("exec {node} -- cat /run/flota/tasks/{id}/state.json"));
            let state: Value = serde_json::from_str(&state).unwrap();
            (id, format!("{} {}", state["pid"], state["start_time"]))
        })
        .collect();
    found.sort();
    found
}

/// The containers of a node that run, whatever managers know of them: the id of each task, with its process and the time of
/// that.
fn running_on(cluster: &Cluster, node: &str) -> Vec<(String, String)> {
    let state = |id: &str| {
        let state = cluster.sandbox(&format!("exec {node} -- cat /run/flota/tasks/{id}/state.json"));
        let state: Value = serde_json::from_str(&state.stdout).ok()?;
        let runs = cluster.sandbox(&format!("exec {node} -- cat /proc/{}/stat", state["pid"])).code == 0;
        runs.then(|| (id.to_owned(), format!("{} {}", state["pid"], state["start_time"])))
    };
    let tasks = cluster.sandbox_ok(&format!("exec {node} -- ls /run/flota/tasks"));
    tasks.split_whitespace().filter_map(state).collect()
}

fn info_on(cluster: &Cluster, node: &str) -> String {
    cluster.ctl_on(node, "system info").stdout
}

/// The epoch that a command prints.
fn epoch(printed: &str) -> u64 {
    let (_, rest) = printed.split_once("in epoch ").expect("it names the epoch");
    rest.split('.').next().unwrap().parse().unwrap()
}

/// Creates one of everything that a cluster is to keep.
fn fill(cluster: &Cluster) {
    cluster.ok("network create inner");
    assert_eq!(cluster.ctl_with_input("secret create key -", "hidden").code, 0);
    cluster.ok("volume create data");
    cluster.ok("service create --name web --replicas 4 --network inner --secret key whoami");
    cluster.ok(
        "service create --name db --constraint node.hostname==w1 --mount type=volume,source=data,target=/data whoami",
    );
}

fn has_everything(cluster: &Cluster) {
    for (list, name) in [("network ls", "inner"), ("secret ls", "key"), ("volume ls", "data"), ("service ls", "db")] {
        let rows = cluster.rows(list);
        assert!(rows.iter().any(|row| row["name"] == name), "{list}: {rows:?}");
    }
}

#[test]
fn quorum_lost() {
    let (cluster, page) = (Cluster::up(3, 1), Runbook::open("quorum-lost.md"));
    let [dry_run, force, remove, token]: [String; 4] = page.blocks("survivor").try_into().expect("four blocks");
    let [join] = <[String; 1]>::try_from(page.blocks("new-manager")).expect("one block");
    fill(&cluster);
    let refused = page.run(&cluster, "m1", &force);
    assert!(refused.code == 1 && refused.stderr.contains("majority of managers that answer"), "{}", refused.stderr);
    let on_worker = page.run(&cluster, "w1", &force);
    assert!(on_worker.stderr.contains("is not a manager"), "{}", on_worker.stderr);
    let before = ["m1", "w1"].map(|node| containers(&cluster, node));
    cluster.sandbox_ok("kill m2 m3");

    let raft = std::fs::read_to_string(cluster.data("m1").join("raft-id")).unwrap();
    let seen = page.ok(&cluster, "m1", &dry_run);
    for expected in ["would be the only one", "Kept: 2 services", "1 workers", "Lost: manager m2", "Lost: manager m3"] {
        assert!(seen.contains(expected), "{seen}");
    }
    assert_eq!(std::fs::read_to_string(cluster.data("m1").join("raft-id")).unwrap(), raft, "nothing is changed");
    assert_ne!(cluster.ctl_on("m1", "node ls").code, 0, "there still is no leader");
    let seen = page.ok(&cluster, "m1", &force);
    assert!(seen.contains("is now the only one of cluster"), "{seen}");
    has_everything(&cluster);
    cluster.wait_state("w1", "ready");
    cluster.wait("every task runs", |it| it.running("web").len() == 4 && it.running("db").len() == 1);
    for (node, before) in ["m1", "w1"].into_iter().zip(before) {
        let now = containers(&cluster, node);
        assert!(before.iter().all(|it| now.contains(it)), "{node}: {before:?} are not among {now:?}");
    }
    for lost in ["m2", "m3"] {
        page.ok(&cluster, "m1", &remove.replace("LOST", lost));
    }

    // Two of three managers come back, and could be a majority.
    cluster.sandbox_ok("start m2 m3");
    for node in ["m2", "m3"] {
        cluster.wait("it forgets the old cluster", |it| info_on(it, node).contains("cluster: none"));
        let left = cluster.find(node, "/run/flota/tasks -mindepth 1");
        assert!(left.is_empty(), "{node} started none of the tasks that were replaced: {left:?}");
    }
    let printed = page.ok(&cluster, "m1", &token);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--token").expect("the command has a token");
    let join = join.replace("TOKEN", words[at + 1]).replace("ADDRESS", words[at + 2]);
    for node in ["m2", "m3"] {
        page.ok(&cluster, node, &join);
        cluster.wait_state(node, "ready");
    }
    cluster.wait("three managers vote", |it| {
        let managers = it.rows("node ls --filter role=manager");
        managers.len() == 3 && it.ctl("node ls").code == 0
    });
    // The survivor is not needed any more.
    cluster.kill("m1");
    cluster.wait("another one leads", |it| it.ctl("service ls").code == 0);
    cluster.ok("service scale web=5 --timeout 2m");
    has_everything(&cluster);
}

/// Somebody begins anew on one side of a broken network although the majority is alive on the other.
#[test]
fn the_old_majority_ends_when_it_reaches_the_new_cluster() {
    let cluster = Cluster::up(3, 2);
    cluster.ok("service create --name web --replicas 5 whoami");
    cluster.sandbox_ok("partition m1,w1");
    cluster.wait("the others have a leader", |it| it.ctl_on("m2", "node ls").code == 0);
    let begun = cluster.ctl_on("m1", "swarm init --force-new-cluster");
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    assert_eq!(cluster.ctl_on("m2", "service create --detach --name old --replicas 0 whoami").code, 0);
    cluster.wait("the other worker follows the others", |it| {
        it.ctl_on("m2", "node ls --filter state=ready --filter name=w2 -q").stdout.lines().count() == 1
    });
    cluster.sandbox_ok("heal");
    for node in ["m2", "m3"] {
        cluster.wait("it forgets the old cluster", |it| info_on(it, node).contains("cluster: none"));
    }
    cluster.wait_state("w2", "ready");
    cluster.wait("every task runs", |it| it.running("web").len() == 5);
    assert!(cluster.rows("service ls").iter().all(|row| row["name"] != "old"), "the new cluster never had it");
}

/// A flotad that is killed while it begins anew comes back, as before or as the only manager, and can begin anew then.
#[test]
fn a_manager_that_is_killed_while_it_begins_anew_starts_again() {
    let cluster = Cluster::bare(3, 0);
    cluster.ok("service create --detach --name kept --replicas 0 whoami");
    cluster.sandbox_ok("kill m2 m3");
    let ctl = programs().join("ctl");
    let host = format!("unix://{}", cluster.socket("m1").display());
    let data = cluster.data("m1");
    // The last name is never taken, so the third try is not disturbed.
    for state in ["raft.next", "raft-next", "raft.before.2"] {
        let mut force = Command::new(&ctl);
        force.args(["swarm", "init", "--force-new-cluster"]).env("FLOTA_HOST", &host);
        let mut force = force.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The files of one try may be gone before they are seen; then the command has ended.
        while force.try_wait().unwrap().is_none() && !data.join(state).exists() {
            std::thread::yield_now();
        }
        cluster.sandbox_ok("kill --daemon-only m1");
        force.wait().unwrap();
        cluster.sandbox_ok("start m1");
        cluster.wait("it has started", |it| info_on(it, "m1").contains("applied index"));
        let is_alone = std::fs::read_to_string(data.join("raft-id")).unwrap().trim().parse::<u64>().unwrap() > 3;
        if is_alone {
            cluster.wait("it leads alone", |it| it.ctl_on("m1", "service ls -q").stdout.lines().count() == 1);
            assert!(!data.join("raft.next").exists() && !data.join("raft-next").exists());
            return;
        }
        assert_ne!(cluster.ctl_on("m1", "service ls").code, 0, "it is as it was");
    }
    panic!("no try has had an effect");
}

#[test]
fn backup_and_restore() {
    let (cluster, page) = (Cluster::up(3, 1), Runbook::open("backup-and-restore.md"));
    let [back_up] = <[String; 1]>::try_from(page.blocks("manager")).expect("one block");
    let [check, restore, token]: [String; 3] = page.blocks("empty").try_into().expect("three blocks");
    let file = |name: &str| page.folder.path().join(name);
    std::fs::write(file("passphrase"), "correct horse battery staple\n").unwrap();
    fill(&cluster);
    let first = page.ok(&cluster, "m2", &back_up);
    assert!(first.contains("2 services") && first.contains("1 secrets"), "{first}");
    assert_eq!(file("flota.backup").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let again = page.run(&cluster, "m2", &back_up);
    assert!(again.code == 4 && again.stderr.contains("exists already"), "{}", again.stderr);
    let refused = page.run(&cluster, "m1", &restore);
    assert!(refused.stderr.contains("belongs to the cluster"), "{}", refused.stderr);
    let before = containers(&cluster, "w1");
    cluster.ok("service create --detach --name late --replicas 0 whoami");

    // All managers are lost; the worker and its containers are not.
    ["m1", "m2", "m3"].iter().for_each(|node| wipe(&cluster, node));
    cluster.sandbox_ok("start m1");
    cluster.wait("the machine is empty", |it| info_on(it, "m1").contains("cluster: none"));
    let bytes = std::fs::read(file("flota.backup")).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    let mut newer = bytes.clone();
    newer[16] = 9;
    std::fs::write(file("wrong"), "guess\n").unwrap();
    for (name, content, flags, expected) in [
        ("cut", &bytes[..bytes.len() - 1], "--passphrase-file passphrase", "incomplete or was changed"),
        ("changed", changed.as_slice(), "--passphrase-file passphrase", "incomplete or was changed"),
        ("newer", newer.as_slice(), "--passphrase-file passphrase", "has the format 9"),
        ("other", b"#!/bin/sh".as_slice(), "", "is not a backup of Flota"),
        ("same", bytes.as_slice(), "--passphrase-file wrong", "the passphrase is wrong"),
        ("same", bytes.as_slice(), "", "needs its passphrase"),
    ] {
        std::fs::write(file(name), content).unwrap();
        let refused = page.run(&cluster, "m1", &format!("ctl swarm restore {flags} {name}"));
        assert!(refused.code == 1 && refused.stderr.contains(expected), "{name} {flags}: {}", refused.stderr);
        assert!(info_on(&cluster, "m1").contains("cluster: none"), "{name} {flags}");
    }
    let seen = page.ok(&cluster, "m1", &check);
    assert!(seen.contains("The backup is whole") && seen.contains("Lost: manager m3"), "{seen}");
    assert!(info_on(&cluster, "m1").contains("cluster: none"), "a dry run changes nothing");
    let seen = page.ok(&cluster, "m1", &restore);
    assert!(seen.contains("is its only manager"), "{seen}");
    has_everything(&cluster);
    assert!(cluster.rows("service ls").iter().all(|row| row["name"] != "late"), "it came after the backup");
    cluster.wait_state("w1", "ready");
    let first_epoch = epoch(&seen);
    assert!(first_epoch > 1);
    cluster.wait("every task runs", |it| it.running("web").len() == 4 && it.running("db").len() == 1);
    let now = containers(&cluster, "w1");
    assert!(before.iter().all(|it| now.contains(it)), "{before:?} are not among {now:?}");

    // Everything is lost, images included.
    ["m1", "w1"].iter().for_each(|node| wipe(&cluster, node));
    cluster.sandbox_ok("start m1 w1");
    cluster.wait("the machine is empty", |it| info_on(it, "m1").contains("cluster: none"));
    let seen = page.ok(&cluster, "m1", &restore);
    assert!(epoch(&seen) > first_epoch, "the same backup gives another epoch each time");
    cluster.ok(&format!("image pack --tag whoami {}", programs().join("whoami").display()));
    let worker = cluster.ok("swarm join-token -q worker");
    let joined = cluster.ctl_on("w1", &format!("swarm join --token {} 198.18.0.10", worker.trim()));
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    cluster.wait("the service runs", |it| it.running("web").len() == 4);
    assert!(page.ok(&cluster, "m1", &token).contains("ctl swarm join --token"));

    // The manager is lost once more, and comes back elsewhere. The backup does not know the worker.
    let before = running_on(&cluster, "w1");
    assert!(!before.is_empty());
    wipe(&cluster, "m1");
    cluster.move_to("m1", "198.18.0.60");
    cluster.sandbox_ok("start m1");
    cluster.wait("the machine is empty", |it| info_on(it, "m1").contains("cluster: none"));
    page.ok(&cluster, "m1", &restore);
    let told = cluster.ctl_on("w1", "swarm reconnect 198.18.0.60");
    assert_eq!(told.code, 0, "{}", told.stderr);
    cluster.wait("it is a node again", |it| it.rows("node ls --filter name=w1 --filter state=ready").len() == 1);
    let now = running_on(&cluster, "w1");
    assert!(before.iter().all(|it| now.contains(it)), "{before:?} are not among {now:?}");
    let is_known_once = |it: &Cluster| it.rows("node ls --filter name=w1 --filter state=down").len() == 1;
    cluster.wait("the node that it was is down", is_known_once);
    for gone in cluster.rows("node ls --filter state=down") {
        cluster.ok(&format!("node rm {}", gone["id"].as_str().unwrap()));
    }
    // Its certificate is one that the backup does not know either.
    cluster.ok("swarm ca --rotate");
}

#[test]
fn a_manager_writes_backups_on_its_schedule() {
    let settings =
        "metrics-listen = '127.0.0.1:9323'\n[backup]\nfolder = '/var/lib/flota/backups'\nevery = '60s'\nkeep = 2\n";
    let cluster = Cluster::bare(1, 0);
    cluster.set("m1", settings);
    let folder = cluster.data("m1").join("backups");
    let names = || std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|it| it.path()).collect::<Vec<_>>();
    let is_whole = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "backup");
    cluster.wait("the first one is written", |_| names().iter().any(is_whole));
    let backup = names().into_iter().find(is_whole).unwrap();
    cluster.wait("the metrics say when", |it| {
        let page = it.sandbox("exec m1 -- busybox wget -qO- http://127.0.0.1:9323/metrics").stdout;
        let newest = page.lines().find_map(|line| line.strip_prefix("flota_backup_newest_timestamp_seconds "));
        newest.and_then(|it| it.parse::<f64>().ok()).is_some_and(|it| it > 1.7e9)
    });
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(backup, copy.path()).unwrap();
    wipe(&cluster, "m1");
    std::fs::write(cluster.data("m1").with_file_name("flotad.toml"), "").unwrap();
    cluster.sandbox_ok("start m1");
    cluster.wait("the machine is empty", |it| info_on(it, "m1").contains("cluster: none"));
    cluster.ok(&format!("swarm restore {}", copy.path().display()));
    assert_eq!(cluster.rows("node ls --filter leader=true").len(), 1);
}
