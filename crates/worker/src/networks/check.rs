//! Checks one of this node's networks: real packets and questions from a task to one task on each other node, and if they
//! are lost, between the nodes themselves, so that the layer that fails is known. `linux/check.rs` plans it from what the
//! leader has told; this part blocks, for about six seconds if nothing answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use flota_api::id::NodeId;
use flota_api::model::{BalancerReport, LayerFailure, NetworkLayer, NetworkReport, PeerReport};
use flota_network::{Namespace, NetworkError, dns, echo};

use super::Chain;

/// Where a task's DNS server is.
const DNS_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);
/// Bytes of a packet that fits everywhere.
const SMALL: usize = 64;

/// A check that is still to be made.
#[derive(Debug, Default)]
pub(crate) struct CheckPlan {
    pub(super) balancer: BalancerReport,
    /// `None` if no task of this node is in the network.
    pub(super) origin: Option<ProbeOrigin>,
    pub(super) peers: Vec<ProbeTarget>,
    /// Number of nodes that are left out of `peers`.
    pub(super) unprobed: u32,
}

/// Where probes come from.
#[derive(Debug)]
pub(super) struct ProbeOrigin {
    /// The namespace of a task, and the addresses that it has in the network.
    pub(super) task: Namespace,
    pub(super) addresses: Vec<IpAddr>,
    /// The namespace of the node, and its address in the underlay.
    pub(super) host: Namespace,
    pub(super) underlay: Option<IpAddr>,
    /// The largest packet of the network, if it is known.
    pub(super) mtu: Option<usize>,
}

/// A task on another node.
#[derive(Debug)]
pub(super) struct ProbeTarget {
    pub(super) node: NodeId,
    /// Its name in the network, if there is DNS.
    pub(super) name: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    /// The address of its node in the underlay.
    pub(super) underlay: Option<IpAddr>,
    /// The virtual IPs whose connections should also go to it, and do not.
    pub(super) missing_in: Vec<IpAddr>,
}

impl CheckPlan {
    /// Makes the check; with `probe` false, it says only what is known without.
    pub(crate) fn carry_out(self, probe: bool) -> NetworkReport {
        let Self { balancer, origin, peers, unprobed } = self;
        let Some(origin) = origin.filter(|_| probe) else {
            return NetworkReport { balancer, ..NetworkReport::default() };
        };
        let peers = std::thread::scope(|scope| {
            let origin = &origin;
            let probing: Vec<_> =
                peers.iter().map(|target| (target, scope.spawn(move || origin.probe(target)))).collect();
            let failed = |target: &ProbeTarget| PeerReport {
                node: target.node.clone(),
                round_trip: None,
                failures: vec![failure(NetworkLayer::Vxlan, "the probe panicked".into())],
            };
            probing.into_iter().map(|(target, probe)| probe.join().unwrap_or_else(|_| failed(target))).collect()
        });
        NetworkReport { balancer, peers, unprobed }
    }
}

impl ProbeOrigin {
    fn probe(&self, target: &ProbeTarget) -> PeerReport {
        let (mut round_trip, mut failures) = (None, Vec::new());
        for to in &target.addresses {
            let Some(from) = self.addresses.iter().find(|from| from.is_ipv4() == to.is_ipv4()) else { continue };
            match echoed(&self.task, *from, *to, SMALL) {
                Ok(time) => {
                    round_trip = round_trip.or(Some(time));
                    failures.extend(self.probe_size(*from, *to));
                }
                Err(why) => failures.push(self.locate(target, why)),
            }
        }
        failures.extend(target.name.as_ref().and_then(|name| self.probe_name(target, name)));
        let lacks = |address: &IpAddr| format!("connections to {address} are not sent to the task there");
        failures.extend(target.missing_in.iter().map(|it| failure(NetworkLayer::Balancer, lacks(it))));
        // With two addresses, the underlay is probed twice.
        failures.dedup();
        PeerReport { node: target.node.clone(), round_trip, failures }
    }

    /// Probes a packet of the size that the interfaces of tasks send.
    fn probe_size(&self, from: IpAddr, to: IpAddr) -> Option<LayerFailure> {
        let size = self.mtu?;
        let why = |why: String| format!("packets of {size} bytes are lost: {why}");
        echoed(&self.task, from, to, size).err().map(|it| failure(NetworkLayer::Mtu, why(it)))
    }

    /// Finds out whether packets between tasks are lost on the way between their nodes.
    fn locate(&self, target: &ProbeTarget, why: String) -> LayerFailure {
        let (Some(from), Some(to)) = (self.underlay, target.underlay) else {
            return failure(NetworkLayer::Underlay, "the address of a node is not known".into());
        };
        match echoed(&self.host, from, to, SMALL) {
            Ok(_) => failure(NetworkLayer::Vxlan, why),
            Err(why) => failure(NetworkLayer::Underlay, why),
        }
    }

    fn probe_name(&self, target: &ProbeTarget, name: &str) -> Option<LayerFailure> {
        let of_version = |is_ipv6| target.addresses.iter().copied().filter(move |it| it.is_ipv6() == is_ipv6);
        let is_ipv6 = of_version(false).next().is_none();
        let why = match dns::ask(&self.task, DNS_SERVER, name, is_ipv6) {
            Ok(found) if of_version(is_ipv6).all(|it| found.contains(&it)) => return None,
            Ok(found) if found.is_empty() => format!("`{name}` has no address"),
            Ok(found) => format!("`{name}` has the addresses {found:?} instead of {:?}", target.addresses),
            Err(error) => Chain(&error).to_string(),
        };
        Some(failure(NetworkLayer::Dns, why))
    }
}

/// Returns how long a packet takes there and back, or why it does not come back.
fn echoed(namespace: &Namespace, from: IpAddr, to: IpAddr, size: usize) -> Result<Duration, String> {
    let answered = |error: NetworkError| Chain(&error).to_string();
    echo(namespace, from, to, size).map_err(answered)?.ok_or_else(|| format!("{to} does not answer"))
}

fn failure(layer: NetworkLayer, why: String) -> LayerFailure {
    LayerFailure { layer, why }
}
