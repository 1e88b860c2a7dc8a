//! The step that gives ids of its own to a task whose service wants them, and makes the namespaces that belong to these: one of
//! users, and one of networks, which the step of the network finds and fills.

use std::sync::Arc;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_runtime::{Program, owned_namespaces};

use super::ContainerError;
use crate::executor::{Cause, Draft, ExecutorError, PrepareStep, TaskPaths};
use crate::locks::KeyedLocks;
use crate::networks::NamespaceFolder;
use crate::task_ids::{OwnIds, TaskIds};

/// Gives ids to tasks.
#[derive(Clone, Debug)]
pub(super) struct UserNamespaceStep {
    pub(super) paths: TaskPaths,
    pub(super) runtime: Arc<Program>,
    /// Held while a task's namespaces are made or removed, because making them continues for a while after its future was
    /// dropped.
    pub(super) busy: KeyedLocks,
}

impl UserNamespaceStep {
    fn ids(&self) -> TaskIds {
        self.paths.ids()
    }

    fn namespaces(&self) -> NamespaceFolder {
        NamespaceFolder::at(self.paths.namespaces())
    }

    async fn provide(&self, task: &TaskId) -> Result<OwnIds, ContainerError> {
        let (step, task, busy) = (self.clone(), task.clone(), self.busy.lock(task.as_str()).await);
        let made = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            let range = step.ids().take(&task).map_err(ContainerError::Ids)?;
            let (user, network) = (step.namespaces().user(&task), step.namespaces().task(&task));
            step.runtime.make_namespaces(range, &user, &network)?;
            Ok(OwnIds { range, user, network })
        });
        made.await.map_err(std::io::Error::other)?
    }

    async fn remove(&self, task: &TaskId) -> Result<(), Cause> {
        let (step, task, busy) = (self.clone(), task.clone(), self.busy.lock(task.as_str()).await);
        let removed = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            let user = step.namespaces().user(&task);
            if step.ids().of(&task)?.is_none() && !user.exists() {
                return Ok(());
            }
            // The ids are the task's for as long as anything else of it may have them.
            if step.namespaces().task(&task).exists() {
                return Err("its network is still there".into());
            }
            if step.paths.cgroups(&task).folders().iter().any(|folder| folder.path.exists()) {
                return Err("its processes have not ended".into());
            }
            owned_namespaces::remove(&user)?;
            Ok(step.ids().give_back(&task)?)
        });
        removed.await?
    }
}

impl PrepareStep for UserNamespaceStep {
    fn name(&self) -> &'static str {
        "user namespace"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move {
            if task.spec.user_namespace {
                draft.ids = Some(self.provide(&task.task_id).await?);
            }
            Ok(())
        })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(self.remove(task))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tempfile::TempDir;

    use super::*;

    /// The step, with a program in the place of the runtime's that does this.
    fn step(script: &str) -> (UserNamespaceStep, TempDir) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let program = dir.path().join("runtime");
        // The mount of a program can't run a script, so it is not there yet.
        let runtime = Arc::new(Program::open(program.clone()));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("it is new");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is there");
        let paths = TaskPaths {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            hierarchies: Vec::new(),
            cgroup_parent: "flota".into(),
        };
        for name in ["tasks", "users"] {
            std::fs::create_dir_all(paths.namespaces().join(name)).expect("it is new");
        }
        (UserNamespaceStep { paths, runtime, busy: KeyedLocks::default() }, dir)
    }

    fn is_empty(step: &UserNamespaceStep) -> bool {
        step.ids().tasks().is_empty() && step.namespaces().tasks().is_empty()
    }

    /// Writes the two files, as the program binds namespaces to them.
    const MAKES: &str = "touch \"$6\" \"$7\"";

    #[tokio::test]
    async fn what_a_failed_start_has_made_is_removed_and_what_others_need_stays() {
        let (step, _dir) = step(&format!("{MAKES}; echo no room >&2; exit 1"));
        let task = TaskId::from("0123456789abcdefghijklmno");
        let error = step.provide(&task).await.expect_err("the program fails");
        assert_eq!(error.to_string(), "no room");
        // The step of the network is undone before, and has to be tried again.
        let network = step.namespaces().task(&task);
        assert_eq!(step.remove(&task).await.expect_err("it is there").to_string(), "its network is still there");
        assert!(step.ids().of(&task).expect("it is readable").is_some() && network.exists());
        std::fs::remove_file(&network).expect("it is there");
        step.remove(&task).await.expect("nothing is left of the network");
        assert!(is_empty(&step));
        step.remove(&task).await.expect("nothing is left at all");
    }

    #[tokio::test]
    async fn a_start_that_is_not_waited_for_is_undone_whole() {
        let (step, dir) = step(&format!("until [ -e \"${{0%/*}}/go\" ]; do sleep 0.01; done; {MAKES}"));
        let task = TaskId::from("0123456789abcdefghijklmno");
        assert!(step.provide(&task).now_or_never().is_none(), "the program waits");
        let undone = tokio::spawn({
            let (step, task) = (step.clone(), task.clone());
            async move { step.remove(&task).await.map_err(|error| error.to_string()) }
        });
        std::fs::write(dir.path().join("go"), "").expect("it is new");
        assert_eq!(undone.await.expect("it does not panic"), Err("its network is still there".into()));
        std::fs::remove_file(step.namespaces().task(&task)).expect("the program has ended before");
        step.remove(&task).await.expect("nothing is left of the network");
        assert!(is_empty(&step));
    }
}
