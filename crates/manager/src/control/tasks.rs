//! Tasks.

use std::sync::Arc;

use tonic::Status;

use flota_api::model::{NodeState, Service, ServiceSpec, Task};
use flota_api::proto::control as pc;
use flota_api::state::DesiredState;
use flota_raft_store::{Tables, WriteTx};

use super::find::find_task;
use super::status::WriteFailed;
use crate::replica::Replica;

pub(super) fn list(view: &Tables) -> Vec<pc::TaskRow> {
    let row = |task: &Arc<Task>| {
        let spec = view.spec_of(task);
        pc::TaskRow {
            task: Some(task.as_ref().into()),
            service_name: spec.map(|spec| spec.name.clone()).unwrap_or_default(),
            node_name: view.node(task.node_id.as_str()).map(|it| it.description.hostname.clone()).unwrap_or_default(),
            image: spec.map(|spec| spec.image.clone()).unwrap_or_default(),
            restarts: task.restarts(),
            doubt: doubt(task, view),
        }
    };
    view.tasks().map(row).collect()
}

/// What a node that does not answer last said of its tasks may not be true any more: say so, and since when.
fn doubt(task: &Task, view: &Tables) -> String {
    match view.node(task.node_id.as_str()) {
        Some(node) if node.state != NodeState::Ready && !task.status.state.is_terminal() => {
            format!("its node {} is {} since {}", node.description.hostname, node.state, node.state_since)
        }
        _ => String::new(),
    }
}

pub(super) async fn remove(replica: &Replica, request: pc::RemoveRequest) -> Result<(), Status> {
    let removed = replica.write_once(&request.request_id, |view| {
        let task = find_task(&view, &request.name)?;
        let mut tx = WriteTx::new(view.clone(), &request.request_id);
        if request.shrink
            && let Some(service) = view.service(task.service_id.as_str())
        {
            let replicas = service.spec.replicas.saturating_sub(1);
            let spec = Arc::new(ServiceSpec { replicas, ..service.spec.as_ref().clone() });
            tx.update(Service { spec, ..service.as_ref().clone() });
            let of_slot = view.tasks_of_service(&task.service_id).filter(|other| other.slot == task.slot);
            for task in of_slot {
                tx.update(Task { desired_state: DesiredState::Remove, ..task.as_ref().clone() });
            }
        } else {
            tx.update(Task { desired_state: DesiredState::Shutdown.max(task.desired_state), ..task.as_ref().clone() });
        }
        Ok::<_, WriteFailed>((tx.finish(), ()))
    });
    removed.await.map(drop).map_err(Into::into)
}
