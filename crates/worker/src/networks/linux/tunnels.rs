//! The tunnels of encrypted networks: which nodes they connect, and with which keys. Only nodes that share an encrypted
//! network are let in, and only with the interfaces that they have there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use flota_api::id::NetworkId;
use flota_network::{Audit, PublicKey, Sender, Tunnels, TunnelsChange, TunnelsSpec};

use super::reach::{Member, Reach, known};
use super::{LinuxKernel, LinuxOptions, VXLAN_PORT};
use crate::networks::Chain;
use crate::networks::kernel::KernelError;
use crate::networks::keys::KeyRing;
use crate::networks::view::{KnownNetwork, View};

/// The tunnels, their keys, and whom they connect.
#[derive(Debug, Default)]
pub(super) struct TunnelState {
    /// `None` if the kernel can't encrypt.
    pub(super) ring: Option<KeyRing>,
    made: Option<Tunnels>,
    members: BTreeMap<(NetworkId, Member), Reach>,
    /// The keys of other nodes, each with the address to which packets for it go, and the number of members that have it.
    peers: BTreeMap<PublicKey, (SocketAddr, usize)>,
    /// The number of members behind each sender.
    senders: BTreeMap<Sender, usize>,
    /// What the kernel does not have yet.
    pending: TunnelsChange,
    /// Former ways, which are used until the new ones are there.
    leaving: Vec<Reach>,
}

impl TunnelState {
    /// Creates the state of a node with these keys and without tunnels.
    pub(super) fn new(ring: Option<KeyRing>) -> Self {
        Self { ring, ..Self::default() }
    }

    /// Changes the way to a member of a network. The former one stays until [`Self::release`].
    pub(super) fn set(&mut self, id: &NetworkId, member: &Member, reach: Option<Reach>) {
        let place = (id.clone(), member.clone());
        if self.members.get(&place) == reach.as_ref() {
            return;
        }
        reach.iter().for_each(|it| self.want(it));
        let former = match reach {
            Some(reach) => self.members.insert(place, reach),
            None => self.members.remove(&place),
        };
        self.leaving.extend(former);
    }

    /// Removes the ways to all members of a network.
    pub(super) fn forget(&mut self, id: &NetworkId) {
        self.leaving.extend(self.members.extract_if(.., |(network, _), _| network == id).map(|(_, reach)| reach));
    }

    fn want(&mut self, reach: &Reach) {
        for (key, endpoint) in &reach.keys {
            let (known, members) = self.peers.entry(*key).or_insert((*endpoint, 0));
            if *members == 0 || known != endpoint {
                self.pending.peers.insert(*key, Some(*endpoint));
            }
            (*known, *members) = (*endpoint, *members + 1);
        }
        for sender in reach.senders() {
            let members = self.senders.entry(sender).or_default();
            if *members == 0 {
                self.pending.senders.insert(sender, true);
            }
            *members += 1;
        }
    }

    fn unwant(&mut self, reach: &Reach) {
        for (key, _) in &reach.keys {
            if let Some((_, members)) = self.peers.get_mut(key) {
                *members -= 1;
                if *members == 0 {
                    self.peers.remove(key);
                    self.pending.peers.insert(*key, None);
                }
            }
        }
        for sender in reach.senders() {
            if let Some(members) = self.senders.get_mut(&sender) {
                *members -= 1;
                if *members == 0 {
                    self.senders.remove(&sender);
                    self.pending.senders.insert(sender, false);
                }
            }
        }
    }

    /// Makes the kernel accept packets of exactly the peers and senders that are recorded here.
    pub(super) fn admit(&mut self) -> Result<(), KernelError> {
        if let Some(made) = self.made.as_mut().filter(|_| self.pending != TunnelsChange::default()) {
            made.change(self.pending.clone())?;
        }
        self.pending = TunnelsChange::default();
        Ok(())
    }

    /// Gives up the former ways, which nothing uses any more.
    pub(super) fn release(&mut self) -> Result<(), KernelError> {
        std::mem::take(&mut self.leaving).iter().for_each(|it| self.unwant(it));
        self.admit()
    }

    /// Makes the tunnels, from this address of the node, or takes over those of an earlier daemon.
    fn ensure(&mut self, options: &LinuxOptions, local: IpAddr) -> Result<&Tunnels, KernelError> {
        let ring = self.ring.as_ref().ok_or(KernelError::NoEncryption)?;
        match &mut self.made {
            Some(made) => made.set_local(local)?,
            None => {
                self.pending = TunnelsChange::default();
                let spec = TunnelsSpec {
                    local,
                    vxlan_port: VXLAN_PORT,
                    keys: ring.keys(),
                    peers: self.peers.iter().map(|(key, (endpoint, _))| (*key, *endpoint)).collect(),
                    senders: self.senders.keys().copied().collect(),
                };
                self.made = Some(Tunnels::ensure(&options.host, &options.folder.tunnels(), spec)?);
            }
        }
        self.made.as_ref().ok_or(KernelError::NoEncryption)
    }

    /// Makes the kernel have the keys of the ring.
    fn set_keys(&mut self) -> Result<(), KernelError> {
        let (Some(ring), Some(made)) = (&self.ring, &mut self.made) else { return Ok(()) };
        Ok(made.set_keys(ring.keys())?)
    }

    pub(super) fn audit(&mut self) -> Option<Audit> {
        self.made.as_mut().map(Tunnels::audit)
    }
}

impl LinuxKernel {
    /// Makes the tunnels, for all encrypted networks of the view: those of an earlier daemon must lose no member that
    /// they have.
    pub(super) fn ensure_tunnels(&mut self, view: &View, local: IpAddr) -> Result<&Tunnels, KernelError> {
        if self.tunnels.made.is_none() {
            for network in view.networks.values().filter(|it| it.config.encrypted) {
                self.reach_members(network);
            }
        }
        self.tunnels.ensure(&self.options, local)
    }

    /// Wants the ways to all members of a network.
    pub(super) fn reach_members(&mut self, network: &KnownNetwork) {
        for task in network.endpoints.keys() {
            let member = Member::Task(task.clone());
            let reach = known(&self.options.node, network, &member).and_then(|it| it.reach);
            self.tunnels.set(&network.config.id, &member, reach);
        }
    }

    /// Removes the tunnels if no network needs them.
    pub(super) fn sweep_tunnels(&mut self, view: &View) -> Result<(), KernelError> {
        let is_needed = view.networks.values().any(|it| it.config.encrypted);
        if is_needed || self.networks.values().any(|it| it.is_encrypted) {
            return Ok(());
        }
        self.remove_tunnels()
    }

    /// Removes the tunnels. Networks that use them reach no other node any more.
    pub(super) fn remove_tunnels(&mut self) -> Result<(), KernelError> {
        self.tunnels.made = None;
        Ok(flota_network::remove_network(&self.options.folder.tunnels())?)
    }

    /// Makes another key if the one that there is has become old. Packets for it are received before anyone is told of it.
    pub(super) fn renew_tunnel_key(&mut self) {
        let now = self.options.clock.now();
        let Some(ring) = self.tunnels.ring.as_mut().filter(|it| it.is_due(now)) else { return };
        // Tunnels of an earlier daemon, which this one has not taken over yet, do not receive with a new key.
        if self.tunnels.made.is_none() && self.options.folder.tunnels().exists() {
            return;
        }
        let added = ring.add(now).map_err(KernelError::from);
        if let Err(error) = added.and_then(|()| self.tunnels.set_keys()) {
            tracing::warn!(error = %Chain(&error), "failed to make another key for encrypted networks");
            let cancelled = self.tunnels.ring.as_mut().map_or(Ok(()), |ring| ring.cancel(now));
            if let Err(error) = cancelled.map_err(KernelError::from).and_then(|()| self.tunnels.set_keys()) {
                tracing::warn!(error = %Chain(&error), "failed to remove a key for encrypted networks");
            }
        }
    }

    /// Sends with this key, and forgets those before it.
    pub(super) fn settle_tunnel_key(&mut self, public: [u8; 32]) {
        let Some(ring) = &mut self.tunnels.ring else { return };
        let settled = ring.settle(public).map_err(KernelError::from);
        // If only the file could not be written, the others take this node to use the new key all the same.
        let used = if matches!(settled, Ok(false)) { Ok(()) } else { self.tunnels.set_keys() };
        match settled.and_then(|is_new| used.map(|()| is_new)) {
            Ok(true) => tracing::info!("this node sends with its new key in encrypted networks"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "failed to replace a key for encrypted networks");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flota_api::model::TunnelKey as ApiTunnelKey;

    use super::*;

    fn key(byte: u8) -> ApiTunnelKey {
        ApiTunnelKey { public: [byte; 32], port: 51_820 }
    }

    fn reach(last: u8, node: u8, keys: &[ApiTunnelKey]) -> Option<Reach> {
        Reach::to(&[[10, 0, 0, last].into()], [198, 18, 0, node].into(), keys).map(|(reach, _)| reach)
    }

    fn member(task: &str) -> Member {
        Member::Task(task.into())
    }

    fn endpoint(node: u8) -> SocketAddr {
        SocketAddr::new([198, 18, 0, node].into(), 51_820)
    }

    /// Takes what the kernel would be told: keys with the nodes that they lead to, and the number of senders that come
    /// and go.
    fn told(state: &mut TunnelState) -> (Vec<(u8, Option<SocketAddr>)>, usize, usize) {
        let change = std::mem::take(&mut state.pending);
        let comes = change.senders.values().filter(|it| **it).count();
        let peers = change.peers.iter().map(|(key, endpoint)| (key.0[0], *endpoint)).collect();
        (peers, comes, change.senders.len() - comes)
    }

    #[test]
    fn a_peer_is_let_in_with_its_first_member_and_goes_with_its_last() {
        let (mut state, id) = (TunnelState::default(), NetworkId::from("n"));
        state.set(&id, &member("a"), reach(2, 1, &[key(1)]));
        assert_eq!(told(&mut state), (vec![(1, Some(endpoint(1)))], 1, 0));
        state.set(&id, &member("b"), reach(3, 1, &[key(1)]));
        assert_eq!(told(&mut state), (vec![], 1, 0), "only another interface of the same node");
        state.set(&id, &member("b"), reach(3, 1, &[key(1)]));
        assert_eq!(told(&mut state), (vec![], 0, 0), "nothing is new");
        state.set(&id, &member("a"), None);
        assert_eq!(told(&mut state), (vec![], 0, 0), "the way is used until it is released");
        state.release().unwrap();
        assert_eq!(state.peers.len(), 1, "another member has it");
        state.forget(&id);
        state.release().unwrap();
        assert!(state.peers.is_empty() && state.senders.is_empty() && state.members.is_empty());
    }

    #[test]
    fn both_keys_of_a_node_are_let_in_until_it_has_dropped_the_older_one() {
        let (mut state, id) = (TunnelState::default(), NetworkId::from("n"));
        state.set(&id, &member("a"), reach(2, 1, &[key(1)]));
        told(&mut state);
        state.set(&id, &member("a"), reach(2, 1, &[key(1), key(2)]));
        assert_eq!(told(&mut state), (vec![(2, Some(endpoint(1)))], 1, 0));
        state.leaving.drain(..).collect::<Vec<_>>().iter().for_each(|it| state.unwant(it));
        assert_eq!(told(&mut state), (vec![], 0, 0), "the older one stays");
        state.set(&id, &member("a"), reach(2, 1, &[key(2)]));
        state.leaving.drain(..).collect::<Vec<_>>().iter().for_each(|it| state.unwant(it));
        assert_eq!(told(&mut state), (vec![(1, None)], 0, 1));
    }

    #[test]
    fn a_node_that_moves_is_found_at_its_new_address() {
        let (mut state, id) = (TunnelState::default(), NetworkId::from("n"));
        state.set(&id, &member("a"), reach(2, 1, &[key(1)]));
        told(&mut state);
        state.set(&id, &member("a"), reach(2, 9, &[key(1)]));
        state.leaving.drain(..).collect::<Vec<_>>().iter().for_each(|it| state.unwant(it));
        assert_eq!(told(&mut state), (vec![(1, Some(endpoint(9)))], 0, 0));
    }
}
