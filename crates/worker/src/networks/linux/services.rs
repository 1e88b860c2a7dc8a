//! Services: their virtual IPs in the balancer, and their names in the DNS directory.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;

use tokio::time::Instant;

use flota_api::id::{NetworkId, ServiceId};
use flota_api::model::Balancer as BalancerKind;
use flota_network::dns::DirectoryError;
use flota_network::{Balancer, NetworkKey, Pool, VirtualAddress};

use super::{LinuxKernel, LinuxOptions};
use crate::networks::kernel::KernelError;
use crate::networks::names;
use crate::networks::view::{KnownNetwork, View};

/// Opens the balancer that the node's owner wants, or else the one by BPF if the kernel can do it.
pub(super) fn open_balancer(options: &LinuxOptions) -> io::Result<(Balancer, BalancerKind)> {
    let group = options.group.as_deref().ok_or_else(|| io::Error::other("no cgroup2 is mounted"));
    let bpf = |group| Balancer::bpf(group, Instant::now().into_std()).map_err(io::Error::other);
    match options.balancer {
        Some(BalancerKind::Nftables) => {
            // Programs of an earlier daemon would still replace addresses.
            group.map_or(Ok(()), |group| Balancer::detach(group).map_err(io::Error::other))?;
            Ok((Balancer::nftables(), BalancerKind::Nftables))
        }
        Some(BalancerKind::Bpf) => Ok((group.and_then(bpf)?, BalancerKind::Bpf)),
        None => match group.and_then(bpf) {
            Ok(balancer) => Ok((balancer, BalancerKind::Bpf)),
            Err(error) => {
                tracing::warn!(error = %crate::networks::Chain(&error), "virtual IPs are balanced by nftables on this node");
                Ok((Balancer::nftables(), BalancerKind::Nftables))
            }
        },
    }
}

impl LinuxKernel {
    /// Makes a service's pools and names what they are in the view.
    pub(super) fn set_service(&mut self, view: &View, id: &NetworkId, service: &ServiceId) -> Result<(), KernelError> {
        let network = view.network(id);
        let known = network.and_then(|it| it.services.get(service));
        if let (Some(network), Some(known)) = (network, known) {
            self.set_names(network, names::of_service(known))?;
            // A change of the service's names changes those of its tasks.
            for endpoint in network.endpoints_of(service) {
                self.set_names(network, [names::of_endpoint(endpoint, Some(known))])?;
            }
        } else {
            names::service_keys(service).iter().for_each(|key| self.directory.remove(id.as_str(), key));
        }
        let Some(made) = self.networks.get(id) else { return Ok(()) };
        let wanted = known.map(|it| it.virtual_ips.clone()).unwrap_or_default();
        let old = made.virtual_ips.get(service).cloned().unwrap_or_default();
        let backends = network.map(|it| it.backends(service)).unwrap_or_default();
        let gone: Vec<IpAddr> = old.iter().filter(|it| !wanted.contains(it)).copied().collect();
        let set = self.set_pools(id, &wanted, &gone, &backends);
        if let Some(made) = self.networks.get_mut(id) {
            // What could not be removed is removed at the next try.
            let left = if set.is_err() { gone } else { Vec::new() };
            let kept: Vec<IpAddr> = wanted.into_iter().chain(left).collect();
            if kept.is_empty() {
                made.virtual_ips.remove(service);
            } else {
                made.virtual_ips.insert(service.clone(), kept);
            }
        }
        set
    }

    pub(super) fn set_pools(
        &mut self,
        id: &NetworkId,
        wanted: &[IpAddr],
        gone: &[IpAddr],
        backends: &[IpAddr],
    ) -> Result<(), KernelError> {
        let (balancer, now) = (&mut self.balancer, Instant::now().into_std());
        for address in gone {
            balancer.remove(place(id, *address), now)?;
        }
        for address in wanted {
            balancer.set(place(id, *address), &pool(*address, backends), now)?;
        }
        Ok(())
    }

    /// Sets names. One that DNS can't carry is logged: the others work. A network that has no names here, such as `host`, gets
    /// none.
    pub(super) fn set_names(
        &self,
        network: &KnownNetwork,
        entries: impl IntoIterator<Item = names::Keyed>,
    ) -> Result<(), KernelError> {
        if network.is_ingress() {
            return Ok(());
        }
        for (key, entry) in entries {
            match self.directory.set(network.config.id.as_str(), &key, entry) {
                Err(error @ DirectoryError::InvalidName(_)) => {
                    tracing::warn!(network.id = %network.config.id, %error, "a name is left out");
                }
                Ok(()) | Err(DirectoryError::NoNetwork(_)) => {}
            }
        }
        Ok(())
    }
}

/// Returns the balancer's number of a network, which is the same after a restart of the daemon.
pub(super) fn key(id: &NetworkId) -> NetworkKey {
    let hash = ring::digest::digest(&ring::digest::SHA256, id.as_str().as_bytes());
    let number = hash.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    NetworkKey(NonZeroU64::new(number).unwrap_or(NonZeroU64::MAX))
}

pub(super) fn place(network: &NetworkId, address: IpAddr) -> VirtualAddress {
    VirtualAddress { network: key(network), address }
}

/// Returns the backends that a virtual IP can have.
pub(super) fn pool(address: IpAddr, backends: &[IpAddr]) -> Pool {
    let backends = backends.iter().filter(|it| it.is_ipv4() == address.is_ipv4());
    Pool { backends: backends.copied().collect(), affinity: false }
}

/// Returns everything that the balancer should have for a view and the members of its networks.
pub(super) fn wanted_pools(view: &View) -> BTreeMap<VirtualAddress, Pool> {
    let services = view.networks.values().flat_map(|network| network.services.values().map(move |it| (network, it)));
    let pools = services.flat_map(|(network, service)| {
        let backends = network.backends(&service.service);
        let id = &network.config.id;
        service.virtual_ips.iter().map(move |address| (place(id, *address), pool(*address, &backends)))
    });
    pools.collect()
}
