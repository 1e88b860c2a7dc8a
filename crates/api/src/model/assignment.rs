//! The leader's messages to a node: the tasks that it runs, and where images are. `convert/assignments.rs` converts
//! the session's messages to these types; a worker also keeps assignments on disk.

use std::sync::Arc;

use super::{
    Attachment, BindMount, DeviceId, FileSystem, Measured, Mount, MountSource, RestartHistory, Secret, ServiceSpec,
    TaskStatus, TaskValue, TaskVolume, VolumeMount,
};
use crate::id::{NodeId, ServiceId, TaskId};
use crate::state::DesiredState;
use crate::version::Timestamp;

/// The order to run one task, with everything that its node needs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Identifies the task.
    pub task_id: TaskId,
    /// The service that the task belongs to.
    pub service_id: ServiceId,
    /// Name of that service.
    pub service_name: String,
    /// The task's slot in its service, from 1.
    pub slot: u64,
    /// The state that the orchestrator wants for the task.
    pub desired_state: DesiredState,
    /// The version of the service's spec that the task was made from.
    pub spec_version: u64,
    /// That spec. Tasks that arrive together share one copy.
    pub spec: Arc<ServiceSpec>,
    /// The last status in the store, so that a node that lost its disk continues counting from there.
    pub status: TaskStatus,
    /// The restarts of the slot before this task, with times like `not_before`.
    pub restarts: RestartHistory,
    /// The task is not started before this time; `None` if it need not wait. A worker has converted it to a time of
    /// its own clock.
    pub not_before: Option<Timestamp>,
    /// The image to use. If no node holds it, the node pulls it from its registry. If `None`, the node also asks the
    /// registry what the image's name stands for.
    pub image: Option<ImageSource>,
    /// Credentials for that registry.
    pub credentials: Option<RegistryCredentials>,
    /// Whether the task's processes are frozen.
    pub paused: bool,
    /// The node's devices that the task holds until it has ended.
    pub device_ids: Vec<DeviceId>,
    /// The networks of the task and its addresses there, in the order of its interfaces.
    pub attachments: Vec<Attachment>,
    /// The volumes that the mounts of the spec name.
    pub volumes: Vec<TaskVolume>,
    /// The secrets and configs of the spec, in the order of [`ServiceSpec::values`].
    pub values: Vec<TaskValue>,
    /// Names of the nodes that had not confirmed in time that they send the task no more connections, so that it is
    /// stopped without them.
    pub unconfirmed_nodes: Vec<String>,
    /// The unhealthy attempt of the task that gets no more connections, so that it may be stopped.
    pub withdrawn_attempt: Option<u32>,
    /// Whether programs can't gain privileges if neither the spec nor the node says so: the cluster's default.
    pub no_new_privileges: bool,
    /// What the node measures of the task, if its service is scaled by load.
    pub measured: Option<Measured>,
    /// The images that the mounts of the spec name, each once.
    pub mounted_images: Vec<MountedImage>,
}

impl Default for Assignment {
    /// A task that runs in slot 1.
    fn default() -> Self {
        Self {
            task_id: TaskId::default(),
            service_id: ServiceId::default(),
            service_name: String::new(),
            slot: 1,
            desired_state: DesiredState::Running,
            spec_version: 0,
            spec: Arc::default(),
            status: TaskStatus::default(),
            restarts: RestartHistory::default(),
            not_before: None,
            image: None,
            credentials: None,
            paused: false,
            device_ids: Vec::new(),
            attachments: Vec::new(),
            volumes: Vec::new(),
            values: Vec::new(),
            unconfirmed_nodes: Vec::new(),
            withdrawn_attempt: None,
            no_new_privileges: false,
            measured: None,
            mounted_images: Vec::new(),
        }
    }
}

impl Assignment {
    /// Returns whether the bytes of all its secrets and configs are here.
    pub fn has_values(&self) -> bool {
        self.values.iter().all(|it| it.bytes.is_some())
    }

    /// Returns the file system that the volume of this mount is, unless it is a folder.
    pub fn file_system(&self, mount: &Mount) -> Option<&FileSystem> {
        let name = mount.volume()?;
        self.volumes.iter().find(|it| it.name == name)?.file_system.as_ref()
    }

    /// Returns the mounts of its spec. In place of a volume whose file system is a file or folder of the node, it has a bind mount
    /// of that.
    pub fn mounts(&self) -> Vec<Mount> {
        let bound = |mount: &Mount| {
            let MountSource::Volume(VolumeMount { subpath, .. }) = &mount.source else { return None };
            let volume = self.file_system(mount)?;
            let path = volume.bound_path()?;
            let source = match subpath {
                Some(part) => format!("{}/{part}", path.trim_end_matches('/')),
                None => path.to_owned(),
            };
            let non_recursive = !volume.has_option("rbind");
            let source = MountSource::Bind(BindMount { source, non_recursive, ..BindMount::default() });
            let read_only = mount.read_only || volume.has_option("ro");
            Some(Mount { target: mount.target.clone(), read_only, source })
        };
        self.spec.mounts.iter().map(|mount| bound(mount).unwrap_or_else(|| mount.clone())).collect()
    }

    /// Returns the digest of the task's image: the one that the leader names, or else the one to which an earlier
    /// start resolved its name.
    pub fn digest(&self) -> Option<&str> {
        let named = self.image.as_ref().map(|image| image.digest.as_str());
        named.or(self.status.image_digest.as_deref())
    }
}

/// A node and its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress {
    /// Identifies the node.
    pub node_id: NodeId,
    /// Its listener, as `host:port`.
    pub address: String,
}

/// The leader's permission for one node to fetch one image from the nodes that hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Digest of the image.
    pub digest: String,
    /// The node that may fetch it.
    pub node_id: NodeId,
    /// When the grant ends.
    pub expires_at: Timestamp,
    /// The leader's signature over the other fields.
    pub signature: Vec<u8>,
}

/// An image and where it can be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSource {
    /// Digest of the image.
    pub digest: String,
    /// Nodes that hold it.
    pub holders: Vec<NodeAddress>,
    /// The permission that those nodes require.
    pub grant: Option<Grant>,
}

/// An image that a task mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountedImage {
    /// Its reference, as it is in the mounts of the spec.
    pub reference: String,
    /// The image to use. If no node holds it, the node pulls it from its registry. If `None`, the node also asks the
    /// registry what the reference stands for.
    pub source: Option<ImageSource>,
    /// Credentials for that registry.
    pub credentials: Option<RegistryCredentials>,
}

/// A user name and a password for one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// The registry, as `host` or `host:port`.
    pub host: String,
    /// The user name.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}
