//! `ctl network …` manages networks.

mod check;

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::{Value, json};

use flota_api::model::{Network as Object, NetworkDriver, NetworkSpec, SubnetSpec};
use flota_api::proto::control::{
    CreateNetworkRequest, GetRequest, NetworkEndpoint, NetworkHolder, NetworkRow, RemoveRequest,
};

use crate::client::{Client, request_id};
use crate::error::{Usage, named};
use crate::parse;
use crate::printer::{self, Format, ListOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Create a network
    Create(Box<Create>),
    /// List the networks
    Ls(ListOptions),
    /// Print everything about networks, with their services, tasks, nodes and what the nodes' balancers have
    Inspect {
        /// Networks: name, id, or beginning of an id
        networks: Vec<String>,
        /// Print a page for people
        #[arg(long)]
        pretty: bool,
    },
    /// Probe the ways between the nodes of a network, and say which fails at which layer
    Check {
        /// Format to print: table or json
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Network: name, id, or beginning of an id
        network: String,
    },
    /// Remove networks that no service uses
    Rm {
        /// Networks: name, id, or beginning of an id
        networks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Driver: overlay (between nodes), bridge (on each node by itself) or macvlan (in the nodes' own network)
    #[arg(short, long, default_value = "overlay", value_parser = driver)]
    driver: NetworkDriver,
    /// Subnet such as 10.1.0.0/16; may be repeated (default: from the cluster's pools)
    #[arg(long)]
    subnet: Vec<IpNet>,
    /// Gateway of the subnet that it belongs to; may be repeated (default: the first address)
    #[arg(long)]
    gateway: Vec<IpAddr>,
    /// Part of a subnet from which addresses are given; may be repeated
    #[arg(long)]
    ip_range: Vec<IpNet>,
    /// Address that is never given, NAME=ADDRESS; may be repeated
    #[arg(long, value_parser = auxiliary)]
    aux_address: Vec<(String, IpAddr)>,
    /// Keep its tasks from reaching anything outside of it
    #[arg(long)]
    internal: bool,
    /// Let other containers than those of services join it
    #[arg(long)]
    attachable: bool,
    /// Also give IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    /// Label, KEY=VALUE; may be repeated
    #[arg(long, value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Option of the driver, such as com.docker.network.driver.mtu=1400 or parent=eth1; may be repeated
    #[arg(short, long, value_parser = parse::label)]
    opt: Vec<(String, String)>,
    /// Name of the network
    name: String,
}

fn driver(text: &str) -> Result<NetworkDriver, Usage> {
    let found = NetworkDriver::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| Usage(format!("`{text}` is not a driver; a driver is overlay, bridge or macvlan")))
}

fn auxiliary(text: &str) -> Result<(String, IpAddr), Usage> {
    let parts = text.split_once('=').and_then(|(name, address)| Some((name.to_owned(), address.parse().ok()?)));
    parts.ok_or_else(|| Usage(format!("`{text}` does not have the form NAME=ADDRESS")))
}

impl Create {
    /// Returns the spec that the flags ask for.
    fn spec(self) -> Result<NetworkSpec, Usage> {
        let subnet =
            |prefix: &IpNet| SubnetSpec { prefix: *prefix, gateway: None, range: None, auxiliary: Default::default() };
        let mut subnets: Vec<SubnetSpec> = self.subnet.iter().map(subnet).collect();
        let outside = |flag: &str, value: &dyn std::fmt::Display| Usage(format!("{flag} {value}: no --subnet has it"));
        for gateway in self.gateway {
            let found = subnets.iter_mut().find(|it| it.prefix.contains(&gateway));
            found.ok_or_else(|| outside("--gateway", &gateway))?.gateway = Some(gateway);
        }
        for range in self.ip_range {
            let found = subnets.iter_mut().find(|it| it.prefix.contains(&range));
            found.ok_or_else(|| outside("--ip-range", &range))?.range = Some(range);
        }
        for (name, address) in self.aux_address {
            let found = subnets.iter_mut().find(|it| it.prefix.contains(&address));
            found.ok_or_else(|| outside("--aux-address", &address))?.auxiliary.insert(name, address);
        }
        let mut spec = NetworkSpec {
            name: self.name,
            labels: self.label.into_iter().collect(),
            driver: self.driver,
            subnets,
            ipv6: self.ipv6,
            internal: self.internal,
            attachable: self.attachable,
            ..NetworkSpec::default()
        };
        for (key, value) in self.opt {
            flota_stack::option(&mut spec, &key, &value).map_err(|why| Usage(format!("--opt {key}={value}: {why}")))?;
        }
        Ok(spec)
    }
}

pub(crate) async fn run(verb: Network, client: &Client) -> anyhow::Result<()> {
    match verb {
        Network::Create(flags) => {
            let request = CreateNetworkRequest { request_id: request_id(), spec: Some((&flags.spec()?).into()) };
            let network = client
                .change(request, |mut control, request| async move { control.create_network(request).await })
                .await?;
            printer::line(&network.id);
            Ok(())
        }
        Network::Ls(options) => ls(client, &options).await,
        Network::Inspect { networks, pretty } => {
            named(&networks)?;
            let mut found = Vec::new();
            for name in networks {
                found.push(inspected(client, name).await?);
            }
            printer::objects(found, pretty);
            Ok(())
        }
        Network::Check { format, network } => check::check(client, network, format).await,
        Network::Rm { networks } => {
            named(&networks)?;
            for name in networks {
                let request = RemoveRequest { request_id: request_id(), name: name.clone(), force: false };
                client
                    .change(request, |mut control, request| async move { control.remove_network(request).await })
                    .await?;
                printer::line(&name);
            }
            Ok(())
        }
    }
}

fn parsed(row: &NetworkRow) -> anyhow::Result<Object> {
    let network = row.network.clone().ok_or_else(|| anyhow::anyhow!("the manager's answer lacks a network"))?;
    Ok(Object::try_from(network)?)
}

/// Returns the id of a network.
pub(super) async fn id(client: &Client, name: &str) -> anyhow::Result<String> {
    let request = GetRequest { name: name.to_owned() };
    let row = client.read(request, |mut control, request| async move { control.get_network(request).await }).await?;
    Ok(parsed(&row)?.id.to_string())
}

async fn inspected(client: &Client, name: String) -> anyhow::Result<Value> {
    let request = GetRequest { name: name.clone() };
    let row = client.read(request, |mut control, request| async move { control.get_network(request).await }).await?;
    let mut balancers = check::balancers(client, name).await?;
    let mut value = serde_json::to_value(parsed(&row)?)?;
    let endpoint =
        |it: NetworkEndpoint| json!({ "task": it.task, "node": it.node, "addresses": it.addresses, "state": it.state });
    // A node without a running task in the network is not asked.
    let holder = |it: NetworkHolder| {
        let balancer = balancers.remove(&it.node);
        json!({ "node": it.node, "addresses": it.addresses, "programmed": it.programmed, "balancer": balancer })
    };
    value["services"] = json!(row.services);
    value["endpoints"] = row.endpoints.into_iter().map(endpoint).collect();
    value["nodes"] = row.nodes.into_iter().map(holder).collect();
    value["version"] = json!(row.version);
    Ok(value)
}

async fn ls(client: &Client, options: &ListOptions) -> anyhow::Result<()> {
    let networks = client
        .list(
            options.request(),
            |mut control, request| async move { control.list_networks(request).await },
            |whole, page| whole.networks.extend(page.networks),
        )
        .await?;
    printer::age(networks.header);
    let mut rows = Vec::new();
    for row in networks.networks {
        let network = parsed(&row)?;
        let subnets: Vec<String> = network.subnets.iter().map(|it| it.prefix.to_string()).collect();
        let value = json!({
            "id": network.id, "name": network.spec.name, "driver": network.spec.driver, "subnets": subnets,
            "internal": network.spec.internal, "stackId": network.stack_id,
        });
        let cells = vec![
            printer::short_id(network.id.as_str(), &options.rows),
            network.spec.name.clone(),
            network.spec.driver.to_string(),
            subnets.join(" "),
        ];
        rows.push((value, cells));
    }
    rows.sort_by(|left, right| left.1[1].cmp(&right.1[1]));
    printer::rows(&options.rows, &["ID", "NAME", "DRIVER", "SUBNETS"], rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn spec(words: &str) -> Result<NetworkSpec, String> {
        let line =
            Line::try_parse_from(["x"].into_iter().chain(words.split_whitespace())).map_err(|it| it.to_string())?;
        line.create.spec().map_err(|it| it.to_string())
    }

    #[test]
    fn flags_are_those_of_docker_network_create() {
        let words = "--subnet 10.1.0.0/16 --subnet fd00::/64 --gateway fd00::9 --ip-range 10.1.4.0/24 \
                     --aux-address r=10.1.4.7 --internal --ipv6 -o com.docker.network.driver.mtu=1400 --label a=b back";
        let spec = spec(words).expect("good flags");
        assert_eq!((spec.name.as_str(), spec.driver, spec.mtu), ("back", NetworkDriver::Overlay, Some(1_400)));
        assert_eq!((spec.internal, spec.ipv6, spec.attachable), (true, true, false));
        assert_eq!(spec.subnets[0].range.map(|it| it.to_string()), Some("10.1.4.0/24".into()));
        assert_eq!(spec.subnets[0].auxiliary.len(), 1);
        assert_eq!(spec.subnets[1].gateway.map(|it| it.to_string()), Some("fd00::9".into()));
    }

    #[test]
    fn flags_that_belong_to_no_subnet_and_unknown_options_are_refused() {
        let refused = |words: &str| spec(words).expect_err(words);
        assert_eq!(refused("--gateway 10.1.0.1 x"), "--gateway 10.1.0.1: no --subnet has it");
        assert_eq!(
            refused("-o vlan=5 x"),
            "--opt vlan=5: `vlan` is not an option of a network: they are com.docker.network.driver.mtu, parent, encrypted"
        );
        assert!(refused("-d ipvlan x").contains("`ipvlan` is not a driver"));
        assert!(refused("--subnet x y").contains("--subnet"));
    }
}
