//! Which node a task gets, and what it says while it gets none.

use std::collections::BTreeSet;

use flota_tests::Cluster;
use serde_json::Value;

/// The nodes on which tasks of a service run.
fn nodes(cluster: &Cluster, service: &str) -> BTreeSet<String> {
    cluster.running(service).iter().map(|task| task["node"].as_str().unwrap().to_owned()).collect()
}

/// The flag that reserves so many hundredths of the memory of a node.
fn reserve(cluster: &Cluster, hundredths: u64) -> String {
    let node: Value = serde_json::from_str(&cluster.ok("node inspect m1")).unwrap();
    let memory = node[0]["description"]["resources"]["memoryBytes"].as_u64().unwrap();
    format!("--reserve-memory {}", memory / 100 * hundredths)
}

fn wait_why(cluster: &Cluster, service: &str, why: &str) {
    cluster.wait(&format!("{service} is pending: {why}"), |it| {
        it.rows(&format!("service ps {service}")).iter().any(|task| task["error"] == why)
    });
}

#[test]
fn a_pending_task_says_how_many_nodes_each_reason_rules_out_and_runs_as_soon_as_one_of_them_is_gone() {
    let cluster = Cluster::up(1, 2);
    let large = reserve(&cluster, 60);
    cluster.ok(&format!("service create --name here --constraint node.hostname==w2 {large} whoami"));
    cluster.ok("node drain w1");
    let worker = "--constraint node.role==worker";
    cluster.ok(&format!("service create --detach --name web --replicas 2 {worker} {large} whoami"));
    let why = "no node fits: 1 of 3 drained, 1 of 3 excluded by a constraint, 1 of 3 without enough memory";
    wait_why(&cluster, "web", why);
    assert!(cluster.ok("service explain web").contains(why));
    cluster.ok("service rm here");
    cluster.wait("one has the room of another service", |it| nodes(it, "web") == ["w2".to_owned()].into());
    cluster.ok("node activate w1");
    cluster.wait("the other has that of another node", |it| it.running("web").len() == 2);
    cluster.ok("service create --detach --name fast --constraint node.labels.disk==ssd whoami");
    wait_why(&cluster, "fast", "no node fits: 3 of 3 excluded by a constraint");
    cluster.ok("node update --label-add disk=ssd m1");
    cluster.wait("it has a node that fits by now", |it| nodes(it, "fast") == ["m1".to_owned()].into());
}

#[test]
fn a_constraint_on_a_label_that_the_nodes_owner_has_set_is_met_there_alone() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --detach --name big --replicas 3 --constraint engine.labels.disk>=100 whoami");
    wait_why(&cluster, "big", "no node fits: 3 of 3 excluded by a constraint");
    cluster.set("w1", "[labels]\ndisk = \"120\"\nkind = \"ssd\"\n");
    cluster.set("w2", "[labels]\ndisk = \"80\"\nkind = \"ssd\"\n");
    cluster.wait("they have the node that fits by now", |it| it.running("big").len() == 3);
    assert_eq!(nodes(&cluster, "big"), ["w1".to_owned()].into());
    cluster.ok("service create --name fast --replicas 4 --constraint engine.labels.kind==ssd whoami");
    assert_eq!(nodes(&cluster, "fast"), ["w1", "w2"].map(str::to_owned).into());
    let node: Value = serde_json::from_str(&cluster.ok("node inspect w1")).unwrap();
    assert!(node[0]["description"].to_string().contains("\"disk\":\"120\""), "{node}");
    // The label of a user with the same name is another one.
    cluster.ok("node update --label-add kind=ssd m1");
    cluster.ok("service scale fast=6");
    assert_eq!(nodes(&cluster, "fast"), ["w1", "w2"].map(str::to_owned).into());
    // A node that has lost its label gives its tasks up.
    cluster.set("w1", "");
    let other: BTreeSet<String> = ["w2".to_owned()].into();
    cluster.wait("they run on the other one", |it| nodes(it, "fast") == other && it.running("fast").len() == 6);
}

#[test]
fn services_run_beside_each_other_and_apart_as_one_of_them_asks() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --name quiet --constraint node.hostname==w1 --anti-affinity noisy whoami");
    cluster.ok("service create --name noisy --replicas 3 whoami");
    assert_eq!(nodes(&cluster, "noisy"), ["m1", "w2"].map(str::to_owned).into(), "it has asked for nothing");
    cluster.ok("service create --name calm --replicas 2 --anti-affinity noisy whoami");
    assert_eq!(nodes(&cluster, "calm"), ["w1".to_owned()].into());

    cluster.ok("service create --detach --name app --replicas 2 --affinity cache whoami");
    wait_why(&cluster, "app", "no node fits: 3 of 3 without a task of a service to run beside");
    cluster.ok("service create --name cache --constraint node.hostname==w2 whoami");
    cluster.wait("both run beside it", |it| it.running("app").len() == 2);
    assert_eq!(nodes(&cluster, "app"), ["w2".to_owned()].into());
}

#[test]
fn tasks_that_are_packed_leave_other_nodes_free_for_large_ones() {
    let cluster = Cluster::up(1, 2);
    let (small, large) = (reserve(&cluster, 15), reserve(&cluster, 90));
    cluster.ok(&format!("service create --name batch --replicas 3 --placement-strategy binpack {small} whoami"));
    let packed = nodes(&cluster, "batch");
    assert_eq!(packed.len(), 1, "all are on one node");
    cluster.ok(&format!("service create --name db --replicas 2 {large} whoami"));
    assert!(nodes(&cluster, "db").is_disjoint(&packed) && cluster.running("db").len() == 2);
    cluster.ok("service create --name web --replicas 3 whoami");
    assert_eq!(nodes(&cluster, "web").len(), 3, "those of other services are spread");
}

#[test]
fn a_user_chooses_which_task_goes_and_else_the_fullest_node_gives_one_up() {
    let cluster = Cluster::up(1, 1);
    cluster.ok("service create --name web --replicas 4 whoami");
    let chosen: Vec<Value> = cluster.running("web").into_iter().filter(|task| task["node"] == "w1").collect();
    let kept: BTreeSet<String> = ids(&cluster, |task| task["node"] == "m1");
    assert_eq!((chosen.len(), kept.len()), (2, 2));
    for task in &chosen {
        cluster.ok(&format!("task rm --shrink {}", task["name"].as_str().unwrap()));
    }
    assert_eq!(ids(&cluster, |_| true), kept, "those of the other node are the same");
    assert_eq!(cluster.rows("service ls")[0]["replicas"]["desired"], 2);
    cluster.ok("service scale web=3");
    let new = ids(&cluster, |task| task["node"] == "w1");
    cluster.ok("service scale web=2");
    let left = ids(&cluster, |_| true);
    assert!(new.is_subset(&left) && !kept.is_subset(&left), "one on each node: {left:?}");
}

/// The ids of those running tasks of `web`.
fn ids(cluster: &Cluster, is: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let tasks = cluster.running("web").into_iter().filter(is);
    tasks.map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}
