//! Describes this machine: its resources, its software and its current boot.

use std::fs;

use flota_api::model::{CdiName, NodeDescription};
use flota_api::resources::Resources;
use flota_api::{FEATURE_LEVEL, VERSION};

use crate::networks::NetworkFacts;
use crate::offers::NodeOffers;
use crate::routes::routes;

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
        variant: flota_image::machine_variant(),
        resources: Resources { nano_cpus: cpus * 1_000_000_000, memory_bytes: kilobytes.unwrap_or(0u64) * 1024 },
        program_version: VERSION.into(),
        feature_level: FEATURE_LEVEL,
        boot_id: boot_id(),
        routes: routes(),
        ..NodeDescription::default()
    }
}

// Together these leave room for the rest of a description, of which a leader takes [`NodeDescription::BYTES_BOUND`] bytes.

/// Largest size of the names of CDI devices in a description, in bytes.
const CDI_BOUND: usize = 16 << 10;
/// Largest number of listening ports in a description. Each takes 8 bytes.
const LISTENERS_BOUND: usize = 2_048;
/// Largest number of listening ports in a description of which it says the task. Each takes 37 bytes.
const LISTENING_TASKS_BOUND: usize = 512;

/// Returns the description of this machine together with what it offers to tasks, what is known of its network, and the CDI
/// devices that it has.
pub(crate) fn registration(
    machine: &NodeDescription,
    offers: &NodeOffers,
    facts: &NetworkFacts,
    cdi: &[CdiName],
) -> NodeDescription {
    let is_there = |name: CdiName| cdi.contains(&name);
    NodeDescription {
        routes: machine.routes.iter().copied().chain(facts.subnet).collect(),
        balancer: facts.balancer,
        listeners: facts.ports.iter().copied().take(LISTENERS_BOUND).collect(),
        listening_tasks: facts
            .tasks
            .iter()
            .map(|(port, task)| (*port, task.clone()).into())
            .take(LISTENING_TASKS_BOUND)
            .collect(),
        tunnel_keys: facts.tunnel_keys.clone(),
        runtimes: offers.runtime_names(),
        devices: offers.devices.iter().filter(|it| it.cdi_name().is_none_or(is_there)).cloned().collect(),
        cdi_devices: bounded(cdi),
        allow: offers.allow.clone(),
        data_address: offers.data_address,
        labels: offers.labels.clone(),
        ..machine.clone()
    }
}

/// Returns as many of the names, from the first one, as may be reported.
fn bounded(names: &[CdiName]) -> Vec<CdiName> {
    let mut size = 0;
    let fits = |name: &&CdiName| {
        size += name.text().len();
        size <= CDI_BOUND
    };
    names.iter().take_while(fits).cloned().collect()
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use flota_api::id::{ID_LENGTH, TaskId};
    use flota_api::model::{Allowance, Balancer, NodeDevice, NodePort, Protocol, TunnelKey};
    use flota_api::proto::types::NodeDescription as WireDescription;
    use prost::Message;

    #[test]
    fn a_node_registers_with_all_that_it_gives() {
        assert_eq!(
            registration(&describe(), &NodeOffers::default(), &NetworkFacts::default(), &[]).runtimes,
            ["flota"]
        );
        let gpu = NodeDevice { kind: "gpu".into(), id: "nvidia0".into(), paths: vec!["/dev/nvidia0".into()] };
        let offers = NodeOffers {
            runtimes: BTreeMap::from([("runsc".into(), "/usr/bin/runsc".into())]),
            devices: vec![gpu],
            allow: Allowance { privileged: true, ..Allowance::default() },
            ..NodeOffers::default()
        };
        let ports = BTreeSet::from([NodePort { protocol: Protocol::Tcp, number: 22 }]);
        let facts = NetworkFacts {
            balancer: Some(Balancer::Nftables),
            subnet: Some("172.17.0.0/16".parse().expect("a prefix")),
            tasks: BTreeMap::from([(*ports.first().expect("it has one"), "t".into())]),
            ports,
            tunnel_keys: vec![TunnelKey { public: [7; 32], port: 51_820 }],
        };
        let description = registration(&describe(), &offers, &facts, &[]);
        assert_eq!(description.routes.last(), facts.subnet.as_ref());
        assert_eq!(description.balancer, Some(Balancer::Nftables));
        assert_eq!(description.listeners, Vec::from_iter(facts.ports));
        assert_eq!(description.listening_tasks[0].task.as_str(), "t");
        assert_eq!(description.tunnel_keys, facts.tunnel_keys);
        assert_eq!(description.runtimes, ["flota", "runsc"]);
        assert_eq!((description.devices, description.allow.privileged), (offers.devices, true));
        assert!(!description.hostname.is_empty());
    }

    #[test]
    fn a_node_with_very_many_listening_programs_can_register() {
        let ports = || (20_000..=u16::MAX).map(|number| NodePort { protocol: Protocol::Udp, number });
        let task = TaskId::from("x".repeat(ID_LENGTH));
        let tasks = ports().map(|port| (port, task.clone())).collect();
        let facts = NetworkFacts { ports: ports().collect(), tasks, ..NetworkFacts::default() };
        let cdi: Vec<CdiName> = (0..4_000).map(|it| format!("v.com/gpu={it:04}").parse().expect("a name")).collect();
        let description = registration(&describe(), &NodeOffers::default(), &facts, &cdi);
        assert_eq!(description.check_offers(), Ok(()));
        let size = WireDescription::from(&description).encoded_len();
        assert!(
            size + (8 << 10) < NodeDescription::BYTES_BOUND,
            "{size} bytes leave too little for what its owner sets"
        );
    }

    #[test]
    fn a_node_says_which_cdi_devices_it_has_and_hands_out_those_that_are_there() {
        let device = |id: &str| NodeDevice { kind: "gpu".into(), id: id.into(), paths: Vec::new() };
        let offers = NodeOffers {
            devices: vec![device("v.com/gpu=0"), device("v.com/gpu=1"), device("own")],
            ..NodeOffers::default()
        };
        let there = ["v.com/gpu=1", "v.com/gpu=all"].map(|it| it.parse().expect(it));
        let description = registration(&describe(), &offers, &NetworkFacts::default(), &there);
        assert_eq!(description.cdi_devices, there);
        assert_eq!(description.devices.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["v.com/gpu=1", "own"]);
        let many: Vec<CdiName> = (0..4_000).map(|it| format!("v.com/gpu={it:04}").parse().expect("a name")).collect();
        let description = registration(&describe(), &offers, &NetworkFacts::default(), &many);
        assert_eq!(description.cdi_devices, many[..CDI_BOUND / "v.com/gpu=0000".len()]);
    }
}
