//! Conversion of networks, their addresses and published ports.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{FromNumber, Malformed, filled, require};
use crate::model::{
    AddressPool, Attachment, DnsConfig, HostEntry, LastGiven, ListeningTask, Network, NetworkAttachment, NetworkSpec,
    NodePort, PublishedPort, Subnet, SubnetSpec, VirtualIp,
};
use crate::proto::{objects as po, specs as ps, types as pt};

/// Returns the values as texts.
pub(crate) fn texts<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Parses an address or a prefix; the error names the field.
pub(crate) fn parse<T: FromStr>(text: &str, field: &'static str) -> Result<T, Malformed> {
    let wrong =
        |_| Malformed::new(field, format!("has `{}`, which is not an IP address or subnet", text.escape_debug()));
    text.parse().map_err(wrong)
}

/// Parses an address or a prefix, or returns `None` for an empty text; the error names the field.
pub(crate) fn parse_filled<T: FromStr>(text: &str, field: &'static str) -> Result<Option<T>, Malformed> {
    if text.is_empty() { Ok(None) } else { parse(text, field).map(Some) }
}

pub(crate) fn parse_all<T: FromStr>(texts: &[String], field: &'static str) -> Result<Vec<T>, Malformed> {
    texts.iter().map(|text| parse(text, field)).collect()
}

/// Converts every element of a repeated field.
pub(crate) fn all<W, T: TryFrom<W, Error = Malformed>>(values: Vec<W>) -> Result<Vec<T>, Malformed> {
    values.into_iter().map(TryInto::try_into).collect()
}

fn text_of<T: Display>(value: Option<T>) -> String {
    value.map(|it| it.to_string()).unwrap_or_default()
}

impl From<&SubnetSpec> for ps::SubnetSpec {
    fn from(it: &SubnetSpec) -> Self {
        Self {
            prefix: it.prefix.to_string(),
            gateway: text_of(it.gateway),
            range: text_of(it.range),
            auxiliary: it.auxiliary.iter().map(|(name, address)| (name.clone(), address.to_string())).collect(),
        }
    }
}

impl TryFrom<ps::SubnetSpec> for SubnetSpec {
    type Error = Malformed;
    fn try_from(it: ps::SubnetSpec) -> Result<Self, Malformed> {
        let auxiliary = it.auxiliary.into_iter().map(|(name, text)| Ok((name, parse(&text, "subnets.auxiliary")?)));
        Ok(Self {
            prefix: parse(&it.prefix, "subnets.prefix")?,
            gateway: parse_filled(&it.gateway, "subnets.gateway")?,
            range: parse_filled(&it.range, "subnets.range")?,
            auxiliary: auxiliary.collect::<Result<_, Malformed>>()?,
        })
    }
}

impl From<&NetworkSpec> for ps::NetworkSpec {
    fn from(it: &NetworkSpec) -> Self {
        Self {
            name: it.name.clone(),
            labels: it.labels.clone().into_iter().collect(),
            driver: it.driver.number(),
            subnets: it.subnets.iter().map(Into::into).collect(),
            ipv6: it.ipv6,
            internal: it.internal,
            attachable: it.attachable,
            encrypted: it.encrypted,
            mtu: it.mtu.unwrap_or_default(),
            parent: it.parent.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<ps::NetworkSpec> for NetworkSpec {
    type Error = Malformed;
    fn try_from(it: ps::NetworkSpec) -> Result<Self, Malformed> {
        Ok(Self {
            name: it.name,
            labels: it.labels.into_iter().collect(),
            driver: FromNumber::from_number(it.driver)?,
            subnets: all(it.subnets)?,
            ipv6: it.ipv6,
            internal: it.internal,
            attachable: it.attachable,
            encrypted: it.encrypted,
            mtu: Some(it.mtu).filter(|mtu| *mtu > 0),
            parent: filled(it.parent),
        })
    }
}

impl From<&Subnet> for pt::Subnet {
    fn from(it: &Subnet) -> Self {
        Self {
            prefix: it.prefix.to_string(),
            gateway: it.gateway.to_string(),
            virtual_range: it.virtual_range.to_string(),
        }
    }
}

impl TryFrom<pt::Subnet> for Subnet {
    type Error = Malformed;
    fn try_from(it: pt::Subnet) -> Result<Self, Malformed> {
        Ok(Self {
            prefix: parse::<IpNet>(&it.prefix, "subnet.prefix")?,
            gateway: parse(&it.gateway, "subnet.gateway")?,
            virtual_range: parse(&it.virtual_range, "subnet.virtual_range")?,
        })
    }
}

impl From<&Network> for po::Network {
    fn from(it: &Network) -> Self {
        Self {
            id: it.id.to_string(),
            meta: Some((&it.meta).into()),
            spec: Some(it.spec.as_ref().into()),
            vni: it.vni,
            subnets: it.subnets.iter().map(Into::into).collect(),
            last_tasks: texts(&it.last_given.tasks),
            last_services: texts(&it.last_given.services),
            last_port: it.last_given.port.unwrap_or_default().into(),
            stack_id: it.stack_id.clone().map(Into::into),
        }
    }
}

impl TryFrom<po::Network> for Network {
    type Error = Malformed;
    fn try_from(it: po::Network) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            spec: Arc::new(require(it.spec, "network.spec")?.try_into()?),
            vni: it.vni,
            subnets: all(it.subnets)?,
            last_given: LastGiven {
                tasks: parse_all(&it.last_tasks, "network.last_tasks")?,
                services: parse_all(&it.last_services, "network.last_services")?,
                port: u16::try_from(it.last_port).ok().filter(|port| *port > 0),
            },
            stack_id: it.stack_id.map(Into::into),
        })
    }
}

impl From<&AddressPool> for po::AddressPool {
    fn from(it: &AddressPool) -> Self {
        Self { prefix: it.prefix.to_string(), subnet_length: it.subnet_length.into(), last: text_of(it.last) }
    }
}

impl TryFrom<po::AddressPool> for AddressPool {
    type Error = Malformed;
    fn try_from(it: po::AddressPool) -> Result<Self, Malformed> {
        let prefix: IpNet = parse(&it.prefix, "address_pools.prefix")?;
        let length = u8::try_from(it.subnet_length).ok();
        let length = length.filter(|length| (prefix.prefix_len()..=prefix.max_prefix_len()).contains(length));
        let subnet_length = length.ok_or(Malformed::new("address_pools.subnet_length", "has an impossible value"))?;
        Ok(Self { prefix, subnet_length, last: parse_filled(&it.last, "address_pools.last")? })
    }
}

macro_rules! addresses {
    ($($model:ident = $proto:ty, $field:literal;)*) => { $(
        impl From<&$model> for $proto {
            fn from(it: &$model) -> Self {
                Self { network: it.network.to_string(), addresses: texts(&it.addresses) }
            }
        }
        impl TryFrom<$proto> for $model {
            type Error = Malformed;
            fn try_from(it: $proto) -> Result<Self, Malformed> {
                Ok(Self { network: it.network.into(), addresses: parse_all(&it.addresses, $field)? })
            }
        }
    )* };
}

addresses! {
    Attachment = pt::Attachment, "attachments.addresses";
    VirtualIp = po::VirtualIp, "virtual_ips.addresses";
}

impl From<&NetworkAttachment> for ps::NetworkAttachment {
    fn from(it: &NetworkAttachment) -> Self {
        Self { network: it.network.to_string(), aliases: it.aliases.clone() }
    }
}

impl From<ps::NetworkAttachment> for NetworkAttachment {
    fn from(it: ps::NetworkAttachment) -> Self {
        Self { network: it.network.into(), aliases: it.aliases }
    }
}

impl From<&PublishedPort> for pt::PublishedPort {
    fn from(it: &PublishedPort) -> Self {
        Self {
            target: it.target.into(),
            published: it.published.unwrap_or_default().into(),
            protocol: it.protocol.number(),
            mode: it.mode.number(),
        }
    }
}

impl TryFrom<pt::PublishedPort> for PublishedPort {
    type Error = Malformed;
    fn try_from(it: pt::PublishedPort) -> Result<Self, Malformed> {
        let wrong = |field, port| Malformed::new(field, format!("is {port}; a port is between 1 and 65535"));
        let target = u16::try_from(it.target).ok().filter(|port| *port > 0);
        let published = u16::try_from(it.published).map_err(|_| wrong("ports.published", it.published))?;
        Ok(Self {
            target: target.ok_or_else(|| wrong("ports.target", it.target))?,
            published: Some(published).filter(|port| *port > 0),
            protocol: FromNumber::from_number(it.protocol)?,
            mode: FromNumber::from_number(it.mode)?,
        })
    }
}

impl From<&NodePort> for pt::NodePort {
    fn from(it: &NodePort) -> Self {
        Self { protocol: it.protocol.number(), number: it.number.into() }
    }
}

impl From<&ListeningTask> for pt::ListeningTask {
    fn from(it: &ListeningTask) -> Self {
        Self { port: Some((&it.port).into()), task_id: it.task.to_string() }
    }
}

impl TryFrom<pt::ListeningTask> for ListeningTask {
    type Error = Malformed;
    fn try_from(it: pt::ListeningTask) -> Result<Self, Malformed> {
        Ok(Self { port: require(it.port, "listening_tasks.port")?.try_into()?, task: it.task_id.into() })
    }
}

impl TryFrom<pt::NodePort> for NodePort {
    type Error = Malformed;
    fn try_from(it: pt::NodePort) -> Result<Self, Malformed> {
        let wrong = |_| Malformed::new("listeners", format!("has {}; a port is at most 65535", it.number));
        Ok(Self { protocol: FromNumber::from_number(it.protocol)?, number: u16::try_from(it.number).map_err(wrong)? })
    }
}

impl From<&DnsConfig> for ps::DnsConfig {
    fn from(it: &DnsConfig) -> Self {
        Self { servers: texts(&it.servers), search: it.search.clone(), options: it.options.clone() }
    }
}

impl TryFrom<Option<ps::DnsConfig>> for DnsConfig {
    type Error = Malformed;
    fn try_from(it: Option<ps::DnsConfig>) -> Result<Self, Malformed> {
        let it = it.unwrap_or_default();
        Ok(Self { servers: parse_all(&it.servers, "dns.servers")?, search: it.search, options: it.options })
    }
}

impl From<&HostEntry> for ps::HostEntry {
    fn from(it: &HostEntry) -> Self {
        Self { name: it.name.clone(), address: it.address.to_string() }
    }
}

impl TryFrom<ps::HostEntry> for HostEntry {
    type Error = Malformed;
    fn try_from(it: ps::HostEntry) -> Result<Self, Malformed> {
        Ok(Self { name: it.name, address: parse::<IpAddr>(&it.address, "hosts.address")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Balancer, EndpointMode, NetworkDriver, NodeDescription, Protocol, PublishMode, ServiceSpec, TunnelKey,
    };
    use crate::object::{Object, StoreObject};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn network() -> Network {
        let subnet = SubnetSpec {
            prefix: prefix("10.1.0.0/16"),
            gateway: Some(address("10.1.0.9")),
            range: Some(prefix("10.1.4.0/24")),
            auxiliary: [("router".to_owned(), address("10.1.4.7"))].into(),
        };
        let spec = NetworkSpec {
            name: "back".into(),
            driver: NetworkDriver::Macvlan,
            subnets: vec![subnet],
            ipv6: true,
            mtu: Some(1_400),
            parent: Some("eth1".into()),
            ..NetworkSpec::default()
        };
        Network {
            id: "n".into(),
            spec: Arc::new(spec),
            vni: Some(4_096),
            subnets: vec![Subnet {
                prefix: prefix("fd00:1::/64"),
                gateway: address("fd00:1::1"),
                virtual_range: prefix("fd00:1:0:0:c000::/66"),
            }],
            last_given: LastGiven {
                tasks: vec![address("10.1.4.8")],
                services: vec![address("fd00:1:0:0:c000::1")],
                port: Some(30_001),
            },
            stack_id: Some("k".into()),
            ..Network::default()
        }
    }

    #[test]
    fn a_network_survives_the_way_to_the_wire_and_back() {
        let object = network().into_object();
        assert_eq!(Object::try_from(po::Object::from(&object)), Ok(object));
    }

    #[test]
    fn what_a_spec_and_a_node_say_of_networks_survives_the_wire() {
        let spec = ServiceSpec {
            networks: vec![NetworkAttachment { network: "n".into(), aliases: vec!["db".into()] }],
            ports: vec![PublishedPort {
                target: 80,
                published: Some(8_080),
                protocol: Protocol::Udp,
                mode: PublishMode::Host,
            }],
            endpoint_mode: EndpointMode::Dnsrr,
            dns: DnsConfig {
                servers: vec![address("198.18.0.1")],
                search: vec!["a.b".into()],
                options: vec!["ndots:1".into()],
            },
            hosts: vec![HostEntry { name: "db".into(), address: address("fd00::5") }],
            ..ServiceSpec::default()
        };
        assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec));
        let description = NodeDescription {
            data_address: Some(address("198.18.0.2")),
            routes: vec![prefix("198.18.0.0/15")],
            listeners: vec![NodePort { protocol: Protocol::Udp, number: 53 }],
            listening_tasks: vec![(NodePort { protocol: Protocol::Udp, number: 53 }, "t".into()).into()],
            balancer: Some(Balancer::Nftables),
            tunnel_keys: vec![TunnelKey { public: [7; 32], port: 51_820 }],
            ..NodeDescription::default()
        };
        assert_eq!(NodeDescription::try_from(Some(pt::NodeDescription::from(&description))), Ok(description));
    }

    #[test]
    fn what_is_no_address_no_prefix_and_no_port_is_an_error_with_the_name_of_the_field() {
        let port = |target, published| pt::PublishedPort { target, published, ..Default::default() };
        let wrong_port = |wire: pt::PublishedPort| PublishedPort::try_from(wire).expect_err("no port").to_string();
        assert_eq!(wrong_port(port(0, 80)), "the field `ports.target` is 0; a port is between 1 and 65535");
        assert_eq!(wrong_port(port(65_536, 80)), "the field `ports.target` is 65536; a port is between 1 and 65535");
        assert_eq!(wrong_port(port(80, 65_536)), "the field `ports.published` is 65536; a port is between 1 and 65535");
        assert_eq!(PublishedPort::try_from(port(80, 0)).expect("one is chosen").published, None);
        let subnet = |prefix: &str| ps::SubnetSpec { prefix: prefix.into(), ..ps::SubnetSpec::default() };
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert_eq!(SubnetSpec::try_from(subnet(bad)).expect_err("no prefix").field, "subnets.prefix", "{bad}");
        }
        let pool = |length| po::AddressPool { prefix: "10.0.0.0/8".into(), subnet_length: length, last: String::new() };
        assert!(AddressPool::try_from(pool(24)).is_ok());
        assert!([7, 33, 300].into_iter().all(|length| AddressPool::try_from(pool(length)).is_err()));
    }
}
