//! The keys of WireGuard, and the address in the tunnels that follows from a public one.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use netlink_packet_route::link::{InfoKind, LinkAttribute};

use super::WireGuard;
use crate::error::{NetworkError, io};
use crate::links::{describe, kind};
use crate::netlink::Connection;

/// The device of a namespace that exists only to compute a public key.
const DEVICE: &str = "wg0";
/// The parameters of IPv6, if the kernel has it.
const IPV6: &str = "/proc/sys/net/ipv6";

/// A secret key. It is 32 random bytes: the kernel sets the bits that must have certain values.
#[derive(Clone, Eq, PartialEq)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// Returns the key with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the public key that belongs to this one, or `None` if the kernel has no WireGuard, or no IPv6, which tunnels
    /// need too. A device in a namespace that exists only for this computes it.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub fn public(&self) -> Result<Option<PublicKey>, NetworkError> {
        if !Path::new(IPV6).exists() {
            return Ok(None);
        }
        let ask = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| io("make a namespace")(error.into()))?;
            let mut links = Connection::open_here()?;
            let attributes = vec![LinkAttribute::IfName(DEVICE.into()), kind(InfoKind::Wireguard, None)];
            match links.add_link("add a WireGuard device", describe(0, false, attributes)) {
                Err(error) if error.refusal() == Some(Errno::EOPNOTSUPP) => return Ok(None),
                added => added?,
            }
            let mut wireguard = WireGuard::open_here()?;
            wireguard.set_key(DEVICE, self, 0)?;
            Ok(wireguard.device(DEVICE)?.public)
        };
        std::thread::scope(|scope| {
            let panicked = |_| Err(io("compute a public key")(io::Error::other("the thread panicked")));
            scope.spawn(ask).join().unwrap_or_else(panicked)
        })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// A public key.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Returns the address that the key's machine has in the tunnels: a unique local one (RFC 4193) with the first 120 bits
    /// of the key. Whoever wanted another machine's address would have to find a key with the same bits.
    pub fn address(&self) -> Ipv6Addr {
        let mut octets = [0xfd; 16];
        octets[1..].copy_from_slice(&self.0[..15]);
        octets.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_follows_from_nearly_all_of_the_key_and_a_secret_is_not_shown() {
        let address = |last: u8| {
            let mut key = [0x5a; 32];
            key[14] = last;
            PublicKey(key).address().to_string()
        };
        assert_eq!(address(1), "fd5a:5a5a:5a5a:5a5a:5a5a:5a5a:5a5a:5a01");
        assert_ne!(address(1), address(2));
        assert_eq!(format!("{:?}", SecretKey::new([1; 32])), "[redacted]");
    }

    #[test]
    fn a_kernel_without_wireguard_says_so_and_another_computes_public_keys() {
        let public = SecretKey::new([9; 32]).public().expect("tests run as root");
        // X25519 of this key and the base point 9 (RFC 7748, 5).
        let expected = "57db4b359f23ae5e146e4e2512056704722506348c150c14753d0c933d04d421";
        let hexadecimal = public.map(|key| key.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert!(hexadecimal.is_none_or(|found| found == expected));
    }
}
