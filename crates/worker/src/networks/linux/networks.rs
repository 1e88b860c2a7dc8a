//! The networks that this node has in the kernel: each a [`LocalNetwork`] in a namespace of its own, in which the tasks and
//! bridges of other nodes are remotes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use flota_api::id::{NetworkId, ServiceId, TaskId};
use flota_api::model::{NetworkDriver, Subnet as KnownSubnet};
use flota_network::{Driver, LocalNetwork, LocalNetworkSpec, Namespace, Remote, Subnet, Underlay};

use super::reach::{Known, Member, known, remotes};
use super::services::key;
use super::{LinuxKernel, VXLAN_PORT};
use crate::networks::Chain;
use crate::networks::kernel::KernelError;
use crate::networks::view::{KnownNetwork, Touched, View};

/// A network that this daemon has made or adopted.
#[derive(Debug)]
pub(super) struct MadeNetwork {
    pub(super) local: LocalNetwork,
    /// What other nodes have in it.
    pub(super) remotes: BTreeMap<Member, Remote>,
    /// The tasks of nodes that are down.
    pub(super) lost: BTreeSet<TaskId>,
    /// Whether the last change of the remotes has failed, so that the kernel may lack any of them.
    pub(super) has_failed: bool,
    /// Whether the last change of the spec has failed.
    pub(super) has_old_spec: bool,
    /// Whether it uses the tunnels.
    pub(super) is_encrypted: bool,
    /// The virtual IPs of each service.
    pub(super) virtual_ips: BTreeMap<ServiceId, Vec<IpAddr>>,
}

impl LinuxKernel {
    /// Returns the address from which this node sends overlay traffic.
    pub(super) fn local_address(&self, view: &View) -> Option<IpAddr> {
        let own = view.networks.values().find_map(|network| network.nodes.get(&self.options.node)?.vtep);
        own.or(self.options.address)
    }

    /// Returns what a network should be on this node; `None` if it needs nothing in the kernel (`host` and `none`).
    fn spec(&mut self, view: &View, network: &KnownNetwork) -> Result<Option<LocalNetworkSpec>, KernelError> {
        let config = &network.config;
        let mut mtu = config.mtu;
        let driver = match config.driver {
            NetworkDriver::Host | NetworkDriver::None => return Ok(None),
            NetworkDriver::Bridge => Driver::Bridge,
            NetworkDriver::Macvlan => Driver::Macvlan {
                parent: config.parent.clone().ok_or_else(|| KernelError::Incomplete(config.name.clone()))?,
            },
            NetworkDriver::Overlay => {
                let (vni, local) = (config.vni, self.local_address(view));
                let (Some(vni), Some(mut local)) = (vni, local) else {
                    return Err(KernelError::Incomplete(config.name.clone()));
                };
                if config.encrypted {
                    mtu = mtu.or(Some(self.ensure_tunnels(view, local)?.overlay_mtu()));
                    // The tunnels know which of this node's addresses there belongs to the key that is used.
                    local = Ipv6Addr::UNSPECIFIED.into();
                }
                Driver::Overlay(Underlay { local, port: VXLAN_PORT, vni })
            }
        };
        let subnet =
            |it: &KnownSubnet| Subnet { prefix: it.prefix, gateway: it.gateway, virtual_range: Some(it.virtual_range) };
        Ok(Some(LocalNetworkSpec {
            driver,
            subnets: config.subnets.iter().map(subnet).collect(),
            own_addresses: network.nodes.get(&self.options.node).map(|it| it.addresses.clone()).unwrap_or_default(),
            mtu,
            forwarding: !config.internal,
        }))
    }

    /// Makes a network of the view. Returns whether it was not there before, so that everything in it has to be made too.
    fn ensure(&mut self, view: &View, network: &KnownNetwork) -> Result<bool, KernelError> {
        let id = &network.config.id;
        let Some(spec) = self.spec(view, network)? else { return Ok(false) };
        match self.networks.get_mut(id) {
            Some(made) if *made.local.spec() == spec && !made.has_old_spec => Ok(false),
            Some(made) => {
                made.has_old_spec = true;
                made.local.update(spec)?;
                made.has_old_spec = false;
                Ok(false)
            }
            None => {
                let is_encrypted = network.config.encrypted;
                let tunnels = Namespace::at(&self.options.folder.tunnels());
                let underlay = if is_encrypted { &tunnels } else { &self.options.host };
                let mut local = LocalNetwork::ensure(underlay, &self.options.folder.network(id), spec)?;
                if is_encrypted {
                    self.reach_members(network);
                    self.tunnels.admit()?;
                }
                let remotes = remotes(&self.options.node, network);
                // What an earlier daemon has made goes with the next audit: the tasks of this node are not adopted yet.
                local.change_remotes(Vec::new(), remotes.values().cloned().collect())?;
                self.tunnels.release()?;
                let made = MadeNetwork {
                    local,
                    remotes,
                    lost: BTreeSet::new(),
                    is_encrypted,
                    virtual_ips: BTreeMap::new(),
                    has_failed: false,
                    has_old_spec: false,
                };
                self.networks.insert(id.clone(), made);
                if !network.is_ingress()
                    && let Err(error) = self.directory.set_network(id.as_str(), &network.config.name)
                {
                    tracing::warn!(network.id = %id, %error, "a network has no names");
                }
                Ok(true)
            }
        }
    }

    /// Removes a network that no task of this node has any more.
    pub(super) fn remove(&mut self, id: &NetworkId) -> Result<(), KernelError> {
        self.directory.remove_network(id.as_str());
        match self.networks.remove(id) {
            Some(made) => {
                let places: Vec<IpAddr> = made.virtual_ips.into_values().flatten().collect();
                self.set_pools(id, &[], &places, &[])?;
                made.local.remove()?;
            }
            None => flota_network::remove_network(&self.options.folder.network(id))?,
        }
        self.tunnels.forget(id);
        self.tunnels.release()
    }

    /// Makes the remotes of these members what they are in the view.
    pub(super) fn set_remotes(&mut self, view: &View, id: &NetworkId, members: Vec<Member>) -> Result<(), KernelError> {
        let (Some(network), Some(made)) = (view.network(id), self.networks.get_mut(id)) else { return Ok(()) };
        let (mut removed, mut added, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for member in members {
            let (wanted, reach) = match known(&self.options.node, network, &member) {
                Some(Known { remote, reach }) => (Some(remote), reach),
                None => (None, None),
            };
            self.tunnels.set(id, &member, reach);
            if made.remotes.get(&member) == wanted.as_ref() {
                continue;
            }
            let old = made.remotes.remove(&member);
            match wanted {
                Some(remote) => {
                    made.remotes.insert(member, remote.clone());
                    added.push(remote);
                }
                None => gone.extend(old.iter().flat_map(|it| it.addresses.clone())),
            }
            removed.extend(old);
        }
        // A way is there before it is used, and goes when it is not used any more.
        let admitted = self.tunnels.admit();
        if !made.is_encrypted {
            self.gate.outdated.add_senders(&removed, false);
            self.gate.outdated.add_senders(&added, true);
        }
        let changed = if made.has_failed {
            made.local.set_remotes(made.remotes.values().cloned().collect())
        } else {
            made.local.change_remotes(removed, added)
        };
        made.has_failed = changed.is_err();
        let released = self.tunnels.release();
        admitted?;
        changed?;
        released?;
        self.abort_to(id, &gone);
        Ok(())
    }

    /// Ends the connections that this node's tasks have to these addresses of a network. A task that has ended on another node
    /// may not have closed them, and they would hang for minutes.
    pub(super) fn abort_to(&mut self, id: &NetworkId, gone: &[IpAddr]) {
        let mut clients = self.tasks.values_mut().filter(|task| !gone.is_empty() && task.is_in(&key(id)));
        let aborted = clients.try_for_each(|task| task.abort_to(&mut self.balancer, gone));
        if let Err(error) = aborted {
            tracing::warn!(error = %Chain(&error), "connections to tasks that are gone were not ended");
        }
    }

    /// Makes a network what it is in the view, and adds to `todo` what has to be made in a new one.
    pub(super) fn set_network(
        &mut self,
        view: &View,
        in_use: bool,
        id: &NetworkId,
        todo: &mut Touched,
    ) -> Result<(), KernelError> {
        match view.network(id) {
            Some(network) => {
                if self.ensure(view, network)? {
                    todo.extend(Touched { networks: BTreeSet::new(), ..Touched::all_of(id, network) });
                }
                Ok(())
            }
            None if in_use => Ok(()),
            None => self.remove(id).and_then(|()| self.sweep_tunnels(view)),
        }
    }
}
