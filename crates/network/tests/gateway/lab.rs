//! A wire with a client and two machines; an overlay between the machines with a task on each. Each task answers every
//! connection and datagram with its name, and connections also with the client's address.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flota_network::{
    Attachment, Connection, Driver, Gateway, GatewayChange, GatewaySettings, HostPort, LocalNetwork, LocalNetworkSpec,
    Mac, Mesh, MeshChange, MeshSpec, Namespace, NetworkError, Protocol, PublishedPort, Remote, Sender, Subnet, Target,
    Underlay, Uplink, Veth, remove_network,
};

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const CLIENT: usize = 2;
/// The published port.
pub(crate) const PORT: u16 = 8080;
pub(crate) const TASK_PORT: u16 = 80;
const NAMES: [&str; 3] = ["a", "b", "client"];
const UNDERLAY: [[&str; 2]; 3] =
    [["198.18.0.1/24", "fd99::1/64"], ["198.18.0.2/24", "fd99::2/64"], ["198.18.0.9/24", "fd99::9/64"]];
const OWN: [[&str; 2]; 2] = [["10.9.0.1", "fd09::1"], ["10.9.0.3", "fd09::3"]];
const TASKS: [[&str; 2]; 2] = [["10.9.0.2", "fd09::2"], ["10.9.0.4", "fd09::4"]];
const DEADLINE: Duration = Duration::from_millis(1_500);
/// Longer than a datagram takes that arrives at all.
const NEVER: Duration = Duration::from_millis(150);

pub(crate) fn published(protocol: Protocol) -> HostPort {
    HostPort { protocol, number: PORT }
}

fn addresses(texts: [&str; 2]) -> Vec<IpAddr> {
    texts.map(|text| text.parse().expect("an address")).to_vec()
}

/// Does I/O in a namespace.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    match namespace.enter(|| work().map_err(|source| NetworkError::Io { act: "test".into(), source })) {
        Ok(done) => Ok(done),
        Err(NetworkError::Io { source, .. }) => Err(source),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) struct Lab {
    folder: tempfile::TempDir,
    gateways: Vec<Gateway>,
    meshes: Vec<Mesh>,
    networks: Vec<LocalNetwork>,
    stop: Arc<AtomicBool>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut lab =
            Self { folder, gateways: vec![], meshes: vec![], networks: vec![], stop: Arc::new(AtomicBool::new(false)) };
        let wire = Namespace::make(&lab.file("wire")).expect("tests run as root");
        let mut wire = Connection::open(&wire).expect("a connection");
        wire.add_bridge("sw0").expect("a bridge");
        for (machine, underlay) in UNDERLAY.iter().enumerate() {
            let namespace = Namespace::make(&lab.file(NAMES[machine])).expect("a namespace");
            namespace.set(&[("net/ipv6/conf/default/accept_dad", "0")]).expect("a parameter");
            Connection::open(&namespace).and_then(|mut it| it.bring_up("lo")).expect("loopback");
            for (card, address) in underlay.iter().enumerate() {
                let (port, interface) = (format!("{}{card}", NAMES[machine]), format!("eth{card}"));
                let pair = Veth { port, interface, address: address.parse().expect("a prefix") };
                wire.add_veth("sw0", &namespace, &pair).expect("a cable");
            }
        }
        for machine in [A, B] {
            lab.add_machine(machine);
        }
        lab
    }

    fn add_machine(&mut self, machine: usize) {
        let network = self.overlay(machine);
        self.networks.push(network);
        let (gateway, mesh) = self.start(machine, GatewayChange::default());
        self.gateways.push(gateway);
        self.meshes.push(mesh);
        self.serve(&self.task(machine), NAMES[machine], TASK_PORT);
    }

    fn overlay(&self, machine: usize) -> LocalNetwork {
        let subnet = |prefix: &str, gateway: &str| Subnet {
            prefix: prefix.parse().expect("a prefix"),
            gateway: gateway.parse().expect("an address"),
            virtual_range: None,
        };
        let vtep = |machine: usize| ["198.18.0.1", "198.18.0.2"][machine].parse().expect("an address");
        let spec = LocalNetworkSpec {
            driver: Driver::Overlay(Underlay { local: vtep(machine), port: 4789, vni: 4096 }),
            subnets: vec![subnet("10.9.0.0/24", "10.9.0.254"), subnet("fd09::/64", "fd09::fe")],
            own_addresses: addresses(OWN[machine]),
            mtu: None,
            forwarding: true,
        };
        let file = self.file(&format!("mesh-{machine}"));
        let mut network = LocalNetwork::ensure(&self.machine(machine), &file, spec).expect("an overlay");
        let namespace = Namespace::make(&self.file(&format!("task-{machine}"))).expect("a namespace");
        let addresses_of_task = addresses(TASKS[machine]);
        let attachment =
            Attachment { namespace, interface: "eth0".into(), addresses: addresses_of_task, default_route: true };
        network.attach(attachment).expect("attached");
        let other = 1 - machine;
        let remote = |texts| Remote { addresses: addresses(texts), vtep: vtep(other) };
        network.set_remotes(vec![remote(TASKS[other]), remote(OWN[other])]).expect("remotes");
        network
    }

    fn start(&self, machine: usize, wanted: GatewayChange) -> (Gateway, Mesh) {
        let network = Namespace::at(&self.file(&format!("mesh-{machine}")));
        let subnets = ["10.9.0.0/24", "fd09::/64"].map(|prefix| prefix.parse().expect("a prefix")).to_vec();
        let uplink = Uplink { network: network.clone(), subnets };
        let machines: BTreeSet<IpAddr> =
            ["198.18.0.1", "198.18.0.2", "fd99::1", "fd99::2"].map(|it| it.parse().expect("an address")).into();
        // Frames of the overlay arrive on 4789; a test listens on the next port to see what passes.
        let settings = GatewaySettings {
            vxlan_port: 4790,
            guarded_ports: [2377].into(),
            former_parameters: self.file(&format!("former-{machine}")),
        };
        let uplinks = [("ingress".to_owned(), Some(uplink))].into();
        let wanted = GatewayChange { uplinks, machines: Some(machines), ..wanted };
        let other = 1 - machine;
        let sender = |of: [&str; 2], machine| Sender { machine, mac: Mac::of(&addresses(of)).expect("an address") };
        let machines = addresses(["198.18.0.1", "198.18.0.2"]);
        let senders = [TASKS[other], OWN[other]].map(|of| (sender(of, machines[other]), true)).into();
        let wanted = GatewayChange { senders, ..wanted };
        let gateway = Gateway::ensure(&self.machine(machine), &settings, wanted).expect("a gateway");
        let router = Mac::of(&addresses(OWN[other])).expect("an address");
        let behind = addresses(TASKS[other]).into_iter().map(|address| (address, Some(router))).collect();
        let wanted = MeshChange { routers: Some([router].into()), addresses: behind };
        let spec = MeshSpec { network, own_addresses: addresses(OWN[machine]) };
        (gateway, Mesh::ensure(spec, wanted).expect("a mesh"))
    }

    /// Publishes the port on both machines with tasks as targets, each with whether it accepts connections.
    pub(crate) fn publish(&mut self, protocol: Protocol, targets: &[(usize, bool)], masquerade: bool) {
        for machine in [A, B] {
            let change = published_change(machine, protocol, targets, masquerade);
            self.gateways[machine].change(change).expect("a change");
            self.gateways[machine].end_outdated().expect("connections are tracked");
        }
    }

    pub(crate) fn change(&mut self, change: GatewayChange) {
        self.gateways[A].change(change).expect("a change");
        self.gateways[A].end_outdated().expect("connections are tracked");
    }

    /// Replaces a machine's gateway and mesh by new ones, with other targets than the ones before had.
    pub(crate) fn succeed(
        &mut self,
        machine: usize,
        protocol: Protocol,
        former: &[(usize, bool)],
        targets: &[(usize, bool)],
    ) {
        (self.gateways[machine], self.meshes[machine]) =
            self.start(machine, published_change(machine, protocol, targets, false));
        let former = published_change(machine, protocol, former, false).ports;
        let former = former.into_iter().filter_map(|(port, published)| Some((port, published?))).collect();
        self.gateways[machine].succeed(&former);
        self.gateways[machine].end_outdated().expect("connections are tracked");
    }

    /// Replaces a machine's gateway and mesh by new ones that should do the same: the port leads to the task of B.
    pub(crate) fn restart(&mut self, machine: usize) {
        let wanted = published_change(machine, Protocol::Tcp, &[(B, true)], false);
        (self.gateways[machine], self.meshes[machine]) = self.start(machine, wanted);
    }

    /// Audits the first machine and its overlay, and returns what has been mended.
    pub(crate) fn audit(&mut self) -> Vec<String> {
        let audits = [self.gateways[A].audit(), self.meshes[A].audit(), self.networks[A].audit()];
        audits
            .into_iter()
            .flat_map(|audit| {
                assert!(audit.failed.is_empty(), "{:?}", audit.failed);
                audit.mended
            })
            .collect()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn machine(&self, machine: usize) -> Namespace {
        Namespace::at(&self.file(NAMES[machine]))
    }

    pub(crate) fn mesh_namespace(&self, machine: usize) -> Namespace {
        Namespace::at(&self.file(&format!("mesh-{machine}")))
    }

    fn task(&self, machine: usize) -> Namespace {
        Namespace::at(&self.file(&format!("task-{machine}")))
    }

    fn serve(&self, namespace: &Namespace, name: &'static str, port: u16) {
        let sockets = inside(namespace, || Ok((TcpListener::bind(("::", port))?, UdpSocket::bind(("::", port))?)));
        let (listener, socket) = sockets.expect("the port is free");
        self.answer(listener, name);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a deadline");
        let stop = Arc::clone(&self.stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut [0; 16]) {
                    let _ = socket.send_to(name.as_bytes(), client);
                }
            }
        });
    }

    fn answer(&self, listener: TcpListener, name: &'static str) {
        listener.set_nonblocking(true).expect("a mode");
        let stop = Arc::clone(&self.stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, client)) => drop(write!(stream, "{name} {}", client.ip().to_canonical())),
                    Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
                }
            }
        });
    }

    /// Listens on a machine itself.
    pub(crate) fn serve_machine(&self, machine: usize, port: u16) {
        let listener = inside(&self.machine(machine), || TcpListener::bind(("::", port))).expect("the port is free");
        self.answer(listener, NAMES[machine]);
    }

    /// Connects from a machine, and returns who has answered and which client it has seen.
    pub(crate) fn ask(&self, from: usize, address: &str, port: u16) -> Result<(String, IpAddr), String> {
        ask(&self.machine(from), address, port)
    }

    pub(crate) fn ask_as_task(&self, machine: usize, address: &str, port: u16) -> Result<(String, IpAddr), String> {
        ask(&self.task(machine), address, port)
    }

    /// Connects to the published port again and again until told to stop.
    pub(crate) fn keep_asking(&self, address: &'static str) -> Asking {
        let (client, stop, answers) =
            (self.machine(CLIENT), Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) || answered + failed.len() < 100 {
                match ask(&client, address, PORT) {
                    Ok(_) => answered += 1,
                    Err(error) => failed.push(error),
                }
                counted.store(answered + failed.len(), Ordering::Relaxed);
            }
            (answered, failed)
        });
        Asking { stop, answers, thread }
    }

    pub(crate) fn udp(&self, machine: usize) -> UdpSocket {
        self.listen_udp(machine, 0)
    }

    pub(crate) fn listen_udp(&self, machine: usize, port: u16) -> UdpSocket {
        inside(&self.machine(machine), || UdpSocket::bind(("0.0.0.0", port))).expect("the port is free")
    }

    pub(crate) fn listen_udp_on_machine(&self, machine: usize) -> UdpSocket {
        self.listen_udp(machine, PORT)
    }

    pub(crate) fn send(&self, socket: &UdpSocket, address: &str) {
        socket.send_to(b"who", (address, PORT)).expect("sent");
    }

    /// Sends a datagram to the published port, and returns the answer.
    pub(crate) fn exchange(&self, socket: &UdpSocket, address: &str) -> Option<String> {
        self.send(socket, address);
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Whether a datagram of VXLAN from a machine, with a frame of a machine's task in it, arrives at a socket.
    pub(crate) fn frame_reaches(&self, from: usize, task: usize, to: &UdpSocket, address: &str, port: u16) -> bool {
        let mac = Mac::of(&addresses(TASKS[task])).expect("an address");
        // The header (RFC 7348, section 5), the frame's destination and source, and the type of an IPv4 packet.
        let frame = [&[8, 0, 0, 0, 0, 16, 0, 0][..], &[0xff; 6], &mac.0, &[8, 0]].concat();
        arrives(&self.udp(from), &frame, to, address, port)
    }

    /// Whether a datagram that a task sends from an address, which it gives itself, arrives at a socket.
    pub(crate) fn reaches_as(&self, task: usize, source: &str, to: &UdpSocket, address: &str, port: u16) -> bool {
        let socket = inside(&self.task(task), || {
            Command::new("ip").args(["address", "add", source, "dev", "lo"]).status()?;
            UdpSocket::bind((source, 0))
        });
        arrives(&socket.expect("the address is usable at once"), b"ask", to, address, port)
    }

    pub(crate) fn route(&self, machine: usize, prefix: &str, gateway: &str) {
        let arguments = ["route", "add", prefix, "via", gateway];
        let added = inside(&self.machine(machine), || Command::new("ip").args(arguments).status());
        assert!(added.expect("ip is installed").success());
    }

    pub(crate) fn remove_link(&self, machine: usize, name: &str) {
        Connection::open(&self.machine(machine)).and_then(|mut it| it.remove_link(name)).expect("removed");
    }

    pub(crate) fn links(&self, machine: usize) -> Vec<String> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let table = inside(&self.machine(machine), read).expect("readable");
        let mut names: Vec<_> =
            table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
        names.sort();
        names
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for file in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            let _ = remove_network(&file.path());
        }
    }
}

fn arrives(from: &UdpSocket, datagram: &[u8], to: &UdpSocket, address: &str, port: u16) -> bool {
    from.send_to(datagram, (address, port)).expect("sent");
    to.set_read_timeout(Some(NEVER)).expect("a deadline");
    to.recv(&mut [0; 64]).is_ok()
}

pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    /// The number of connections that were answered or have failed.
    answers: Arc<AtomicUsize>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Asking {
    /// Waits until so many more connections were answered or have failed.
    pub(crate) fn wait_for_answers(&self, count: usize) {
        let until = self.answers.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + DEADLINE * u32::try_from(count).expect("they are few");
        while self.answers.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < deadline, "the client connects no more");
            std::thread::yield_now();
        }
    }

    /// Returns the number of answers, and what has failed.
    pub(crate) fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client")
    }
}

fn published_change(machine: usize, protocol: Protocol, targets: &[(usize, bool)], masquerade: bool) -> GatewayChange {
    let targets = targets.iter().flat_map(|(task, accepts)| {
        addresses(TASKS[*task]).into_iter().map(move |address| Target {
            address: SocketAddr::new(address, TASK_PORT),
            local: *task == machine,
            accepts: *accepts,
        })
    });
    let port = PublishedPort { targets: targets.collect(), masquerade };
    GatewayChange { ports: [(published(protocol), Some(port))].into(), ..GatewayChange::default() }
}

/// Publishes ports, each with that many targets, which nobody asks.
pub(crate) fn many_ports(ports: std::ops::Range<u16>, targets: u8) -> GatewayChange {
    let target = |number: u8| SocketAddr::from(([10, 9, 0, number], TASK_PORT));
    let targets = (100..100 + targets).map(|number| Target { address: target(number), local: false, accepts: true });
    let port = PublishedPort { targets: targets.collect(), masquerade: false };
    let ports = ports.map(|number| (HostPort { protocol: Protocol::Tcp, number }, Some(port.clone())));
    GatewayChange { ports: ports.collect(), ..GatewayChange::default() }
}

fn ask(from: &Namespace, address: &str, port: u16) -> Result<(String, IpAddr), String> {
    let target = SocketAddr::new(address.parse().expect("an address"), port);
    let answer = inside(from, || {
        let mut stream = TcpStream::connect_timeout(&target, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.map_err(|error| error.to_string())?;
    let (name, client) = answer.split_once(' ').ok_or("an empty answer")?;
    Ok((name.to_owned(), client.parse().expect("an address")))
}
