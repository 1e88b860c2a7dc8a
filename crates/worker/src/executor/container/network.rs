//! The step that makes the network of a task's container: its namespace, its interfaces, and the sockets of its DNS
//! server. The thread of the networks does the work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;

use crate::executor::{Cause, Draft, ExecutorError, PrepareStep};
use crate::networks::{AttachError, Networks, TaskSockets};

impl From<AttachError> for ExecutorError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Exclusive(_) => Self::Final(Box::new(error)),
            // Descriptions arrive, other processes free what they hold, and the kernel frees memory.
            AttachError::Unknown(_) | AttachError::Undescribed | AttachError::Kernel(_) | AttachError::Ended => {
                Self::Transient(Box::new(error))
            }
        }
    }
}

/// Makes the network of a task's container. Clones share the sockets.
#[derive(Clone, Debug)]
pub(super) struct NetworkStep {
    pub(super) networks: Networks,
    /// The sockets of prepared tasks, until the start hands them to the supervisor.
    sockets: Arc<Mutex<BTreeMap<TaskId, TaskSockets>>>,
}

impl NetworkStep {
    pub(super) fn new(networks: Networks) -> Self {
        Self { networks, sockets: Arc::default() }
    }

    /// Returns the sockets that the supervisor of a prepared task keeps.
    pub(super) fn take_sockets(&self, task: &TaskId) -> TaskSockets {
        self.sockets.lock().expect("no holder panics").remove(task).unwrap_or_default()
    }

    async fn attach(&self, task: &Assignment, draft: &mut Draft) -> Result<(), AttachError> {
        let attached = self.networks.attach(&task.task_id).await?;
        draft.network = attached.network;
        self.sockets.lock().expect("no holder panics").insert(task.task_id.clone(), attached.sockets);
        Ok(())
    }
}

impl PrepareStep for NetworkStep {
    fn name(&self) -> &'static str {
        "network"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.attach(task, draft).await?) })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        drop(self.take_sockets(task));
        Box::pin(async move { Ok(self.networks.detach(task).await?) })
    }
}
