//! Joining, leaving, draining.

use flota_tests::Cluster;

/// A node of the cluster that has left it, and can join again.
fn left(cluster: &Cluster, node: &str) {
    let leave = cluster.ctl_on(node, "swarm leave");
    assert_eq!(leave.code, 0, "{}", leave.stderr);
}

#[test]
fn tokens_that_are_wrong_old_or_of_another_cluster_are_refused_and_say_which() {
    let cluster = Cluster::bare(1, 1);
    left(&cluster, "w1");
    let token = |it: &Cluster| it.ok("swarm join-token -q worker").trim().to_owned();
    let join = |token: &str| cluster.ctl_on("w1", &format!("swarm join --token {token} 198.18.0.10"));
    let good = token(&cluster);
    let refused = |token: &str, why: &str| {
        let result = join(token);
        assert_eq!(result.code, 1, "{}", result.stderr);
        assert!(result.stderr.contains(why), "{}", result.stderr);
    };
    refused("SWMTKN-1-x", "this is no join token");
    let wrong = format!("{}x", &good[..good.len() - 1]);
    refused(&wrong, "this join token is wrong");
    let other = Cluster::bare(1, 0);
    refused(&token(&other), "the join token is of another cluster");
    cluster.ok("swarm join-token --rotate worker");
    refused(&good, "this join token is old: it was rotated");
    assert!(cluster.ctl_on("w1", "system info").stdout.contains("cluster: none"), "nothing half made stays");
    let joined = join(&token(&cluster));
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    cluster.wait("it is there again", |it| it.rows("node ls --filter name=w1 --filter state=ready").len() == 1);
    let again = join(&token(&cluster));
    assert!(again.code == 1 && again.stderr.contains("belongs to the cluster"), "{}", again.stderr);
}

#[test]
fn a_drained_node_loses_its_tasks_and_gets_none_until_it_is_active() {
    let cluster = Cluster::up(1, 2);
    cluster.ok("service create --name web --replicas 6 whoami");
    cluster.ok("node drain w1");
    cluster.wait("its tasks run elsewhere", |it| {
        it.running("web").len() == 6 && it.rows("service ps web --filter node=w1 --filter state=running").is_empty()
    });
    cluster.ok("service scale web=9");
    assert!(cluster.running("web").iter().all(|task| task["node"] != "w1"));
    cluster.ok("node activate w1");
    cluster.ok("service scale web=12");
    assert!(cluster.running("web").iter().any(|task| task["node"] == "w1"));
}

#[test]
fn managers_leave_and_workers_follow_whoever_leads() {
    let cluster = Cluster::bare(3, 1);
    let refused = cluster.ctl_on("m3", "swarm leave");
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{}", refused.stderr);
    let leader = cluster.leader();
    let leave = cluster.ctl_on(&leader, "swarm leave --force");
    assert_eq!(leave.code, 0, "{}", leave.stderr);
    cluster.wait("another one leads, and the worker has found it", |it| {
        it.ctl("node ls").code == 0
            && it.rows("node ls --filter state=ready").len() == 3
            && it.rows("node ls --filter leader=true").len() == 1
    });
    cluster.ok(&format!("node rm {leader}"));
    assert_eq!(cluster.rows("node ls").len(), 3);
}

#[test]
fn lesson_13_a_node_that_comes_back_is_the_same_node() {
    let cluster = Cluster::bare(3, 1);
    let id = |name: &str| cluster.rows(&format!("node ls --filter name={name}"))[0]["id"].clone();
    let before = [id("w1"), id("m2")];
    cluster.sandbox_ok("restart w1 m2");
    cluster.wait("both are ready", |it| it.rows("node ls --filter state=ready").len() == 4);
    assert_eq!([id("w1"), id("m2")], before);
}
