//! The flags of `ctl service create` and `update` for networks, ports and names.

use std::net::IpAddr;

use clap::Args;

use flota_api::model::{EndpointMode, HostEntry, NetworkAttachment, PublishedPort, ServiceSpec};
use flota_stack::publish;

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct NetworkFlags {
    /// Network to join, NAME or name=NAME[,alias=ALIAS]...; may be repeated
    #[arg(long, visible_alias = "network-add", value_name = "NETWORK", value_parser = network)]
    network: Vec<NetworkAttachment>,
    /// Port to publish, [PUBLISHED:]TARGET[/udp] or target=PORT[,published=PORT][,protocol=udp][,mode=host]; may be repeated
    #[arg(short, long, visible_alias = "publish-add", value_name = "PORT", value_parser = ports)]
    publish: Vec<Ports>,
    /// Kind of address that the service's name resolves to: vip (a virtual IP) or dnsrr (the addresses of its tasks)
    #[arg(long, value_parser = endpoint_mode)]
    endpoint_mode: Option<EndpointMode>,
    /// DNS server for names outside of the cluster; may be repeated (default: those of the node)
    #[arg(long, visible_alias = "dns-add", value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Domain in which short names are searched; may be repeated
    #[arg(long, visible_alias = "dns-search-add", value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver; may be repeated
    #[arg(long, visible_alias = "dns-option-add", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of its tasks' /etc/hosts, NAME:ADDRESS; may be repeated
    #[arg(long, visible_alias = "host-add", value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<HostEntry>,
}

/// The ports of one flag.
type Ports = std::sync::Arc<[PublishedPort]>;

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct NetworkRemovals {
    /// Network to leave
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Port to publish no longer, by the port of the task, TARGET[/udp]
    #[arg(long, value_name = "TARGET", value_parser = ports)]
    publish_rm: Vec<Ports>,
    /// DNS server to remove
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<IpAddr>,
    /// Search domain to remove
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Option of the resolver to remove
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Name to remove from /etc/hosts
    #[arg(long, value_name = "NAME")]
    host_rm: Vec<String>,
}

fn network(text: &str) -> Result<NetworkAttachment, Usage> {
    publish::network(text).map_err(Usage)
}

fn ports(text: &str) -> Result<Ports, Usage> {
    publish::ports(text).map(Into::into).map_err(Usage)
}

fn host(text: &str) -> Result<HostEntry, Usage> {
    publish::host(text).map_err(Usage)
}

fn endpoint_mode(text: &str) -> Result<EndpointMode, Usage> {
    let found = EndpointMode::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| Usage(format!("`{text}` is neither vip nor dnsrr")))
}

/// Adds the values that the list does not have.
fn add<T: PartialEq + Clone>(list: &mut Vec<T>, values: &[T]) {
    for value in values {
        if !list.contains(value) {
            list.push(value.clone());
        }
    }
}

impl NetworkFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        for network in &self.network {
            spec.networks.retain(|it| it.network != network.network);
            spec.networks.push(network.clone());
        }
        for port in self.publish.iter().flat_map(|it| it.iter()) {
            spec.ports
                .retain(|it| (it.target, it.protocol, it.published) != (port.target, port.protocol, port.published));
            spec.ports.push(*port);
        }
        spec.endpoint_mode = self.endpoint_mode.unwrap_or(spec.endpoint_mode);
        add(&mut spec.dns.servers, &self.dns);
        add(&mut spec.dns.search, &self.dns_search);
        add(&mut spec.dns.options, &self.dns_option);
        add(&mut spec.hosts, &self.add_host);
    }
}

impl NetworkRemovals {
    /// The networks to leave, as the user names them.
    pub(super) fn networks(&self) -> &[String] {
        &self.network_rm
    }

    /// Removes the named items from the spec. `networks` are the ids of the networks to leave.
    pub(super) fn apply(&self, spec: &mut ServiceSpec, networks: &[String]) -> Result<(), Usage> {
        for (id, name) in networks.iter().zip(&self.network_rm) {
            if !spec.networks.iter().any(|it| it.network.as_str() == id) {
                return Err(Usage(format!("--network-rm {name}: the service is not in this network")));
            }
            spec.networks.retain(|it| it.network.as_str() != id);
        }
        for port in self.publish_rm.iter().flat_map(|it| it.iter()) {
            let is_meant = |it: &PublishedPort| (it.target, it.protocol) == (port.target, port.protocol);
            if !spec.ports.iter().any(is_meant) {
                let (target, protocol) = (port.target, port.protocol);
                return Err(Usage(format!("--publish-rm {target}/{protocol}: the service does not publish it")));
            }
            spec.ports.retain(|it| !is_meant(it));
        }
        spec.dns.servers.retain(|it| !self.dns_rm.contains(it));
        spec.dns.search.retain(|it| !self.dns_search_rm.contains(it));
        spec.dns.options.retain(|it| !self.dns_option_rm.contains(it));
        spec.hosts.retain(|it| !self.host_rm.contains(&it.name));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: NetworkFlags,
        #[command(flatten)]
        removals: NetworkRemovals,
    }

    fn updated(spec: &mut ServiceSpec, words: &str, networks: &[&str]) -> Result<(), String> {
        let update =
            Update::try_parse_from(["x"].into_iter().chain(words.split_whitespace())).map_err(|it| it.to_string())?;
        let networks: Vec<String> = networks.iter().map(|it| (*it).to_owned()).collect();
        update.removals.apply(spec, &networks).map_err(|it| it.to_string())?;
        update.flags.apply(spec);
        Ok(())
    }

    #[test]
    fn networks_ports_and_names_are_added_and_removed() {
        let mut spec = ServiceSpec::default();
        let words = "--network front --network name=back,alias=db -p 8080:80 --publish target=53,protocol=udp \
                     --dns 198.18.0.1 --dns-search a.b --dns-option ndots:1 --add-host db:10.0.0.1 --endpoint-mode dnsrr";
        updated(&mut spec, words, &[]).expect("good flags");
        assert_eq!((spec.networks.len(), spec.networks[1].aliases.join(" ")), (2, "db".into()));
        assert_eq!(spec.ports.iter().map(|it| it.target).collect::<Vec<_>>(), [80, 53]);
        assert_eq!((spec.endpoint_mode, spec.hosts.len()), (EndpointMode::Dnsrr, 1));
        let words = "--network-rm front --publish-rm 80 --dns-rm 198.18.0.1 --dns-search-rm a.b --dns-option-rm ndots:1 \
                     --host-rm db --endpoint-mode vip";
        updated(&mut spec, words, &["front"]).expect("good flags");
        assert_eq!((spec.networks.len(), spec.ports.len(), spec.hosts.len()), (1, 1, 0));
        assert_eq!(spec.dns, Default::default());
    }

    #[test]
    fn what_the_service_does_not_have_and_what_is_no_port_is_refused() {
        let refused = |words: &str| updated(&mut ServiceSpec::default(), words, &["x"]).expect_err(words);
        assert_eq!(refused("--network-rm x"), "--network-rm x: the service is not in this network");
        assert_eq!(refused("--publish-rm 80/udp"), "--publish-rm 80/udp: the service does not publish it");
        for words in ["-p 0", "-p 1:65536", "-p 1-2:3-5", "--endpoint-mode x", "--add-host x", "--network alias=x"] {
            assert!(updated(&mut ServiceSpec::default(), words, &[]).is_err(), "{words}");
        }
    }
}
