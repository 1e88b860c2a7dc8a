//! Checks of a network between two nodes, of which one thing after the other is broken.

use std::process::Command;

use flota_api::model::{LayerFailure, NetworkLayer, NetworkReport};

use super::*;

/// Returns two nodes with a task of the service `web` on each.
fn connected() -> (Pair, View) {
    let (mut pair, view) = (Pair::start(), view());
    for number in 0..2 {
        pair.program(number, &view);
        pair.node(number).attach(&view, &task(number)).unwrap();
    }
    (pair, view)
}

/// Returns what the first node reports of the network.
fn report(pair: &mut Pair, view: &View) -> NetworkReport {
    pair.node(0).plan_check(view, &NETWORK.into()).carry_out(true)
}

/// Returns the layers that fail on the way to the other node.
fn failing(pair: &mut Pair, view: &View) -> Vec<NetworkLayer> {
    let report = report(pair, view);
    assert_eq!(report.peers.iter().map(|it| it.node.as_str()).collect::<Vec<_>>(), ["w1"]);
    report.peers[0].failures.iter().map(|LayerFailure { layer, .. }| *layer).collect()
}

/// Drops packets that match this condition where they arrive (`input`) or leave (`output`).
fn drop_packets(namespace: &Namespace, hook: &str, condition: &str) {
    let rules = format!(
        "add table inet foreign; add chain inet foreign c {{ type filter hook {hook} priority 0; }}; \
         add rule inet foreign c {condition} drop"
    );
    let output = namespace.enter(|| Ok(Command::new("nft").arg(&rules).output())).unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nothing_fails_between_nodes_whose_networks_are_right() {
    let (mut pair, view) = connected();
    let report = report(&mut pair, &view);
    assert_eq!(report.peers.len(), 1);
    assert_eq!(report.peers[0].failures, []);
    assert!(report.peers[0].round_trip.is_some());
    assert_eq!((report.balancer.virtual_ips, report.balancer.backends), (1, 2));
    assert_eq!(report.balancer.differences, Vec::<String>::new());
    let quick = pair.node(0).plan_check(&view, &NETWORK.into()).carry_out(false);
    assert_eq!((quick.peers.len(), quick.balancer), (0, report.balancer), "without probes");
}

#[test]
fn a_node_that_is_cut_off_fails_at_the_underlay() {
    let (mut pair, view) = connected();
    drop_packets(&options(pair.dir.path(), 1).host, "input", "iifname eth0");
    assert_eq!(failing(&mut pair, &view), [NetworkLayer::Underlay]);
}

#[test]
fn a_node_that_drops_the_packets_of_overlays_fails_at_vxlan() {
    let (mut pair, view) = connected();
    drop_packets(&options(pair.dir.path(), 1).host, "input", "udp dport 4789");
    assert_eq!(failing(&mut pair, &view), [NetworkLayer::Vxlan]);
}

#[test]
fn a_path_that_carries_less_than_the_interfaces_send_fails_at_the_size() {
    let (mut pair, view) = connected();
    drop_packets(&options(pair.dir.path(), 1).host, "input", "udp dport 4789 udp length > 1400");
    assert_eq!(failing(&mut pair, &view), [NetworkLayer::Mtu]);
}

#[test]
fn a_name_that_is_missing_fails_at_dns() {
    let (mut pair, view) = connected();
    let key = names::endpoint_key(&TASKS[1].into());
    pair.node(0).directory.remove(NETWORK, &key);
    assert_eq!(failing(&mut pair, &view), [NetworkLayer::Dns]);
}

#[test]
fn a_virtual_ip_without_one_of_its_backends_fails_at_the_balancer() {
    let (mut pair, view) = connected();
    let backends = [host_address(0)];
    pair.node(0).set_pools(&NETWORK.into(), &[[10, 77, 0, 200].into()], &[], &backends).unwrap();
    assert_eq!(failing(&mut pair, &view), [NetworkLayer::Balancer]);
    assert_eq!(report(&mut pair, &view).balancer.differences.len(), 1);
}
