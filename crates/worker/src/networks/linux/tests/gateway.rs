//! Published ports, as they change.

use flota_api::model::{NodePort, Protocol};

use super::*;

/// Returns a service in `ingress` with these ports.
fn service(id: &str, ports: &[u16]) -> NetworkService {
    let port = |number: &u16| ApiPort {
        target: 80,
        published: Some(*number),
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
    };
    NetworkService {
        network: INGRESS_ID.into(),
        service: id.into(),
        name: id.into(),
        aliases: Vec::new(),
        virtual_ips: Vec::new(),
        ports: ports.iter().map(port).collect(),
    }
}

/// Returns a task in `ingress` on a node.
fn target(task: &str, service: &str, number: usize, serving: bool) -> Endpoint {
    Endpoint {
        addresses: vec![[10, 78, 0, u8::try_from(task.len()).unwrap()].into()],
        node: format!("w{number}").as_str().into(),
        vtep: Some(address(number).into()),
        service: service.into(),
        ..endpoint(INGRESS_ID, task, 0, serving)
    }
}

#[test]
fn ports_that_change_one_by_one_are_as_if_they_were_computed_as_a_whole() {
    let mut pair = Pair::start();
    let mut view = published();
    pair.program(0, &view);
    let services = |services: Vec<NetworkService>| NetworkUpdate { services, ..NetworkUpdate::default() };
    let endpoints = |endpoints: Vec<Endpoint>| NetworkUpdate { endpoints, ..NetworkUpdate::default() };
    let removed_endpoints = vec![(INGRESS_ID.into(), "bbb".into())];
    let removed_services = vec![(INGRESS_ID.into(), "api".into())];
    let steps: [(NetworkUpdate, &[u16]); 8] = [
        (services(vec![service("api", &[81, 82])]), &[81, 82, 8080]),
        (endpoints(vec![target("aa", "api", 1, true), target("bbb", "api", 0, true)]), &[81, 82, 8080]),
        (endpoints(vec![target("aa", "api", 1, false)]), &[81, 82, 8080]),
        (endpoints(vec![target("aa", "api", 0, true)]), &[81, 82, 8080]),
        (services(vec![service("api", &[82, 83])]), &[82, 83, 8080]),
        // What one service gives up, another takes in the same update.
        (services(vec![service("aaa", &[82]), service("api", &[83])]), &[82, 83, 8080]),
        (NetworkUpdate { removed_endpoints, removed_services, ..NetworkUpdate::default() }, &[82, 8080]),
        (services(vec![service("zzz", &[83])]), &[82, 83, 8080]),
    ];
    for (update, ports) in steps {
        let mut todo = view.apply(update);
        pair.node(0).program(&view, &[], &mut todo).unwrap();
        assert_eq!(pair.node(0).led_ports(), ports);
        pair.node(0).assert_gateway_is_whole(&view);
    }
    pair.node(0).leave_ports(&BTreeSet::from([NodePort { protocol: Protocol::Tcp, number: 83 }]));
    pair.node(0).program(&view, &[], &mut Touched::default()).unwrap();
    assert_eq!(pair.node(0).led_ports(), [82, 8080], "a program of the node has it");
}
