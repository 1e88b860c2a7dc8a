//! Conversion of the networks, services and endpoints that a node is told of in its session.

use prost::Message;

use super::networks::{all, parse_all, parse_filled, texts};
use super::{FromNumber, Malformed, filled};
use crate::model::{Endpoint, NetworkConfig, NetworkNode, NetworkService, NetworkUpdate};
use crate::proto::dispatcher as pd;

impl From<&NetworkConfig> for pd::NetworkConfig {
    fn from(it: &NetworkConfig) -> Self {
        Self {
            id: it.id.to_string(),
            name: it.name.clone(),
            driver: it.driver.number(),
            vni: it.vni,
            mtu: it.mtu.unwrap_or_default(),
            internal: it.internal,
            parent: it.parent.clone().unwrap_or_default(),
            encrypted: it.encrypted,
            subnets: it.subnets.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pd::NetworkConfig> for NetworkConfig {
    type Error = Malformed;
    fn try_from(it: pd::NetworkConfig) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            name: it.name,
            driver: FromNumber::from_number(it.driver)?,
            vni: it.vni,
            mtu: Some(it.mtu).filter(|mtu| *mtu > 0),
            internal: it.internal,
            parent: filled(it.parent),
            encrypted: it.encrypted,
            subnets: all(it.subnets)?,
        })
    }
}

impl From<&NetworkService> for pd::NetworkService {
    fn from(it: &NetworkService) -> Self {
        Self {
            network: it.network.to_string(),
            service: it.service.to_string(),
            name: it.name.clone(),
            aliases: it.aliases.clone(),
            virtual_ips: texts(&it.virtual_ips),
            ports: it.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pd::NetworkService> for NetworkService {
    type Error = Malformed;
    fn try_from(it: pd::NetworkService) -> Result<Self, Malformed> {
        Ok(Self {
            network: it.network.into(),
            service: it.service.into(),
            name: it.name,
            aliases: it.aliases,
            virtual_ips: parse_all(&it.virtual_ips, "services.virtual_ips")?,
            ports: all(it.ports)?,
        })
    }
}

impl From<&Endpoint> for pd::Endpoint {
    fn from(it: &Endpoint) -> Self {
        Self {
            network: it.network.to_string(),
            task: it.task.to_string(),
            service: it.service.to_string(),
            name: it.name.clone(),
            addresses: texts(&it.addresses),
            node: it.node.to_string(),
            vtep: it.vtep.map(|it| it.to_string()).unwrap_or_default(),
            serving: it.serving,
            lost: it.lost,
            tunnel_keys: it.tunnel_keys.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pd::Endpoint> for Endpoint {
    type Error = Malformed;
    fn try_from(it: pd::Endpoint) -> Result<Self, Malformed> {
        Ok(Self {
            network: it.network.into(),
            task: it.task.into(),
            service: it.service.into(),
            name: it.name,
            addresses: parse_all(&it.addresses, "endpoints.addresses")?,
            node: it.node.into(),
            vtep: parse_filled(&it.vtep, "endpoints.vtep")?,
            serving: it.serving,
            lost: it.lost,
            tunnel_keys: all(it.tunnel_keys)?,
        })
    }
}

impl From<&NetworkNode> for pd::NetworkNode {
    fn from(it: &NetworkNode) -> Self {
        Self {
            network: it.network.to_string(),
            node: it.node.to_string(),
            addresses: texts(&it.addresses),
            vtep: it.vtep.map(|it| it.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<pd::NetworkNode> for NetworkNode {
    type Error = Malformed;
    fn try_from(it: pd::NetworkNode) -> Result<Self, Malformed> {
        Ok(Self {
            network: it.network.into(),
            node: it.node.into(),
            addresses: parse_all(&it.addresses, "nodes.addresses")?,
            vtep: parse_filled(&it.vtep, "nodes.vtep")?,
        })
    }
}

fn members<N: ToString, M: ToString>(members: &[(N, M)]) -> Vec<pd::NetworkMember> {
    let wire = |(network, id): &(N, M)| pd::NetworkMember { network: network.to_string(), id: id.to_string() };
    members.iter().map(wire).collect()
}

fn from_members<N: From<String>, M: From<String>>(members: Vec<pd::NetworkMember>) -> Vec<(N, M)> {
    members.into_iter().map(|it| (it.network.into(), it.id.into())).collect()
}

impl From<&NetworkUpdate> for pd::Networks {
    fn from(it: &NetworkUpdate) -> Self {
        Self {
            version: it.version,
            full: it.full,
            networks: it.networks.iter().map(Into::into).collect(),
            removed_networks: texts(&it.removed_networks),
            services: it.services.iter().map(Into::into).collect(),
            removed_services: members(&it.removed_services),
            endpoints: it.endpoints.iter().map(Into::into).collect(),
            removed_endpoints: members(&it.removed_endpoints),
            nodes: it.nodes.iter().map(Into::into).collect(),
            removed_nodes: members(&it.removed_nodes),
            more: it.more,
        }
    }
}

impl NetworkUpdate {
    /// Encodes the update for a record on disk, as on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pd::Networks::from(self).encode_to_vec()
    }

    /// Decodes the update of a record.
    ///
    /// # Errors
    /// The bytes are damaged, or a field is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        pd::Networks::decode(bytes).map_err(|_| Malformed::new("networks", "is no protobuf message"))?.try_into()
    }
}

impl TryFrom<pd::Networks> for NetworkUpdate {
    type Error = Malformed;
    fn try_from(it: pd::Networks) -> Result<Self, Malformed> {
        Ok(Self {
            version: it.version,
            full: it.full,
            networks: all(it.networks)?,
            removed_networks: it.removed_networks.into_iter().map(Into::into).collect(),
            services: all(it.services)?,
            removed_services: from_members(it.removed_services),
            endpoints: all(it.endpoints)?,
            removed_endpoints: from_members(it.removed_endpoints),
            nodes: all(it.nodes)?,
            removed_nodes: from_members(it.removed_nodes),
            more: it.more,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NetworkDriver, Protocol, PublishMode, PublishedPort, Subnet, TunnelKey};

    #[test]
    fn an_update_survives_the_way_to_the_wire_and_back() {
        let address = |text: &str| text.parse().expect("an address");
        let update = NetworkUpdate {
            version: 7,
            full: true,
            networks: vec![NetworkConfig {
                id: "n".into(),
                name: "back".into(),
                driver: NetworkDriver::Overlay,
                vni: Some(4_097),
                mtu: Some(1_400),
                internal: true,
                parent: Some("eth1".into()),
                encrypted: true,
                subnets: vec![Subnet {
                    prefix: "10.0.1.0/24".parse().expect("a prefix"),
                    gateway: address("10.0.1.1"),
                    virtual_range: "10.0.1.192/26".parse().expect("a prefix"),
                }],
            }],
            removed_networks: vec!["m".into()],
            services: vec![NetworkService {
                network: "n".into(),
                service: "s".into(),
                name: "web".into(),
                aliases: vec!["www".into()],
                virtual_ips: vec![address("10.0.1.193")],
                ports: vec![PublishedPort {
                    target: 80,
                    published: Some(8_080),
                    protocol: Protocol::Tcp,
                    mode: PublishMode::Ingress,
                }],
            }],
            removed_services: vec![("n".into(), "r".into())],
            endpoints: vec![Endpoint {
                network: "n".into(),
                task: "t".into(),
                service: "s".into(),
                name: "web.1".into(),
                addresses: vec![address("10.0.1.2"), address("fd00::2")],
                node: "w".into(),
                vtep: Some(address("198.18.0.3")),
                serving: true,
                lost: true,
                tunnel_keys: vec![TunnelKey { public: [7; 32], port: 51_820 }],
            }],
            removed_endpoints: vec![("n".into(), "u".into())],
            nodes: vec![NetworkNode {
                network: "n".into(),
                node: "w".into(),
                addresses: vec![address("10.0.1.3")],
                vtep: None,
            }],
            removed_nodes: vec![("n".into(), "v".into())],
            more: true,
        };
        assert_eq!(NetworkUpdate::decode(&update.encode()), Ok(update));
        assert_eq!(NetworkUpdate::decode(&[255]).expect_err("damaged").field, "networks");
    }
}
