//! The steps that a container needs: its image, its writable layer, and the folder of its supervisor. Blocking work
//! (disk, kernel) runs outside the async threads.

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_image::remove_folder;
use flota_runtime::RootSource;

use super::ContainerError;
use crate::executor::{Cause, Draft, ExecutorError, PrepareStep, TaskPaths};
use crate::images::{Images, WantedImage};
use crate::locks::KeyedLocks;

/// Fetches and unpacks the task's image. Images belong to the node and not to a task: the leader decides when they are
/// removed.
#[derive(Clone, Debug)]
pub(super) struct ImageStep {
    pub(super) images: Images,
}

impl ImageStep {
    async fn fetch(&self, task: &Assignment, draft: &mut Draft) -> Result<(), ContainerError> {
        let image = self.images.ensure(task, &WantedImage::own(task, draft.digest.as_deref())).await?;
        (draft.digest, draft.config) = (Some(image.digest.clone()), image.config.clone());
        let store = self.images.store.clone();
        let layers = tokio::task::spawn_blocking(move || store.unpack(&image)).await.map_err(std::io::Error::other)?;
        draft.layers = layers?;
        Ok(())
    }
}

impl PrepareStep for ImageStep {
    fn name(&self) -> &'static str {
        "image"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.fetch(task, draft).await?) })
    }

    fn undo<'a>(&'a self, _: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Creates the folders that a container writes into: an overlay's upper layer or, where overlayfs can't write, a copy
/// of all layers.
#[derive(Clone, Debug)]
pub(super) struct WritableLayer {
    pub(super) paths: TaskPaths,
    /// Whether containers can be mounted from layers on this machine.
    pub(super) overlay: bool,
    /// Held while a task's layer is created or removed, because copying continues for a while after its future was
    /// dropped.
    pub(super) busy: KeyedLocks,
}

impl WritableLayer {
    /// Returns the root file system of a task whose image has these layers.
    pub(super) fn root(&self, task: &TaskId, layers: &[PathBuf]) -> RootSource {
        let data = self.paths.data_folder(task);
        if self.overlay {
            RootSource::Overlay { lower: layers.to_vec(), upper: data.join("upper"), work: data.join("work") }
        } else {
            RootSource::Folder(data.join("root"))
        }
    }

    async fn make(&self, task: &TaskId, layers: Vec<PathBuf>) -> Result<(), ContainerError> {
        let (root, data) = (self.root(task, &layers), self.paths.data_folder(task));
        let busy = self.busy.lock(task.as_str()).await;
        let made = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            match &root {
                // These folders must be new: a container never gets what an earlier one wrote.
                RootSource::Overlay { upper, work, .. } => {
                    fs_err::create_dir_all(&data)?;
                    fs_err::create_dir(upper)?;
                    fs_err::create_dir(work)?;
                    Ok(())
                }
                RootSource::Folder(root) => {
                    fs_err::create_dir_all(&data)?;
                    fs_err::create_dir(root)?;
                    copy_layers(&layers, root)
                }
            }
        });
        made.await.map_err(std::io::Error::other)?
    }

    async fn remove(&self, task: &TaskId) -> Result<(), Cause> {
        let (data, busy) = (self.paths.data_folder(task), self.busy.lock(task.as_str()).await);
        let removed = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            // `merged` is where older versions mounted the overlay.
            let removed = ["upper", "work", "merged", "root"].map(|name| remove_folder(&data.join(name)));
            removed.into_iter().collect::<Result<(), _>>()
        });
        Ok(removed.await??)
    }
}

impl PrepareStep for WritableLayer {
    fn name(&self) -> &'static str {
        "writable layer"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.make(&task.task_id, draft.layers.clone()).await?) })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(self.remove(task))
    }
}

/// Copies the layers into one folder, lowest first, and applies their whiteouts.
pub(super) fn copy_layers(layers: &[PathBuf], root: &Path) -> Result<(), ContainerError> {
    for layer in layers.iter().rev() {
        flota_image::copy_layer(layer, root)?;
    }
    Ok(())
}

/// Creates the folder of the container's supervisor. Undoing the step also removes what the container left: its state,
/// its exit status, and all processes in its control groups. It is the last step, so that processes end before their
/// files are removed.
#[derive(Clone, Debug)]
pub(super) struct RunFolder {
    pub(super) paths: TaskPaths,
}

impl PrepareStep for RunFolder {
    fn name(&self) -> &'static str {
        "container"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, _: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        let folder = self.paths.run_folder(&task.task_id);
        Box::pin(async move { Ok(fs_err::create_dir_all(folder).map_err(ContainerError::Io)?) })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        let (groups, folder) = (self.paths.cgroups(task), self.paths.run_folder(task));
        Box::pin(async move {
            let removed = tokio::task::spawn_blocking(move || {
                let swept = groups.sweep();
                remove_folder(&folder)?;
                swept.map_err(Cause::from)
            });
            removed.await?
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_copy_that_is_not_waited_for_is_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        std::fs::create_dir_all(&lower).unwrap();
        for number in 0..300 {
            std::fs::write(lower.join(format!("file{number}")), [0; 4_096]).unwrap();
        }
        let paths = TaskPaths {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            hierarchies: Vec::new(),
            cgroup_parent: "flota".into(),
        };
        let layer = WritableLayer { paths: paths.clone(), overlay: false, busy: KeyedLocks::default() };
        let task = TaskId::from("t");
        assert!(layer.make(&task, vec![lower]).now_or_never().is_none(), "the copy continues by itself");
        layer.remove(&task).await.unwrap();
        assert!(!paths.data_folder(&task).join("root").exists());
        assert!(layer.busy.lock(task.as_str()).now_or_never().is_some(), "the copy has ended");
    }
}
