//! Clusters whose managers are locked after a start.

use flota_tests::{Cluster, Output};

/// Whether a key of the node on disk can't be read without the unlock key; `None` if there is no such key.
fn is_sealed(cluster: &Cluster, node: &str, name: &str) -> Option<bool> {
    let bytes = std::fs::read(cluster.data(node).join(name)).ok()?;
    Some(bytes.starts_with(b"flota sealed 1\n"))
}

/// Whether all keys of the node are sealed, or none is.
fn all_sealed(cluster: &Cluster, node: &str) -> bool {
    let names = ["identity/current/node.key", "data.key", "raft.key"];
    cluster.data(node).join("locked").exists() && names.iter().all(|name| is_sealed(cluster, node, name) == Some(true))
}

fn none_sealed(cluster: &Cluster, node: &str) -> bool {
    let names = ["identity/current/node.key", "data.key", "raft.key"];
    !cluster.data(node).join("locked").exists() && names.iter().all(|name| is_sealed(cluster, node, name) != Some(true))
}

fn unlock(cluster: &Cluster, node: &str, key: &str) -> Output {
    let socket = cluster.socket(node);
    cluster.ctl_with_input(&format!("--host unix://{} swarm unlock", socket.display()), key)
}

/// Kills the daemon and starts it again. Its manager is locked then.
fn restart_locked(cluster: &Cluster, node: &str) {
    cluster.sandbox_ok(&format!("kill --daemon-only {node}"));
    cluster.sandbox_ok(&format!("start {node}"));
    cluster.wait("it says that it is locked", |it| it.ctl_on(node, "system info").stdout.contains("is locked"));
}

fn digest(cluster: &Cluster, node: &str) -> String {
    let info = cluster.ctl_on(node, "system info").stdout;
    info.lines().find(|line| line.starts_with("tables digest")).unwrap_or_default().to_owned()
}

#[test]
fn managers_are_locked_after_a_start_and_open_with_the_key_of_their_time() {
    let cluster = Cluster::up(3, 1);
    cluster.ok("service create --name web --replicas 4 whoami");
    let off = cluster.ctl("swarm unlock-key");
    assert!(off.code == 1 && off.stderr.contains("autolock is off"), "{}", off.stderr);
    let printed = cluster.ok("swarm update --autolock");
    let first = cluster.ok("swarm unlock-key -q").trim().to_owned();
    assert!(printed.contains(&first) && printed.contains("ctl swarm unlock"), "{printed}");
    let managers = ["m1", "m2", "m3"];
    cluster.wait("all managers have sealed their keys", |it| managers.iter().all(|node| all_sealed(it, node)));
    let not_locked = unlock(&cluster, "m1", &first);
    assert!(not_locked.code == 1 && not_locked.stderr.contains("this node is not locked"), "{}", not_locked.stderr);

    // A locked manager does nothing, and its containers run on.
    let followers: Vec<_> = managers.into_iter().filter(|node| *node != cluster.leader()).collect();
    let [one, other] = followers[..] else { panic!("{followers:?}") };
    let on_it = |row: &&serde_json::Value| row["node"] == one;
    let tasks: Vec<_> =
        cluster.running("web").iter().filter(on_it).map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    restart_locked(&cluster, one);
    assert!(!tasks.is_empty() && tasks.iter().all(|task| cluster.alive(one, task)), "its containers run on");
    let refused = cluster.ctl_on(one, "service ls");
    assert!(refused.code == 5 && refused.stderr.contains("this manager is locked"), "{}", refused.stderr);
    cluster.ok("service ls");
    for command in ["swarm init", "swarm leave"] {
        let refused = cluster.ctl_on(one, command);
        assert!(refused.code == 1 && refused.stderr.contains("ctl swarm unlock"), "{command}: {}", refused.stderr);
    }
    for (key, why) in [("nonsense", "is not an unlock key"), ("FLOTA-UNLOCK-1-zzz", "this unlock key is wrong")] {
        let refused = unlock(&cluster, one, key);
        assert!(refused.code != 0 && refused.stderr.contains(why), "{key}: {}", refused.stderr);
    }

    // The key is replaced meanwhile: the old one opens this manager, and then it is sealed with the new one.
    let second = cluster.ok("swarm unlock-key --rotate -q").trim().to_owned();
    let refused = unlock(&cluster, one, &second);
    assert!(refused.stderr.contains("locked with unlock key number 1, and this is number 2"), "{}", refused.stderr);
    assert_eq!(unlock(&cluster, one, &first).code, 0);
    cluster.wait_state(one, "ready");
    cluster.wait("it is sealed with the new key", |it| {
        managers.iter().all(|node| {
            let bytes = std::fs::read(it.data(node).join("locked")).unwrap_or_default();
            bytes.get(15..24) == Some(&[0, 0, 0, 0, 0, 0, 0, 2, 1])
        })
    });
    restart_locked(&cluster, other);
    let refused = unlock(&cluster, other, &first);
    assert!(refused.stderr.contains("locked with unlock key number 2, and this is number 1"), "{}", refused.stderr);
    assert_eq!(unlock(&cluster, other, &second).code, 0);
    cluster.wait_state(other, "ready");

    // All at once: nothing is lost.
    cluster.ok("service create --name last --replicas 0 whoami");
    cluster.sandbox_ok("kill m1 m2 m3");
    cluster.sandbox_ok("start m1 m2 m3");
    for node in managers {
        cluster.wait("it is locked", |it| it.ctl_on(node, "system info").stdout.contains("is locked"));
        assert_eq!(unlock(&cluster, node, &second).code, 0, "{node}");
    }
    cluster.wait("it has all services", |it| it.ctl("service ls -q").stdout.lines().count() == 2);
    cluster.wait("all tasks run", |it| it.running("web").len() == 4);
    cluster.wait("the managers agree", |it| {
        let digests = managers.map(|node| digest(it, node));
        digests.iter().all(|digest| !digest.is_empty() && *digest == digests[0])
    });
}

#[test]
fn keys_are_in_clear_where_nobody_knows_the_unlock_key() {
    let cluster = Cluster::up(3, 1);
    cluster.ok("swarm update --autolock");
    cluster.wait("a manager has sealed its keys", |it| all_sealed(it, "m2"));
    assert!(none_sealed(&cluster, "w1"), "a worker does not know the unlock key");
    cluster.ok("node promote w1");
    cluster.wait("the new manager has sealed its keys", |it| all_sealed(it, "w1"));
    cluster.ok("node demote w1");
    cluster.wait("the worker has its keys in clear", |it| none_sealed(it, "w1"));
    cluster.sandbox_ok("kill --daemon-only w1");
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");

    // One that is locked leaves without the others, and begins anew.
    restart_locked(&cluster, "m3");
    cluster.ok("node rm --force m3");
    let left = cluster.ctl_on("m3", "swarm leave --force");
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert!(cluster.ctl_on("m3", "system info").stdout.contains("cluster: none"));
    assert!(!cluster.data("m3").join("locked").exists() && !cluster.data("m3").join("raft").exists());

    cluster.ok("swarm update --autolock=false");
    cluster.wait("the managers have their keys in clear", |it| ["m1", "m2"].iter().all(|node| none_sealed(it, node)));
    cluster.sandbox_ok("kill --daemon-only m1");
    cluster.sandbox_ok("start m1");
    cluster.wait_state("m1", "ready");
}
