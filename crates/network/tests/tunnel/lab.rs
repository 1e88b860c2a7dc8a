//! Two machines on a wire with tunnels between them, and an encrypted overlay with a host on each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flota_network::{
    Attachment, Connection, Driver, LocalNetwork, LocalNetworkSpec, Mac, Namespace, NetworkError, PublicKey, Remote,
    SecretKey, Sender, Subnet, TunnelKey, Tunnels, TunnelsChange, TunnelsSpec, Underlay, Veth, remove_network,
};

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
/// What the hosts' packets say.
pub(crate) const PLAIN: &[u8] = b"everybody may read this";
const MACHINES: [&str; 2] = ["198.18.0.1", "198.18.0.2"];
const HOSTS: [&str; 2] = ["10.9.0.2", "10.9.0.3"];
const PORT: u16 = 51_820;
const VXLAN_PORT: u16 = 4789;
/// The longest wait for a packet that should arrive. The guest is emulated.
const DEADLINE: Duration = Duration::from_secs(20);
/// The wait for a packet that should not arrive.
const NEVER: Duration = Duration::from_millis(500);

pub(crate) struct Lab {
    folder: tempfile::TempDir,
    pub(crate) tunnels: Vec<Tunnels>,
    pub(crate) keys: Vec<TunnelKey>,
    networks: Vec<LocalNetwork>,
    made: AtomicU8,
}

/// Does I/O in a namespace.
fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> io::Result<T> + Send) -> T {
    let done = namespace.enter(|| work().map_err(|source| NetworkError::Io { act: "test".into(), source }));
    done.expect("it works in the namespace")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn mac(machine: usize) -> Mac {
    Mac::of(&[address(HOSTS[machine])]).expect("an address")
}

fn endpoint(machine: usize, key: &TunnelKey) -> SocketAddr {
    SocketAddr::new(address(MACHINES[machine]), key.port)
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut lab = Self { folder, tunnels: vec![], keys: vec![], networks: vec![], made: AtomicU8::new(1) };
        let wire = Namespace::make(&lab.file("wire")).expect("tests run as root");
        let mut wire = Connection::open(&wire).expect("a connection");
        wire.add_bridge("sw0").expect("a bridge");
        for (machine, name) in MACHINES.iter().enumerate() {
            let namespace = Namespace::make(&lab.file(&format!("machine{machine}"))).expect("a namespace");
            let prefix = format!("{name}/24").parse().expect("a prefix");
            let pair = Veth { port: format!("port{machine}"), interface: "eth0".into(), address: prefix };
            wire.add_veth("sw0", &namespace, &pair).expect("a cable");
        }
        lab.keys = [A, B].map(|_| lab.key(PORT)).into();
        lab.tunnels = [A, B].map(|machine| lab.start(machine)).into();
        lab.networks = [A, B].map(|machine| lab.overlay(machine)).into();
        lab
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a key.
    pub(crate) fn key(&self, port: u16) -> TunnelKey {
        let secret = SecretKey::new([self.made.fetch_add(1, Ordering::SeqCst); 32]);
        let public = secret.public().expect("tests run as root").expect("the kernel has WireGuard");
        TunnelKey { secret, public, port }
    }

    pub(crate) fn mac(&self, machine: usize) -> Mac {
        mac(machine)
    }

    fn start(&self, machine: usize) -> Tunnels {
        let other = 1 - machine;
        let key = &self.keys[other];
        let spec = TunnelsSpec {
            local: address(MACHINES[machine]),
            vxlan_port: VXLAN_PORT,
            keys: vec![self.keys[machine].clone()],
            peers: [(key.public, endpoint(other, key))].into(),
            senders: [Sender { machine: key.public.address().into(), mac: mac(other) }].into(),
        };
        let host = Namespace::at(&self.file(&format!("machine{machine}")));
        Tunnels::ensure(&host, &self.file(&format!("tunnels{machine}")), spec).expect("tunnels")
    }

    /// Lets another process take over the tunnels of a machine.
    pub(crate) fn restart(&mut self, machine: usize) {
        self.tunnels[machine] = self.start(machine);
    }

    fn overlay(&self, machine: usize) -> LocalNetwork {
        let subnet = Subnet {
            prefix: "10.9.0.0/24".parse().expect("a prefix"),
            gateway: address("10.9.0.1"),
            virtual_range: None,
        };
        let underlay = Underlay { local: Ipv6Addr::UNSPECIFIED.into(), port: VXLAN_PORT, vni: 4_097 };
        let spec = LocalNetworkSpec {
            driver: Driver::Overlay(underlay),
            subnets: vec![subnet],
            own_addresses: Vec::new(),
            mtu: Some(self.tunnels[machine].overlay_mtu()),
            forwarding: false,
        };
        let file = self.file(&format!("network{machine}"));
        let mut network = LocalNetwork::ensure(self.tunnels[machine].namespace(), &file, spec).expect("an overlay");
        let namespace = Namespace::make(&self.file(&format!("host{machine}"))).expect("a namespace");
        let addresses = vec![address(HOSTS[machine])];
        network
            .attach(Attachment { namespace, interface: "eth0".into(), addresses, default_route: true })
            .expect("attached");
        let other = 1 - machine;
        network.set_remotes(vec![remote(other, &self.keys[other])]).expect("remotes");
        network
    }

    /// Makes a machine know exactly these keys of another, and send to the last.
    pub(crate) fn learn(&mut self, machine: usize, other: usize, keys: &[&TunnelKey]) {
        let newest = keys.last().expect("it has keys");
        let peers = keys.iter().map(|key| (key.public, Some(endpoint(other, key)))).collect();
        let sender = |key: &TunnelKey| Sender { machine: key.public.address().into(), mac: mac(other) };
        let senders = keys.iter().map(|key| (sender(key), true)).collect();
        self.tunnels[machine].change(TunnelsChange { peers, senders }).expect("peers");
        let former = self.networks[machine].change_remotes(vec![], vec![remote(other, newest)]);
        former.expect("the overlay sends to the newest key");
    }

    /// Makes a machine let in a sender, or no more.
    pub(crate) fn admit(&mut self, machine: usize, sender: Sender, is_known: bool) {
        let senders = [(sender, is_known)].into();
        self.tunnels[machine].change(TunnelsChange { senders, ..TunnelsChange::default() }).expect("senders");
    }

    /// Makes a machine forget the key of another.
    pub(crate) fn forget(&mut self, machine: usize, other: usize) {
        let peers: BTreeMap<PublicKey, _> = [(self.keys[other].public, None)].into();
        self.tunnels[machine].change(TunnelsChange { peers, ..TunnelsChange::default() }).expect("no peer");
    }

    fn inside_tunnels(&self, machine: usize) -> Connection {
        Connection::open(self.tunnels[machine].namespace()).expect("a connection")
    }

    pub(crate) fn remove_device(&self, machine: usize) {
        self.inside_tunnels(machine).remove_link("wg51820").expect("removed");
    }

    /// The names of a machine's devices.
    pub(crate) fn devices(&self, machine: usize) -> Vec<String> {
        let list = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let text = inside(self.tunnels[machine].namespace(), list);
        let names = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
        names.filter(|name| name.starts_with("wg")).collect()
    }

    pub(crate) fn mtus(&self) -> [u32; 2] {
        [A, B].map(|machine| self.tunnels[machine].overlay_mtu())
    }

    fn host(&self, machine: usize) -> Namespace {
        Namespace::at(&self.file(&format!("host{machine}")))
    }

    fn udp(&self, machine: usize) -> UdpSocket {
        inside(&self.host(machine), || UdpSocket::bind((address(HOSTS[machine]), 0)))
    }

    pub(crate) fn crosses(&self, from: usize, to: usize) -> bool {
        self.crosses_with(from, to, PLAIN.len())
    }

    /// Whether datagrams of that many bytes arrive. The first may be lost while the kernel brings links up.
    pub(crate) fn crosses_with(&self, from: usize, to: usize, length: usize) -> bool {
        let (from, to) = (self.udp(from), self.udp(to));
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            if arrives(&from, &to, length, NEVER) {
                return true;
            }
        }
        false
    }

    /// Whether a datagram does not arrive.
    pub(crate) fn is_lost(&self, from: usize, to: usize) -> bool {
        !arrives(&self.udp(from), &self.udp(to), PLAIN.len(), NEVER)
    }

    /// Sends datagrams all the time, there and back.
    pub(crate) fn traffic(&self, from: usize, to: usize) -> Traffic {
        Traffic::start(self.udp(from), self.udp(to))
    }

    /// Hears all frames on the wire between the machines.
    pub(crate) fn listen_on_the_wire(&self) -> Wire {
        let socket = inside(&Namespace::at(&self.file("wire")), packet_socket);
        Wire(File::from(socket))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.networks.clear();
        self.tunnels.clear();
        let files = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        // A network before the tunnels that it uses.
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
        paths.sort();
        paths.iter().for_each(|path| drop(remove_network(path)));
    }
}

fn remote(machine: usize, key: &TunnelKey) -> Remote {
    Remote { addresses: vec![address(HOSTS[machine])], vtep: key.public.address().into() }
}

fn arrives(from: &UdpSocket, to: &UdpSocket, length: usize, wait: Duration) -> bool {
    let target = to.local_addr().expect("an address");
    to.set_read_timeout(Some(wait)).expect("a deadline");
    let text: Vec<u8> = PLAIN.iter().copied().cycle().take(length).collect();
    if from.send_to(&text, target).is_err() {
        return false;
    }
    to.recv(&mut vec![0; length + 1]).is_ok_and(|received| received == length)
}

/// A raw socket that hears every frame (packet(7)). It is non-blocking.
#[expect(unsafe_code, reason = "the standard library has no packet sockets")]
fn packet_socket() -> io::Result<OwnedFd> {
    // All protocols, in network byte order.
    let all = i32::from(u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be());
    // SAFETY: takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, all) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

pub(crate) struct Wire(File);

impl Wire {
    /// Returns the frames since it was opened, as far as the kernel has kept them.
    pub(crate) fn seen(mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 4096];
        while let Ok(length) = self.0.read(&mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

/// Datagrams that are sent one after the other and answered. One that is not answered is lost.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(client: UdpSocket, server: UdpSocket) -> Self {
        let (stop, answered, lost) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let target = server.local_addr().expect("an address");
        server.set_read_timeout(Some(NEVER)).expect("a deadline");
        client.set_read_timeout(Some(NEVER)).expect("a deadline");
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((length, from)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(&buffer[..length], from);
                }
            }
        };
        let (stopped, count, missed): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) =
            (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&lost));
        let ask = move || {
            let mut buffer = [0; 64];
            for number in 0u64.. {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let _ = client.send_to(&number.to_be_bytes(), target);
                let is_answered = client.recv(&mut buffer).is_ok_and(|length| buffer[..length] == number.to_be_bytes());
                if is_answered { &count } else { &missed }.fetch_add(1, Ordering::SeqCst);
            }
        };
        let threads = vec![std::thread::spawn(serve), std::thread::spawn(ask)];
        Self { stop, answered, lost, threads }
    }

    /// Waits until so many more were answered.
    pub(crate) fn wait_for(&self, more: usize) {
        let (before, until) = (self.answered.load(Ordering::SeqCst), Instant::now() + DEADLINE);
        while self.answered.load(Ordering::SeqCst) < before + more {
            assert!(Instant::now() < until, "nothing is answered, and {} are lost", self.lost.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
    }

    pub(crate) fn assert_none_lost(mut self) {
        self.end();
        let (answered, lost) = (self.answered.load(Ordering::SeqCst), self.lost.load(Ordering::SeqCst));
        assert_eq!(lost, 0, "{answered} were answered");
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no thread panics"));
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}
