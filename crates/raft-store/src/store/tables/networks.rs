//! How the indices of networks are read.

use std::sync::Arc;

use ipnet::IpNet;

use super::Tables;
use crate::store::runs::Runs;
use flota_api::id::{NetworkId, NodeId};
use flota_api::model::{Node, NodePort, Service, Task};
use flota_api::version::Version;

impl Tables {
    /// Addresses of a network that can't be given.
    pub fn taken_addresses(&self, id: &NetworkId) -> Runs {
        self.indices.networks.addresses.get(id).cloned().unwrap_or_default()
    }

    /// Addresses of all subnets of all networks.
    pub fn taken_subnets(&self) -> &Runs {
        &self.indices.networks.subnets
    }

    /// VXLAN network identifiers that networks have.
    pub fn taken_vnis(&self) -> &Runs {
        &self.indices.networks.vnis
    }

    /// Tasks that are attached to a network and have not ended, in the order of their ids.
    pub fn tasks_of_network(&self, id: &NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_with(self.indices.networks.tasks.of(id))
    }

    /// Nodes that have a network, by id: they have a task that is attached to it, or are attached themselves.
    pub fn nodes_of_network(&self, id: &NetworkId) -> impl Iterator<Item = &NodeId> {
        self.indices.networks.nodes.of(id).map(|(node, _)| node)
    }

    /// Networks that a node has, by id, with a version for each: a node that has lost a network meanwhile and got it again
    /// has it with another one.
    pub fn networks_of_node(&self, id: &NodeId) -> impl Iterator<Item = (&NetworkId, Version)> {
        self.indices.networks.of_node.get(id).into_iter().flatten().map(|(network, since)| (network, *since))
    }

    /// Nodes with tasks that are attached to any network and have not ended, by id.
    pub fn hosts(&self) -> impl Iterator<Item = &NodeId> {
        self.indices.networks.hosts.keys()
    }

    /// A version for a node that is one of [`Tables::hosts`]: one that was none meanwhile has another one.
    pub fn host_since(&self, id: &NodeId) -> Option<Version> {
        self.indices.networks.hosts.get(id).map(|(_, since)| *since)
    }

    /// Nodes that are attached to a network themselves, by id.
    pub fn nodes_attached(&self, id: &NetworkId) -> impl Iterator<Item = &Arc<Node>> {
        self.indices.networks.attached_nodes.of(id).filter_map(|id| self.node(id.as_str()))
    }

    /// Services whose newest spec names a network, or that have a virtual IP there, by id.
    pub fn services_of_network(&self, id: &NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        self.indices.networks.services.of(id).filter_map(|id| self.service(id.as_str()))
    }

    /// Services on whose ports every node answers, by id.
    pub fn services_published(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.indices.networks.published.of(&()).filter_map(|id| self.service(id.as_str()))
    }

    /// Services that have or want a port of nodes, by id.
    pub fn services_with_port(&self, port: NodePort) -> impl Iterator<Item = &Arc<Service>> {
        self.indices.networks.ports.of(&port).filter_map(|id| self.service(id.as_str()))
    }

    /// Nodes of which a program itself listens on a port, by id.
    pub fn nodes_listening(&self, port: NodePort) -> impl Iterator<Item = &Arc<Node>> {
        self.indices.networks.listeners.of(&port).filter_map(|id| self.node(id.as_str()))
    }

    /// Destinations of the routes of all nodes.
    pub fn routes(&self) -> impl Iterator<Item = &IpNet> {
        self.indices.networks.routes.of(&()).map(|(route, _)| route)
    }
}
