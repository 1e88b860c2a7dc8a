//! Which task uses which images on this node: the one that it runs, and those that it mounts. An image counts as used from
//! before it is fetched until its task has ended, so that its layers are not removed below a container.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use flota_api::id::{ServiceId, TaskId};
use flota_api::model::Assignment;

/// The images of each task of this node. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageUses(Arc<Mutex<BTreeMap<TaskId, Use>>>);

/// What a task uses an image for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ImageRole {
    /// It runs it.
    Root,
    /// It mounts it, by this reference.
    Mount(String),
}

#[derive(Debug)]
struct Use {
    service: ServiceId,
    spec_version: u64,
    /// The digest of each image; `None` while it is not known.
    digests: BTreeMap<ImageRole, Option<String>>,
}

impl Use {
    fn of(task: &Assignment) -> Self {
        Self { service: task.service_id.clone(), spec_version: task.spec_version, digests: BTreeMap::new() }
    }
}

impl ImageUses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Use>> {
        self.0.lock().expect("no holder panics")
    }

    /// Records the images of a task that belongs to this node from now on, as far as they are known. It may have a container
    /// already, which an earlier daemon has started.
    pub(crate) fn accept(&self, task: &Assignment) {
        let named = |reference: &str| {
            let mounted = task.mounted_images.iter().find(|it| it.reference == reference);
            mounted.and_then(|it| Some(it.source.as_ref()?.digest.clone()))
        };
        let own = task.digest().map(|digest| (ImageRole::Root, Some(digest.to_owned())));
        let mounted = task.spec.mounted_images().into_iter();
        let mounted = mounted.map(|reference| (ImageRole::Mount(reference.to_owned()), named(reference)));
        let digests: BTreeMap<_, _> = own.into_iter().chain(mounted).collect();
        if !digests.is_empty() {
            self.lock().insert(task.task_id.clone(), Use { digests, ..Use::of(task) });
        }
    }

    /// Records that the task uses the image with this digest.
    pub(crate) fn add(&self, task: &Assignment, role: ImageRole, digest: &str) {
        let mut uses = self.lock();
        let used = uses.entry(task.task_id.clone()).or_insert_with(|| Use::of(task));
        used.digests.insert(role, Some(digest.to_owned()));
    }

    /// Records that the task uses no image any more.
    pub(crate) fn remove(&self, task: &TaskId) {
        self.lock().remove(task);
    }

    /// Returns whether any task uses the image with this digest, or may use it because it is not known yet what the
    /// reference of one of its mounts stands for.
    pub(super) fn contains(&self, digest: &str) -> bool {
        let uses = self.lock();
        uses.values().flat_map(|it| it.digests.values()).any(|it| it.as_ref().is_none_or(|it| it == digest))
    }

    /// Returns the digest that a task of the same spec, which may be this one, uses in this role.
    pub(super) fn of_spec(&self, task: &Assignment, role: &ImageRole) -> Option<String> {
        let uses = self.lock();
        let mut same = uses.values().filter(|it| it.service == task.service_id && it.spec_version == task.spec_version);
        same.find_map(|it| it.digests.get(role).cloned().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{ImageSource, Mount, MountSource, MountedImage, ServiceSpec};

    fn mounting(references: &[&str]) -> Assignment {
        let mount = |reference: &&str| Mount {
            target: format!("/{reference}"),
            read_only: true,
            source: MountSource::Image { reference: (*reference).to_owned(), subpath: None },
        };
        let mounts = references.iter().map(mount).collect();
        let spec = Arc::new(ServiceSpec { mounts, ..ServiceSpec::default() });
        Assignment { task_id: "t".into(), spec, ..Assignment::default() }
    }

    #[test]
    fn a_task_uses_what_it_runs_and_what_it_mounts() {
        let uses = ImageUses::default();
        let source = ImageSource { digest: "sha256:data".into(), ..ImageSource::default() };
        let mounted = MountedImage { reference: "data".into(), source: Some(source.clone()), credentials: None };
        let own = ImageSource { digest: "sha256:own".into(), ..source };
        let task = Assignment { image: Some(own), mounted_images: vec![mounted], ..mounting(&["data"]) };
        uses.accept(&task);
        assert!(uses.contains("sha256:own") && uses.contains("sha256:data") && !uses.contains("sha256:other"));
        uses.remove(&task.task_id);
        assert!(!uses.contains("sha256:own") && !uses.contains("sha256:data"));
    }

    #[test]
    fn no_image_is_unused_while_it_is_not_known_what_a_task_mounts() {
        let uses = ImageUses::default();
        let task = mounting(&["data"]);
        uses.accept(&task);
        assert!(uses.contains("sha256:any"), "an earlier daemon may have mounted it");
        let role = ImageRole::Mount("data".into());
        assert_eq!(uses.of_spec(&task, &role), None);
        uses.add(&task, role.clone(), "sha256:data");
        assert!(uses.contains("sha256:data") && !uses.contains("sha256:any"));
        assert_eq!(uses.of_spec(&task, &role).as_deref(), Some("sha256:data"));
        assert_eq!(uses.of_spec(&task, &ImageRole::Root), None, "it is another image");
    }
}
