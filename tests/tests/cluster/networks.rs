//! Networks in a cluster: what nodes are told of them, and that a task is stopped only when no node sends it
//! connections any more. The nodes are the test's.

use flota_api::id::NodeId;
use flota_api::model::{Network, PendingReason, ServiceMode, ServiceSpec, TunnelKey};
use flota_api::proto::control::{CreateNetworkRequest, CreateServiceRequest, DeployStackRequest, RemoveStackRequest};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{Endpoint, Programmed, TaskAssignment};
use flota_api::proto::specs as ps;
use flota_api::proto::types as pt;
use flota_api::proto::types::DesiredState;
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::{ManualNode, no_streams};
use flota_tests::sim::script::{Script, script, spec};

use super::{Seen, manual, seen};

fn create_network(it: &mut Script, spec: ps::NetworkSpec) {
    let request = CreateNetworkRequest { request_id: format!("network {}", spec.name), spec: Some(spec) };
    it.request(it.leader(), |mut client| async move { client.create_network(request).await.map(drop) }).unwrap();
}

fn create_service(it: &mut Script, replicas: u64) {
    let networks = vec![ps::NetworkAttachment { network: "front".into(), aliases: Vec::new() }];
    let spec = ps::ServiceSpec { networks, ..spec("web", replicas) };
    let request = CreateServiceRequest { request_id: "service".into(), spec: Some(spec), ..Default::default() };
    it.request(it.leader(), |mut client| async move { client.create_service(request).await.map(drop) }).unwrap();
}

fn encrypted() -> ps::NetworkSpec {
    ps::NetworkSpec { name: "front".into(), encrypted: true, ..ps::NetworkSpec::default() }
}

fn key(byte: u8) -> TunnelKey {
    TunnelKey { public: [byte; 32], port: 51_820 }
}

fn scale_to_nothing(it: &mut Script) {
    scale(it, 0);
}

fn scale(it: &mut Script, replicas: u64) {
    let service = it.cluster().view().and_then(|view| view.service_by_name("web").cloned()).expect("it is there");
    let spec = ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..service.spec.as_ref().clone() };
    it.update(it.leader(), "scale", (&spec).into()).unwrap();
}

/// Three nodes in session, and two tasks of a service in the network `front`.
fn nodes(it: &mut Script) -> [ManualNode; 3] {
    let nodes = [0, 1, 2].map(|worker| manual(it, worker, no_streams));
    create_network(it, ps::NetworkSpec { name: "front".into(), ..ps::NetworkSpec::default() });
    create_service(it, 2);
    it.wait("both tasks run", 5_000, |cluster| {
        let tasks = tasks(cluster)?;
        seen(tasks.len() == 2 && tasks.iter().all(|(_, node, runs)| node.is_some() && *runs), tasks)
    });
    nodes
}

/// The id of each task, the number of its node, and whether it runs.
fn tasks(cluster: &SimCluster) -> Result<Vec<(String, Option<usize>, bool)>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let worker = |id: Option<&NodeId>| cluster.workers.iter().position(|worker| Some(&worker.node_id) == id);
    let task = |task: &std::sync::Arc<flota_api::model::Task>| {
        let runs = task.status.state == flota_api::state::TaskState::Running;
        (task.id.to_string(), worker(task.node_id.as_ref()), runs)
    };
    Ok(view.tasks().map(task).collect())
}

fn network_named(cluster: &SimCluster, name: &str) -> Result<Option<Network>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    Ok(view.network_by_name(name).map(|it| it.as_ref().clone()))
}

fn network(cluster: &SimCluster) -> Result<Network, String> {
    network_named(cluster, "front")?.ok_or("there is no such network".into())
}

/// The node was told of this endpoint.
fn was_told(node: &ManualNode, is: impl Fn(&Endpoint) -> bool) -> Seen {
    node.was_sent(|message| matches!(message, FromManager::Networks(it) if it.endpoints.iter().any(&is)))
}

/// The node was given this assignment.
fn was_assigned(node: &ManualNode, is: impl Fn(&TaskAssignment) -> bool) -> Seen {
    node.was_sent(|message| matches!(message, FromManager::Assignments(it) if it.tasks.iter().any(&is)))
}

fn stops(task: &TaskAssignment) -> bool {
    task.desired_state() >= DesiredState::Shutdown
}

#[test]
fn nodes_are_told_of_the_endpoints_of_their_networks_and_no_others() {
    script(3, |it| {
        let nodes = nodes(it);
        let id = network(it.cluster()).unwrap().id.to_string();
        let tasks = tasks(it.cluster()).unwrap();
        let with_tasks: Vec<usize> = tasks.iter().filter_map(|(_, node, _)| *node).collect();
        for (task, _, _) in &tasks {
            for number in &with_tasks {
                let is = |endpoint: &Endpoint| endpoint.task == *task && endpoint.network == id && endpoint.serving;
                it.wait("it knows that the task serves", 2_000, |_| was_told(&nodes[*number], is));
            }
        }
        let other = (0..3).find(|number| !with_tasks.contains(number)).unwrap();
        assert!(was_told(&nodes[other], |endpoint| endpoint.network == id).is_err(), "it has no task there");
        let own = with_tasks[0];
        assert!(was_assigned(&nodes[own], |task| task.attachments.iter().any(|it| it.network == id)).is_ok());
    });
}

#[test]
fn a_task_is_told_to_stop_only_when_every_node_of_its_networks_has_confirmed() {
    script(3, |it| {
        let nodes = nodes(it);
        let before = tasks(it.cluster()).unwrap();
        let (late, other) = (before[0].1.unwrap(), before[1].1.unwrap());
        assert_ne!(late, other, "the tasks are spread");
        nodes[late].stop_programming();
        scale_to_nothing(it);
        it.wait("its endpoint is withdrawn", 2_000, |_| {
            was_told(&nodes[late], |endpoint| endpoint.task == before[1].0 && !endpoint.serving)
        });
        assert!(was_assigned(&nodes[other], stops).is_err(), "a node has not confirmed it");
        it.wait("it stops after a while all the same, and is told why", 2_000, |_| {
            was_assigned(&nodes[other], |task| stops(task) && !task.unconfirmed_nodes.is_empty())
        });
    });
}

#[test]
fn a_confirmed_task_is_told_to_stop_without_delay_and_without_a_reproach() {
    script(3, |it| {
        let nodes = nodes(it);
        let before = tasks(it.cluster()).unwrap();
        scale_to_nothing(it);
        for (_, node, _) in &before {
            it.wait("it is told to stop", 500, |_| was_assigned(&nodes[node.unwrap()], stops));
            assert!(was_assigned(&nodes[node.unwrap()], |task| !task.unconfirmed_nodes.is_empty()).is_err());
        }
    });
}

#[test]
fn a_task_waits_for_an_address_and_says_so() {
    script(3, |it| {
        let subnets = vec![ps::SubnetSpec { prefix: "10.9.0.0/29".into(), ..ps::SubnetSpec::default() }];
        create_network(it, ps::NetworkSpec { name: "front".into(), subnets, ..ps::NetworkSpec::default() });
        create_service(it, 5);
        it.wait("one of the five has no address", 5_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let reasons: Vec<_> = view.tasks().filter_map(|task| task.pending_reason.as_deref().cloned()).collect();
            seen(reasons == [PendingReason::NoAddress("front".into())], reasons)
        });
    });
}

#[test]
fn a_removed_stack_leaves_no_address_and_is_deployed_again_at_once() {
    script(3, |it| {
        let networks = vec![ps::NetworkAttachment { network: "shop_default".into(), aliases: Vec::new() }];
        let services = vec![ps::ServiceSpec { networks, ..spec("shop_web", 3) }];
        let subnets = vec![ps::SubnetSpec { prefix: "10.9.0.0/29".into(), ..ps::SubnetSpec::default() }];
        let networks = vec![ps::NetworkSpec { name: "shop_default".into(), subnets, ..ps::NetworkSpec::default() }];
        let stack = ps::StackSpec { name: "shop".into(), services, networks, ..ps::StackSpec::default() };
        for round in 0..3 {
            let request_id = format!("deploy {round}");
            let request = DeployStackRequest { request_id, spec: Some(stack.clone()), ..Default::default() };
            it.request(it.leader(), |mut client| async move { client.deploy_stack(request).await }).unwrap();
            it.converge();
            // Every address that tasks can have is given: a leaked one would be missed in the next round.
            let is_given = |cluster: &SimCluster| seen(given(cluster)?.len() == 3, given(cluster)?);
            it.wait("three tasks have addresses", 1, is_given);
            let request_id = format!("remove {round}");
            let request = RemoveStackRequest { request_id, name: "shop".into(), ..Default::default() };
            it.request(it.leader(), |mut client| async move { client.remove_stack(request).await }).unwrap();
        }
        it.wait("its network is gone", 20_000, |cluster| seen(network_named(cluster, "shop_default")?.is_none(), ""));
    });
}

/// The addresses of tasks that have not ended.
fn given(cluster: &SimCluster) -> Result<Vec<std::net::IpAddr>, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    let live = view.tasks().filter(|task| !task.status.state.is_terminal());
    Ok(live.flat_map(|task| task.attachments.clone()).flat_map(|it| it.addresses).collect())
}

#[test]
fn a_port_of_the_host_is_taken_once_on_each_node_and_an_update_gets_on() {
    script(3, |it| {
        let port =
            pt::PublishedPort { target: 80, published: 80, mode: pt::PublishMode::Host.into(), ..Default::default() };
        let web =
            |replicas, env: &str| ps::ServiceSpec { ports: vec![port], env: vec![env.into()], ..spec("web", replicas) };
        it.create(it.leader(), web(3, "A=1")).unwrap();
        it.converge();
        assert!((0..3).all(|worker| it.cluster().workers[worker].machine.running().len() == 1), "one on each node");
        // Nowhere is room for a successor beside its task, so each task stops first.
        it.update(it.leader(), "update", web(3, "A=2")).unwrap();
        it.converge();
        it.update(it.leader(), "scale", web(4, "A=2")).unwrap();
        it.wait("the fourth waits for a port and says so", 5_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let reasons: Vec<String> =
                view.tasks().filter_map(|task| task.pending_reason.as_ref()).map(ToString::to_string).collect();
            seen(reasons.iter().any(|it| it.contains("with the port taken")), reasons)
        });
    });
}

#[test]
fn an_encrypted_network_is_carried_by_the_nodes_that_can_encrypt_and_by_no_other() {
    script(3, |it| {
        let create = CreateNetworkRequest { request_id: "too early".into(), spec: Some(encrypted()) };
        let refused =
            it.request(it.leader(), |mut client| async move { client.create_network(create).await.map(drop) });
        let why = refused.expect_err("no node can carry it").message().to_owned();
        assert!(why.contains("encrypted: no node of the cluster can encrypt it"), "{why}");
        it.cluster().workers[1].networks.set_keys(vec![key(1)]);
        it.wait("the leader knows the key of the node", 5_000, |cluster| {
            let node = super::node(cluster, 1)?;
            seen(node.description.tunnel_keys == [key(1)], node.description.tunnel_keys)
        });
        create_network(it, encrypted());
        create_service(it, 2);
        it.converge();
        let running = |it: &mut Script| [0, 1, 2].map(|worker| it.cluster().workers[worker].machine.running().len());
        assert_eq!(running(it), [0, 2, 0]);
        it.cluster().workers[1].networks.set_keys(Vec::new());
        it.wait("the leader knows that the node has no key", 5_000, |cluster| {
            seen(super::node(cluster, 1)?.description.tunnel_keys.is_empty(), "it has one")
        });
        scale(it, 3);
        it.wait("the third task waits and says so", 5_000, |cluster| {
            let view = cluster.view().ok_or("no manager leads")?;
            let reasons: Vec<String> =
                view.tasks().filter_map(|task| task.pending_reason.as_ref()).map(ToString::to_string).collect();
            seen(
                reasons.len() == 1 && reasons[0].contains("3 of 6 without WireGuard for an encrypted network"),
                reasons,
            )
        });
        it.cluster().workers[2].networks.set_keys(vec![key(2)]);
        it.wait("it runs where it can", 5_000, super::containers(2, 1));
    });
}

/// A description of a node with these keys.
fn description(it: &mut Script, worker: usize, keys: &[TunnelKey]) -> ToManager {
    let description = it.cluster().description(worker);
    let description = flota_api::model::NodeDescription { tunnel_keys: keys.to_vec(), ..description };
    ToManager::Description((&description).into())
}

#[test]
fn a_new_key_is_used_when_every_node_of_an_encrypted_network_has_programmed_it_and_not_before() {
    script(3, |it| {
        let nodes = [0, 1, 2].map(|worker| manual(it, worker, no_streams));
        for (worker, node) in nodes.iter().enumerate().take(2) {
            node.send(description(it, worker, &[key(worker as u8)]));
        }
        it.wait("the leader knows their keys", 5_000, |cluster| {
            let known = [0, 1].map(|worker| super::node(cluster, worker).map(|it| it.description.tunnel_keys.len()));
            seen(known == [Ok(1), Ok(1)], known)
        });
        create_network(it, encrypted());
        create_service(it, 2);
        it.wait("each has a task", 5_000, |cluster| {
            let tasks = tasks(cluster)?;
            let on = |worker| tasks.iter().any(|(_, node, runs)| *node == Some(worker) && *runs);
            seen(on(0) && on(1), tasks)
        });
        let is_told_of = |endpoint: &Endpoint, byte: u8| endpoint.tunnel_keys.iter().any(|it| *it.public == [byte; 32]);
        it.wait("it knows the key of the other", 2_000, |_| was_told(&nodes[1], |it| is_told_of(it, 0)));
        nodes[1].stop_programming();
        nodes[0].send(description(it, 0, &[key(0), key(9)]));
        it.wait("the other is told of the new key", 2_000, |_| was_told(&nodes[1], |it| is_told_of(it, 9)));
        let known = |message: &FromManager| matches!(message, FromManager::KnownTunnelKey(it) if **it == [9; 32]);
        it.pass(3_000);
        assert!(nodes[0].was_sent(known).is_err(), "the other has not programmed it");
        assert!(nodes[2].was_sent(|it| matches!(it, FromManager::KnownTunnelKey(_))).is_err());
        nodes[1].send(ToManager::Programmed(Programmed { version: u64::MAX }));
        it.wait("the node is told that the other has it", 2_000, |_| nodes[0].was_sent(known));
    });
}
