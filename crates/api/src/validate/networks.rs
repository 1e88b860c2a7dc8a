//! Validates networks, and what a service's spec says of networks, ports and names.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Violation;
use crate::defaults::LONGEST_PREFIX;
use crate::model::{
    EndpointMode, INGRESS, NetworkDriver, NetworkSpec, PublishMode, PublishedPort, ServiceSpec, SubnetSpec,
};
use crate::naming;

/// Shortest prefixes of a subnet with IPv4 and with IPv6; a larger subnet would hide too much of the world.
const SHORTEST_PREFIX: [u8; 2] = [8, 16];
/// Largest number of networks, of aliases in one of them, of ports, and of entries of each list of a service.
const ENTRIES_BOUND: usize = 64;
/// Largest number of subnets of a network that a user asks for.
const SUBNETS_BOUND: usize = 64;
/// Packet sizes that an interface can have: the least that carries IPv4 (RFC 791), and the most that its length field can
/// say.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;
/// The least packet size of IPv6 (RFC 8200 §5).
const IPV6_MTU: u32 = 1280;
/// Longest name of an interface (IFNAMSIZ without its end).
const INTERFACE_BOUND: usize = 15;

type Check<'a> = &'a mut dyn FnMut(&str, Result<(), String>);

/// Returns every rule that the spec of a network breaks by itself.
pub fn violations(spec: &NetworkSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut check = |field: &str, result: Result<(), String>| {
        if let Err(why) = result {
            found.push(Violation { field: field.to_owned(), why });
        }
    };
    check("name", name(&spec.name));
    check("driver", driver(spec));
    if spec.encrypted && spec.driver != NetworkDriver::Overlay {
        check("encrypted", Err(format!("only an overlay can be encrypted, not the driver {}", spec.driver)));
    }
    if let Some(mtu) = spec.mtu.filter(|mtu| !MTU.contains(mtu)) {
        check("mtu", Err(format!("{mtu} is not between {} and {}", MTU.start(), MTU.end())));
    }
    let has_ipv6 = spec.ipv6 || spec.subnets.iter().any(|it| it.prefix.addr().is_ipv6());
    if let Some(mtu) = spec.mtu.filter(|mtu| has_ipv6 && MTU.contains(mtu) && *mtu < IPV6_MTU) {
        check("mtu", Err(format!("{mtu} is less than {IPV6_MTU}, the least of IPv6")));
    }
    if spec.subnets.len() > SUBNETS_BOUND {
        check("subnets", Err(format!("there are {}, and {SUBNETS_BOUND} is the most", spec.subnets.len())));
    }
    for (index, it) in spec.subnets.iter().enumerate() {
        let earlier = spec.subnets[..index].iter().find(|earlier| meet(&earlier.prefix, &it.prefix));
        let overlap = earlier.map(|earlier| Err(format!("{} overlaps with {}", it.prefix, earlier.prefix)));
        let result = overlap.unwrap_or_else(|| prefix(&it.prefix));
        let is_good = result.is_ok();
        check(&format!("subnets[{index}].prefix"), result);
        if is_good {
            subnet(index, it, &mut check);
        }
    }
    found
}

/// Whether two prefixes have an address in common.
pub fn meet(left: &IpNet, right: &IpNet) -> bool {
    left.contains(right) || right.contains(left)
}

fn name(name: &str) -> Result<(), String> {
    naming::check(name).map_err(|error| error.to_string())?;
    let is_reserved = name == INGRESS || NetworkDriver::ALL.iter().any(|driver| driver.as_str() == name);
    if is_reserved {
        return Err(format!("`{name}` means a driver or a network of every cluster"));
    }
    // Names of tasks end with it.
    dns_name(name)
}

fn driver(spec: &NetworkSpec) -> Result<(), String> {
    let is_interface = |name: &str| {
        (1..=INTERFACE_BOUND).contains(&name.len()) && name.bytes().all(|it| it.is_ascii_graphic() && it != b'/')
    };
    match (spec.driver, spec.parent.as_deref()) {
        (NetworkDriver::Host | NetworkDriver::None, _) => {
            Err(format!("every cluster has the one network `{}` of this driver", spec.driver))
        }
        (NetworkDriver::Macvlan, Some(parent)) if !is_interface(parent) => {
            Err(format!("the parent `{}` is not a name of an interface", parent.escape_debug()))
        }
        (NetworkDriver::Macvlan, None) => Err("macvlan needs the option `parent`, an interface of the nodes".into()),
        (NetworkDriver::Macvlan, Some(_)) if spec.subnets.is_empty() => {
            Err("macvlan needs the subnet of the network that its parent belongs to".into())
        }
        (NetworkDriver::Overlay | NetworkDriver::Bridge, Some(_)) => {
            Err(format!("{} takes no option `parent`", spec.driver))
        }
        _ => Ok(()),
    }
}

fn prefix(prefix: &IpNet) -> Result<(), String> {
    let family = usize::from(prefix.addr().is_ipv6());
    let is_mapped = matches!(prefix.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    let network = prefix.network();
    if is_mapped {
        return Err(format!("{prefix} is IPv4 in the form of IPv6; write it as IPv4"));
    }
    if *prefix != prefix.trunc() {
        return Err(format!("{prefix} has bits behind its prefix; the subnet is {}", prefix.trunc()));
    }
    if prefix.prefix_len() > LONGEST_PREFIX[family] {
        return Err(format!("{prefix} is too small; /{} is the smallest", LONGEST_PREFIX[family]));
    }
    if prefix.prefix_len() < SHORTEST_PREFIX[family] {
        return Err(format!("{prefix} is too large; /{} is the largest", SHORTEST_PREFIX[family]));
    }
    let is_special = network.is_loopback() || network.is_multicast() || network.is_unspecified();
    if is_special { Err(format!("{prefix} has addresses that no interface can have")) } else { Ok(()) }
}

fn subnet(index: usize, spec: &SubnetSpec, check: Check<'_>) {
    let prefix = spec.prefix;
    let field = |name: &str| format!("subnets[{index}].{name}");
    let usable = |address: &IpAddr| {
        let is_edge = *address == prefix.network() || address.is_ipv4() && *address == prefix.broadcast();
        let is_good = prefix.contains(address) && !is_edge;
        is_good.then_some(()).ok_or_else(|| format!("{address} is not an address of a machine in {prefix}"))
    };
    if let Some(gateway) = &spec.gateway {
        check(&field("gateway"), usable(gateway));
    }
    if let Some(range) = &spec.range {
        let longest = LONGEST_PREFIX[usize::from(range.addr().is_ipv6())];
        check(
            &field("range"),
            match range {
                range if !prefix.contains(range) => Err(format!("{range} is not a part of {prefix}")),
                range if *range != range.trunc() => Err(format!("{range} has bits behind its prefix")),
                range if range.prefix_len() > longest => {
                    Err(format!("{range} is too small; /{longest} is the smallest"))
                }
                _ => Ok(()),
            },
        );
    }
    let mut taken: BTreeSet<IpAddr> = spec.gateway.into_iter().collect();
    for (name, address) in &spec.auxiliary {
        let twice = (!taken.insert(*address)).then(|| Err(format!("{address} is there twice")));
        check(&field(&format!("auxiliary.{name}")), twice.unwrap_or_else(|| usable(address)));
    }
}

/// Largest number of networks of a service. The balancer of a node searches 16 for a virtual IP, and one may be `ingress`.
const NETWORKS_BOUND: usize = 15;

/// Checks what a service's spec says of networks, ports and names.
pub(super) fn judge(spec: &ServiceSpec, check: Check<'_>) {
    let counts = [
        ("networks", spec.networks.len(), NETWORKS_BOUND),
        ("ports", spec.ports.len(), 16 * ENTRIES_BOUND),
        ("dns.servers", spec.dns.servers.len(), ENTRIES_BOUND),
        ("dns.search", spec.dns.search.len(), ENTRIES_BOUND),
        ("dns.options", spec.dns.options.len(), ENTRIES_BOUND),
        ("hosts", spec.hosts.len(), ENTRIES_BOUND),
    ];
    for (field, _, most) in counts.iter().filter(|(_, count, most)| count > most) {
        check(field, Err(format!("there are too many entries; {most} is the most")));
    }
    for (index, network) in spec.networks.iter().enumerate() {
        let is_twice = spec.networks[..index].iter().any(|it| it.network == network.network);
        check(&format!("networks[{index}]"), if is_twice { Err("it is there twice".into()) } else { Ok(()) });
        if network.aliases.len() > ENTRIES_BOUND {
            check(&format!("networks[{index}].aliases"), Err(format!("{ENTRIES_BOUND} aliases are the most")));
        }
        for (number, alias) in network.aliases.iter().enumerate() {
            check(&format!("networks[{index}].aliases[{number}]"), dns_name(alias));
        }
    }
    for (index, port) in spec.ports.iter().enumerate() {
        check(&format!("ports[{index}]"), published(port, &spec.ports[..index]));
    }
    if spec.endpoint_mode == EndpointMode::Dnsrr && spec.is_in_ingress() {
        check("endpoint_mode", Err("a service with ports on every node has the mode vip".into()));
    }
    for (index, domain) in spec.dns.search.iter().enumerate() {
        check(&format!("dns.search[{index}]"), if domain == "." { Ok(()) } else { dns_name(domain) });
    }
    for (index, option) in spec.dns.options.iter().enumerate() {
        let is_good = !option.is_empty() && option.bytes().all(|it| it.is_ascii_graphic());
        let why = || format!("`{}` is not an option of resolv.conf(5)", option.escape_debug());
        check(&format!("dns.options[{index}]"), is_good.then_some(()).ok_or_else(why));
    }
    for (index, entry) in spec.hosts.iter().enumerate() {
        check(&format!("hosts[{index}].name"), dns_name(&entry.name));
    }
}

fn published(port: &PublishedPort, earlier: &[PublishedPort]) -> Result<(), String> {
    if port.mode == PublishMode::Host && port.published.is_none() {
        return Err("a port in the mode host needs a published port".into());
    }
    let is_same = |it: &PublishedPort| it.protocol == port.protocol && it.published == port.published;
    match port.published.filter(|_| earlier.iter().any(is_same)) {
        Some(published) => Err(format!("{published}/{} is published twice", port.protocol)),
        None => Ok(()),
    }
}

/// Checks a name that programs look up: labels of letters, digits, `-` and `_`, of at most 63 characters (RFC 1035).
fn dns_name(name: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        let (first, last) = (label.bytes().next(), label.bytes().next_back());
        (1..=63).contains(&label.len())
            && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
            && [first, last].into_iter().flatten().all(|it| it != b'-')
    };
    let is_good = name.len() <= 253 && name.split('.').all(is_label);
    is_good.then_some(()).ok_or_else(|| format!("`{}` is not a DNS name", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HostEntry, NetworkAttachment, Protocol};

    fn subnet(prefix: &str) -> SubnetSpec {
        let prefix = prefix.parse().expect("a prefix");
        SubnetSpec { prefix, gateway: None, range: None, auxiliary: Default::default() }
    }

    fn found(spec: NetworkSpec) -> Vec<String> {
        violations(&spec).iter().map(ToString::to_string).collect()
    }

    fn with_subnets(subnets: Vec<SubnetSpec>) -> Vec<String> {
        found(NetworkSpec { name: "back".into(), subnets, ..NetworkSpec::default() })
    }

    #[test]
    fn a_network_that_cannot_be_is_refused_with_the_name_of_the_field() {
        assert!(with_subnets(vec![subnet("10.1.0.0/16"), subnet("fd00:1::/64")]).is_empty());
        for (prefix, expected) in [
            ("10.1.0.7/16", "subnets[0].prefix: 10.1.0.7/16 has bits behind its prefix; the subnet is 10.1.0.0/16"),
            ("10.1.0.0/30", "subnets[0].prefix: 10.1.0.0/30 is too small; /29 is the smallest"),
            ("0.0.0.0/0", "subnets[0].prefix: 0.0.0.0/0 is too large; /8 is the largest"),
            ("::ffff:10.1.0.0/112", "is IPv4 in the form of IPv6; write it as IPv4"),
            ("224.0.0.0/8", "subnets[0].prefix: 224.0.0.0/8 has addresses that no interface can have"),
        ] {
            let found = with_subnets(vec![subnet(prefix)]);
            assert!(found.len() == 1 && found[0].contains(expected), "{prefix}: {found:?}");
        }
        let overlap = with_subnets(vec![subnet("10.1.0.0/16"), subnet("10.1.4.0/24")]);
        assert_eq!(overlap, ["subnets[1].prefix: 10.1.4.0/24 overlaps with 10.1.0.0/16"]);
        let mut bad = subnet("10.1.0.0/24");
        bad.gateway = Some([10, 2, 0, 1].into());
        bad.range = Some("10.2.0.0/25".parse().expect("a prefix"));
        bad.auxiliary = [("a".to_owned(), [10, 1, 0, 255].into()), ("b".to_owned(), [10, 2, 0, 1].into())].into();
        let fields: Vec<String> =
            violations(&NetworkSpec { name: "x".into(), subnets: vec![bad], ..Default::default() })
                .into_iter()
                .map(|it| it.field)
                .collect();
        let expected = ["subnets[0].gateway", "subnets[0].range", "subnets[0].auxiliary.a", "subnets[0].auxiliary.b"];
        assert_eq!(fields, expected);
    }

    #[test]
    fn names_of_drivers_and_options_that_do_not_belong_to_them_are_refused() {
        for name in ["host", "overlay", "ingress", "none", "a b", "", "a..b"] {
            let found = found(NetworkSpec { name: name.into(), ..NetworkSpec::default() });
            assert!(found.len() == 1 && found[0].starts_with("name: "), "{name}: {found:?}");
        }
        let spec = |driver, parent: Option<&str>| NetworkSpec {
            name: "x".into(),
            driver,
            parent: parent.map(Into::into),
            ..NetworkSpec::default()
        };
        for bad in [
            spec(NetworkDriver::Host, None),
            spec(NetworkDriver::Macvlan, None),
            spec(NetworkDriver::Macvlan, Some("eth0")),
            spec(NetworkDriver::Overlay, Some("eth0")),
        ] {
            assert!(found(bad.clone())[0].starts_with("driver: "), "{bad:?}");
        }
        let subnets = vec![subnet("10.1.0.0/16")];
        assert!(found(NetworkSpec { subnets, ..spec(NetworkDriver::Macvlan, Some("eth0")) }).is_empty());
        let encrypted = |driver| found(NetworkSpec { encrypted: true, mtu: Some(1), ..spec(driver, None) });
        assert_eq!(encrypted(NetworkDriver::Overlay), ["mtu: 1 is not between 68 and 65535"]);
        let narrow = NetworkSpec { ipv6: true, mtu: Some(1279), ..spec(NetworkDriver::Overlay, None) };
        assert_eq!(found(narrow), ["mtu: 1279 is less than 1280, the least of IPv6"]);
        let expected = "encrypted: only an overlay can be encrypted, not the driver bridge";
        assert_eq!(encrypted(NetworkDriver::Bridge)[0], expected);
    }

    #[test]
    fn what_a_service_says_of_networks_and_ports_is_refused_with_the_name_of_the_field() {
        let port = |published, mode| PublishedPort { target: 80, published, protocol: Protocol::Tcp, mode };
        let network = |id: &str, alias: &str| NetworkAttachment { network: id.into(), aliases: vec![alias.into()] };
        let mut spec = ServiceSpec {
            networks: vec![network("a", "-db"), network("a", "a..b")],
            ports: vec![
                port(Some(80), PublishMode::Ingress),
                port(Some(80), PublishMode::Host),
                port(None, PublishMode::Host),
            ],
            endpoint_mode: EndpointMode::Dnsrr,
            hosts: vec![HostEntry { name: "a b".into(), address: [10, 0, 0, 1].into() }],
            ..ServiceSpec::default()
        };
        spec.dns.search = vec![".".into(), "a_b.c".into(), "x y".into()];
        spec.dns.options = vec!["ndots:1".into(), "a\nb".into()];
        let mut fields = Vec::new();
        judge(&spec, &mut |field, result| fields.extend(result.err().map(|_| field.to_owned())));
        let expected = [
            "networks[0].aliases[0]",
            "networks[1]",
            "networks[1].aliases[0]",
            "ports[1]",
            "ports[2]",
            "endpoint_mode",
            "dns.search[2]",
            "dns.options[1]",
            "hosts[0].name",
        ];
        assert_eq!(fields, expected);
        let many = (0..255).map(|number: u32| network(&number.to_string(), "x")).collect();
        let mut fields = Vec::new();
        judge(&ServiceSpec { networks: many, ..ServiceSpec::default() }, &mut |field, result| {
            fields.extend(result.err().map(|why| format!("{field}: {why}")));
        });
        assert_eq!(fields, ["networks: there are too many entries; 15 is the most"]);
    }
}
