//! Two nodes in namespaces of their own, each with a kernel that is driven as by its leader.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use flota_api::model::{
    Attachment, Endpoint, INGRESS, NetworkConfig, NetworkDriver, NetworkNode, NetworkService, NetworkUpdate,
    PublishMode, PublishedPort as ApiPort, Subnet as ApiSubnet,
};
use flota_network::{Connection, Veth};

use super::*;
use crate::networks::kernel::TaskNetwork;
use crate::networks::view::tests::{endpoint, network};

mod bridge;
mod check;
mod gateway;
mod size;

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two nodes on one cable. What they have made goes when this is dropped.
struct Pair {
    nodes: [Option<LinuxKernel>; 2],
    dir: tempfile::TempDir,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            drop(node.take());
            let folder = folder(self.dir.path(), number);
            folder.tasks().iter().for_each(|it| drop(Namespace::remove(&folder.task(it))));
            folder.networks().iter().for_each(|it| drop(flota_network::remove_network(&folder.network(it))));
            let _ = flota_network::remove_network(&folder.bridge());
            let _ = umount2(&self.dir.path().join(number.to_string()), MntFlags::MNT_DETACH);
            let _ = Namespace::remove(&self.dir.path().join(format!("node{number}")));
        }
        for name in ["cable", "client"] {
            let _ = Namespace::remove(&self.dir.path().join(name));
        }
    }
}

fn folder(dir: &Path, number: usize) -> NamespaceFolder {
    NamespaceFolder::at(dir.join(number.to_string()))
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 77, u8::try_from(number).unwrap() + 1)
}

fn options(dir: &Path, number: usize) -> LinuxOptions {
    LinuxOptions {
        node: format!("w{number}").as_str().into(),
        host: Namespace::at(&dir.join(format!("node{number}"))),
        address: Some(address(number).into()),
        guarded_ports: BTreeSet::from([2377]),
        folder: folder(dir, number),
        group: None,
        balancer: None,
        keys: dir.join(format!("keys{number}")),
        key_life: None,
        clock: Clock::system(),
    }
}

impl Pair {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cable = Namespace::make(&dir.path().join("cable")).unwrap();
        let mut pair = Self { nodes: [None, None], dir };
        Connection::open(&cable).unwrap().add_bridge("br0").unwrap();
        for number in 0..2 {
            pair.add_host(&format!("node{number}"), address(number).octets()[3]);
            pair.start_node(number);
        }
        pair
    }

    /// Adds a host to the cable.
    fn add_host(&self, name: &str, last: u8) -> Namespace {
        let host = Namespace::make(&self.dir.path().join(name)).unwrap();
        let address = format!("198.18.77.{last}/24").parse().unwrap();
        let veth = Veth { port: name.into(), interface: "eth0".into(), address };
        let mut links = Connection::open(&Namespace::at(&self.dir.path().join("cable"))).unwrap();
        links.add_veth("br0", &host, &veth).unwrap();
        host
    }

    fn start_node(&mut self, number: usize) {
        let options = options(self.dir.path(), number);
        let host = options.host.clone();
        let started = host.enter(|| Ok(LinuxKernel::start(options)));
        self.nodes[number] = Some(started.unwrap().unwrap());
    }

    fn node(&mut self, number: usize) -> &mut LinuxKernel {
        self.nodes[number].as_mut().unwrap()
    }

    fn program(&mut self, number: usize, view: &View) {
        let mut todo = view.all();
        todo.networks.extend(self.node(number).networks());
        self.node(number).program(view, &[], &mut todo).unwrap();
        assert_eq!(todo, Touched::default());
    }

    fn namespace(&self, number: usize, task: &str) -> Namespace {
        Namespace::at(&folder(self.dir.path(), number).task(&task.into()))
    }
}

/// Ids as the cluster draws them.
const INGRESS_ID: &str = "iiiiiiiiiiiiiiiiiiiiiiii1";
const NETWORK: &str = "nnnnnnnnnnnnnnnnnnnnnnnn1";
const TASKS: [&str; 2] = ["aaaaaaaaaaaaaaaaaaaaaaaa1", "bbbbbbbbbbbbbbbbbbbbbbbb1"];

fn host_address(number: usize) -> IpAddr {
    [10, 77, 0, u8::try_from(number).unwrap() + 2].into()
}

/// Returns one network with a task of the service `web` on each node.
fn view() -> View {
    let subnets = vec![ApiSubnet {
        prefix: "10.77.0.0/24".parse().unwrap(),
        gateway: [10, 77, 0, 1].into(),
        virtual_range: "10.77.0.192/26".parse().unwrap(),
    }];
    let endpoint = |number: usize| Endpoint {
        addresses: vec![host_address(number)],
        node: format!("w{number}").as_str().into(),
        vtep: Some(address(number).into()),
        name: format!("web.{number}"),
        ..endpoint(NETWORK, TASKS[number], 0, true)
    };
    let service = NetworkService {
        network: NETWORK.into(),
        service: "web".into(),
        name: "web".into(),
        aliases: vec!["www".into()],
        virtual_ips: vec![[10, 77, 0, 200].into()],
        ports: Vec::new(),
    };
    let config = NetworkConfig { name: "front".into(), subnets, internal: true, ..network(NETWORK) };
    let mut view = View::default();
    view.apply(NetworkUpdate {
        full: true,
        networks: vec![config, ingress()],
        services: vec![service],
        endpoints: vec![endpoint(0), endpoint(1)],
        nodes: vec![node(0), node(1)],
        ..NetworkUpdate::default()
    });
    view
}

/// Returns the network in which every node has an address.
fn ingress() -> NetworkConfig {
    let subnets = vec![ApiSubnet {
        prefix: "10.78.0.0/24".parse().unwrap(),
        gateway: [10, 78, 0, 1].into(),
        virtual_range: "10.78.0.192/26".parse().unwrap(),
    }];
    NetworkConfig { name: INGRESS.into(), vni: Some(4_096), subnets, ..network(INGRESS_ID) }
}

fn node(number: usize) -> NetworkNode {
    NetworkNode {
        network: INGRESS_ID.into(),
        node: format!("w{number}").as_str().into(),
        addresses: vec![[10, 78, 0, u8::try_from(number).unwrap() + 100].into()],
        vtep: Some(address(number).into()),
    }
}

fn task(number: usize) -> Assignment {
    let attachments = vec![Attachment { network: NETWORK.into(), addresses: vec![host_address(number)] }];
    Assignment { task_id: TASKS[number].into(), attachments, ..Assignment::default() }
}

/// Returns the network `ingress` alone, in which the service `web` has a task on the second node, and a published port.
fn published() -> View {
    let mut update = view().to_update();
    let (protocol, mode) = (flota_api::model::Protocol::Tcp, PublishMode::Ingress);
    update.networks.retain(|it| it.name == INGRESS);
    update.endpoints.retain(|it| it.task == TASKS[1].into());
    for endpoint in &mut update.endpoints {
        (endpoint.network, endpoint.addresses) = (INGRESS_ID.into(), vec![[10, 78, 0, 3].into()]);
    }
    for service in &mut update.services {
        (service.network, service.virtual_ips) = (INGRESS_ID.into(), Vec::new());
        service.ports.push(ApiPort { target: 80, published: Some(8080), protocol, mode });
    }
    let mut view = View::default();
    view.apply(update);
    view
}

/// Returns whether a task gets an answer from an address.
fn reaches(client: &Namespace, server: &Namespace, address: IpAddr) -> bool {
    let listener = server.enter(|| Ok(TcpListener::bind((address, 80)))).unwrap().unwrap();
    let answering = std::thread::spawn(move || listener.accept().and_then(|(mut it, _)| it.write_all(b"hello")));
    let target = (address, 80).into();
    let connected = client.enter(|| Ok(TcpStream::connect_timeout(&target, PATIENCE))).unwrap();
    let mut answer = String::new();
    // No call waits for a server that was not reached.
    let read = connected.and_then(|mut it| it.read_to_string(&mut answer));
    read.is_ok() && answering.join().unwrap().is_ok() && answer == "hello"
}

/// Returns the IPv4 addresses of a name as a task resolves it.
fn resolve(client: &Namespace, name: &str) -> Vec<IpAddr> {
    let socket = client.enter(|| Ok(UdpSocket::bind("127.0.0.1:0"))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // A question about one name (RFC 1035, section 4.1): header, labels, type A, class IN.
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send_to(&question, "127.0.0.11:53").unwrap();
    let mut answer = [0; 512];
    let size = socket.recv(&mut answer).unwrap();
    let count = usize::from(answer[7]);
    // Each answer ends with four bytes of address, after 12 of name, type, class, time and length.
    let records = &answer[question.len()..size];
    let mut found: Vec<IpAddr> =
        records.chunks_exact(16).take(count).map(|it| IpAddr::from(<[u8; 4]>::try_from(&it[12..]).unwrap())).collect();
    found.sort();
    found
}

#[test]
fn tasks_on_two_nodes_reach_each_other_by_name_and_nothing_is_left_of_them() {
    let mut pair = Pair::start();
    let view = view();
    for number in 0..2 {
        pair.program(number, &view);
        let attached = pair.node(number).attach(&view, &task(number)).unwrap();
        assert_eq!(attached.sockets.len(), 2);
        let TaskNetwork::Joined { addresses, .. } = attached.network else { panic!("it has a namespace") };
        assert_eq!(addresses, [host_address(number)]);
    }
    let [first, second] = [0, 1].map(|number| pair.namespace(number, TASKS[number]));
    assert!(reaches(&first, &second, host_address(1)) && reaches(&second, &first, host_address(0)));
    let both = [host_address(0), host_address(1)];
    assert_eq!(resolve(&first, "tasks.web"), both);
    for name in ["web", "www", "web.front"] {
        assert_eq!(resolve(&second, name), [IpAddr::from([10, 77, 0, 200])], "{name}");
    }
    assert_eq!(resolve(&second, "web.0"), [host_address(0)]);
    for (number, id) in TASKS.into_iter().enumerate() {
        pair.node(number).detach(&id.into(), Some(&task(number))).unwrap();
        pair.program(number, &View::default());
        let folder = folder(pair.dir.path(), number);
        assert!(folder.tasks().is_empty() && folder.networks().is_empty());
    }
}

#[test]
fn a_service_in_a_network_without_names_holds_up_no_confirmation() {
    let mut pair = Pair::start();
    let (mut update, host) = (view().to_update(), "hhhhhhhhhhhhhhhhhhhhhhhh1");
    update.networks.push(NetworkConfig {
        name: "host".into(),
        driver: NetworkDriver::Host,
        vni: None,
        ..network(host)
    });
    update.services.push(NetworkService {
        network: host.into(),
        virtual_ips: Vec::new(),
        ..update.services[0].clone()
    });
    update.endpoints.push(Endpoint { addresses: Vec::new(), ..endpoint(host, TASKS[0], 0, true) });
    let mut view = View::default();
    view.apply(update);
    pair.program(0, &view);
    pair.program(0, &view);
}

/// What becomes of a task of another node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// It is gone, or its node is down, while the daemon runs.
    Gone,
    Lost,
    /// It is gone by the time that another daemon starts.
    GoneMeanwhile,
}

#[test]
fn connections_to_a_task_that_is_gone_or_lost_end_at_once() {
    for end in [End::Gone, End::Lost, End::GoneMeanwhile] {
        let mut pair = Pair::start();
        let mut view = view();
        let mut sockets = Vec::new();
        for number in 0..2 {
            pair.program(number, &view);
            sockets.push(pair.node(number).attach(&view, &task(number)).unwrap().sockets);
        }
        let [client, server] = [0, 1].map(|number| pair.namespace(number, TASKS[number]));
        let listener = server.enter(|| Ok(TcpListener::bind((host_address(1), 80)))).unwrap().unwrap();
        let target = (host_address(1), 80).into();
        let mut stream = client.enter(|| Ok(TcpStream::connect_timeout(&target, PATIENCE))).unwrap().unwrap();
        let accepted = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (id, recorded): (TaskId, _) = (TASKS[1].into(), view.clone());
        let endpoint = view.network(&NETWORK.into()).unwrap().endpoints[&id].clone();
        let mut todo = view.apply(match end {
            End::Lost => {
                NetworkUpdate { endpoints: vec![Endpoint { lost: true, ..endpoint }], ..NetworkUpdate::default() }
            }
            _ => NetworkUpdate { removed_endpoints: vec![(NETWORK.into(), id)], ..NetworkUpdate::default() },
        });
        if end == End::GoneMeanwhile {
            drop(pair.nodes[0].take());
            pair.start_node(0);
            pair.node(0).succeed(&recorded, &view);
            pair.program(0, &view);
            pair.node(0).adopt(&view, &task(0), &sockets[0]).unwrap();
        } else {
            pair.node(0).program(&view, &[], &mut todo).unwrap();
        }
        let ended = stream.read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionAborted, "{end:?}: {ended}");
        drop(accepted);
    }
}

#[test]
fn an_address_that_a_task_has_given_back_belongs_to_the_next_one_whatever_the_order_of_their_ids() {
    for next in ["AAAAAAAAAAAAAAAAAAAAAAAA1", "cccccccccccccccccccccccc1"] {
        let mut pair = Pair::start();
        let mut view = view();
        for number in 0..2 {
            pair.program(number, &view);
            pair.node(number).attach(&view, &task(number)).unwrap();
        }
        let old = view.network(&NETWORK.into()).unwrap().endpoints[&TASKS[1].into()].clone();
        let endpoint = Endpoint { task: next.into(), ..old };
        let removed_endpoints = vec![(NETWORK.into(), TASKS[1].into())];
        let update = NetworkUpdate { endpoints: vec![endpoint], removed_endpoints, ..NetworkUpdate::default() };
        let todo = view.apply(update);
        for number in 0..2 {
            pair.node(number).program(&view, &[], &mut todo.clone()).unwrap();
        }
        let successor = Assignment { task_id: next.into(), ..task(1) };
        pair.node(1).attach(&view, &successor).unwrap();
        // The former task is stopped at last.
        pair.node(1).detach(&TASKS[1].into(), Some(&task(1))).unwrap();
        let [client, server] = [pair.namespace(0, TASKS[0]), pair.namespace(1, next)];
        assert!(reaches(&client, &server, host_address(1)), "{next}");
    }
}

#[test]
fn questions_that_come_while_no_daemon_runs_are_answered_by_the_next() {
    let mut pair = Pair::start();
    let view = view();
    pair.program(0, &view);
    let attached = pair.node(0).attach(&view, &task(0)).unwrap();
    // The daemon ends; the supervisor keeps the sockets.
    drop(pair.nodes[0].take());
    let client = pair.namespace(0, TASKS[0]);
    let asking = std::thread::spawn(move || resolve(&client, "web.0"));
    pair.start_node(0);
    assert_eq!(pair.node(0).tasks().len(), 1, "the namespace is found again");
    pair.program(0, &view);
    pair.node(0).adopt(&view, &task(0), &attached.sockets).unwrap();
    assert_eq!(asking.join().unwrap(), [host_address(0)]);
    pair.node(0).detach(&TASKS[0].into(), Some(&task(0))).unwrap();
}

#[test]
fn a_published_port_of_one_node_leads_to_a_task_on_another_which_sees_the_client() {
    let mut pair = Pair::start();
    let view = published();
    let attachments = vec![Attachment { network: INGRESS_ID.into(), addresses: vec![[10, 78, 0, 3].into()] }];
    let task = Assignment { attachments, ..task(1) };
    pair.program(0, &view);
    pair.program(1, &view);
    pair.node(1).attach(&view, &task).unwrap();
    let client = pair.add_host("client", 9);
    let server = pair.namespace(1, TASKS[1]);
    let listener = server.enter(|| Ok(TcpListener::bind("0.0.0.0:80"))).unwrap().unwrap();
    let accepting = std::thread::spawn(move || listener.accept().unwrap().1.ip());
    let target = (address(0), 8080).into();
    let connected = client.enter(|| Ok(TcpStream::connect_timeout(&target, PATIENCE))).unwrap();
    assert!(connected.is_ok(), "{connected:?}");
    assert_eq!(accepting.join().unwrap(), IpAddr::from([198, 18, 77, 9]));
    // Without the task no process answers.
    let mut update = view.to_update();
    update.endpoints.clear();
    let mut empty = View::default();
    empty.apply(update);
    pair.node(0).program(&empty, &[], &mut view.all()).unwrap();
    let refused = client.enter(|| Ok(TcpStream::connect_timeout(&target, PATIENCE))).unwrap();
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    pair.node(1).detach(&TASKS[1].into(), Some(&task)).unwrap();
    for number in 0..2 {
        pair.node(number).remove_all().unwrap();
        assert!(!pair.dir.path().join(number.to_string()).exists());
    }
}
