//! The sockets on which a client's questions arrive, made inside its namespace. Whoever holds them keeps questions from
//! being lost: those that come while no server reads are answered by the next one.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

/// The address at which clients find the server, the same as in Docker's containers.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;

/// A pair of sockets that stays in the namespace in which it was made.
#[derive(Debug)]
pub struct DnsSockets {
    /// Receives datagrams.
    pub udp: UdpSocket,
    /// Accepts connections.
    pub tcp: TcpListener,
}

impl DnsSockets {
    /// Binds both sockets to 127.0.0.11:53 in a namespace whose loopback interface is up.
    ///
    /// # Errors
    /// The namespace can't be entered, its loopback interface is down, or the port is in use.
    pub fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        let act = || io(format!("open the DNS sockets at {ADDRESS}:{PORT}"));
        namespace.enter(|| {
            let udp = UdpSocket::bind((ADDRESS, PORT)).map_err(act())?;
            let tcp = TcpListener::bind((ADDRESS, PORT)).map_err(act())?;
            Ok(Self { udp, tcp })
        })
    }

    /// Returns a second pair for the same queues of questions.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { udp: self.udp.try_clone()?, tcp: self.tcp.try_clone()? })
    }
}
