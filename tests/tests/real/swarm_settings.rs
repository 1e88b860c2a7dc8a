//! Settings of the whole cluster (`ctl swarm update`): how many tasks are kept, and when a node is lost.

use std::time::{Duration, Instant};

use flota_tests::Cluster;

/// Number of tasks of a service that the store has.
fn kept(cluster: &Cluster, service: &str) -> usize {
    cluster.rows(&format!("service ps {service}")).len()
}

#[test]
fn as_many_tasks_of_each_slot_are_kept_as_the_cluster_says() {
    let cluster = Cluster::up(1, 0);
    let limit = |number: u64| cluster.ok("system info").contains(&format!("task history limit: {number}\n"));
    assert!(limit(2), "the default");
    cluster.ok("swarm update --task-history-limit 4");
    assert!(limit(4));
    cluster.ok("service create --name web --replicas 2 --update-monitor 0s --update-parallelism 0 whoami");
    for _ in 0..5 {
        cluster.ok("service restart web");
    }
    cluster.wait("the four newest tasks of each slot are left", |it| kept(it, "web") == 8);
    for slot in ["web.1", "web.2"] {
        assert_eq!(cluster.rows(&format!("service ps --filter name={slot} web")).len(), 4);
    }
    assert_eq!(cluster.rows("service ps --filter state=shutdown web").len(), 6, "all but the ones that run");
    // A smaller number holds at once, for what is there already.
    cluster.ok("swarm update --task-history-limit 1");
    cluster.wait("only those that run are left", |it| kept(it, "web") == 2);
    assert_eq!(cluster.running("web").len(), 2);
    for refused in ["0", "101"] {
        let refused = cluster.ctl(&format!("swarm update --task-history-limit {refused}"));
        assert!(refused.code != 0 && refused.stderr.contains("it is from 1 to 100"), "{}", refused.stderr);
    }
    assert!(limit(1), "what was refused has changed nothing");
}

/// Kills `w1`, waits until it is down, starts it again, and returns how long it took to be found lost.
fn time_until_down(cluster: &Cluster) -> Duration {
    cluster.kill("w1");
    let begun = Instant::now();
    cluster.wait_state("w1", "down");
    let taken = begun.elapsed();
    cluster.sandbox_ok("start w1");
    cluster.wait_state("w1", "ready");
    taken
}

#[test]
fn a_node_is_down_after_as_many_missed_heartbeats_as_the_cluster_says() {
    let cluster = Cluster::bare(1, 1);
    // Nodes follow with their next session, so the worker is restarted in between.
    cluster.ok("swarm update --dispatcher-heartbeat 2s --missed-heartbeats 4");
    cluster.sandbox_ok("restart w1");
    cluster.wait_state("w1", "ready");
    let slow = time_until_down(&cluster);
    // The last heartbeat was up to one period before the node was killed.
    assert!(slow >= Duration::from_secs(6), "{slow:?}");
    cluster.ok("swarm update --dispatcher-heartbeat 500ms --missed-heartbeats 2");
    cluster.sandbox_ok("restart w1");
    cluster.wait_state("w1", "ready");
    let quick = time_until_down(&cluster);
    assert!(quick < slow, "{quick:?}, {slow:?}");
    let refused = cluster.ctl("swarm update --missed-heartbeats 0");
    assert_ne!(refused.code, 0, "{}", refused.stdout);
}
