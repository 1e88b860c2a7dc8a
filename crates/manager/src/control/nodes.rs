//! Nodes.

use std::sync::Arc;

use tonic::Status;

use flota_api::defaults::CERTIFICATE_LIFE;
use flota_api::model::{Node, NodeSpec, NodeState, Revoked, Role};
use flota_api::object::Kind;
use flota_api::proto::{control as pc, objects as po};
use flota_raft_store::WriteTx;

use super::find::find_node;
use super::status::{WriteFailed, gone};
use crate::replica::Replica;

pub(super) fn list(replica: &Replica) -> Vec<pc::NodeRow> {
    let leader = replica.leadership().leader.unwrap_or(0);
    let row = |node: &Arc<Node>| {
        let leader = node.raft_id != 0 && node.raft_id == leader;
        pc::NodeRow { node: Some(node.as_ref().into()), leader }
    };
    replica.store.view().nodes().map(row).collect()
}

pub(super) async fn update(replica: &Replica, request: pc::UpdateNodeRequest) -> Result<po::Node, Status> {
    let spec = request.spec.ok_or_else(|| Status::invalid_argument("spec: it is missing"))?;
    let spec = NodeSpec::try_from(spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let written = replica.write_once(&request.request_id, |view| {
        let node = find_node(&view, &request.node)?;
        if request.version != 0 && request.version != node.meta.version {
            let text = format!("node `{}` has changed meanwhile", node.description.hostname);
            return Err(WriteFailed::Refused(Status::aborted(text)));
        }
        let node = Node { spec: spec.clone(), ..node.as_ref().clone() };
        let mut tx = WriteTx::new(view, &request.request_id);
        let id = node.id.clone();
        tx.update(node);
        Ok((tx.finish(), id))
    });
    let id = written.await?;
    let node = replica.read(|view| match &id {
        Some(id) => view.node(id.as_str()).cloned().ok_or_else(|| gone("node", &request.node)),
        None => find_node(view, &request.node).cloned().map_err(|_| gone("node", &request.node)),
    });
    node.await.map(|node| node.as_ref().into()).map_err(Into::into)
}

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let node = find_node(&view, &request.name)?.clone();
        let name = &node.description.hostname;
        let refuse = |why: String| Err(WriteFailed::Refused(Status::failed_precondition(why)));
        if node.role == Role::Manager && node.raft_id == replica.raft.id() {
            return refuse(format!("node `{name}` leads: use another manager, or `ctl swarm leave --force` there"));
        }
        if !request.force && node.role == Role::Manager {
            return refuse(format!("node `{name}` is a manager: `ctl swarm leave --force` there, or --force"));
        }
        if !request.force && node.state != NodeState::Down {
            return refuse(format!("node `{name}` is {}, not down: --force removes it all the same", node.state));
        }
        let mut tx = WriteTx::new(view.clone(), &request.request_id);
        tx.remove(Kind::Node, node.id.as_str());
        // Its certificate lives on: from now on it opens nothing any more.
        if let Some(cluster) = view.cluster() {
            let mut cluster = cluster.as_ref().clone();
            let now = replica.clock.wall().now();
            cluster.revoked.retain(|it| it.until > now);
            cluster.revoked.push(Revoked { node_id: node.id.clone(), until: now + CERTIFICATE_LIFE });
            tx.update(cluster);
        }
        Ok((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
