//! Gives networks their subnets and identifiers, services their virtual IPs and published ports, and tasks and nodes
//! their addresses: three control loops over the store, which run before the scheduler, so that a task is created with
//! its addresses and its node in one write.
//!
//! Which addresses are taken follows from the objects in the tables alone (the indices of
//! `raft-store/store/networks.rs`). What was given last is kept in the network, or in the cluster's pool, so that a new
//! leader continues from there, and whatever was given back is not given again at once. Every gift changes the object
//! that it comes from, so of two concurrent writes that would give the same thing only one is applied.

mod addresses;
mod networks;
mod pools;
mod services;
mod space;

pub(crate) use addresses::Addresses;
pub(crate) use networks::Networks;
pub(crate) use pools::{asked_pools, subnet_of};
pub(crate) use services::Services;

use flota_api::object::Object;
use flota_raft_store::Event;

/// Whether a subnet may be free now that was taken: a network that was full can get it.
fn gives_back_subnets(event: &Event) -> bool {
    match event {
        Event::Removed(Object::Network(network)) => !network.subnets.is_empty(),
        Event::Removed(Object::Node(node)) => !node.description.routes.is_empty(),
        Event::Updated { old: Object::Node(old), new: Object::Node(new) } => {
            let routes = &new.description.routes;
            old.description.routes.iter().any(|route| !routes.contains(route))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
