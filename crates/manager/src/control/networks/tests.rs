//! Tests of the operations on networks, and of how services and stacks name them.

use flota_api::model::{
    Attachment, NetworkAttachment, Node, NodeDescription, NodePort, Protocol, Service, StackSpec, SubnetSpec,
    TaskStatus, TunnelKey,
};
use flota_api::reason::{Detail, Reason};
use flota_api::state::{DesiredState, TaskState};
use tonic::Status;

use super::*;
use crate::control::pins::ResolveImage::Never;
use crate::control::stacks::Absent::Keep;
use crate::control::tests::alone::Alone;

fn network(name: &str, subnet: Option<&str>) -> NetworkSpec {
    let subnet = subnet.map(|prefix| SubnetSpec {
        prefix: prefix.parse().expect("a prefix"),
        gateway: None,
        range: None,
        auxiliary: BTreeMap::new(),
    });
    NetworkSpec { name: name.into(), subnets: subnet.into_iter().collect(), ..NetworkSpec::default() }
}

fn service(name: &str, networks: &[&str], ports: &[(u16, PublishMode)]) -> ServiceSpec {
    let port = |(published, mode): &(u16, PublishMode)| PublishedPort {
        target: 80,
        published: Some(*published),
        protocol: Protocol::Tcp,
        mode: *mode,
    };
    let joined = |name: &&str| NetworkAttachment { network: (*name).into(), aliases: Vec::new() };
    ServiceSpec {
        name: name.into(),
        image: "web".into(),
        networks: networks.iter().map(joined).collect(),
        ports: ports.iter().map(port).collect(),
        ..ServiceSpec::default()
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ControlError>) -> (Option<Reason>, String) {
    let error = result.expect_err("it is refused");
    let text = error.to_string();
    (Detail::of(&Status::from(error)).map(|it| it.reason), text)
}

/// A cluster with its built-in networks and a node that has a route.
async fn cluster() -> Control<Alone> {
    let control = Control::alone();
    control.put(Cluster { id: "c".into(), ..Cluster::default() }).await;
    let description = NodeDescription {
        hostname: "w1".into(),
        routes: vec!["10.7.0.0/16".parse().expect("a prefix")],
        ..NodeDescription::default()
    };
    control.put(Node { id: "n1".into(), description, ..Node::default() }).await;
    for (name, driver) in
        [(INGRESS, NetworkDriver::Overlay), ("host", NetworkDriver::Host), ("none", NetworkDriver::None)]
    {
        let spec = Arc::new(NetworkSpec { driver, ..network(name, None) });
        control.put(Network { id: name.into(), spec, ..Network::default() }).await;
    }
    control
}

#[tokio::test]
async fn a_network_whose_subnet_meets_another_or_a_route_is_refused_with_the_field() {
    let control = cluster().await;
    let made = control.create_network(None, network("front", Some("10.1.0.0/16"))).await.expect("a network");
    assert_eq!(made.subnets[0].prefix.to_string(), "10.1.0.0/16");
    for (spec, expected) in [
        (network("back", Some("10.1.4.0/24")), "subnets[0].prefix: 10.1.4.0/24 overlaps with that of network `front`"),
        (network("back", Some("10.0.0.0/8")), "subnets[0].prefix: 10.0.0.0/8 overlaps with that of network `front`"),
        (network("back", Some("10.7.1.0/24")), "subnets[0].prefix: 10.7.1.0/24 overlaps with a route of node `w1`"),
        (network("host", None), "name: `host` means a driver or a network of every cluster"),
    ] {
        assert_eq!(refused(control.create_network(None, spec).await), (Some(Reason::Invalid), expected.to_owned()));
    }
    let again = control.create_network(None, network("front", None)).await;
    assert_eq!(refused(again).0, Some(Reason::AlreadyExists));
}

#[tokio::test]
async fn a_network_that_is_used_is_not_removed_and_its_users_are_named() {
    let control = cluster().await;
    let front = control.create_network(None, network("front", None)).await.expect("a network");
    let web = control.create_service(None, service("web", &["front"], &[]), Never).await.expect("a service").changed;
    assert_eq!(web.spec.networks[0].network, front.id, "the spec has the id");
    let version = || control.store.view().network_by_name("front").expect("it is there").meta.version;
    assert!(version() > front.meta.version, "a removal that was planned before meets a conflict");
    let expected = "network `front` is used by web".to_owned();
    assert_eq!(refused(control.remove_network(None, "front").await), (Some(Reason::InUse), expected));
    let seen = control.get_network("front").await.expect("a network");
    assert_eq!(seen.services, ["web".to_owned()].into());
    control.remove_service(None, "web").await.expect("it is there");
    control.remove_network(None, "front").await.expect("nothing uses it");
    assert_eq!(refused(control.remove_network(None, INGRESS).await).0, Some(Reason::WrongState));
}

#[tokio::test]
async fn a_network_is_shown_with_the_state_of_its_tasks_and_the_nodes_that_have_it() {
    let control = cluster().await;
    let front = control.create_network(None, network("front", None)).await.expect("a network").id.clone();
    let web = control.create_service(None, service("web", &["front"], &[]), Never).await.expect("a service").changed;
    let description = NodeDescription { hostname: "w2".into(), ..NodeDescription::default() };
    control.put(Node { id: "n2".into(), description, state: NodeState::Down, ..Node::default() }).await;
    let tasks = [
        (1, "n1", TaskState::Running, DesiredState::Running),
        (2, "n1", TaskState::Running, DesiredState::Shutdown),
        (3, "n1", TaskState::Preparing, DesiredState::Running),
        (4, "n2", TaskState::Running, DesiredState::Running),
    ];
    for (slot, node, state, desired_state) in tasks {
        let attachments = vec![Attachment { network: front.clone(), addresses: vec![[10, 0, 0, slot].into()] }];
        let status = TaskStatus { state, ..TaskStatus::default() };
        let task = Task {
            id: format!("t{slot}").into(),
            service_id: web.id.clone(),
            spec_version: web.spec_version,
            ..Task::default()
        };
        let (slot, node_id) = (slot.into(), Some(node.into()));
        control.put(Task { slot, node_id, desired_state, status, attachments, ..task }).await;
    }
    control.programmed.begin(&"n1".into(), 1);
    control.programmed.reset(9);
    let seen = control.get_network("front").await.expect("it is there");
    let shown =
        |it: &EndpointSummary| format!("{} {} {}", it.task, it.node.as_deref().unwrap_or("nowhere"), it.state.as_str());
    let endpoints: Vec<_> = seen.endpoints.iter().map(shown).collect();
    assert_eq!(endpoints, ["web.1 w1 serving", "web.2 w1 draining", "web.3 w1 starting", "web.4 w2 lost"]);
    let nodes: Vec<_> = seen.nodes.iter().map(|it| (it.node.as_str(), it.programmed)).collect();
    assert_eq!(nodes, [("w1", Some(0)), ("w2", None)], "the one was told nothing yet, the other has no session");
}

#[tokio::test]
async fn networks_that_tasks_cannot_join_are_refused() {
    let control = cluster().await;
    control.create_network(None, network("front", None)).await.expect("a network");
    let create = async |spec| refused(control.create_service(None, spec, Never).await);
    let ingress = (8_080, PublishMode::Ingress);
    assert_eq!(
        create(service("a", &["nowhere"], &[])).await,
        (Some(Reason::NotFound), "there is no network `nowhere`".into())
    );
    for (spec, expected) in [
        (service("a", &[INGRESS], &[]), "networks[0]: tasks join `ingress` by a published port"),
        (service("a", &["host", "front"], &[]), "networks: a task in the network `host` has no other network"),
        (service("a", &["none"], &[ingress]), "networks: a task in the network `none` has no other network"),
    ] {
        let (reason, text) = create(spec).await;
        assert!(reason == Some(Reason::Invalid) && text.starts_with(expected), "{text}");
    }
    let mut open = service("a", &["host"], &[]);
    let parameters = ["kernel.sem", "net.core.somaxconn", "net/ipv4/ip_forward"];
    open.sysctls = parameters.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
    let (reason, text) = create(open).await;
    let why = "a task in the network `host` has the node's, which stay as they are";
    assert_eq!(reason, Some(Reason::Invalid));
    assert_eq!(text, format!("sysctls.net.core.somaxconn: {why}; sysctls.net/ipv4/ip_forward: {why}"));
    control.create_service(None, service("a", &["host"], &[]), Never).await.expect("the network of its node alone");
}

#[tokio::test]
async fn a_port_that_another_service_has_is_refused() {
    let control = cluster().await;
    let (ingress, host) = ((80, PublishMode::Ingress), (81, PublishMode::Host));
    control.create_service(None, service("web", &[], &[ingress, host]), Never).await.expect("a service");
    let create = async |name, ports: &[_]| control.create_service(None, service(name, &[], ports), Never).await;
    let expected = "ports[0]: 80/tcp is published by service `web`".to_owned();
    assert_eq!(refused(create("a", &[ingress]).await), (Some(Reason::Invalid), expected));
    assert_eq!(refused(create("a", &[(80, PublishMode::Host)]).await).0, Some(Reason::Invalid));
    assert_eq!(refused(create("a", &[(81, PublishMode::Ingress)]).await).0, Some(Reason::Invalid));
    create("a", &[host]).await.expect("its tasks run on other nodes");
    let update = control.update_service(None, "web", None, &service("web", &[], &[ingress]), Never, false).await;
    update.expect("a service keeps its own port");
}

/// A node of which a program listens on a port.
fn listening(hostname: &str, number: u16) -> Node {
    let listeners = vec![NodePort { protocol: Protocol::Tcp, number }];
    let description = NodeDescription { hostname: hostname.into(), listeners, ..NodeDescription::default() };
    Node { id: hostname.into(), description, state: NodeState::Ready, ..Node::default() }
}

#[tokio::test]
async fn a_port_on_which_a_node_itself_listens_is_refused_with_its_name() {
    let control = cluster().await;
    let create = async |name, ports: &[_]| control.create_service(None, service(name, &[], ports), Never).await;
    control.put(listening("w2", 22)).await;
    let expected = "ports[0]: 22/tcp is in use by a program of node `w2` itself".to_owned();
    assert_eq!(refused(create("web", &[(22, PublishMode::Ingress)]).await), (Some(Reason::Invalid), expected));
    create("web", &[(22, PublishMode::Host)]).await.expect("its tasks run on other nodes");
    create("dns", &[(23, PublishMode::Ingress)]).await.expect("another port");
}

#[tokio::test]
async fn a_port_on_which_a_task_with_the_network_of_its_node_listens_is_refused_with_the_name_of_the_task() {
    let control = cluster().await;
    let open = control.create_service(None, service("open", &["host"], &[]), Never).await.expect("a service").changed;
    let task = Task { id: "t".into(), service_id: open.id.clone(), spec_version: open.spec_version, ..Task::default() };
    control.put(Task { slot: 3, ..task }).await;
    for (hostname, number, task) in [("w2", 8_082, "t"), ("w3", 8_083, "gone")] {
        let mut node = listening(hostname, number);
        let port = NodePort { protocol: Protocol::Tcp, number };
        node.description.listening_tasks = vec![(port, task.into()).into()];
        control.put(node).await;
    }
    let create = async |port| {
        let spec = service("a", &[], &[(port, PublishMode::Ingress)]);
        refused(control.create_service(None, spec, Never).await).1
    };
    let by_task = "ports[0]: 8082/tcp is in use by task `open.3`, which has the network of node `w2`";
    assert_eq!(create(8_082).await, by_task);
    let by_program = "ports[0]: 8083/tcp is in use by a program of node `w3` itself";
    assert_eq!(create(8_083).await, by_program, "the task was removed");
}

#[tokio::test]
async fn a_service_keeps_its_port_when_a_program_of_a_node_begins_to_listen_on_it() {
    let control = cluster().await;
    let spec = service("web", &[], &[(22, PublishMode::Ingress)]);
    control.create_service(None, spec.clone(), Never).await.expect("nobody listens yet");
    control.put(listening("w2", 22)).await;
    let env = vec!["A=1".into()];
    control
        .update_service(None, "web", None, &ServiceSpec { env, ..spec }, Never, false)
        .await
        .expect("it has the port");
}

#[tokio::test]
async fn a_stack_has_networks_of_its_own_and_shares_those_that_exist() {
    let control = cluster().await;
    control.create_network(None, network("corp", None)).await.expect("a network");
    let services = vec![service("shop_web", &["shop_default", "corp"], &[(80, PublishMode::Ingress)])];
    let networks = vec![network("shop_default", None)];
    let stack = StackSpec { name: "shop".into(), services, networks, volumes: Vec::new() };
    control.deploy_stack(None, &stack, &[], Keep, Never).await.expect("a stack");
    let view = control.store.view();
    let own = view.network_by_name("shop_default").expect("it was made").clone();
    let web: &Arc<Service> = view.service_by_name("shop_web").expect("it was made");
    assert_eq!(web.spec.networks[0].network, own.id);
    assert!(own.stack_id.is_some());
    let objects = |control: &Control<Alone>| control.store.view().objects().collect::<Vec<_>>();
    let before = objects(&control);
    control.deploy_stack(None, &stack, &[], Keep, Never).await.expect("nothing has changed");
    assert_eq!(objects(&control), before, "the version of no object has risen");
    let of_stack =
        |control: &Control<Alone>| control.store.view().stack_by_name("shop").expect("it is there").meta.version;
    let version = of_stack(&control);
    control.remove_service(None, "shop_web").await.expect("it is there");
    control.deploy_stack(None, &stack, &[], Keep, Never).await.expect("it is made again");
    assert!(of_stack(&control) > version, "a removal that was planned before meets a conflict");
    let changed =
        StackSpec { networks: vec![NetworkSpec { internal: true, ..network("shop_default", None) }], ..stack };
    let (_, text) = refused(control.deploy_stack(None, &changed, &[], Keep, Never).await);
    assert_eq!(text, "networks.shop_default: a network can't be changed; remove the stack first");
    let foreign = StackSpec {
        name: "x".into(),
        services: Vec::new(),
        networks: vec![network("corp", None)],
        volumes: Vec::new(),
    };
    let (_, text) = refused(control.deploy_stack(None, &foreign, &[], Keep, Never).await);
    assert_eq!(text, "networks.corp: it exists already and does not belong to this stack");
    let two =
        vec![service("y_a", &[], &[(90, PublishMode::Ingress)]), service("y_b", &[], &[(90, PublishMode::Ingress)])];
    let (_, text) = refused(
        control
            .deploy_stack(
                None,
                &StackSpec { name: "y".into(), services: two, ..StackSpec::default() },
                &[],
                Keep,
                Never,
            )
            .await,
    );
    assert_eq!(text, "services.y_b.ports[0]: 90/tcp is published by service `y_a`");
}

#[tokio::test]
async fn an_encrypted_network_is_created_only_if_a_node_could_carry_it() {
    let control = cluster().await;
    let secret = || NetworkSpec { encrypted: true, ..network("secret", None) };
    let (reason, text) = refused(control.create_network(None, secret()).await);
    assert_eq!(reason, Some(Reason::Invalid));
    assert!(text.contains("encrypted: no node of the cluster can encrypt it"), "{text}");
    let tunnel_keys = vec![TunnelKey { public: [7; 32], port: 51_820 }];
    let description = NodeDescription { hostname: "w2".into(), tunnel_keys, ..NodeDescription::default() };
    control.put(Node { id: "n2".into(), description, ..Node::default() }).await;
    assert!(control.create_network(None, secret()).await.expect("a node can carry it").spec.encrypted);
}
