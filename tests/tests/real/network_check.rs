//! `ctl network check` and what `ctl network inspect` shows of balancers, while parts of a real cluster do not work.

use std::time::{Duration, Instant};

use flota_tests::Cluster;
use serde_json::Value;

/// Longer than a check takes, whatever is wrong.
const PATIENCE: Duration = Duration::from_secs(15);

/// Starts a cluster with the network `front` and a task of `web` in it on each worker.
fn with_web() -> Cluster {
    let cluster = Cluster::up(1, 2);
    cluster.ok("network create front");
    cluster.ok("service create --name web --network front --replicas 2 --constraint node.role==worker whoami");
    cluster
}

/// Checks the network, and returns for each row the two nodes with the layers that fail, and the exit code.
fn check(cluster: &Cluster) -> (Vec<String>, i32) {
    let begun = Instant::now();
    let output = cluster.ctl("network check front --format json");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let rows: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let row = |row: &Value| {
        let layer = |it: &Value| it["layer"].as_str().unwrap_or("node").to_owned();
        let failing: Vec<String> = row["failures"].as_array().unwrap().iter().map(layer).collect();
        format!("{} {}: {}", row["from"].as_str().unwrap(), row["to"].as_str().unwrap_or("-"), failing.join(" "))
    };
    (rows.as_array().unwrap().iter().map(row).collect(), output.code)
}

#[test]
fn a_check_names_the_pair_and_the_layer_that_fails() {
    let cluster = with_web();
    cluster.wait("everything works", |it| check(it) == (vec!["w1 w2: ".into(), "w2 w1: ".into()], 0));
    let inspected: Value = serde_json::from_str(&cluster.ok("network inspect front")).unwrap();
    for node in inspected[0]["nodes"].as_array().unwrap() {
        let balancer = &node["balancer"];
        assert_eq!((&balancer["kind"], &balancer["backends"]), (&"bpf".into(), &2.into()), "{node}");
    }
    let nft = |words: &str| {
        let command = cluster.sandbox(&format!("exec w2 -- nft {words}"));
        assert_eq!(command.code, 0, "{}", command.stderr);
    };
    nft("add table inet foreign");
    nft("add chain inet foreign c { type filter hook input priority 0 ; }");
    nft("add rule inet foreign c udp dport 4789 udp length > 1400 drop");
    // Large packets to w2 are lost, and so are the large answers to those from there.
    assert_eq!(check(&cluster), (vec!["w1 w2: mtu".into(), "w2 w1: mtu".into()], 1));
    nft("flush chain inet foreign c");
    nft("add rule inet foreign c udp dport 4789 drop");
    assert_eq!(check(&cluster), (vec!["w1 w2: vxlan".into(), "w2 w1: vxlan".into()], 1));
    nft("delete table inet foreign");
    assert_eq!(check(&cluster).1, 0);
    let refused = cluster.ctl("network check none-such");
    assert_eq!(refused.code, 3, "{}", refused.stderr);
}

#[test]
fn a_check_with_a_dead_node_says_so_and_ends() {
    let cluster = with_web();
    cluster.kill("w2");
    let (rows, code) = check(&cluster);
    assert_eq!((rows.last().map(String::as_str), code), (Some("w2 -: node"), 1), "{rows:?}");
    let pair = rows.iter().find(|row| row.starts_with("w1 w2"));
    assert!(pair.is_none_or(|it| it.starts_with("w1 w2: underlay")), "{rows:?}");
}
