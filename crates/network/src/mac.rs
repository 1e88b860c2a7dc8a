//! MAC addresses. They follow from IP addresses and need no state: every machine computes the same ones.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A MAC address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac(pub [u8; 6]);

/// The address of frames whose destination is yet to be chosen by a mesh.
pub(crate) const PLACEHOLDER: Mac = Mac([0x02, 0x46, 0, 0, 0, 3]);

impl Mac {
    /// Returns the MAC address of the interface with these addresses, or `None` without addresses.
    ///
    /// The first IPv4 address decides: the result is `02:42` and its four bytes. Without one, the first IPv6 address
    /// does: the result is `06` and the last 40 bits of the address, combined with a hash of the others. Two addresses of
    /// one subnet of at most 40 bits therefore never have the same MAC address.
    pub fn of(addresses: &[IpAddr]) -> Option<Self> {
        let first_of_version_4 = addresses.iter().find(|address| address.is_ipv4());
        match first_of_version_4.or(addresses.first())? {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                Some(Self([0x02, 0x42, a, b, c, d]))
            }
            IpAddr::V6(address) => Some(Self::of_version_6(*address)),
        }
    }

    fn of_version_6(address: Ipv6Addr) -> Self {
        let octets = address.octets();
        let (network, host) = octets.split_at(11);
        let mut mac = [0x06, 0, 0, 0, 0, 0];
        for ((byte, host), hash) in mac[1..].iter_mut().zip(host).zip(fnv_1a(network).to_be_bytes()) {
            *byte = host ^ hash;
        }
        Self(mac)
    }

    /// The link-local address that an interface with this MAC address gives itself (RFC 4291, appendix A).
    pub(crate) fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The name of the port that connects the interface with this MAC address to its bridge.
    pub(crate) fn port_name(self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("p{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
    }

    /// Whether a link's name is one of a port.
    pub(crate) fn is_port_name(name: &str) -> bool {
        name.strip_prefix('p').is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The 64-bit FNV-1a hash (draft-eastlake-fnv). It is the same on every machine and in every version.
pub(crate) fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(addresses: &[&str]) -> String {
        let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().expect("an address")).collect();
        Mac::of(&addresses).map_or_else(|| "none".into(), |mac| mac.to_string())
    }

    #[test]
    fn a_mac_address_follows_from_the_addresses() {
        assert_eq!(of(&["10.0.3.255"]), "02:42:0a:00:03:ff");
        assert_eq!(of(&["fd00::7", "10.0.3.255"]), of(&["10.0.3.255"]), "IPv4 decides");
        assert_eq!(of(&["fd00::7"]), "06:da:25:4d:5b:33", "the same on every machine and in every version");
        assert_eq!(of(&[]), "none");
        let two = [of(&["fd00::7"]), of(&["fd00::8"]), of(&["fd00:1::7"])];
        assert!(two[0] != two[1] && two[0] != two[2], "{two:?}");
        let port = Mac([255; 6]).port_name();
        assert!(Mac::is_port_name(&port) && port.len() < libc::IFNAMSIZ, "the kernel takes the name of a port");
        assert!(!Mac::is_port_name("br0") && !Mac::is_port_name("pfffffffffffg"));
    }
}
