//! The ports on which programs of the host listen. Publishing one of them would take it from its program, for example the
//! port of sshd.

use std::collections::BTreeSet;

use super::ports::{HostPort, Protocol};
use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

/// `TCP_LISTEN` and `TCP_CLOSE` (net/tcp_states.h). A UDP socket without a peer is in the latter.
const LISTENING: &str = "0A";
const WITHOUT_PEER: &str = "07";

const TABLES: [(&str, Protocol, &str); 4] = [
    ("tcp", Protocol::Tcp, LISTENING),
    ("tcp6", Protocol::Tcp, LISTENING),
    ("udp", Protocol::Udp, WITHOUT_PEER),
    ("udp6", Protocol::Udp, WITHOUT_PEER),
];

/// Returns the ports of a namespace on which a socket waits for connections or datagrams, at whatever address.
///
/// # Errors
/// There is no such namespace, or /proc is not there.
pub fn taken_ports(host: &Namespace) -> Result<BTreeSet<HostPort>, NetworkError> {
    host.enter(|| {
        let mut taken = BTreeSet::new();
        for (table, protocol, state) in TABLES {
            // The process's own table would be that of its first thread.
            let path = format!("/proc/thread-self/net/{table}");
            match std::fs::read_to_string(&path) {
                Ok(text) => taken.extend(ports(&text, state).map(|number| HostPort { protocol, number })),
                // A kernel without IPv6 has no such table.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && table.ends_with('6') => {}
                Err(error) => return Err(io(format!("read {path}"))(error)),
            }
        }
        Ok(taken)
    })
}

/// Reads the local ports of the sockets that are in a state (proc_net_tcp(5)).
fn ports<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, found) = (fields.next()?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok().filter(|_| found == state)
    })
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
        let taken = taken_ports(&host).expect("the tables are readable");
        let expected = [(Protocol::Tcp, 8022), (Protocol::Udp, 53)];
        assert_eq!(taken, expected.map(|(protocol, number)| HostPort { protocol, number }).into());
        drop(sockets);
        Namespace::remove(&folder.path().join("host")).expect("it is removed");
    }
}
