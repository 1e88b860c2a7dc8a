//! The simulated machines, as the network knows them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A host, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub u16);

/// Host of the users.
pub const USER: Host = Host(100);
/// Host of the operator who changes the set of managers.
pub const OPERATOR: Host = Host(99);
/// Host of whoever drains workers.
pub const DRAINER: Host = Host(98);
/// Most managers that a schedule of changes makes.
pub const MOST_MANAGERS: usize = 4;

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

impl Host {
    /// Returns the address at which the host listens.
    pub fn address(self) -> String {
        let [high, low] = self.0.to_be_bytes();
        format!("10.0.{high}.{low}:2377")
    }

    /// Returns the host with this address.
    pub(super) fn at(address: &str) -> Option<Self> {
        let address: SocketAddr = address.parse().ok()?;
        match address.ip() {
            IpAddr::V4(ip) => {
                let [_, _, high, low] = ip.octets();
                Some(Self(u16::from_be_bytes([high, low])))
            }
            IpAddr::V6(_) => None,
        }
    }
}
