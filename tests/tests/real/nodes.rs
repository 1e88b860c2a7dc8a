//! Joining and leaving.

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
    refused("SWMTKN-1-x", "this is not a join token");
    let other_end = if good.ends_with('x') { 'y' } else { 'x' };
    let wrong = format!("{}{other_end}", &good[..good.len() - 1]);
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
fn a_token_expires_and_wrong_tokens_are_bounded_and_logged_on_a_follower_too() {
    let cluster = Cluster::bare(3, 1);
    left(&cluster, "w1");
    let join = |token: &str, manager: &str| cluster.ctl_on("w1", &format!("swarm join --token {token} {manager}"));
    let brief = cluster.ok("swarm join-token --rotate --ttl 1s -q worker");
    cluster.wait("the token expires", |it| it.ctl("swarm join-token worker").stderr.contains("has expired"));
    let late = join(brief.trim(), "198.18.0.10");
    assert!(late.code == 1 && late.stderr.contains("this join token has expired"), "{}", late.stderr);
    let good = cluster.ok("swarm join-token --rotate -q worker").trim().to_owned();
    let wrong = format!("{}{}", &good[..good.len() - 1], if good.ends_with('x') { 'y' } else { 'x' });
    let leader = cluster.leader();
    let (follower, address) = if leader == "m2" { ("m3", "198.18.0.12") } else { ("m2", "198.18.0.11") };
    for _ in 0..10 {
        let refused = join(&wrong, address);
        assert!(refused.stderr.contains("this join token is wrong"), "{}", refused.stderr);
    }
    let refused = join(&good, address);
    assert!(refused.stderr.contains("too many wrong join tokens came from this address"), "{}", refused.stderr);
    let log = cluster.sandbox(&format!("logs {follower}")).stdout;
    let logged = log.lines().filter(|line| line.contains("a join token was refused")).count();
    assert_eq!(logged, 10, "{log}");
    // The leader has counted nothing: the follower refuses before it forwards.
    let address = match leader.as_str() {
        "m1" => "198.18.0.10",
        "m2" => "198.18.0.11",
        _ => "198.18.0.12",
    };
    let joined = join(&good, address);
    assert_eq!(joined.code, 0, "{}", joined.stderr);
}

#[test]
fn the_last_two_managers_become_one_in_order_and_a_failed_join_leaves_nothing() {
    let cluster = Cluster::bare(2, 0);
    let leader = cluster.leader();
    let (goes, stays) = if leader == "m1" { ("m1", "m2") } else { ("m2", "m1") };
    // The leader goes: the other one must not be left with a majority of two.
    let leave = cluster.ctl_on(goes, "swarm leave --force");
    assert_eq!(leave.code, 0, "{}", leave.stderr);
    let alone = cluster.ctl_on(stays, "service create --detach --name web --replicas 0 whoami");
    assert_eq!(alone.code, 0, "{}", alone.stderr);
    // It joins again at an address where it can't be reached: nothing of it stays, here or there.
    let token = cluster.ctl_on(stays, "swarm join-token -q manager").stdout;
    let manager = if stays == "m1" { "198.18.0.10" } else { "198.18.0.11" };
    let join = |words: &str| cluster.ctl_on(goes, &format!("swarm join --token {} {words} {manager}", token.trim()));
    let unreachable = join("--advertise-addr 198.18.0.99");
    assert_eq!(unreachable.code, 1, "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("198.18.0.99"), "{}", unreachable.stderr);
    assert!(cluster.ctl_on(goes, "system info").stdout.contains("cluster: none"));
    let alone = cluster.ctl_on(stays, "service create --detach --name still --replicas 0 whoami");
    assert_eq!(alone.code, 0, "one that was never reached does not count: {}", alone.stderr);
    let joined = join("");
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    cluster.wait("both are ready", |it| it.rows("node ls --filter state=ready").len() == 2);
    // Not beside a program that has the port, and not as a member of two clusters.
    let again = join("");
    assert!(again.code == 1 && again.stderr.contains("belongs to the cluster"), "{}", again.stderr);
}

#[test]
fn managers_leave_and_workers_follow_the_leader() {
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
fn a_node_that_comes_back_is_the_same_node() {
    let cluster = Cluster::bare(3, 1);
    let id = |name: &str| cluster.rows(&format!("node ls --filter name={name}"))[0]["id"].clone();
    let before = [id("w1"), id("m2")];
    cluster.sandbox_ok("restart w1 m2");
    cluster.wait("both are ready", |it| it.rows("node ls --filter state=ready").len() == 4);
    assert_eq!([id("w1"), id("m2")], before);
    // Both move to other addresses: what they are is in their certificates, the managers learn where they are now.
    cluster.ok("service create --detach --name web --replicas 0 whoami");
    cluster.sandbox_ok("stop w1 m2");
    cluster.move_to("w1", "198.18.0.77");
    cluster.move_to("m2", "198.18.0.78");
    cluster.sandbox_ok("start w1 m2");
    let moved = |it: &Cluster, node: &str, address: &str| {
        let filter = format!("node ls --filter name={node} --filter state=ready --filter address={address}:2377");
        it.rows(&filter).len() == 1
    };
    cluster.wait("both are ready where they are now", |it| {
        moved(it, "w1", "198.18.0.77") && moved(it, "m2", "198.18.0.78")
    });
    assert_eq!([id("w1"), id("m2")], before);
    // The manager that moved counts: with it and one other there is a quorum.
    let other = if cluster.leader() == "m3" { "m1" } else { "m3" };
    cluster.wait("the moved manager has everything", |it| it.ctl_on("m2", "service ls --stale").stdout.contains("web"));
    cluster.kill(other);
    cluster.ok("service create --detach --name later --replicas 0 whoami");
}

/// Gives the machine of a node another address while its daemon runs, and waits until the node is ready there. Returns the
/// address before, with the length of its prefix.
fn move_while_it_runs(cluster: &Cluster, node: &str, new: &str) -> String {
    let shown = cluster.sandbox_ok(&format!("exec {node} -- busybox ip -4 -o addr show dev eth0"));
    let old = shown.split_whitespace().find(|word| word.starts_with("198.18.")).expect("it has an address");
    let (_, length) = old.split_once('/').expect("it has a prefix");
    cluster.sandbox_ok(&format!("exec {node} -- busybox ip addr del {old} dev eth0"));
    cluster.sandbox_ok(&format!("exec {node} -- busybox ip addr add {new}/{length} dev eth0"));
    // As a machine has it, and the only way by which one without other managers can tell how others reach it.
    cluster.sandbox_ok(&format!("exec {node} -- busybox ip route add default dev eth0"));
    is_ready_at(cluster, node, new);
    old.to_owned()
}

fn is_ready_at(cluster: &Cluster, node: &str, address: &str) {
    let filter = format!("node ls --filter name={node} --filter state=ready --filter address={address}:2377");
    cluster
        .wait("the node is ready at its new address", |it| it.ctl(&format!("{filter} -q")).stdout.lines().count() == 1);
}

#[test]
fn a_lone_manager_follows_its_machine_and_returns_with_it() {
    let cluster = Cluster::bare(1, 1);
    let old = move_while_it_runs(&cluster, "m1", "198.18.0.77");
    let told = cluster.ctl_on("w1", "swarm reconnect 198.18.0.77");
    assert_eq!(told.code, 0, "{}", told.stderr);
    is_ready_at(&cluster, "w1", "198.18.0.11");
    // The machine has both addresses now, and the node is again where it came.
    cluster.sandbox_ok(&format!("exec m1 -- busybox ip addr add {old} dev eth0"));
    is_ready_at(&cluster, "m1", "198.18.0.10");
}

#[test]
fn a_machine_gets_another_address_while_its_daemon_runs() {
    let cluster = Cluster::up(3, 1);
    cluster.ok("service create --name web --replicas 1 --constraint node.hostname==w1 whoami");
    let task = || cluster.rows("service ps web")[0].clone();
    let before = task();
    let leader = cluster.leader();
    for (node, new) in [("w1", "198.18.0.77"), (leader.as_str(), "198.18.0.78")] {
        move_while_it_runs(&cluster, node, new);
    }
    assert_eq!(task()["id"], before["id"], "its container runs on");
    assert_eq!(cluster.ctl("exec web -- /whoami fail 42").code, 42, "its node is reached there");
    // With the manager that moved there is a quorum.
    let other = ["m1", "m2", "m3"].into_iter().find(|it| *it != leader && cluster.leader() != *it).expect("one");
    cluster.kill(other);
    cluster.ok("service create --detach --name later --replicas 0 whoami");
}

#[test]
fn a_node_serves_metrics_and_says_whether_it_is_ready() {
    let cluster = Cluster::up_with(1, 1, "metrics-listen = \"127.0.0.1:9323\"\n");
    cluster.ok("service create --name web --replicas 2 whoami");
    let get = |node: &str, path: &str| {
        cluster.sandbox(&format!("exec {node} -- busybox wget -qO- http://127.0.0.1:9323{path}"))
    };
    let has = |node: &str, line: &str| get(node, "/metrics").stdout.lines().any(|it| it == line);
    for (node, line) in [
        ("m1", "flota_raft_is_leader 1.0"),
        ("m1", "flota_tasks{state=\"running\"} 2.0"),
        ("m1", "flota_store_objects{kind=\"service\"} 1.0"),
        ("m1", "flota_sessions 2.0"),
        ("w1", "flota_worker_has_session 1.0"),
        ("w1", "flota_worker_tasks 1.0"),
        ("w1", "flota_container_starts_total 1.0"),
    ] {
        cluster.wait(&format!("{node} says {line}"), |_| has(node, line));
    }
    for node in ["m1", "w1"] {
        assert_eq!(
            (get(node, "/healthz").stdout.as_str(), get(node, "/readyz").stdout.as_str()),
            ("ok\n", "ok\n"),
            "{node}"
        );
    }
    cluster.sandbox_ok("kill --daemon-only m1");
    cluster.wait("a worker without a leader is not ready, and lives", |_| {
        get("w1", "/readyz").stderr.contains("503") && get("w1", "/healthz").stdout == "ok\n"
    });
    cluster.sandbox_ok("start m1");
    cluster
        .wait("it is ready again", |_| get("w1", "/readyz").stdout == "ok\n" && get("m1", "/readyz").stdout == "ok\n");
}
