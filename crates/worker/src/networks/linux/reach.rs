//! What other nodes have in the networks of this one, and the way to it. In an encrypted network, the way leads through the
//! tunnels: to the newest key of the node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use flota_api::id::{NodeId, TaskId};
use flota_api::model::TunnelKey;
use flota_network::{Mac, PublicKey, Remote, Sender};

use crate::networks::view::KnownNetwork;

/// What has addresses in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Task(TaskId),
    Node(NodeId),
}

/// What another node has in a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    /// The interface, and the address of its node in the underlay.
    pub(super) remote: Remote,
    /// The way to it, in an encrypted network.
    pub(super) reach: Option<Reach>,
}

/// The way to what another node has in an encrypted network: its keys, oldest first, each with the address to which packets
/// for that key are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    mac: Mac,
    pub(super) keys: Vec<(PublicKey, SocketAddr)>,
}

impl Reach {
    /// Returns the way to an interface with these addresses on a node with this data address and these keys, and the remote
    /// that overlays know; `None` if the node has no key, because then there is no way to it.
    pub(super) fn to(addresses: &[IpAddr], node: IpAddr, keys: &[TunnelKey]) -> Option<(Self, Remote)> {
        let keys: Vec<_> = keys.iter().map(|it| (PublicKey(it.public), SocketAddr::new(node, it.port))).collect();
        // A node receives for all of its keys, and drops the older ones when nobody sends to them any more.
        let (newest, _) = keys.last()?;
        let remote = Remote { addresses: addresses.to_vec(), vtep: newest.address().into() };
        Some((Self { mac: Mac::of(addresses)?, keys }, remote))
    }

    pub(super) fn senders(&self) -> impl Iterator<Item = Sender> {
        self.keys.iter().map(|(key, _)| Sender { machine: key.address().into(), mac: self.mac })
    }
}

/// Returns what a member has in the network on another node than `own`. In an encrypted network, that is nothing if its
/// node has no key.
pub(super) fn known(own: &NodeId, network: &KnownNetwork, member: &Member) -> Option<Known> {
    let (node, addresses, vtep, keys) = match member {
        Member::Task(task) => {
            network.endpoints.get(task).map(|it| (&it.node, &it.addresses, it.vtep, &it.tunnel_keys[..]))?
        }
        Member::Node(node) => network.nodes.get(node).map(|it| (&it.node, &it.addresses, it.vtep, &[][..]))?,
    };
    let vtep = vtep.filter(|_| node != own && !addresses.is_empty())?;
    if network.config.encrypted {
        return Reach::to(addresses, vtep, keys).map(|(reach, remote)| Known { remote, reach: Some(reach) });
    }
    Some(Known { remote: Remote { addresses: addresses.clone(), vtep }, reach: None })
}

/// Returns what other nodes than `own` have in a network.
pub(super) fn remotes(own: &NodeId, network: &KnownNetwork) -> BTreeMap<Member, Remote> {
    let tasks = network.endpoints.keys().cloned().map(Member::Task);
    let members = tasks.chain(network.nodes.keys().cloned().map(Member::Node));
    members.filter_map(|member| known(own, network, &member).map(|it| (member, it.remote))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::view::tests::{endpoint, network};

    fn key(byte: u8) -> TunnelKey {
        TunnelKey { public: [byte; 32], port: 51_820 }
    }

    /// What `known` says of a task of the node `w1`, whose node has these keys.
    fn of_task(encrypted: bool, own: &str, keys: &[TunnelKey]) -> Option<Known> {
        let mut it = KnownNetwork::new(flota_api::model::NetworkConfig { encrypted, ..network("n") });
        let endpoint = flota_api::model::Endpoint { tunnel_keys: keys.to_vec(), ..endpoint("n", "t", 2, true) };
        it.insert_endpoint(endpoint);
        known(&own.into(), &it, &Member::Task("t".into()))
    }

    #[test]
    fn an_encrypted_network_reaches_nodes_by_their_keys_and_another_by_their_addresses() {
        let clear = of_task(false, "own", &[]).expect("there is a way");
        assert_eq!((clear.remote.vtep, clear.reach), ([198, 18, 0, 3].into(), None));
        assert_eq!(of_task(true, "w1", &[key(1)]), None, "its own task is here");
        assert_eq!(of_task(true, "own", &[]), None, "there is no way in clear");
        let Known { remote, reach } = of_task(true, "own", &[key(1), key(2)]).expect("there is a way");
        assert_eq!(remote.vtep, PublicKey([2; 32]).address(), "packets go to the newest key");
        let reach = reach.expect("it leads through the tunnels");
        let mac = Mac::of(&remote.addresses).expect("an address");
        let accepted = [1, 2].map(|byte| Sender { machine: PublicKey([byte; 32]).address().into(), mac });
        assert!(reach.senders().eq(accepted), "packets are accepted from both");
    }
}
