//! The ports on which programs of the host listen. Publishing one of them would take it from its program, for example the
//! port of sshd.

use std::collections::{BTreeMap, BTreeSet};

use super::ports::{HostPort, Protocol};
use crate::balancer::Sockets;
use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

/// Bits of the states LISTEN and CLOSE (net/tcp_states.h). A UDP socket without a peer is in the latter.
const LISTENING: u32 = 1 << 10;
const WITHOUT_PEER: u32 = 1 << 7;

/// The sockets of a host's namespace that wait for connections or datagrams, at whatever address.
#[derive(Debug)]
pub struct Listeners(Sockets);

impl Listeners {
    /// Opens a view of a namespace's sockets.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub fn open(host: &Namespace) -> Result<Self, NetworkError> {
        Sockets::of(host).map(Self)
    }

    /// Returns their ports, each with the ids of the control groups (cgroup2) of the programs, as far as the kernel says so.
    /// It lists only those sockets, so connections cost nothing.
    ///
    /// # Errors
    /// The kernel refuses to list the sockets.
    pub fn ports(&mut self) -> Result<BTreeMap<HostPort, BTreeSet<u64>>, NetworkError> {
        let mut found: BTreeMap<HostPort, BTreeSet<u64>> = BTreeMap::new();
        for version in [libc::AF_INET, libc::AF_INET6] {
            for (protocol, number, states) in
                [(Protocol::Tcp, libc::IPPROTO_TCP, LISTENING), (Protocol::Udp, libc::IPPROTO_UDP, WITHOUT_PEER)]
            {
                let ports = self.0.ports(version, number, states).map_err(io("list the listening sockets"))?;
                for (number, group) in ports {
                    found.entry(HostPort { protocol, number }).or_default().extend(group);
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn only_sockets_that_wait_take_a_port() {
        let folder = tempfile::tempdir().expect("a folder");
        let host = Namespace::make(&folder.path().join("host")).expect("tests run as root");
        host.set(&[]).expect("it can be entered");
        crate::netlink::Connection::open(&host).and_then(|mut it| it.bring_up("lo")).expect("loopback is up");
        let sockets = host.enter(|| {
            let listener = TcpListener::bind("[::]:8022").map_err(io("listen"))?;
            let client = TcpStream::connect("[::1]:8022").map_err(io("connect"))?;
            let server = UdpSocket::bind("127.0.0.1:53").map_err(io("bind"))?;
            let asking = UdpSocket::bind("127.0.0.1:5000").map_err(io("bind"))?;
            asking.connect("127.0.0.1:53").map_err(io("connect"))?;
            Ok((listener, client, server, asking))
        });
        let taken = Listeners::open(&host).and_then(|mut it| it.ports()).expect("they are listed");
        drop(sockets);
        Namespace::remove(&folder.path().join("host")).expect("it is removed");
        let expected = [(Protocol::Tcp, 8022), (Protocol::Udp, 53)];
        let expected = expected.map(|(protocol, number)| HostPort { protocol, number });
        assert_eq!(taken.keys().copied().collect::<BTreeSet<_>>(), expected.into());
        // All of them are this process's.
        let groups: BTreeSet<u64> = taken.into_values().flatten().collect();
        assert_eq!(groups.len(), 1, "{groups:?}");
    }
}
