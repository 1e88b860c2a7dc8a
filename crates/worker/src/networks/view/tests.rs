//! Tests of the view: updates and what they change.

use flota_api::model::NetworkDriver;

use super::*;

pub(in crate::networks) fn network(id: &str) -> NetworkConfig {
    NetworkConfig {
        id: id.into(),
        name: id.into(),
        driver: NetworkDriver::Overlay,
        vni: Some(4_097),
        mtu: None,
        internal: false,
        parent: None,
        encrypted: false,
        subnets: Vec::new(),
    }
}

pub(in crate::networks) fn endpoint(network: &str, task: &str, last: u8, serving: bool) -> Endpoint {
    Endpoint {
        network: network.into(),
        task: task.into(),
        service: "web".into(),
        name: format!("web.{last}"),
        addresses: vec![[10, 0, 1, last].into()],
        node: "w1".into(),
        vtep: Some([198, 18, 0, 3].into()),
        serving,
        lost: false,
        tunnel_keys: Vec::new(),
    }
}

fn service(network: &str, id: &str) -> NetworkService {
    NetworkService {
        network: network.into(),
        service: id.into(),
        name: id.into(),
        aliases: Vec::new(),
        virtual_ips: vec![[10, 0, 1, 200].into()],
        ports: Vec::new(),
    }
}

/// Returns an update that describes one network with two tasks of the service `web`.
fn everything() -> NetworkUpdate {
    NetworkUpdate {
        version: 5,
        full: true,
        networks: vec![network("n")],
        services: vec![service("n", "web"), service("n", "api")],
        endpoints: vec![endpoint("n", "a", 1, true), endpoint("n", "b", 2, false)],
        ..NetworkUpdate::default()
    }
}

fn keys<T: Clone + Ord + From<&'static str>>(names: &[&'static str]) -> BTreeSet<(NetworkId, T)> {
    names.iter().map(|name| ("n".into(), T::from(name))).collect()
}

#[test]
fn connections_are_sent_to_serving_tasks_alone() {
    let mut view = View::default();
    view.apply(everything());
    let backends = |view: &View| view.networks[&NetworkId::from("n")].backends(&"web".into());
    assert_eq!(backends(&view), [IpAddr::from([10, 0, 1, 1])]);
    let endpoints = vec![endpoint("n", "a", 1, false), endpoint("n", "b", 2, true)];
    let touched = view.apply(NetworkUpdate { version: 6, endpoints, ..NetworkUpdate::default() });
    assert_eq!((backends(&view), view.version), (vec![IpAddr::from([10, 0, 1, 2])], 6));
    let (services, endpoints) = (keys(&["web"]), keys(&["a", "b"]));
    assert_eq!(touched, Touched { services, endpoints, ..Touched::default() }, "the other service is not touched");
}

#[test]
fn a_full_update_touches_what_differs_from_what_was_known() {
    let mut view = View::default();
    view.apply(everything());
    assert_eq!(view.apply(everything()), Touched::default(), "nothing differs");
    let mut other = everything();
    other.endpoints.remove(0);
    other.networks.push(network("m"));
    let touched = view.apply(other);
    let networks = BTreeSet::from(["m".into()]);
    assert_eq!(
        touched,
        Touched { networks, services: keys(&["web"]), endpoints: keys(&["a"]), ..Touched::default() },
        "the service of a task that is gone has changed too"
    );
}

#[test]
fn a_network_takes_along_what_is_in_it() {
    let mut view = View::default();
    view.apply(everything());
    let removed_networks = vec!["n".into()];
    let touched = view.apply(NetworkUpdate { removed_networks, ..NetworkUpdate::default() });
    assert_eq!((touched.services, touched.endpoints), (keys(&["api", "web"]), keys(&["a", "b"])));
    assert!(view.networks.is_empty());
    let late = NetworkUpdate { endpoints: vec![endpoint("n", "c", 3, true)], ..NetworkUpdate::default() };
    assert_eq!(view.apply(late), Touched::default(), "what belongs to no network is ignored");
}

#[test]
fn a_task_that_changes_its_service_is_a_task_of_one_alone() {
    let mut view = View::default();
    view.apply(everything());
    let moved = Endpoint { service: "api".into(), ..endpoint("n", "a", 1, true) };
    let touched = view.apply(NetworkUpdate { endpoints: vec![moved], ..NetworkUpdate::default() });
    assert_eq!(touched.services, keys(&["api", "web"]));
    let network = &view.networks[&NetworkId::from("n")];
    assert_eq!((network.backends(&"web".into()).len(), network.backends(&"api".into()).len()), (0, 1));
}

#[test]
fn a_view_is_made_again_from_its_own_update() {
    let mut view = View::default();
    view.apply(everything());
    let mut again = View::default();
    again.apply(view.to_update());
    assert_eq!(again, view);
}

#[test]
fn an_update_is_whole_when_its_last_part_is_here() {
    let mut parts = UpdateParts::default();
    let mut first = everything();
    let second = NetworkUpdate { version: 5, endpoints: first.endpoints.split_off(1), ..NetworkUpdate::default() };
    assert_eq!(parts.join(NetworkUpdate { more: true, ..first }), None);
    assert_eq!(parts.join(second), Some(everything()));
}
