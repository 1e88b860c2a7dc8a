//! The addresses of tasks, and of nodes in the network `ingress`.

use std::collections::BTreeSet;
use std::sync::Arc;

use flota_api::id::ServiceId;
use flota_api::model::{Attachment, EndpointMode, INGRESS, Network, Node, PendingReason, Service, Task};
use flota_api::object::Object;
use flota_raft_store::{Event, Tables};

use super::gives_back_subnets;
use super::space::{Receiver, Spaces};
use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};

/// The loop; its keys are services and nodes.
#[derive(Debug, Default)]
pub(crate) struct Addresses;

impl ControlLoop for Addresses {
    fn name(&self) -> &'static str {
        "addresses"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.services_waiting().map(Key::of).chain(view.nodes().map(|node| Key::of(&node.id))).collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let mut dirtied = Vec::new();
        if gives_back_subnets(event) {
            // For a network that was full.
            dirtied.extend(view.services_waiting().map(Key::of));
        }
        dirtied.extend(match event {
            Event::Updated { old: Object::Task(old), new: Object::Task(new) } => {
                if !old.status.state.is_terminal() && new.status.state.is_terminal() {
                    helped_by_end_of(new, view)
                } else {
                    lacking(new, view)
                }
            }
            Event::Created(Object::Task(task)) => lacking(task, view),
            Event::Removed(Object::Task(task)) if !task.status.state.is_terminal() => helped_by_end_of(task, view),
            Event::Updated { old: Object::Service(old), new: Object::Service(new) }
                if old.virtual_ips != new.virtual_ips || old.spec.endpoint_mode != new.spec.endpoint_mode =>
            {
                vec![Key::of(&new.id)]
            }
            Event::Updated { old: Object::Network(old), new: Object::Network(new) } => {
                if old.subnets == new.subnets {
                    Vec::new()
                } else {
                    users(new, view)
                }
            }
            Event::Created(Object::Network(network)) => users(network, view),
            Event::Created(Object::Node(node)) | Event::Updated { new: Object::Node(node), .. } => {
                (node.attachments.is_empty() != node.has_left()).then(|| Key::of(&node.id)).into_iter().collect()
            }
            _ => Vec::new(),
        });
        dirtied
    }

    fn plan(&mut self, key: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let mut spaces = Spaces::new(view);
        match view.node(key.id) {
            Some(node) => attach_node(node, view, &mut spaces, &mut plan),
            None => attach_tasks(&ServiceId::from(key.id), view, &mut spaces, &mut plan, cx),
        }
        if !plan.changes.is_empty() {
            spaces.finish(&mut plan);
        }
        plan
    }
}

fn lacking(task: &Task, view: &Tables) -> Vec<Key> {
    if task.is_waiting() && !view.is_attached(task) { vec![Key::of(&task.service_id)] } else { Vec::new() }
}

/// Services with waiting tasks that may get an address that this task no longer has.
fn helped_by_end_of(task: &Task, view: &Tables) -> Vec<Key> {
    if task.attachments.is_empty() {
        return Vec::new();
    }
    let networks: BTreeSet<_> = task.attachments.iter().map(|it| &it.network).collect();
    let is_helped = |id: &&ServiceId| {
        let spec = view.service(id.as_str()).map(|service| &service.spec);
        spec.is_some_and(|spec| view.networks_of_spec(spec).any(|network| networks.contains(&network.id)))
    };
    view.services_waiting().filter(is_helped).map(Key::of).collect()
}

/// Returns the keys of the services and nodes that may get addresses of the network.
fn users(network: &Network, view: &Tables) -> Vec<Key> {
    if network.is_ingress() {
        let published = view.services_waiting().map(Key::of);
        return published.chain(view.nodes().map(|node| Key::of(&node.id))).collect();
    }
    view.services_of_network(&network.id).map(|service| Key::of(&service.id)).collect()
}

/// Gives a node its addresses in `ingress`; a node that has left gives them back.
fn attach_node(node: &Arc<Node>, view: &Tables, spaces: &mut Spaces<'_>, plan: &mut Plan) {
    if node.has_left() && !node.attachments.is_empty() {
        plan.put(Node { attachments: Vec::new(), ..node.as_ref().clone() });
    }
    let Some(ingress) = view.network_by_name(INGRESS) else { return };
    if node.has_left() || !node.attachments.is_empty() {
        return;
    }
    match spaces.give(ingress, Receiver::Member) {
        Some(addresses) => {
            let attachments = vec![Attachment { network: ingress.id.clone(), addresses }];
            plan.put(Node { attachments, ..node.as_ref().clone() });
        }
        // It is asked again once the network has its first subnet, or a further one.
        None if ingress.subnets.is_empty() => {}
        None => tracing::warn!(node.id = %node.id, "no address is free in the network `ingress`"),
    }
}

/// Gives the waiting tasks of a service their addresses, as many as there is room for in the plan.
fn attach_tasks(id: &ServiceId, view: &Tables, spaces: &mut Spaces<'_>, plan: &mut Plan, cx: &PlanContext) {
    let mut tasks: Vec<&Arc<Task>> = view.tasks_waiting(id).filter(|task| !view.is_attached(task)).collect();
    tasks.sort_by_key(|task| (task.spec_version, task.slot, task.meta.order()));
    for task in tasks {
        if plan.is_full(cx) {
            return;
        }
        match attachments(task, view, spaces) {
            Ok(attachments) => plan.put(Task { attachments, pending_reason: None, ..task.as_ref().clone() }),
            Err(reason) if task.pending_reason.as_deref() != Some(&reason) => {
                plan.put(Task { pending_reason: Some(Box::new(reason)), ..task.as_ref().clone() });
            }
            Err(_) => {}
        }
    }
}

fn attachments(task: &Task, view: &Tables, spaces: &mut Spaces<'_>) -> Result<Vec<Attachment>, PendingReason> {
    let full = |network: &Arc<Network>| PendingReason::NoAddress(network.spec.name.clone());
    let spec = view.spec_of(task).into_iter();
    let attach = |network: &Arc<Network>| {
        if view.service(task.service_id.as_str()).is_some_and(|service| lacks_virtual_ip(service, network)) {
            return Err(full(network));
        }
        let addresses = spaces.give(network, Receiver::Member).ok_or_else(|| full(network))?;
        Ok(Attachment { network: network.id.clone(), addresses })
    };
    spec.flat_map(|spec| view.networks_of_spec(spec)).map(attach).collect()
}

/// Whether the service should have a virtual IP in the network and got none.
pub(super) fn lacks_virtual_ip(service: &Service, network: &Network) -> bool {
    service.spec.endpoint_mode == EndpointMode::Vip
        && network.spec.driver.has_addresses()
        && service.spec.networks.iter().any(|it| it.network == network.id)
        && service.virtual_ips.iter().all(|it| it.network != network.id)
}
