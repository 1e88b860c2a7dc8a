//! The machine of the tests: a control group, and namespaces whose loopback interface has the addresses of backends. A
//! thread enters both and opens sockets there, which stay in them: the test then uses the sockets itself.
//!
//! A namespace lives as long as its descriptor, and programs as long as the group.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, connect, socket};

use crate::balancer::bpf::BpfBalancer;
use crate::balancer::{Balancer, Means, NetworkKey, Pool, Sockets, VirtualAddress};
use crate::namespace::Namespace;
use crate::netlink::Connection;
use crate::routes::{Route, Way};

/// The port at which every backend listens.
pub(super) const PORT: u16 = 8080;
/// Longest wait for something that the kernel does at once.
pub(super) const SOON: Duration = Duration::from_secs(5);

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn at(text: &str) -> SocketAddr {
    SocketAddr::new(ip(text), PORT)
}

pub(super) fn network(number: u64) -> NetworkKey {
    NetworkKey(NonZeroU64::new(number).expect("not zero"))
}

/// An address that is virtual in the network 1.
pub(super) fn place(address: &str) -> VirtualAddress {
    VirtualAddress { network: network(1), address: ip(address) }
}

pub(super) fn pool(backends: &[&str]) -> Pool {
    Pool { backends: backends.iter().map(|backend| ip(backend)).collect(), affinity: false }
}

/// A kind of balancer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Bpf,
    Nftables,
}

pub(super) const BOTH: [Kind; 2] = [Kind::Bpf, Kind::Nftables];

/// A control group, which is removed when it is dropped. Threads can be in it without the rest of their process.
#[derive(Debug)]
pub(super) struct Group {
    root: PathBuf,
    pub(super) path: PathBuf,
}

impl Group {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("it is readable");
        let of_version_2 = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
        let mount = mounts.lines().find(of_version_2).expect("this machine has cgroup2");
        let root = PathBuf::from(mount.split(' ').nth(1).expect("a folder"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("flota-balancer-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("tests run as root");
        let group = Self { root, path };
        std::fs::write(group.path.join("cgroup.type"), "threaded").expect("threads can be in it");
        group
    }

    pub(super) fn balancer(&self) -> Balancer {
        Balancer::bpf(&self.path, Instant::now()).expect("this kernel can do it")
    }

    /// Moves this thread into the group, until the result is dropped.
    fn enter(&self) -> impl Drop {
        struct Inside<'a>(&'a Path);
        impl Drop for Inside<'_> {
            fn drop(&mut self) {
                std::fs::write(self.0.join("cgroup.threads"), "0").expect("a thread can leave the group");
            }
        }
        std::fs::write(self.path.join("cgroup.threads"), "0").expect("a thread can enter the group");
        Inside(&self.root)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.path).expect("no thread is in it");
    }
}

/// Waits until this namespace gets what is sent to its own address. The kernel adds the route of an IPv6 address that says so
/// later, from a queue of work (`addrconf_dad_work`).
fn wait_for_route(address: IpAddr) {
    let begun = Instant::now();
    let [to, from] = [(); 2].map(|()| UdpSocket::bind((address, 0)).expect("the address is there"));
    to.set_nonblocking(true).expect("it is a socket");
    let own = to.local_addr().expect("it is bound");
    while to.recv(&mut [0; 1]).is_err() {
        assert!(begun.elapsed() < SOON, "there is no route to {address}");
        // Before that, it may be an error or be lost.
        let _ = from.send_to(b"?", own);
        std::thread::yield_now();
    }
}

/// A network namespace.
#[derive(Debug)]
pub(super) struct Host {
    file: File,
}

impl Host {
    /// Makes a namespace whose loopback interface has these addresses.
    pub(super) fn new(addresses: &[&str]) -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
            let mut connection = Connection::open_here().expect("a connection");
            connection.bring_up("lo").expect("every namespace has one");
            let addresses: Vec<_> = addresses.iter().map(|address| IpNet::from(ip(address))).collect();
            connection.set_addresses(1, &addresses).expect("they are free");
            addresses.iter().for_each(|address| wait_for_route(address.addr()));
            File::open("/proc/thread-self/ns/net").expect("it is there")
        };
        Self { file: std::thread::scope(|scope| scope.spawn(make).join().expect("it was made")) }
    }

    /// Makes the same with routes to virtual addresses, without which nothing is sent that rules could see.
    pub(super) fn with_routes(addresses: &[&str]) -> Self {
        let host = Self::new(addresses);
        let route = |destination: &str| {
            let destination = destination.parse().expect("a prefix");
            Route { destination, link: 1, way: Way::Direct }
        };
        let mut connection = Connection::open(&host.namespace()).expect("a connection");
        connection.set_routes(1, &["10.0.255.0/24", "fd00::ffff:0/112"].map(route)).expect("there are none");
        host
    }

    pub(super) fn sockets(&self) -> Sockets {
        Sockets::of(&self.namespace()).expect("they can be listed")
    }

    pub(super) fn namespace(&self) -> Namespace {
        Namespace::at(Path::new(&format!("/proc/self/fd/{}", self.file.as_raw_fd())))
    }

    /// Runs `work` in the namespace, outside of every group.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace().enter(|| Ok(work())).expect("it can be entered")
    }

    /// Runs `work` in the namespace and in a group.
    pub(super) fn run_in<T: Send>(&self, group: &Group, work: impl FnOnce() -> T + Send) -> T {
        self.run(|| {
            let _inside = group.enter();
            work()
        })
    }
}

/// Returns the balancer as one by BPF.
pub(super) fn bpf(balancer: &Balancer) -> &BpfBalancer {
    match &balancer.0 {
        Means::Bpf(it) => it,
        Means::Nftables(_) => panic!("it is of the other kind"),
    }
}

/// A namespace with backends, whose processes are in a group, and the balancer of that group.
#[derive(Debug)]
pub(super) struct Machine {
    // Fields are dropped in this order.
    pub(super) backends: Vec<Backend>,
    pub(super) host: Host,
    pub(super) balancer: Balancer,
    pub(super) group: Group,
}

impl Machine {
    /// Makes a namespace with backends at these addresses. It is a member of the network 1.
    pub(super) fn new(kind: Kind, addresses: &[&str]) -> Self {
        let group = Group::new();
        let (host, mut balancer) = match kind {
            Kind::Bpf => (Host::new(addresses), group.balancer()),
            Kind::Nftables => (Host::with_routes(addresses), Balancer::nftables()),
        };
        balancer.join(host.sockets().cookie(), &host.namespace(), &[network(1)]).expect("there is room");
        let backends = addresses.iter().map(|address| Backend::new(&host, address)).collect();
        Self { backends, host, balancer, group }
    }

    /// The balancer by BPF.
    pub(super) fn bpf(&self) -> &BpfBalancer {
        bpf(&self.balancer)
    }

    pub(super) fn set(&mut self, address: &str, backends: &[&str]) {
        self.balancer.set(place(address), &pool(backends), Instant::now()).expect("the maps have room");
    }

    /// Runs `work` as a process of the group in the namespace.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run_in(&self.group, work)
    }

    pub(super) fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, SOON))
    }

    /// Connects from an address of the namespace.
    pub(super) fn connect_from(&self, from: &str, to: SocketAddr) -> TcpStream {
        let (from, to) = (SockaddrStorage::from(SocketAddr::new(ip(from), 0)), SockaddrStorage::from(to));
        self.run(|| {
            let version = from.family().expect("it is an address");
            let client = socket(version, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            bind(client.as_raw_fd(), &from).expect("a free port");
            connect(client.as_raw_fd(), &to).expect("a backend listens");
            TcpStream::from(client)
        })
    }

    /// Opens a datagram socket that is not connected.
    pub(super) fn datagrams(&self, from: &str) -> UdpSocket {
        self.run(|| UdpSocket::bind((ip(from), 0)).expect("a free port"))
    }

    /// Returns the number of the backend that a connection has reached, and the backend's end of it.
    pub(super) fn accept(&self) -> (usize, TcpStream) {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            for (index, backend) in self.backends.iter().enumerate() {
                match backend.listener.accept() {
                    Ok((stream, _)) => return (index, stream),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            std::thread::yield_now();
        }
        panic!("no backend was reached");
    }

    /// Returns the number of the backend that has got a datagram, and where the datagram came from.
    pub(super) fn recv(&self) -> (usize, SocketAddr) {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            for (index, backend) in self.backends.iter().enumerate() {
                match backend.datagrams.recv_from(&mut [0; 64]) {
                    Ok((_, from)) => return (index, from),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            std::thread::yield_now();
        }
        panic!("no backend was reached");
    }
}

/// A backend of TCP and UDP.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) listener: TcpListener,
    pub(super) datagrams: UdpSocket,
}

impl Backend {
    pub(super) fn new(host: &Host, address: &str) -> Self {
        host.run(|| {
            let listener = TcpListener::bind(at(address)).expect("a free port");
            listener.set_nonblocking(true).expect("it is a socket");
            let datagrams = UdpSocket::bind(at(address)).expect("a free port");
            datagrams.set_nonblocking(true).expect("it is a socket");
            Self { listener, datagrams }
        })
    }
}
