//! Nodes that become managers, and managers that become workers, while their containers run on.

use std::collections::BTreeMap;

use flota_tests::Cluster;

/// The state of the container of each task, by task and node: it changes when the container is started again.
fn containers(cluster: &Cluster, at: &str) -> BTreeMap<String, String> {
    let listed = cluster.ctl_on(at, "service ps web --filter state=running --format json");
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    let tasks: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let state = |task: &serde_json::Value| {
        let (node, id) = (task["node"].as_str().unwrap(), task["id"].as_str().unwrap());
        assert!(cluster.alive(node, id), "{task}");
        (format!("{node} {id}"), cluster.sandbox_ok(&format!("exec {node} -- cat /run/flota/tasks/{id}/state.json")))
    };
    tasks.as_array().unwrap().iter().map(state).collect()
}

/// Name and role of each node, with how far it is from its role.
fn roles(cluster: &Cluster, at: &str) -> BTreeMap<String, String> {
    let listed = cluster.ctl_on(at, "node ls --format json");
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    let nodes: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let text = |node: &serde_json::Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let role = |node: &serde_json::Value| {
        let role = [text(node, "role"), text(node, "roleChange"), text(node, "state")].join(" ");
        (text(node, "name"), role)
    };
    nodes.as_array().unwrap().iter().map(role).collect()
}

/// What a node has on disk of what only managers have.
fn of_managers(cluster: &Cluster, node: &str) -> Vec<String> {
    let names = std::fs::read_dir(cluster.data(node)).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("raft")).collect();
    names.sort();
    names
}

#[test]
fn managers_change_while_their_containers_run_on_and_a_demoted_one_erases_its_store() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --detach --name web --mode global whoami");
    cluster.wait("it runs on each node", |it| it.running("web").len() == 3);
    let before = containers(&cluster, "m1");
    assert_eq!(of_managers(&cluster, "w1"), Vec::<String>::new());
    let last = cluster.ctl("node demote m1");
    assert!(last.code == 1 && last.stderr.contains("it is the last manager"), "{}", last.stderr);

    let promoted = cluster.ctl("node promote w1");
    assert_eq!(promoted.code, 0, "{}", promoted.stderr);
    assert!(promoted.stderr.contains("there are 2 managers"), "{}", promoted.stderr);
    let promoted = cluster.ctl("node promote w2");
    assert_eq!((promoted.code, promoted.stdout.trim()), (0, "w2"), "{}", promoted.stderr);
    assert!(!promoted.stderr.contains("warning"), "{}", promoted.stderr);
    let expected = |roles: [(&str, &str); 3]| roles.map(|(name, role)| (name.to_owned(), role.to_owned())).into();
    cluster.wait("three managers", |it| {
        roles(it, "w1") == expected([("m1", "manager  ready"), ("w1", "manager  ready"), ("w2", "manager  ready")])
    });
    assert!(!of_managers(&cluster, "w1").is_empty());

    // The leader: another one carries out its demotion.
    let demoted = cluster.ctl_on("w1", "node demote m1");
    assert_eq!((demoted.code, demoted.stdout.trim()), (0, "m1"), "{}", demoted.stderr);
    cluster.wait("it is a worker", |it| {
        roles(it, "w1") == expected([("m1", "worker  ready"), ("w1", "manager  ready"), ("w2", "manager  ready")])
    });
    cluster.wait("it has erased its store", |it| of_managers(it, "m1").is_empty());
    let refused = cluster.ctl("service ls");
    assert!(refused.code != 0 && refused.stderr.contains("not a manager"), "{}", refused.stderr);
    assert_eq!(containers(&cluster, "w2"), before, "no container was started again");

    // It works as a worker after a restart of its daemon, and becomes a manager again, with a new Raft id.
    cluster.sandbox_ok("restart m1");
    cluster.wait("it is back", |it| roles(it, "w1")["m1"] == "worker  ready");
    assert_eq!(of_managers(&cluster, "m1"), Vec::<String>::new());
    let promoted = cluster.ctl_on("w2", "node promote m1");
    assert_eq!(promoted.code, 0, "{}", promoted.stderr);
    cluster.wait("m1 serves", |it| it.ctl("service ls").code == 0);
    // It counts: with it and one other there is a quorum.
    cluster.kill("w2");
    cluster.ok("service create --detach --name later --replicas 0 whoami");
}

#[test]
fn a_store_that_could_not_be_erased_is_erased_later() {
    let cluster = Cluster::up(3, 0);
    let demoted = ["m1", "m2", "m3"].into_iter().find(|it| *it != cluster.leader()).unwrap();
    let at = if demoted == "m1" { "m2" } else { "m1" };
    // A folder in which something is mounted can't be removed.
    let stuck = cluster.data(demoted).join("raft/stuck").display().to_string();
    cluster.sandbox_ok(&format!("exec {demoted} -- busybox mkdir {stuck}"));
    cluster.sandbox_ok(&format!("exec {demoted} -- busybox mount -t tmpfs none {stuck}"));
    let done = cluster.ctl_on(at, &format!("node demote {demoted}"));
    assert_eq!(done.code, 0, "{}", done.stderr);
    cluster.wait("it serves as a worker", |it| roles(it, at)[demoted] == "worker  ready");
    cluster.wait("only the folder is left", |it| of_managers(it, demoted) == ["raft"]);
    cluster.sandbox_ok(&format!("exec {demoted} -- busybox umount {stuck}"));
    cluster.wait("the rest is erased, too", |it| of_managers(it, demoted).is_empty());
}
