//! Roles of nodes: promotion and demotion.

use std::sync::Arc;

use flota_api::model::{Node, Role};
use flota_raft_store::WriteTx;

use super::error::{ControlError, NodeHold};
use super::reference::resolve;
use super::{Control, Member};
use crate::{departure, promotion};

impl<M: Member> Control<M> {
    /// Gives the node this role. The node follows by itself, and Raft's membership follows it. A leader that is to be
    /// demoted hands over leadership, and the caller asks the next one.
    pub(crate) async fn change_role(
        &self,
        request_id: Option<&str>,
        reference: &str,
        role: Role,
    ) -> Result<Arc<Node>, ControlError> {
        let quorum = self.member.quorum().await;
        let own = self.member.id();
        if role == Role::Worker {
            let view = self.proven_view().await?;
            if let Ok(node) = resolve::<Node>(&view, reference)
                && (node.role, node.raft_id) == (Role::Manager, Some(own))
                && let Ok(stay) = departure::check(&view, &quorum, node)
            {
                // Not a refusal of the request, so it is not recorded as one: the next leader carries it out.
                self.member.hand_over(stay).await;
                return Err(ControlError::LeadershipMoved);
            }
        }
        let written = self.write_once(request_id, |view| {
            let node: &Arc<Node> = resolve(&view, reference)?;
            let name = || node.description.hostname.clone();
            let mut tx = WriteTx::new(view.clone(), request_id);
            match (node.role, role) {
                (Role::Worker, Role::Manager) => {
                    let checked = promotion::check(&view, node, &self.member.members());
                    checked.map_err(|error| ControlError::Promotion { node: name(), error })?;
                    promotion::promote(&mut tx, node);
                }
                (Role::Manager, Role::Worker) => {
                    let checked = departure::check(&view, &quorum, node);
                    checked.map_err(|error| ControlError::Departure { node: name(), error })?;
                    if node.raft_id == Some(own) {
                        return Err(ControlError::NodeHeld { node: name(), hold: NodeHold::Leads });
                    }
                    promotion::demote(&mut tx, &view, node, self.clock.wall().now());
                }
                (Role::Manager, Role::Manager) | (Role::Worker, Role::Worker) => {}
            }
            Ok((tx.finish(), node.id.clone()))
        });
        let id = written.await?;
        self.changed(reference, id.as_ref().map(|id| id.as_str())).await
    }
}
