//! Nodes: their rows, their specs, and their removal.

use std::sync::Arc;

use flota_api::id::NodeId;
use flota_api::model::{Node, NodeDescription, NodeSpec, NodeState, Role, RoleChange};
use flota_api::object::Kind;
use flota_api::version::Version;
use flota_raft_store::{View, WriteTx, raft};

use super::error::{ControlError, NodeHold};
use super::filter::{self, Field, Filter};
use super::reference::resolve;
use super::{Control, Freshness, Listing, Member};
use crate::{departure, promotion, write};

/// A node, and whether it leads.
#[derive(Clone, Debug)]
pub(crate) struct NodeSummary {
    /// The node as the store holds it.
    pub(crate) node: Arc<Node>,
    /// Whether it is the leader of the managers.
    pub(crate) leader: bool,
    /// How far it is from its role; `None` if it has taken it.
    pub(crate) role_change: Option<RoleChange>,
}

const FIELDS: &[Field<NodeSummary>] = &[
    ("id", |row| Some(row.node.id.to_string())),
    ("name", |row| Some(row.node.description.hostname.clone())),
    ("role", |row| Some(row.node.role.to_string())),
    ("leader", |row| Some(row.leader.to_string())),
    ("roleChange", |row| Some(row.role_change.map_or_else(String::new, |change| change.to_string()))),
    ("state", |row| Some(row.node.state.to_string())),
    ("stateReason", |row| Some(row.node.state_reason.map_or_else(String::new, |reason| reason.to_string()))),
    ("availability", |row| Some(row.node.spec.availability.to_string())),
    ("address", |row| Some(row.node.address.clone())),
    ("version", |row| Some(row.node.description.program_version.clone())),
];

impl<M: Member> Control<M> {
    fn node_summary(&self, view: &View, members: &[raft::Member], node: &Arc<Node>) -> NodeSummary {
        let leader = node.raft_id.is_some() && node.raft_id == self.member.leader();
        let role_change = promotion::role_change(view, node, members);
        let node = if self.caller.sees_nodes() { Arc::clone(node) } else { Arc::new(outline(node)) };
        NodeSummary { node, leader, role_change }
    }

    /// Returns the node that `reference` identifies.
    pub(crate) async fn get_node(&self, reference: &str) -> Result<NodeSummary, ControlError> {
        let view = self.proven_view().await?;
        resolve(&view, reference).map(|node| self.node_summary(&view, &self.member.members(), node))
    }

    /// Returns the nodes that pass every filter.
    pub(crate) async fn list_nodes(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<NodeSummary>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        let members = self.member.members();
        let rows = view.nodes().map(|node| self.node_summary(&view, &members, node));
        Ok(Listing { rows: filter::keep(rows, filters, FIELDS)?, age })
    }

    /// Replaces the node's spec. With a version, it fails if the node has another one.
    pub(crate) async fn update_node(
        &self,
        request_id: Option<&str>,
        reference: &str,
        version: Option<Version>,
        spec: &NodeSpec,
    ) -> Result<Arc<Node>, ControlError> {
        let written = self.write_once(request_id, |view| {
            let node: &Arc<Node> = resolve(&view, reference)?;
            if version.is_some_and(|version| version != node.meta.version) {
                let name = node.description.hostname.clone();
                return Err(ControlError::ChangedMeanwhile { kind: Kind::Node, name });
            }
            let node = Node { spec: spec.clone(), ..node.as_ref().clone() };
            let id = node.id.clone();
            let mut tx = WriteTx::new(view, request_id);
            tx.update(node);
            Ok((tx.finish(), id))
        });
        let id = written.await?;
        self.changed(reference, id.as_ref().map(|id| id.as_str())).await
    }

    /// Removes the node. With `force`, it may be a node that is not down, or a manager that does not lead.
    pub(crate) async fn remove_node(
        &self,
        request_id: Option<&str>,
        reference: &str,
        force: bool,
    ) -> Result<(), ControlError> {
        let view = self.proven_view().await?;
        if let Ok(node) = resolve::<Node>(&view, reference) {
            if node.role == Role::Manager
                && let Err(error) = self.take_out_manager(&node.id, force).await
            {
                return self.refuse_once::<()>(request_id, error).await.map(drop);
            }
            if let Some(raft_id) = node.raft_id {
                self.member.gone(raft_id).await?;
            }
        }
        let removed = self.write_once(request_id, |view| {
            let node: &Arc<Node> = resolve(&view, reference)?;
            check_hold(node, self.member.id(), force)?;
            if node.role == Role::Manager {
                return Err(ControlError::ChangedMeanwhile {
                    kind: Kind::Node,
                    name: node.description.hostname.clone(),
                });
            }
            let mut tx = WriteTx::new(view.clone(), request_id);
            tx.remove(Kind::Node, node.id.as_str());
            departure::revoke(&mut tx, &view, &node.id, self.clock.wall().now());
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }

    /// Makes a manager a node that has left.
    async fn take_out_manager(&self, id: &NodeId, force: bool) -> Result<(), ControlError> {
        let quorum = self.member.quorum().await;
        let departed = write::write(&self.store, &self.member, |view| {
            let missing = || ControlError::NotFound { kind: Kind::Node, reference: id.to_string() };
            let node = view.node(id).ok_or_else(missing)?;
            check_hold(node, self.member.id(), force)?;
            let refused = |error| ControlError::Departure { node: node.description.hostname.clone(), error };
            departure::check(&view, &quorum, node).map_err(refused)?;
            let mut tx = WriteTx::new(view.clone(), None);
            departure::depart(&mut tx, &view, node, self.clock.wall().now(), self.clock.now());
            Ok((self.signed(&view, tx.finish()), ()))
        });
        departed.await
    }
}

/// Returns what everyone sees of a node: its name, its role and its state.
fn outline(node: &Node) -> Node {
    let Node { id, meta, role, state, state_reason, state_since, .. } = node.clone();
    let description = NodeDescription { hostname: node.description.hostname.clone(), ..NodeDescription::default() };
    let spec = NodeSpec { availability: node.spec.availability, ..NodeSpec::default() };
    Node { id, meta, role, state, state_reason, state_since, description, spec, ..Node::default() }
}

/// Refuses to remove a node that the manager `own_raft_id` can't remove.
fn check_hold(node: &Node, own_raft_id: u64, force: bool) -> Result<(), ControlError> {
    match hold(node, own_raft_id, force) {
        Some(hold) => Err(ControlError::NodeHeld { node: node.description.hostname.clone(), hold }),
        None => Ok(()),
    }
}

/// Returns why the manager `own_raft_id` can't remove the node, if there is a reason.
fn hold(node: &Node, own_raft_id: u64, force: bool) -> Option<NodeHold> {
    match node.role {
        Role::Manager if node.raft_id == Some(own_raft_id) => Some(NodeHold::Leads),
        _ if force => None,
        Role::Manager => Some(NodeHold::IsManager),
        Role::Worker if node.state != NodeState::Down => Some(NodeHold::NotDown(node.state)),
        Role::Worker => None,
    }
}
