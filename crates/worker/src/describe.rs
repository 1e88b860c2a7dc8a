//! Describes this machine: its resources, its software and its current boot.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use flota_api::model::NodeDescription;
use flota_api::resources::Resources;
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_network::INTERFACE_PREFIX;

use crate::offers::NodeOffers;

/// Returns the description of this machine.
pub fn describe() -> NodeDescription {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    NodeDescription {
        hostname: hostname(),
        os: "linux".into(),
        architecture: architecture.into(),
        resources: Resources { nano_cpus: cpus * 1_000_000_000, memory_bytes: kilobytes.unwrap_or(0u64) * 1024 },
        program_version: VERSION.into(),
        feature_level: FEATURE_LEVEL,
        boot_id: boot_id(),
        routes: routes(),
        ..NodeDescription::default()
    }
}

/// Returns the description of this machine together with what it offers to tasks, for the registration with a leader.
pub(crate) fn registration(machine: &NodeDescription, offers: &NodeOffers) -> NodeDescription {
    NodeDescription {
        runtimes: offers.runtime_names(),
        devices: offers.devices.clone(),
        allow: offers.allow.clone(),
        ..machine.clone()
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

/// Returns an identifier of the current boot, made of the kernel's boot id, the PID namespace and the start time of
/// its PID 1: a node in its own namespaces counts as rebooted when it is started again.
fn boot_id() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").map(|it| it.display().to_string()).unwrap_or_default();
    let first = flota_runtime::state::start_time(1).unwrap_or(0);
    format!("{} {namespace} {first}", kernel.trim())
}

/// Returns the destinations of this machine's routes, without those that lead everywhere, to the machine itself or to
/// networks of Flota.
fn routes() -> Vec<IpNet> {
    let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let (v4, v6) = (read("route"), read("ipv6_route"));
    let all = v4.lines().filter_map(route_of_version_4).chain(v6.lines().filter_map(route_of_version_6));
    let mut found: Vec<IpNet> = all
        .filter(|(net, interface)| {
            let is_own = *interface == "lo" || interface.starts_with(INTERFACE_PREFIX);
            let address = net.addr();
            let is_local = matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
            !is_own && !is_local && net.prefix_len() > 0 && !address.is_multicast()
        })
        .map(|(net, _)| net)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Parses a line of /proc/net/route (proc_pid_net(5)): interface, destination, …, and mask as the eighth field, in
/// hexadecimal and in the machine's byte order.
fn route_of_version_4(line: &str) -> Option<(IpNet, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok().map(u32::from_be);
    let (destination, mask) = (number(1)?, number(7)?);
    let net = Ipv4Net::with_netmask(Ipv4Addr::from(destination), Ipv4Addr::from(mask)).ok()?;
    Some((net.into(), fields.first()?))
}

/// Parses a line of /proc/net/ipv6_route: destination and its prefix length in hexadecimal, …, and the interface last.
fn route_of_version_6(line: &str) -> Option<(IpNet, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let destination = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    Some((Ipv6Net::new(destination, length).ok()?.into(), fields.last()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use flota_api::model::{Allowance, NodeDevice};

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let v4 = route_of_version_4("eth0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0");
        assert_eq!(v4, Some(("10.0.0.0/16".parse().expect("a prefix"), "eth0")));
        assert_eq!(route_of_version_4("Iface\tDestination\tGateway"), None);
        let zeros = "0".repeat(32);
        let line =
            format!("fd00000000000000{} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth1", &zeros[..16]);
        assert_eq!(route_of_version_6(&line), Some(("fd00::/64".parse().expect("a prefix"), "eth1")));
    }

    #[test]
    fn a_node_registers_with_all_that_it_gives() {
        assert_eq!(registration(&describe(), &NodeOffers::default()).runtimes, ["flota"]);
        let gpu = NodeDevice { kind: "gpu".into(), id: "nvidia0".into(), paths: vec!["/dev/nvidia0".into()] };
        let offers = NodeOffers {
            runtimes: BTreeMap::from([("runsc".into(), "/usr/bin/runsc".into())]),
            devices: vec![gpu],
            allow: Allowance { privileged: true, ..Allowance::default() },
            ..NodeOffers::default()
        };
        let description = registration(&describe(), &offers);
        assert_eq!(description.runtimes, ["flota", "runsc"]);
        assert_eq!((description.devices, description.allow.privileged), (offers.devices, true));
        assert!(!description.hostname.is_empty());
    }
}
