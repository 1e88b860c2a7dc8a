//! The bridge of tasks that name no network: a way out, as on Docker's default bridge, without names and virtual IPs.
//!
//! It belongs to this node alone. The node chooses its subnet and the addresses of the tasks; the leader knows the subnet
//! from the node's routes, and gives it to no network. A restarted daemon finds both in the kernel. The IPv6 addresses
//! follow from those of IPv4, in a prefix of Flota's own that is the same on all nodes, so nothing has to be kept of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use flota_api::id::TaskId;
use flota_network::{
    Audit, BRIDGE, Connection, Driver, LocalNetwork, LocalNetworkSpec, Namespace, NetworkError, Subnet, Uplink,
};

use super::LinuxKernel;
use super::tasks::{interface, interface_name};
use crate::networks::folder::NamespaceFolder;
use crate::networks::kernel::KernelError;
use crate::networks::view::View;

/// The name of the bridge's way out, beside those of networks.
pub(super) const UPLINK: &str = "bridge";

/// The prefix of IPv6 addresses on the bridge: unique local ones (RFC 4193), which are masqueraded like those of IPv4.
const PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd46, 0x6c6f, 0x7461, 1, 0, 0, 0, 0), 64);

/// The bridge, and the addresses in it.
#[derive(Debug)]
pub(super) struct NodeBridge {
    local: LocalNetwork,
    subnet: Ipv4Net,
    given: BTreeMap<TaskId, Ipv4Addr>,
    /// The address that was given last. The search for the next one begins behind it, so that an address is given again
    /// as late as possible.
    last: Ipv4Addr,
}

impl NodeBridge {
    /// Takes over the bridge that an earlier daemon has made; `None` if there is none.
    pub(super) fn find(host: &Namespace, folder: &NamespaceFolder) -> Result<Option<Self>, NetworkError> {
        let namespace = Namespace::at(&folder.bridge());
        match address_of(&namespace, BRIDGE) {
            Some(found) => Self::make(host, folder, found.trunc()).map(Some),
            None => Ok(None),
        }
    }

    /// Makes the bridge, or what is missing of it, and finds the addresses that tasks of an earlier daemon have.
    pub(super) fn make(host: &Namespace, folder: &NamespaceFolder, subnet: Ipv4Net) -> Result<Self, NetworkError> {
        let gateway = subnet.hosts().next().unwrap_or(subnet.network());
        let spec = LocalNetworkSpec {
            driver: Driver::Bridge,
            subnets: vec![
                Subnet { prefix: subnet.into(), gateway: gateway.into(), virtual_range: None },
                Subnet { prefix: PREFIX.into(), gateway: with_prefix(gateway).into(), virtual_range: None },
            ],
            own_addresses: Vec::new(),
            mtu: None,
            forwarding: true,
        };
        let given = |task: TaskId| {
            let found = address_of(&Namespace::at(&folder.task(&task)), &interface_name(0))?;
            subnet.contains(&found.addr()).then_some((task, found.addr()))
        };
        let given: BTreeMap<_, _> = folder.tasks().into_iter().filter_map(given).collect();
        let last = given.values().max().copied().unwrap_or(gateway);
        Ok(Self { local: LocalNetwork::ensure(host, &folder.bridge(), spec)?, subnet, given, last })
    }

    /// The subnet.
    pub(super) fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// The way out.
    pub(super) fn uplink(&self) -> Uplink {
        Uplink { network: self.local.namespace().clone(), subnets: vec![self.subnet.into(), PREFIX.into()] }
    }

    /// Returns the addresses of a task; none if it is not connected.
    pub(super) fn addresses(&self, task: &TaskId) -> Vec<IpAddr> {
        self.given.get(task).copied().map(addresses).unwrap_or_default()
    }

    /// Connects a task's namespace, or what is missing of that.
    pub(super) fn attach(&mut self, task: &TaskId, namespace: &Namespace) -> Result<(), KernelError> {
        let known = self.given.get(task).copied();
        let address = known.or_else(|| self.choose()).ok_or(KernelError::FullBridge(self.subnet))?;
        self.given.insert(task.clone(), address);
        Ok(self.local.attach(interface(namespace, 0, addresses(address), true))?)
    }

    /// Disconnects a task and frees its address. Does nothing if it is not connected.
    pub(super) fn detach(&mut self, task: &TaskId, namespace: &Namespace) -> Result<(), NetworkError> {
        let Some(address) = self.given.get(task).copied() else { return Ok(()) };
        self.local.detach(&interface(namespace, 0, addresses(address), true))?;
        self.given.remove(task);
        Ok(())
    }

    /// Compares the bridge with the kernel and mends what differs.
    pub(super) fn audit(&mut self) -> Audit {
        self.local.audit()
    }

    fn choose(&mut self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<&Ipv4Addr> = self.given.values().collect();
        let chosen = next_free(self.subnet, self.last, &taken)?;
        self.last = chosen;
        Some(chosen)
    }
}

impl LinuxKernel {
    /// Returns the bridge of tasks without networks, and makes it if there is none.
    pub(super) fn ensure_bridge(&mut self, view: &View) -> Result<&mut NodeBridge, KernelError> {
        let made = match self.bridge.take() {
            Some(bridge) => bridge,
            None => {
                let known = view.networks.values().flat_map(|it| it.config.subnets.iter().map(|it| it.prefix));
                let subnet = subnet_beside(&self.options.host, known)?;
                NodeBridge::make(&self.options.host, &self.options.folder, subnet)?
            }
        };
        Ok(self.bridge.insert(made))
    }
}

/// Chooses the subnet of tasks without networks, which meets neither a route of this node nor one of these.
pub(super) fn subnet_beside(host: &Namespace, known: impl Iterator<Item = IpNet>) -> Result<Ipv4Net, KernelError> {
    let taken: Vec<_> = host.destinations()?.into_iter().chain(known).collect();
    choose_subnet(&taken).ok_or(KernelError::NoSubnet)
}

/// Returns the IPv4 address of an interface; `None` if namespace, interface or address do not exist.
fn address_of(namespace: &Namespace, interface: &str) -> Option<Ipv4Net> {
    let found = Connection::open(namespace).and_then(|mut it| it.addresses_of(interface)).ok()?;
    found.into_iter().find_map(|it| if let IpNet::V4(it) = it { Some(it) } else { None })
}

/// Returns the addresses that belong to one of IPv4.
fn addresses(address: Ipv4Addr) -> Vec<IpAddr> {
    vec![address.into(), with_prefix(address).into()]
}

/// Returns the IPv6 address that belongs to one of IPv4.
fn with_prefix(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(PREFIX.addr()) | u128::from(u32::from(address)))
}

/// Returns the first free address behind `last`. The first of the subnet is the bridge's own.
fn next_free(subnet: Ipv4Net, last: Ipv4Addr, taken: &BTreeSet<&Ipv4Addr>) -> Option<Ipv4Addr> {
    let (first, end) = (u32::from(subnet.network()) + 2, u32::from(subnet.broadcast()));
    let behind = (u32::from(last) + 1).clamp(first, end);
    (behind..end).chain(first..behind).map(Ipv4Addr::from).find(|it| !taken.contains(it))
}

/// Returns the first subnet that meets none of `taken`, of those that Docker takes for its bridges.
fn choose_subnet(taken: &[IpNet]) -> Option<Ipv4Net> {
    let large = (17..=31).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|part| (Ipv4Addr::new(192, 168, part << 4, 0), 20));
    let all = large.chain(small).filter_map(|(address, length)| Ipv4Net::new(address, length).ok());
    let meets = |it: &Ipv4Net, other: &IpNet| other.contains(&IpNet::from(*it)) || IpNet::from(*it).contains(other);
    all.into_iter().find(|it| !taken.iter().any(|other| meets(it, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_meets_no_route() {
        let chosen = |taken: &[&str]| {
            let taken: Vec<IpNet> = taken.iter().map(|it| it.parse().unwrap()).collect();
            choose_subnet(&taken).map(|it| it.to_string())
        };
        let table: [(&[&str], _); 5] = [
            (&[], Some("172.17.0.0/16")),
            (&["172.17.0.0/16", "172.18.5.0/24", "fd00::/8"], Some("172.19.0.0/16")),
            (&["172.16.0.0/12"], Some("192.168.0.0/20")),
            (&["172.16.0.0/12", "192.168.1.0/24"], Some("192.168.16.0/20")),
            (&["172.16.0.0/12", "192.168.0.0/16"], None),
        ];
        for (taken, expected) in table {
            assert_eq!(chosen(taken).as_deref(), expected, "{taken:?}");
        }
    }

    #[test]
    fn an_address_is_given_again_only_after_all_others() {
        let subnet: Ipv4Net = "172.17.0.0/29".parse().unwrap();
        let address = |last: u8| Ipv4Addr::new(172, 17, 0, last);
        let next = |last: u8, taken: &[u8]| {
            let taken: Vec<Ipv4Addr> = taken.iter().map(|it| address(*it)).collect();
            next_free(subnet, address(last), &taken.iter().collect()).map(|it| it.octets()[3])
        };
        assert_eq!(next(1, &[]), Some(2), "the first one is the bridge's");
        assert_eq!(next(2, &[]), Some(3), "2 is free again");
        assert_eq!(next(3, &[4, 5]), Some(6));
        assert_eq!(next(6, &[3]), Some(2), "7 is the broadcast address");
        assert_eq!(next(6, &[2, 3, 4, 5, 6]), None);
    }
}
