//! The simulated machines, as the network knows them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A host, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub u8);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0)
    }
}

impl Host {
    /// Returns the address at which the host listens.
    pub fn address(self) -> String {
        format!("10.0.0.{}:2377", self.0)
    }

    /// Returns the host with this address.
    pub(super) fn at(address: &str) -> Option<Self> {
        let address: SocketAddr = address.parse().ok()?;
        match address.ip() {
            IpAddr::V4(ip) => Some(Self(ip.octets()[3])),
            IpAddr::V6(_) => None,
        }
    }
}
