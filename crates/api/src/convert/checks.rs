//! Conversion of checks of networks.

use std::time::Duration;

use super::Malformed;
use crate::model::{Balancer, BalancerReport, LayerFailure, NetworkCheck, NetworkLayer, NetworkReport, PeerReport};
use crate::proto::streams as ps;

impl From<ps::CheckRequest> for NetworkCheck {
    fn from(it: ps::CheckRequest) -> Self {
        Self { network: it.network.into(), probe: it.probe }
    }
}

impl From<NetworkReport> for ps::NetworkReport {
    fn from(it: NetworkReport) -> Self {
        let BalancerReport { kind, virtual_ips, backends, differences } = it.balancer;
        let kind = kind.map(|kind| kind.to_string()).unwrap_or_default();
        Self {
            balancer: Some(ps::BalancerReport { kind, virtual_ips, backends, differences }),
            peers: it.peers.into_iter().map(Into::into).collect(),
            unprobed: it.unprobed,
        }
    }
}

impl TryFrom<ps::NetworkReport> for NetworkReport {
    type Error = Malformed;
    fn try_from(it: ps::NetworkReport) -> Result<Self, Malformed> {
        let ps::BalancerReport { kind, virtual_ips, backends, differences } = it.balancer.unwrap_or_default();
        let known = Balancer::ALL.iter().find(|known| known.as_str() == kind);
        Ok(Self {
            balancer: BalancerReport { kind: known.copied(), virtual_ips, backends, differences },
            peers: it.peers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            unprobed: it.unprobed,
        })
    }
}

impl From<PeerReport> for ps::PeerReport {
    fn from(it: PeerReport) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let failure = |it: LayerFailure| ps::LayerFailure { layer: it.layer.to_string(), why: it.why };
        Self {
            node: it.node.into(),
            round_trip_us: it.round_trip.map(micros),
            failures: it.failures.into_iter().map(failure).collect(),
        }
    }
}

impl TryFrom<ps::PeerReport> for PeerReport {
    type Error = Malformed;
    fn try_from(it: ps::PeerReport) -> Result<Self, Malformed> {
        let failure = |it: ps::LayerFailure| {
            let layer = NetworkLayer::ALL.iter().find(|known| known.as_str() == it.layer).copied();
            let layer = layer.ok_or(Malformed::new("failures.layer", "has an unknown value"))?;
            Ok(LayerFailure { layer, why: it.why })
        };
        Ok(Self {
            node: it.node.into(),
            round_trip: it.round_trip_us.map(Duration::from_micros),
            failures: it.failures.into_iter().map(failure).collect::<Result<_, Malformed>>()?,
        })
    }
}
