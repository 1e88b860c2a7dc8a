//! Tests of what a worker is told of its networks.

use super::*;
use flota_api::model::{Attachment, NetworkAttachment, NetworkSpec, ServiceSpec, TaskStatus, TunnelKey, VirtualIp};
use flota_api::object::{Kind, StoreObject};
use flota_api::state::DesiredState;

/// Two networks, and the service `web` in `a` with the task `t` on the node `n`.
fn view() -> Tables {
    let mut view = Tables::default();
    for id in ["n", "m"] {
        let state = NodeState::Ready;
        view.put(Node { id: id.into(), state, address: "198.18.0.1:2377".into(), ..Node::default() }.into_object());
    }
    for id in ["a", "b"] {
        let spec = Arc::new(NetworkSpec { name: id.into(), ..NetworkSpec::default() });
        view.put(Network { id: id.into(), spec, ..Network::default() }.into_object());
    }
    let networks = vec![NetworkAttachment { network: "a".into(), aliases: vec!["www".into()] }];
    let spec = Arc::new(ServiceSpec { name: "web".into(), networks, ..ServiceSpec::default() });
    let virtual_ips = vec![VirtualIp { network: "a".into(), addresses: vec![[10, 0, 0, 193].into()] }];
    view.put(Service { id: "web".into(), spec, spec_version: 1, virtual_ips, ..Service::default() }.into_object());
    view.put(task("t", "a", "n").into_object());
    view
}

fn task(id: &str, network: &str, node: &str) -> Task {
    let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
    let attachments = vec![Attachment { network: network.into(), addresses: vec![[10, 0, 0, 2].into()] }];
    let node_id = Some(node.into());
    Task { id: id.into(), service_id: "web".into(), spec_version: 1, node_id, status, attachments, ..Task::default() }
}

fn only(changes: &[NetworkChange]) -> News {
    News::Only(changes.iter().cloned().collect())
}

fn endpoint_of(task: &str) -> NetworkChange {
    NetworkChange::Endpoint("a".into(), task.into())
}

#[test]
fn a_worker_is_told_everything_of_its_own_networks_and_then_what_has_changed() {
    let mut view = view();
    let (mut told, node) = (ToldNetworks::default(), NodeId::from("n"));
    let first = told.tell(&node, only(&[]), 1, &view).remove(0);
    assert!(first.full && !first.more);
    assert_eq!(first.networks.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!((first.services[0].name.as_str(), first.services[0].aliases[0].as_str()), ("web", "www"));
    let endpoint = &first.endpoints[0];
    assert_eq!((endpoint.name.as_str(), endpoint.serving), ("web.1", true));
    assert_eq!(endpoint.vtep, Some([198, 18, 0, 1].into()));
    assert!(told.tell(&node, only(&[]), 2, &view).is_empty(), "there is no news");

    view.put(Task { desired_state: DesiredState::Shutdown, ..task("t", "a", "n") }.into_object());
    let second = told.tell(&node, only(&[endpoint_of("t")]), 3, &view).remove(0);
    assert!(!second.full && second.networks.is_empty() && second.services.is_empty());
    assert!(!second.endpoints[0].serving);

    view.put(task("u", "b", "n").into_object());
    let third = told.tell(&node, only(&[NetworkChange::Endpoint("b".into(), "u".into())]), 4, &view).remove(0);
    assert_eq!((third.networks.len(), third.endpoints.len(), third.full), (1, 1, false), "a network that is new here");

    view.remove(Kind::Task, "u");
    let fourth = told.tell(&node, only(&[]), 5, &view).remove(0);
    assert_eq!(fourth.removed_networks, ["b".into()]);
}

#[test]
fn a_change_of_a_network_that_the_node_has_lost_is_confirmed_with_nothing_to_do() {
    let mut view = view();
    let (mut told, node) = (ToldNetworks::default(), NodeId::from("n"));
    told.tell(&node, News::Everything, 1, &view);
    view.remove(Kind::Task, "t");
    let update = told.tell(&node, only(&[endpoint_of("t")]), 2, &view).remove(0);
    assert_eq!((update.removed_networks.len(), update.removed_endpoints.len()), (1, 0));
    let update = told.tell(&node, only(&[endpoint_of("t")]), 3, &view).remove(0);
    assert_eq!(update, NetworkUpdate { version: 3, ..NetworkUpdate::default() });
}

#[test]
fn a_network_that_a_node_has_lost_and_got_again_is_told_anew() {
    let mut view = view();
    view.put(task("gone", "a", "m").into_object());
    let (mut told, node) = (ToldNetworks::default(), NodeId::from("n"));
    told.tell(&node, News::Everything, 1, &view);
    view.version = 1;
    view.remove(Kind::Task, "t");
    assert!(!endpoint_of("gone").concerned(&view).any(|it| *it == node));
    view.version = 2;
    view.remove(Kind::Task, "gone");
    view.version = 3;
    view.put(task("u", "a", "n").into_object());
    let update = told.tell(&node, only(&[endpoint_of("u")]), 4, &view).remove(0);
    assert_eq!((update.removed_networks.len(), update.networks.len()), (1, 1));
    assert_eq!(update.endpoints.iter().map(|it| it.task.as_str()).collect::<Vec<_>>(), ["u"]);
}

/// The nodes of the network of published ports in an update, in order.
fn nodes(updates: &[NetworkUpdate]) -> Vec<&str> {
    updates[0].nodes.iter().map(|it| it.node.as_str()).collect()
}

#[test]
fn only_a_host_is_told_of_every_node_in_the_network_of_published_ports() {
    let mut view = Tables::default();
    let spec = Arc::new(NetworkSpec { name: flota_api::model::INGRESS.into(), ..NetworkSpec::default() });
    view.put(Network { id: "i".into(), spec, ..Network::default() }.into_object());
    for id in ["k", "l", "m", "n"] {
        let attachments = vec![Attachment { network: "i".into(), addresses: Vec::new() }];
        view.put(Node { id: id.into(), attachments, ..Node::default() }.into_object());
    }
    view.put(task("t", "i", "m").into_object());
    let (mut told, node) = (ToldNetworks::default(), NodeId::from("n"));
    let of_node = |id: &str| NetworkChange::Node("i".into(), id.into());
    let concerned = |view: &Tables, id| of_node(id).concerned(view).map(|it| it.to_string()).collect::<Vec<_>>();
    assert_eq!(nodes(&told.tell(&node, News::Everything, 1, &view)), ["m", "n"], "itself and the node of the endpoint");
    assert_eq!((concerned(&view, "k"), concerned(&view, "m").len()), (vec!["m".to_owned(), "k".into()], 4));
    view.put(task("u", "i", "l").into_object());
    let changes = [NetworkChange::Endpoint("i".into(), "u".into())];
    assert_eq!(nodes(&told.tell(&node, only(&changes), 2, &view)), ["l"]);
    // Its first task makes it a host.
    view.version = 3;
    view.put(task("own", "i", "n").into_object());
    let changes = [NetworkChange::Endpoint("i".into(), "own".into())];
    assert_eq!(nodes(&told.tell(&node, only(&changes), 4, &view)), ["k", "l", "m", "n"]);
    assert!(concerned(&view, "k").contains(&"n".to_owned()));
    assert_eq!(nodes(&told.tell(&node, only(&[of_node("k")]), 5, &view)), ["k"]);
    view.remove(Kind::Task, "own");
    assert_eq!(nodes(&told.tell(&node, only(&changes), 6, &view)), ["l", "m", "n"]);
}

#[test]
fn a_large_network_comes_in_parts_with_nothing_lost() {
    let mut view = view();
    for number in 0..2 * MEMBERS {
        view.put(task(&format!("t{number}"), "a", "m").into_object());
    }
    let parts = ToldNetworks::default().tell(&"n".into(), News::Everything, 1, &view);
    assert_eq!(parts.iter().map(|part| part.more).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(parts.iter().map(|part| part.endpoints.len()).sum::<usize>(), 2 * MEMBERS + 1);
    assert!(parts.iter().all(|part| part.full && part.version == 1));
}

#[test]
fn the_tasks_of_a_node_that_is_down_are_lost_and_still_there() {
    let mut view = view();
    for (state, expected) in [(NodeState::Unknown, (true, false)), (NodeState::Down, (false, true))] {
        view.put(Node { id: "n".into(), state, ..Node::default() }.into_object());
        let told = ToldNetworks::default().tell(&"n".into(), News::Everything, 1, &view).remove(0);
        assert_eq!((told.endpoints[0].serving, told.endpoints[0].lost), expected, "{state:?}");
    }
}

#[test]
fn an_event_changes_the_parts_that_differ_and_no_other() {
    let view = view();
    let update = |old: Object, new: Object| changed_by(&Event::Updated { old, new }, &view);
    let with_state = |state| Task { status: TaskStatus { state, ..TaskStatus::default() }, ..task("t", "a", "n") };
    let task_changes = |new: Task| update(task("t", "a", "n").into_object(), new.into_object());
    assert_eq!(task_changes(Task { paused: true, ..task("t", "a", "n") }), []);
    assert_eq!(task_changes(Task { desired_state: DesiredState::Shutdown, ..task("t", "a", "n") }), [endpoint_of("t")]);
    assert_eq!(task_changes(with_state(TaskState::Failed)), [endpoint_of("t")]);
    let waits = || Task { node_id: None, ..task("t", "a", "n") };
    assert_eq!(changed_by(&Event::Created(waits().into_object()), &view), [], "it has no node yet");
    assert_eq!(update(waits().into_object(), task("t", "a", "n").into_object()), [endpoint_of("t")]);

    let node = |address: &str, state| Node { id: "n".into(), address: address.into(), state, ..Node::default() };
    let node_changes = |new: Node| update(node("198.18.0.1:1", NodeState::Ready).into_object(), new.into_object());
    assert_eq!(node_changes(node("198.18.0.1:2", NodeState::Unknown)), []);
    assert_eq!(node_changes(node("198.18.0.9:1", NodeState::Ready)), [endpoint_of("t")], "its packets go elsewhere");
    assert_eq!(node_changes(node("198.18.0.1:1", NodeState::Down)), [endpoint_of("t")]);

    let service = view.service("web").expect("it is there").as_ref().clone();
    let renamed = Service { virtual_ips: Vec::new(), ..service.clone() };
    let changes = update(service.clone().into_object(), renamed.into_object());
    assert_eq!(changes, [NetworkChange::Service("a".into(), "web".into())]);
    assert_eq!(update(service.clone().into_object(), Service { spec_version: 2, ..service }.into_object()), []);

    let network = view.network("a").expect("it is there").as_ref().clone();
    let given = flota_api::model::LastGiven { port: Some(1), ..Default::default() };
    let counted = Network { last_given: given, ..network.clone() };
    assert_eq!(update(network.clone().into_object(), counted.into_object()), [], "only a counter has changed");
    let grown = Network { vni: Some(1), ..network.clone() };
    assert_eq!(update(network.into_object(), grown.into_object()), [NetworkChange::Network("a".into())]);
}

#[test]
fn the_keys_of_a_node_are_told_with_its_endpoints_in_encrypted_networks_alone() {
    let mut view = view();
    let key = |byte| TunnelKey { public: [byte; 32], port: 51_820 };
    let with_keys = |view: &Tables, keys: &[u8]| {
        let mut node = Node::clone(view.node("n").expect("it is there"));
        node.description.tunnel_keys = keys.iter().map(|it| key(*it)).collect();
        node
    };
    let change = |view: &mut Tables, keys: &[u8]| {
        let (old, new) = (view.node("n").expect("it is there").clone(), with_keys(view, keys).into_object());
        view.put(new.clone());
        changed_by(&Event::Updated { old: Object::Node(old), new }, view)
    };
    assert_eq!(change(&mut view, &[1]), [], "nobody encrypts");
    let told = |view: &Tables| ToldNetworks::default().tell(&"n".into(), News::Everything, 1, view).remove(0);
    assert_eq!((told(&view).networks[0].encrypted, told(&view).endpoints[0].tunnel_keys.len()), (false, 0));
    let spec = Arc::new(NetworkSpec { name: "a".into(), encrypted: true, ..NetworkSpec::default() });
    view.put(Network { id: "a".into(), spec, ..Network::default() }.into_object());
    assert_eq!(change(&mut view, &[1, 2]), [endpoint_of("t")]);
    assert!(told(&view).networks[0].encrypted);
    assert_eq!(told(&view).endpoints[0].tunnel_keys, [key(1), key(2)]);
}
