//! The virtual IPs and the published ports of services.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::id::NetworkId;
use flota_api::model::{EndpointMode, INGRESS, Network, NodePort, PublishMode, PublishedPort, Service, VirtualIp};
use flota_api::object::Object;
use flota_raft_store::{Event, Tables};

use super::addresses::lacks_virtual_ip;
use super::gives_back_subnets;
use super::space::{Receiver, Spaces};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The ports that are chosen when a user names none, as in Docker.
const PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The loop; keyed by service.
#[derive(Debug, Default)]
pub(crate) struct Services;

impl ControlLoop for Services {
    fn name(&self) -> &'static str {
        "services"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.services().map(|service| Key::of(&service.id)).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        match event {
            // Another service may have the address that this one gives back.
            Event::Updated { old: Object::Service(old), new: Object::Service(new) } => {
                let freed = old.virtual_ips.iter().filter(|it| !new.virtual_ips.contains(it));
                let networks = freed.flat_map(|it| view.services_of_network(&it.network)).map(|it| Key::of(&it.id));
                std::iter::once(Key::of(&new.id)).chain(networks).collect()
            }
            Event::Created(Object::Service(service)) => vec![Key::of(&service.id)],
            // The last task of an older spec may have kept a virtual IP.
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } if old.is_live() && !new.is_live() => {
                let service = view.service(new.service_id.as_str()).filter(|it| it.spec_version != new.spec_version);
                service.into_iter().map(|it| Key::of(&it.id)).collect()
            }
            Event::Updated { old: Object::Network(old), new: Object::Network(new) } if old.subnets != new.subnets => {
                view.services_of_network(&new.id).map(|service| Key::of(&service.id)).collect()
            }
            // A subnet may be free for a network that is full.
            event if gives_back_subnets(event) => {
                let lacks = |service: &&Arc<Service>| {
                    let networks = service.spec.networks.iter().filter_map(|it| view.network(it.network.as_str()));
                    networks.into_iter().any(|network| lacks_virtual_ip(service, network))
                };
                view.services().filter(lacks).map(|it| Key::of(&it.id)).collect()
            }
            Event::Removed(Object::Service(service)) => {
                let networks = service.virtual_ips.iter().flat_map(|it| view.services_of_network(&it.network));
                networks.map(|service| Key::of(&service.id)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn plan(&mut self, key: &Key, view: &Tables, _: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(service) = view.service(key.id) else { return plan };
        let mut new = service.as_ref().clone();
        let mut spaces = Spaces::new(view);
        new.virtual_ips = virtual_ips(service, view, &mut spaces);
        let last_port = set_ports(&mut new, view);
        if new != **service {
            plan.put(new);
            spaces.finish(&mut plan);
        }
        if let (Some(ingress), Some(port)) = (view.network_by_name(INGRESS), last_port) {
            let mut ingress = Network::clone(ingress);
            ingress.last_given.port = Some(port);
            plan.put(ingress);
        }
        plan
    }
}

/// Returns the virtual IPs that the service is to have: those that it has, and new ones where it lacks some. Networks of
/// an older spec count as long as a task of that spec lives.
fn virtual_ips(service: &Service, view: &Tables, spaces: &mut Spaces<'_>) -> Vec<VirtualIp> {
    if service.spec.endpoint_mode != EndpointMode::Vip {
        return Vec::new();
    }
    let older = view.live_versions(&service.id).filter_map(|version| view.spec_version(&service.id, version));
    let specs = std::iter::once(&service.spec).chain(older);
    let networks: BTreeSet<&NetworkId> = specs.flat_map(|spec| spec.networks.iter().map(|it| &it.network)).collect();
    let networks = networks.into_iter().filter_map(|id| view.network(id.as_str()));
    let give = |network: &Arc<Network>| {
        let known = service.virtual_ips.iter().find(|it| it.network == network.id);
        known.cloned().or_else(|| {
            let addresses = spaces.give(network, Receiver::Service)?;
            Some(VirtualIp { network: network.id.clone(), addresses })
        })
    };
    networks.filter(|network| network.spec.driver.has_addresses()).filter_map(give).collect()
}

/// Sets the ports on which every node answers. Returns the last one that was chosen.
fn set_ports(service: &mut Service, view: &Tables) -> Option<u16> {
    let ingress = view.network_by_name(INGRESS)?;
    let mut last = ingress.last_given.port;
    let mut ports: Vec<PublishedPort> = Vec::new();
    let wanted = service.spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    for port in wanted {
        let is_given = |ports: &[PublishedPort], it: &PublishedPort| ports.contains(it);
        let same = |it: &&PublishedPort| PublishedPort { published: None, ..**it } == *port && !is_given(&ports, it);
        // One that was chosen is given up if the user names it for another port.
        let is_named = |number: &u16| {
            let mut others = service.spec.ports.iter().filter(|it| it.protocol == port.protocol);
            others.any(|it| it.published == Some(*number))
        };
        let known = service.ports.iter().find(same).and_then(|it| it.published).filter(|it| !is_named(it));
        let is_free = |number: &u16| {
            let mine = ports.iter().chain(&service.spec.ports);
            let taken = NodePort { protocol: port.protocol, number: *number };
            view.services_with_port(taken).next().is_none()
                && view.nodes_listening(taken).next().is_none()
                && mine.filter(|it| it.protocol == port.protocol).all(|it| it.published != Some(*number))
        };
        let choose = || {
            let behind = last.filter(|last| PORTS.contains(last)).map_or(*PORTS.start(), |last| last + 1);
            (behind..=*PORTS.end()).chain(PORTS).find(is_free)
        };
        let published = port.published.or(known);
        let chosen = if published.is_none() { choose() } else { None };
        ports.extend(published.or(chosen).map(|published| PublishedPort { published: Some(published), ..*port }));
        last = chosen.or(last);
    }
    service.ports = ports;
    last.filter(|_| last != ingress.last_given.port)
}
