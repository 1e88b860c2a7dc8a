//! The step that provides the images that a task mounts. The supervisor mounts them.

use std::path::PathBuf;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_image::remove_folder;
use flota_runtime::ImageFiles;

use super::ContainerError;
use super::steps::copy_layers;
use crate::executor::{Cause, Draft, ExecutorError, PrepareStep, TaskPaths};
use crate::images::{Images, WantedImage};
use crate::locks::KeyedLocks;

/// Fetches and unpacks the images that a task mounts and, where overlayfs can't be used, copies their layers for the task.
#[derive(Clone, Debug)]
pub(super) struct MountedImagesStep {
    pub(super) images: Images,
    pub(super) paths: TaskPaths,
    /// Whether containers can be mounted from layers on this machine.
    pub(super) overlay: bool,
    /// Held while the copies of a task are made or removed, because copying continues for a while after its future was
    /// dropped.
    pub(super) busy: KeyedLocks,
}

impl MountedImagesStep {
    fn copies(&self, task: &TaskId) -> PathBuf {
        self.paths.data_folder(task).join("images")
    }

    async fn provide(&self, task: &Assignment, draft: &mut Draft) -> Result<(), ContainerError> {
        for (index, wanted) in WantedImage::mounted(task).iter().enumerate() {
            let reference = wanted.reference.to_owned();
            let files = match self.files(task, wanted, index).await {
                Ok(files) => files,
                Err(source) => return Err(ContainerError::MountedImage { reference, source: Box::new(source) }),
            };
            draft.images.insert(reference, files);
        }
        Ok(())
    }

    async fn files(
        &self,
        task: &Assignment,
        wanted: &WantedImage<'_>,
        index: usize,
    ) -> Result<ImageFiles, ContainerError> {
        let image = self.images.ensure(task, wanted).await?;
        let store = self.images.store.clone();
        let layers =
            tokio::task::spawn_blocking(move || store.unpack(&image)).await.map_err(std::io::Error::other)??;
        if self.overlay {
            return Ok(ImageFiles::Layers(layers));
        }
        let busy = self.busy.lock(task.task_id.as_str()).await;
        let folder = self.copies(&task.task_id).join(index.to_string());
        let copied = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            fs_err::create_dir_all(&folder)?;
            copy_layers(&layers, &folder)?;
            Ok(ImageFiles::Folder(folder))
        });
        copied.await.map_err(std::io::Error::other)?
    }

    async fn remove(&self, task: &TaskId) -> Result<(), Cause> {
        let (folder, busy) = (self.copies(task), self.busy.lock(task.as_str()).await);
        let removed = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            remove_folder(&folder)
        });
        Ok(removed.await??)
    }
}

impl PrepareStep for MountedImagesStep {
    fn name(&self) -> &'static str {
        "mounted images"
    }

    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
        Box::pin(async move { Ok(self.provide(task, draft).await?) })
    }

    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
        Box::pin(self.remove(task))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use flota_api::clock::Clock;
    use flota_api::model::{ImageSource, Mount, MountSource, MountedImage, Role, ServiceSpec};
    use flota_identity::Dialer;
    use flota_image::{ImageStore, Registries};

    use crate::reporter::Reporter;
    use crate::test_cluster::TestCluster;

    /// The step on a node with one image, of one program, and that image's digest.
    fn node(dir: &std::path::Path, overlay: bool) -> (MountedImagesStep, String) {
        let store = ImageStore::open(&dir.join("images"), overlay).expect("a folder");
        let program = [b"\x7fELF".as_slice(), &[0; 60]].concat();
        let digest = flota_image::pack(&store, "program", &program).expect("packed").digest;
        let dialer = Dialer::new(TestCluster::new().credentials(Role::Worker));
        let images = Images::new(store, dialer, Registries::default(), Reporter::default(), Clock::system());
        let paths = TaskPaths {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            hierarchies: Vec::new(),
            cgroup_parent: "flota".into(),
        };
        (MountedImagesStep { images, paths, overlay, busy: KeyedLocks::default() }, digest)
    }

    /// A task that mounts an image, of which the leader names the digest.
    fn task(digest: &str) -> Assignment {
        let source = MountSource::Image { reference: "127.0.0.1:1/data".into(), subpath: None };
        let mounts =
            ["/a", "/b"].map(|target| Mount { target: target.into(), read_only: true, source: source.clone() });
        let spec = Arc::new(ServiceSpec { mounts: mounts.into(), ..ServiceSpec::default() });
        let source = Some(ImageSource { digest: digest.into(), ..ImageSource::default() });
        let mounted = MountedImage { reference: "127.0.0.1:1/data".into(), source, credentials: None };
        Assignment { task_id: "t".into(), spec, mounted_images: vec![mounted], ..Assignment::default() }
    }

    #[tokio::test]
    async fn an_image_is_provided_once_as_layers_or_where_they_can_not_be_mounted_as_a_copy() {
        for overlay in [true, false] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (step, digest) = node(dir.path(), overlay);
            let (task, mut draft) = (task(&digest), Draft::default());
            for _ in 0..2 {
                step.prepare(&task, &mut draft).await.expect("it is here");
                let [(reference, files)] = Vec::from_iter(&draft.images).try_into().expect("one for both mounts");
                assert_eq!(reference, "127.0.0.1:1/data");
                let folder = match files {
                    ImageFiles::Layers(layers) if overlay => &layers[0],
                    ImageFiles::Folder(folder) if !overlay => folder,
                    other => panic!("{other:?}"),
                };
                assert!(folder.join("program").exists());
                step.undo(&task.task_id).await.expect("undone");
                assert_eq!(folder.exists(), overlay, "layers belong to the node, and a copy to the task");
                step.undo(&task.task_id).await.expect("undone again");
            }
        }
    }

    #[tokio::test]
    async fn an_image_that_can_not_be_had_is_named() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (step, _) = node(dir.path(), true);
        let other = format!("sha256:{}", "1".repeat(64));
        let error = step.prepare(&task(&other), &mut Draft::default()).await.expect_err("no node has it");
        let ExecutorError::Unfetched(error) = error else { panic!("its registry may answer again: {error}") };
        let text = flota_api::text::with_causes(&*error);
        let expected = format!(
            "failed to provide the image `127.0.0.1:1/data`, which the task mounts: no node holds the image {other}"
        );
        assert!(text.starts_with(&expected), "{text}");
    }
}
