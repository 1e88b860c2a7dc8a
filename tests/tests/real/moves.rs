//! Tasks that move although nothing is wrong with them: to nodes that have joined, and off nodes that are drained.

use std::time::{Duration, Instant};

use flota_tests::Cluster;

use super::timeline;

/// A service on the workers.
fn create(cluster: &Cluster, name: &str, flags: &str) {
    cluster
        .ok(&format!("service create --name {name} --constraint node.role==worker --update-monitor 0s {flags} whoami"));
}

/// The ids of the running tasks of a service.
fn ids(cluster: &Cluster, service: &str) -> Vec<String> {
    cluster.running(service).iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

/// Number of running tasks of a service on each worker.
fn spread(cluster: &Cluster, service: &str) -> [usize; 2] {
    let tasks = cluster.running(service);
    ["w1", "w2"].map(|node| tasks.iter().filter(|task| task["node"] == node).count())
}

#[test]
fn tasks_move_to_a_node_that_has_joined_when_a_user_asks_for_it_and_only_as_many_as_make_nodes_even() {
    let cluster = Cluster::up(1, 2);
    let left = cluster.ctl_on("w2", "swarm leave");
    assert_eq!(left.code, 0, "{}", left.stderr);
    cluster.wait("w2 is no node any more", |it| it.ctl("node rm w2").code == 0);
    create(&cluster, "web", "--replicas 4 --update-order start-first");
    let before = ids(&cluster, "web");
    let token = cluster.ok("swarm join-token -q worker");
    let joined = cluster.ctl_on("w2", &format!("swarm join --token {} 198.18.0.10", token.trim()));
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    cluster.wait_state("w2", "ready");
    assert_eq!(ids(&cluster, "web"), before, "nothing moves without being asked");

    assert_eq!(cluster.ok("node rebalance"), "2 tasks have moved.\n");
    assert_eq!(spread(&cluster, "web"), [2, 2]);
    assert_eq!(ids(&cluster, "web").iter().filter(|id| before.contains(id)).count(), 2, "the others stay");
    let events = timeline::of(&cluster, "web");
    assert_eq!(timeline::least_serving(&events, 4), 4, "the new one serves before the old one stops");
    assert_eq!(cluster.ok("node rebalance"), "Nothing to move: no node has too many tasks.\n");
}

#[test]
#[ignore = "longer than a minute: make test-long"]
fn a_cluster_that_is_set_so_moves_tasks_by_itself_once_a_node_has_been_back_for_a_minute() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("swarm update --rebalance");
    create(&cluster, "web", "--replicas 4 --update-order start-first");
    cluster.kill("w2");
    cluster.wait("all run on w1", |it| spread(it, "web") == [4, 0]);
    cluster.sandbox_ok("start w2");
    cluster.wait_state("w2", "ready");
    let begun = Instant::now();
    cluster.wait("it has been back for most of a minute", |it| {
        assert_eq!(spread(it, "web"), [4, 0], "it may go again");
        begun.elapsed() > Duration::from_secs(50)
    });
    cluster.wait("each has two", |it| spread(it, "web") == [2, 2]);
}

#[test]
fn a_drain_replaces_before_it_stops_as_the_update_policy_says_and_names_what_can_not_leave() {
    let cluster = Cluster::up(1, 2);
    create(&cluster, "first", "--replicas 4 --update-order start-first");
    create(&cluster, "last", "--replicas 4 --update-order stop-first");
    cluster.ok("node drain w1");
    assert_eq!(spread(&cluster, "first"), [0, 4], "it has waited for the moves");
    cluster.wait("all run on w2", |it| spread(it, "last") == [0, 4]);
    for (service, least) in [("first", 4), ("last", 3)] {
        let events = timeline::of(&cluster, service);
        assert_eq!(timeline::least_serving(&events, 4), least, "{service}: {events:#?}");
    }

    cluster.ok("node activate w1");
    create(&cluster, "bound", "--constraint node.hostname==w1");
    let before = ids(&cluster, "bound");
    let drained = cluster.ctl("node drain w1 --timeout 3s");
    assert_eq!(drained.code, 1, "{}", drained.stderr);
    let why = "no node fits: 1 of 3 drained, 2 of 3 excluded by a constraint";
    let left = format!("bound.1 is still there; the next bound.1 waits: {why}");
    assert!(drained.stderr.contains(&left), "{}", drained.stderr);
    assert!(cluster.rows("service ps bound").iter().any(|task| task["error"] == why), "{}", cluster.ok("service ps"));
    assert_eq!(ids(&cluster, "bound"), before, "it runs on, as there is no room for it elsewhere");
    cluster.ok("node activate w1");
    cluster
        .wait("what the drain has begun is gone", |it| it.rows("service ps bound --filter state=pending").is_empty());
    assert_eq!(ids(&cluster, "bound"), before);
}
