//! What is known of an image that a task needs, before it is fetched.

use flota_api::model::{Assignment, ImageSource, RegistryCredentials};

use super::uses::ImageRole;

/// An image that a task needs.
#[derive(Clone, Debug)]
pub(crate) struct WantedImage<'a> {
    /// What the task needs it for.
    pub(super) role: ImageRole,
    /// Its reference in the spec.
    pub(crate) reference: &'a str,
    /// Where it can be fetched from, if the leader says so.
    pub(super) source: Option<&'a ImageSource>,
    pub(super) credentials: Option<&'a RegistryCredentials>,
    /// The digest that an earlier start of the task used; it applies if the leader names none.
    pub(super) pinned: Option<&'a str>,
}

impl<'a> WantedImage<'a> {
    /// The image that the task runs.
    pub(crate) fn own(task: &'a Assignment, pinned: Option<&'a str>) -> Self {
        Self {
            role: ImageRole::Root,
            reference: &task.spec.image,
            source: task.image.as_ref(),
            credentials: task.credentials.as_ref(),
            pinned,
        }
    }

    /// The images that the task mounts, each once.
    pub(crate) fn mounted(task: &'a Assignment) -> Vec<Self> {
        let wanted = |reference: &'a str| {
            let told = task.mounted_images.iter().find(|it| it.reference == reference);
            Self {
                role: ImageRole::Mount(reference.to_owned()),
                reference,
                source: told.and_then(|it| it.source.as_ref()),
                credentials: told.and_then(|it| it.credentials.as_ref()),
                pinned: None,
            }
        };
        task.spec.mounted_images().into_iter().map(wanted).collect()
    }
}
