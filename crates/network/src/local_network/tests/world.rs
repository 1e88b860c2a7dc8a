//! Two machines, that is to say namespaces, which are connected by a cable; and hosts on them with interfaces in a
//! network. Everything is gone when the world is dropped.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::error::io;
use crate::{
    Attachment, Connection, Driver, LocalNetwork, LocalNetworkSpec, Mac, Namespace, NetworkError, Remote, Subnet,
    Underlay, Veth, remove_network,
};

/// The longest wait for a packet that should arrive.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// The wait for a packet that should not arrive. What arrives takes microseconds.
const NEVER: Duration = Duration::from_millis(100);
pub(super) const PORT: u16 = 4789;
pub(super) const VNI: u32 = 4097;

pub(super) struct World {
    folder: tempfile::TempDir,
    /// The addresses of the machines.
    pub(super) vteps: [IpAddr; 2],
    mtu: u32,
}

/// A host with an interface in a network.
pub(super) struct Host {
    pub(super) attachment: Attachment,
}

impl World {
    /// Connects two machines with these addresses.
    pub(super) fn new(addresses: [&str; 2], mtu: u32) -> Self {
        let vteps = addresses.map(|address| address.parse::<IpNet>().expect("a prefix"));
        let world = Self { folder: tempfile::tempdir().expect("a folder"), vteps: vteps.map(|it| it.addr()), mtu };
        let machines =
            [0, 1].map(|machine| Namespace::make(&world.file(machine, "machine")).expect("tests run as root"));
        let mut first = Connection::open(&machines[0]).expect("a connection");
        let mut second = Connection::open(&machines[1]).expect("a connection");
        machines[1].set(&[("net/ipv6/conf/default/accept_dad", "0")]).expect("a parameter");
        // The first machine's end is a port of a bridge, which has the machine's address.
        first.add_bridge("under0").expect("a bridge");
        let cable = Veth { port: "cable".into(), interface: "eth0".into(), address: vteps[1] };
        first.add_veth("under0", &machines[1], &cable).expect("a cable");
        let bridge = first.existing("under0").expect("it exists").index;
        first.set_addresses(bridge, &[vteps[0]]).expect("an address");
        second.set_mtu("eth0", mtu).expect("an MTU");
        first.set_mtu("cable", mtu).expect("an MTU");
        first.set_mtu("under0", mtu).expect("an MTU");
        world
    }

    pub(super) fn file(&self, machine: usize, name: &str) -> PathBuf {
        self.folder.path().join(machine.to_string()).join(name)
    }

    pub(super) fn machine(&self, machine: usize) -> Namespace {
        Namespace::at(&self.file(machine, "machine"))
    }

    pub(super) fn underlay(&self, machine: usize) -> Underlay {
        Underlay { local: self.vteps[machine], port: PORT, vni: VNI }
    }

    /// Makes a machine's part of the overlay.
    pub(super) fn overlay(&self, machine: usize) -> LocalNetwork {
        self.network(machine, overlay_spec(Driver::Overlay(self.underlay(machine)))).expect("an overlay")
    }

    pub(super) fn network(&self, machine: usize, spec: LocalNetworkSpec) -> Result<LocalNetwork, NetworkError> {
        LocalNetwork::ensure(&self.machine(machine), &self.file(machine, "network"), spec)
    }

    /// Makes a host, which is not yet connected.
    pub(super) fn host(&self, machine: usize, name: &str, addresses: &[&str]) -> Host {
        let namespace = Namespace::make(&self.file(machine, name)).expect("a namespace");
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let attachment = Attachment { namespace, interface: "eth0".into(), addresses, default_route: true };
        Host { attachment }
    }

    pub(super) fn remote(&self, machine: usize, host: &Host) -> Remote {
        Remote { addresses: host.attachment.addresses.clone(), vtep: self.vteps[machine] }
    }

    /// Makes an overlay with a host on each machine, which know of each other.
    pub(super) fn two_hosts(&self) -> ([LocalNetwork; 2], [Host; 2]) {
        let mut networks = [self.overlay(0), self.overlay(1)];
        let hosts = [self.host(0, "a", &["10.1.0.2", "fd01::2"]), self.host(1, "b", &["10.1.0.3", "fd01::3"])];
        for (machine, network) in networks.iter_mut().enumerate() {
            network.attach(hosts[machine].attachment.clone()).expect("attached");
            let other = 1 - machine;
            network.set_remotes(vec![self.remote(other, &hosts[other])]).expect("remotes");
        }
        (networks, hosts)
    }

    /// The MTU that an overlay should have.
    pub(super) fn mtu(&self) -> u32 {
        self.mtu - if self.vteps[0].is_ipv4() { 50 } else { 70 }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let files = [0, 1].map(|machine| std::fs::read_dir(self.folder.path().join(machine.to_string())));
        for file in files.into_iter().flatten().flatten().flatten() {
            let _ = remove_network(&file.path());
        }
    }
}

pub(super) fn overlay_spec(driver: Driver) -> LocalNetworkSpec {
    let subnet = |prefix: &str, gateway: &str, range: &str| Subnet {
        prefix: prefix.parse().expect("a prefix"),
        gateway: gateway.parse().expect("an address"),
        virtual_range: Some(range.parse().expect("a prefix")),
    };
    LocalNetworkSpec {
        driver,
        subnets: vec![
            subnet("10.1.0.0/24", "10.1.0.1", "10.1.0.128/25"),
            subnet("fd01::/64", "fd01::1", "fd01::8000:0:0:0/65"),
        ],
        own_addresses: Vec::new(),
        mtu: None,
        forwarding: false,
    }
}

impl Host {
    pub(super) fn namespace(&self) -> &Namespace {
        &self.attachment.namespace
    }

    pub(super) fn mac(&self) -> Mac {
        Mac::of(&self.attachment.addresses).expect("it has addresses")
    }

    /// Its address of the other's version.
    fn address(&self, version_4: bool) -> IpAddr {
        let addresses = &self.attachment.addresses;
        *addresses.iter().find(|address| address.is_ipv4() == version_4).expect("an address of that version")
    }

    pub(super) fn udp(&self, address: IpAddr) -> UdpSocket {
        let bound = self.namespace().enter(|| UdpSocket::bind((address, 0)).map_err(io("bind")));
        bound.expect("the address is usable at once")
    }
}

/// Sends a text over TCP and a datagram over UDP, there and back.
pub(super) fn assert_reached(from: &Host, to: &Host, version_4: bool) {
    let address = to.address(version_4);
    let listener = to.namespace().enter(|| TcpListener::bind((address, 0)).map_err(io("listen"))).expect("a listener");
    let target = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a connection");
        let mut text = [0; 4];
        stream.read_exact(&mut text).expect("a text");
        stream.write_all(&text).expect("an echo");
        peer.ip()
    });
    let connect = || TcpStream::connect_timeout(&target, DEADLINE).map_err(io("connect"));
    let mut stream = from.namespace().enter(connect).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream.write_all(b"ping").expect("sent");
    let mut text = [0; 4];
    stream.read_exact(&mut text).expect("an echo");
    assert_eq!(server.join().expect("the server"), from.address(version_4), "nothing translates addresses");
    let (sender, receiver) = (from.udp(from.address(version_4)), to.udp(address));
    assert!(passes(&sender, &receiver, 100), "a datagram arrives");
    assert!(passes(&receiver, &sender, 100), "a datagram arrives");
}

/// Whether datagrams of that many bytes arrive. The first ones may be lost while the kernel brings links up.
pub(super) fn passes(from: &UdpSocket, to: &UdpSocket, length: usize) -> bool {
    let target = to.local_addr().expect("an address");
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        if arrives(from, to, target, length, DEADLINE / 20) {
            return true;
        }
    }
    false
}

/// Asserts that no datagram arrives.
pub(super) fn assert_lost(from: &UdpSocket, to: &UdpSocket) {
    let target = to.local_addr().expect("an address");
    assert!(!arrives(from, to, target, 100, NEVER), "the datagram has arrived");
}

fn arrives(from: &UdpSocket, to: &UdpSocket, target: SocketAddr, length: usize, wait: Duration) -> bool {
    // One that came late is not the one that is sent now.
    to.set_nonblocking(true).expect("a socket");
    while to.recv(&mut [0]).is_ok() {}
    to.set_nonblocking(false).expect("a socket");
    to.set_read_timeout(Some(wait)).expect("a deadline");
    if from.send_to(&vec![7; length], target).is_err() {
        return false;
    }
    to.recv(&mut vec![0; length + 1]).is_ok_and(|received| received == length)
}
