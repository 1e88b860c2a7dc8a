//! Virtual addresses: connections of processes to an address that no interface has go to one of its backends.
//!
//! - [`Balancer`] holds the virtual addresses with their backends, and the namespaces that use them. It does so by programs
//!   at a control group (`bpf.rs`), or where a kernel does not have them, by rules of the packet filter (`nft.rs`).
//! - [`Sockets`] gives the cookie of a namespace, and ends its connections to a backend that has gone.

mod assembler;
mod attachment;
mod bpf;
mod error;
mod hooks;
mod map;
mod nft;
mod pool;
mod program;
mod sockets;
mod system;
mod tables;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bpf::BpfBalancer;
use nft::NftBalancer;

use crate::error::NetworkError;
use crate::namespace::Namespace;

pub use error::BalancerError;
pub use pool::Pool;
pub use sockets::Sockets;
pub use tables::{MOST_NETWORKS, NamespaceCookie, NetworkKey, VirtualAddress};

/// How long what has been replaced is kept for connections that are just being made.
const GRACE: Duration = Duration::from_secs(1);

/// The desired state of a balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The virtual addresses and their backends.
    pub pools: BTreeMap<VirtualAddress, Pool>,
    /// The namespaces that use the virtual addresses of these networks.
    pub members: BTreeMap<NamespaceCookie, Vec<NetworkKey>>,
}

/// The balancer of a machine.
#[derive(Debug)]
pub struct Balancer(Means);

#[derive(Debug)]
enum Means {
    Bpf(Box<BpfBalancer>),
    Nftables(NftBalancer),
}

impl Balancer {
    /// Returns the balancer of a control group, which is a folder of cgroup2. Finds the programs and maps that an earlier
    /// process has left there, and attaches the programs if they are missing or of another version: all of them, or none.
    ///
    /// It acts on sockets that processes open while they are in the group or below it.
    ///
    /// # Errors
    /// The kernel can't do it, or this process may not (it takes CAP_BPF, CAP_NET_ADMIN and write access to the group):
    /// whether a machine can have such a balancer is seen here.
    pub fn bpf(group: &Path, now: Instant) -> Result<Self, BalancerError> {
        BpfBalancer::open(group, now).map(|it| Self(Means::Bpf(Box::new(it))))
    }

    /// Returns a balancer that acts on everything that is sent in the namespaces that join it, and on what they forward.
    pub fn nftables() -> Self {
        Self(Means::Nftables(NftBalancer::default()))
    }

    /// Detaches all programs from a control group, of whatever version they are. Their maps go with them. Does nothing
    /// if there are none.
    ///
    /// # Errors
    /// There is no such group, or the kernel refuses.
    pub fn detach(group: &Path) -> Result<(), BalancerError> {
        BpfBalancer::detach(group)
    }

    /// Mends what somebody has detached or removed, and returns how much that was.
    ///
    /// # Errors
    /// The kernel refuses to show or to write a program, a map or a table.
    pub fn repair(&mut self) -> Result<usize, BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.repair(),
            Means::Nftables(it) => it.repair(),
        }
    }

    /// Sets the backends of a virtual address. Connections that exist stay where they are; see [`Self::abort_to`]. An
    /// address without backends refuses connections.
    ///
    /// # Errors
    /// A backend is of the other IP version, or the kernel refuses, for example because a map is full. Programs then use
    /// the backends that the address had.
    pub fn set(&mut self, place: VirtualAddress, pool: &Pool, now: Instant) -> Result<(), BalancerError> {
        let address = place.address;
        if let Some(backend) = pool.backends.iter().find(|backend| backend.is_ipv4() != address.is_ipv4()) {
            return Err(BalancerError::IpVersion { address, backend: *backend });
        }
        match &mut self.0 {
            Means::Bpf(it) => it.set(place, pool, now),
            Means::Nftables(it) => it.set(place, pool, now),
        }
    }

    /// Makes an address an ordinary one again. Does nothing if it is not virtual.
    ///
    /// # Errors
    /// The kernel refuses to change the map or the rules.
    pub fn remove(&mut self, place: VirtualAddress, now: Instant) -> Result<(), BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.remove(place, now),
            Means::Nftables(it) => it.remove(place, now),
        }
    }

    /// Lets the namespace with this cookie use the virtual addresses of these networks and of no others. An address that
    /// is virtual in several of them is looked up in the first of those.
    ///
    /// # Errors
    /// There are more than [`MOST_NETWORKS`], or the kernel refuses.
    pub fn join(
        &mut self,
        cookie: NamespaceCookie,
        namespace: &Namespace,
        networks: &[NetworkKey],
    ) -> Result<(), BalancerError> {
        if networks.len() > MOST_NETWORKS {
            return Err(BalancerError::TooManyNetworks(networks.len()));
        }
        match &mut self.0 {
            Means::Bpf(it) => it.join(cookie, networks),
            Means::Nftables(it) => it.join(cookie, namespace, networks),
        }
    }

    /// Lets a namespace, which ends, use no virtual address any more.
    ///
    /// # Errors
    /// The kernel refuses to take the namespace out of the map.
    pub fn leave(&mut self, cookie: NamespaceCookie) -> Result<(), BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.leave(cookie),
            Means::Nftables(it) => {
                it.leave(cookie);
                Ok(())
            }
        }
    }

    /// Makes all virtual addresses what the caller says, and lets no other namespaces use them. Writes only what differs,
    /// so no connection that is being made is disturbed.
    ///
    /// # Errors
    /// One of the changes failed; the others are made.
    pub fn reconcile(&mut self, wanted: &Wanted, now: Instant) -> Result<(), BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.reconcile(wanted, now),
            Means::Nftables(it) => it.reconcile(wanted, now),
        }
    }

    /// Ends the connections of a namespace to these peers, by whatever address they were made, and returns how many those
    /// were.
    ///
    /// # Errors
    /// The kernel refuses to list the sockets or the tracked connections, or to end one.
    pub fn abort_to(&mut self, sockets: &mut Sockets, peers: &[IpAddr]) -> Result<usize, NetworkError> {
        let aborted = sockets.abort_to(peers)?;
        match &mut self.0 {
            // A socket is connected to the backend itself.
            Means::Bpf(_) => Ok(aborted),
            Means::Nftables(it) => Ok(aborted + it.abort_to(sockets, peers)?),
        }
    }

    /// Returns the backends of a virtual address as connections find them; none if the address is not virtual.
    ///
    /// # Errors
    /// The kernel refuses to read the maps.
    pub fn backends(&self, place: VirtualAddress) -> Result<BTreeSet<IpAddr>, BalancerError> {
        match &self.0 {
            Means::Bpf(it) => it.backends(place),
            Means::Nftables(it) => Ok(it.backends(place)),
        }
    }

    /// Returns how often a connection to a virtual address, or a datagram without a connection, got a backend.
    ///
    /// # Errors
    /// The kernel refuses to read the count.
    pub fn requests(&mut self, place: VirtualAddress) -> Result<u64, BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.requests(place),
            Means::Nftables(it) => it.requests(place),
        }
    }

    /// Removes what has been replaced more than a second ago, and returns when there is more to remove. Every change
    /// does it too, so a late call costs memory only.
    ///
    /// # Errors
    /// The kernel refuses to remove the backends that were replaced.
    pub fn sweep(&mut self, now: Instant) -> Result<Option<Instant>, BalancerError> {
        match &mut self.0 {
            Means::Bpf(it) => it.sweep(now),
            Means::Nftables(it) => it.sweep(now),
        }
    }
}
