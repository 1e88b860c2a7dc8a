//! Networks of a stack, and what its services say of networks, ports and names.

use std::collections::BTreeMap;

use flota_api::model::{
    DnsConfig, HostEntry, NetworkAttachment, NetworkDriver, NetworkSpec, Protocol, PublishMode, PublishedPort,
    ServiceSpec, SubnetSpec,
};

use super::labels;
use crate::fields::Fields;
use crate::publish;
use crate::tree::{Fault, Node, Value};

/// The network of services that name none.
const DEFAULT: &str = "default";

/// The networks that a file declares.
pub(super) struct Declared {
    /// The full name of each, by its key.
    names: BTreeMap<String, String>,
    /// Those that belong to the stack; the default one only once a service has joined it.
    specs: Vec<NetworkSpec>,
    default: Option<NetworkSpec>,
}

impl Declared {
    /// Reads the top-level key `networks`.
    pub(super) fn read(stack: &str, node: Option<&Node>) -> Result<Self, Fault> {
        let full = |key: &str| format!("{stack}_{key}");
        let mut declared = Self { names: BTreeMap::new(), specs: Vec::new(), default: None };
        for (key, node) in node.map(Node::map).transpose()?.into_iter().flatten() {
            let (name, spec) = network(key, full(key), node)?;
            declared.names.insert(key.clone(), name);
            if key == DEFAULT {
                declared.default = spec;
            } else {
                declared.specs.extend(spec);
            }
        }
        if !declared.names.contains_key(DEFAULT) {
            declared.names.insert(DEFAULT.to_owned(), full(DEFAULT));
            declared.default = Some(NetworkSpec { name: full(DEFAULT), ..NetworkSpec::default() });
        }
        Ok(declared)
    }

    /// Reads what a service says of networks, ports and names. `key` is the service's own, by which the others know it.
    pub(super) fn service(&mut self, key: &str, keys: &mut Fields<'_>, spec: &mut ServiceSpec) -> Result<(), Fault> {
        let mode = keys.get("network_mode");
        // As in Docker, an empty list stands for the default network. `network_mode: none` gives none.
        let named = keys.get("networks").filter(|node| !node.is_empty());
        spec.networks = match (named, mode) {
            (Some(node), None) => self.joined(key, node)?,
            (None, Some(node)) => vec![node.parsed(shared)?],
            (Some(_), Some(node)) => return Err(node.fault("a service with `networks` has no `network_mode`")),
            (None, None) => vec![self.join(key, DEFAULT).ok_or_else(|| keys.fault("there is no default network"))?],
        };
        spec.ports = keys.read("ports", ports)?.unwrap_or_default();
        // It only informs readers of the file: tasks of one network reach each other on every port.
        let _ = keys.read("expose", Node::list)?;
        spec.dns = DnsConfig {
            servers: keys.read("dns", addresses)?.unwrap_or_default(),
            search: keys.read("dns_search", one_or_more)?.unwrap_or_default(),
            options: keys.read("dns_opt", one_or_more)?.unwrap_or_default(),
        };
        spec.hosts = keys.read("extra_hosts", hosts)?.unwrap_or_default();
        Ok(())
    }

    /// Returns the networks of the stack.
    pub(super) fn finish(self) -> Vec<NetworkSpec> {
        self.specs
    }

    fn joined(&mut self, service: &str, node: &Node) -> Result<Vec<NetworkAttachment>, Fault> {
        let mut all = Vec::new();
        let mut add = |declared: &mut Self, key: &str, node: &Node, aliases: Vec<String>| {
            let mut attachment = declared.join(service, key).ok_or_else(|| {
                node.fault(format!("the network `{key}` is not declared under the file's key `networks`"))
            })?;
            attachment.aliases.extend(aliases);
            all.push(attachment);
            Ok::<_, Fault>(())
        };
        match &node.value {
            Value::Map(map) => {
                for (key, node) in map {
                    let aliases = if matches!(node.value, Value::Null) { Vec::new() } else { aliases(node)? };
                    add(self, key, node, aliases)?;
                }
            }
            _ => {
                for node in node.list()? {
                    add(self, &node.text()?, node, Vec::new())?;
                }
            }
        }
        Ok(all)
    }

    /// Returns the attachment of a service to the network with this key.
    fn join(&mut self, service: &str, key: &str) -> Option<NetworkAttachment> {
        let network = self.names.get(key)?.as_str().into();
        if key == DEFAULT {
            self.specs.extend(self.default.take());
        }
        Some(NetworkAttachment { network, aliases: vec![service.to_owned()] })
    }
}

fn aliases(node: &Node) -> Result<Vec<String>, Fault> {
    let mut keys = node.fields()?;
    let aliases = keys.read("aliases", Node::texts)?.unwrap_or_default();
    keys.finish()?;
    Ok(aliases)
}

/// Parses a `network_mode`.
fn shared(text: &str) -> Result<NetworkAttachment, String> {
    match text {
        "host" | "none" => Ok(NetworkAttachment { network: text.into(), aliases: Vec::new() }),
        _ => Err(format!("`{text}` is neither host nor none")),
    }
}

/// Reads a network. Returns its full name, and its spec unless it is an external one.
fn network(key: &str, full: String, node: &Node) -> Result<(String, Option<NetworkSpec>), Fault> {
    if matches!(node.value, Value::Null) {
        return Ok((full.clone(), Some(NetworkSpec { name: full, ..NetworkSpec::default() })));
    }
    let mut keys = node.fields()?;
    let name = keys.text("name")?;
    if keys.read("external", Node::flag)?.unwrap_or_default() {
        keys.finish()?;
        return Ok((name.unwrap_or_else(|| key.to_owned()), None));
    }
    let mut spec = NetworkSpec { name: name.unwrap_or(full), ..NetworkSpec::default() };
    spec.driver = keys.read("driver", |it| it.parsed(driver))?.unwrap_or(spec.driver);
    spec.labels = keys.read("labels", labels)?.unwrap_or_default();
    spec.internal = keys.read("internal", Node::flag)?.unwrap_or_default();
    spec.attachable = keys.read("attachable", Node::flag)?.unwrap_or_default();
    spec.ipv6 = keys.read("enable_ipv6", Node::flag)?.unwrap_or_default();
    for (name, value) in keys.get("driver_opts").map(Node::map).transpose()?.into_iter().flatten() {
        let text = value.text()?;
        crate::option(&mut spec, name, &text).map_err(|why| value.fault(why))?;
    }
    spec.subnets = keys.read("ipam", subnets)?.unwrap_or_default();
    keys.finish()?;
    Ok((spec.name.clone(), Some(spec)))
}

fn driver(text: &str) -> Result<NetworkDriver, String> {
    let found = NetworkDriver::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is not a driver; a driver is overlay, bridge or macvlan"))
}

fn subnets(node: &Node) -> Result<Vec<SubnetSpec>, Fault> {
    let mut keys = node.fields()?;
    let subnet = |node: &Node| {
        let mut keys = node.fields()?;
        let auxiliary = |node: &Node| -> Result<_, Fault> {
            node.map()?.iter().map(|(name, node)| Ok((name.clone(), node.parsed(str::parse)?))).collect()
        };
        let subnet = SubnetSpec {
            prefix: keys.required("subnet")?.parsed(str::parse)?,
            gateway: keys.read("gateway", |it| it.parsed(str::parse))?,
            range: keys.read("ip_range", |it| it.parsed(str::parse))?,
            auxiliary: keys.read("aux_addresses", auxiliary)?.unwrap_or_default(),
        };
        keys.finish()?;
        Ok(subnet)
    };
    let config = keys.read("config", |node| node.list()?.iter().map(subnet).collect())?;
    if let Some(driver) = keys.get("driver").filter(|it| it.text().is_ok_and(|it| it != "default")) {
        return Err(driver.fault("only the driver `default` is supported"));
    }
    keys.finish()?;
    Ok(config.unwrap_or_default())
}

fn ports(node: &Node) -> Result<Vec<PublishedPort>, Fault> {
    let mut all = Vec::new();
    for node in node.list()? {
        all.extend(match &node.value {
            Value::Map(_) => long_port(node)?,
            _ => node.parsed(publish::ports)?,
        });
    }
    Ok(all)
}

fn long_port(node: &Node) -> Result<Vec<PublishedPort>, Fault> {
    let mut keys = node.fields()?;
    let target = keys.required("target")?.text()?;
    let published = keys.text("published")?;
    let protocol = keys.read("protocol", |it| it.parsed(publish::parse_protocol))?.unwrap_or(Protocol::Tcp);
    let mode = keys.read("mode", |it| it.parsed(publish::parse_mode))?.unwrap_or(PublishMode::Ingress);
    // They only inform readers of the file.
    let _ = (keys.text("name")?, keys.text("app_protocol")?);
    keys.finish()?;
    publish::pair(published.as_deref(), &target, protocol, mode).map_err(|why| node.fault(why))
}

fn one_or_more(node: &Node) -> Result<Vec<String>, Fault> {
    if let Value::Scalar(_) = node.value { Ok(vec![node.text()?]) } else { node.texts() }
}

fn addresses(node: &Node) -> Result<Vec<std::net::IpAddr>, Fault> {
    let parse = |text: String| text.parse().map_err(|_| node.fault(format!("`{text}` is not an IP address")));
    one_or_more(node)?.into_iter().map(parse).collect()
}

fn hosts(node: &Node) -> Result<Vec<HostEntry>, Fault> {
    match &node.value {
        Value::Map(map) => map
            .iter()
            .map(|(name, node)| Ok(HostEntry { name: name.clone(), address: node.parsed(str::parse)? }))
            .collect(),
        _ => node.list()?.iter().map(|node| node.parsed(publish::host)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use crate::load::parse;
    use flota_api::model::StackSpec;

    fn stack(text: &str) -> Result<StackSpec, String> {
        parse(text, "shop", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))
    }

    #[test]
    fn services_without_networks_share_the_default_one_and_know_each_other_by_their_keys() {
        let stack = stack("services:\n  web: { image: a }\n  db: { image: a }\n").expect("a good file");
        assert_eq!(stack.networks.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["shop_default"]);
        let joined = |index: usize| &stack.services[index].networks;
        assert_eq!((joined(0)[0].network.as_str(), joined(0)[0].aliases.join(" ")), ("shop_default", "db".into()));
        assert_eq!(joined(1)[0].aliases, ["web"]);
        for empty in ["", "[]", "{}"] {
            let stack = self::stack(&format!("services:\n  web: {{ image: a, networks: {empty} }}\n"));
            assert_eq!(stack.expect("a good file").services[0].networks[0].network.as_str(), "shop_default", "{empty}");
        }
    }

    #[test]
    fn networks_ports_and_names_of_a_file_are_understood() {
        let text = "
networks:
  back:
    driver: overlay
    driver_opts: { com.docker.network.driver.mtu: 1400 }
    internal: true
    enable_ipv6: true
    ipam: { config: [{ subnet: 10.1.0.0/16, gateway: 10.1.0.9, ip_range: 10.1.4.0/24, aux_addresses: { r: 10.1.4.7 } }] }
  front:
  outside: { external: true, name: corp }
services:
  web:
    image: a
    networks: { back: { aliases: [www] }, front: , outside: }
    ports: [\"8080:80\", { target: 53, published: 5353, protocol: udp, mode: host }]
    expose: [9000]
    dns: 198.18.0.1
    dns_search: [a.b]
    dns_opt: [\"ndots:1\"]
    extra_hosts: [\"db:10.0.0.1\"]
  job:
    image: a
    network_mode: host
";
        let stack = stack(text).expect("a good file");
        assert_eq!(stack.networks.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["shop_back", "shop_front"]);
        let back = &stack.networks[0];
        assert_eq!((back.mtu, back.internal, back.ipv6), (Some(1_400), true, true));
        assert_eq!(back.subnets[0].auxiliary.len(), 1);
        assert_eq!(stack.services[0].networks[0].network.as_str(), "host");
        let web = &stack.services[1];
        let joined: Vec<String> =
            web.networks.iter().map(|it| format!("{} {}", it.network, it.aliases.join(" "))).collect();
        assert_eq!(joined, ["shop_back web www", "shop_front web", "corp web"]);
        assert_eq!(web.ports.iter().map(|it| it.published).collect::<Vec<_>>(), [Some(8_080), Some(5_353)]);
        assert_eq!((web.dns.servers.len(), web.dns.search.len(), web.dns.options.len(), web.hosts.len()), (1, 1, 1, 1));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_key() {
        let service = |keys: &str| stack(&format!("services:\n  web:\n    image: a\n    {keys}\n")).expect_err(keys);
        for (keys, expected) in [
            ("networks: [x]", "services.web.networks[0]: the network `x` is not declared"),
            ("network_mode: bridge", "services.web.network_mode: `bridge` is neither host nor none"),
            ("ports: [\"0:80:80\"]", "services.web.ports[0]: `0:80:80`: a port is published on every address"),
            ("ports: [{ published: 80 }]", "services.web.ports[0]: the key `target` is missing"),
            ("ports: [\"65536\"]", "services.web.ports[0]: `65536` is not a port"),
            ("extra_hosts: [x]", "services.web.extra_hosts[0]: `x` does not have the form NAME:ADDRESS"),
            ("dns: x", "services.web.dns: `x` is not an IP address"),
        ] {
            let error = service(keys);
            assert!(error.starts_with(expected), "{keys}: {error}");
        }
        let error = stack("networks: { a: { driver: x } }\nservices: { web: { image: a } }").expect_err("no driver");
        assert!(error.starts_with("networks.a.driver: `x` is not a driver"), "{error}");
        let error =
            stack("networks: { a: { driver_opts: { x: y } } }\nservices: { web: { image: a } }").expect_err("x");
        assert!(error.starts_with("networks.a.driver_opts.x: `x` is not an option of a network"), "{error}");
    }
}
