//! The step that gives ids of its own to a task whose service wants them, and the namespaces that belong to these: one of
//! users, and one of networks, which the step of the network finds and fills.

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_runtime::owned_namespaces;

use super::ContainerError;
use crate::executor::{Cause, Draft, ExecutorError, PrepareStep};
use crate::networks::NamespaceFolder;
use crate::task_ids::{OwnIds, TaskIds};

/// Gives ids to tasks.
#[derive(Clone, Debug)]
pub(super) struct UserNamespaceStep {
    pub(super) ids: TaskIds,
    pub(super) namespaces: NamespaceFolder,
}

impl UserNamespaceStep {
    fn make(&self, task: &TaskId) -> Result<OwnIds, ContainerError> {
        let range = self.ids.take(task)?;
        let (user, network) = (self.namespaces.user(task), self.namespaces.task(task));
        owned_namespaces::make(range, &user, &network).map_err(|error| ContainerError::Run(error.into()))?;
        Ok(OwnIds { range, user, network })
    }

    fn remove(&self, task: &TaskId) -> Result<(), Cause> {
        // The step of the network has removed its namespace. Its file is left if that step was not reached, which comes later.
        owned_namespaces::remove(&self.namespaces.task(task))?;
        owned_namespaces::remove(&self.namespaces.user(task))?;
        Ok(self.ids.give_back(task)?)
    }
}

impl PrepareStep for UserNamespaceStep {
    fn name(&self) -> &'static str {
        "user namespace"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        if !task.spec.user_namespace {
            return Box::pin(std::future::ready(Ok(())));
        }
        let (step, id) = (self.clone(), task.task_id.clone());
        Box::pin(async move {
            let made = tokio::task::spawn_blocking(move || step.make(&id)).await;
            draft.ids = Some(made.map_err(std::io::Error::other).map_err(ContainerError::from)??);
            Ok(())
        })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        let (step, id) = (self.clone(), task.clone());
        Box::pin(async move { tokio::task::spawn_blocking(move || step.remove(&id)).await? })
    }
}
