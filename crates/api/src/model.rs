//! The domain types, one file for each noun.

use std::fmt::Display;
use std::time::Duration;

use serde::Serializer;

mod allowance;
mod assignment;
mod cdi;
mod certificate;
mod check;
mod cluster;
mod cron;
mod dependency;
mod device;
mod endpoint;
mod feature_level;
mod file_system;
mod health;
mod image;
mod mode;
mod mount;
mod network;
mod node;
mod pending;
mod pinned_image;
mod placement;
mod platform;
mod restart;
mod scale;
mod service;
mod setting;
mod stack;
mod stream;
mod task;
mod tunnel;
mod update;
mod user;
mod value;
mod value_use;
mod volume;

pub use allowance::{Allowance, Refusal};
pub use assignment::{Assignment, Grant, ImageSource, MountedImage, NodeAddress, RegistryCredentials};
pub use cdi::{CdiName, CdiNameError};
pub use certificate::NodeCertificate;
pub use check::{BalancerReport, LayerFailure, NetworkCheck, NetworkLayer, NetworkReport, PeerReport};
pub use cluster::{CaRotation, Cluster, Rebalance, Registry, Revoked, Secret};
pub use cron::{CronRun, CronStatus, Handled, RunState};
pub use dependency::{Dependency, DependencyCondition};
pub use device::{
    DEVICE_PERMISSIONS, DeviceError, DeviceId, DeviceMapping, GenericResource, GenericResourceError, NamedDevice,
    NamedDeviceError, NodeDevice,
};
pub use endpoint::{Endpoint, NetworkConfig, NetworkNode, NetworkService, NetworkUpdate};
pub use file_system::FileSystem;
pub use health::{Health, HealthCheck, HealthResult, HealthSpec, HealthState, HealthTest};
pub use image::{Image, ImageHolder};
pub use mode::{Concurrency, ModeName, ServiceMode};
pub use mount::{BindMount, Mount, MountSource, Propagation, TmpfsMount, VolumeMount};
pub use network::{
    AddressPool, Attachment, DnsConfig, EndpointMode, HostEntry, INGRESS, LastGiven, Network, NetworkAttachment,
    NetworkDriver, NetworkSpec, NodePort, Protocol, PublishMode, PublishedPort, Subnet, SubnetSpec, VirtualIp,
};
pub use node::{
    Availability, Balancer, ListeningTask, Node, NodeDescription, NodeSpec, NodeState, NodeStateReason, Role,
    RoleChange,
};
pub use pending::{Filter, PendingReason, VolumeAt};
pub use pinned_image::PinnedImage;
pub use placement::PlacementStrategy;
pub use platform::Platform;
pub use restart::{RestartCondition, RestartHistory, RestartPolicy};
pub use scale::{
    Measured, NodeUsage, RequestCounter, RequestTarget, ScaleDecision, ScalePolicy, ScaleStatus, TaskUsage,
};
pub use service::{OnPartition, Service, ServiceSpec};
pub use setting::{Bound, LogDriver, LogSpec, PullPolicy, Ulimit, UlimitError, UlimitName};
pub use stack::{Stack, StackSpec};
pub use stream::{
    LogLine, LogRange, Output, Program, StreamKind, StreamRequest, TaskFrame, TaskPort, TerminalSize, UserFrame,
};
pub use task::{ANOTHER_TASK, Task, TaskStatus, preempting};
pub use tunnel::TunnelKey;
pub use update::{FailureAction, Ratio, Revision, UpdateOrder, UpdatePhase, UpdatePolicy, UpdateStatus};
pub use user::{AUDITED_OBJECTS, Audit, AuditedObject, PREFIXES_BOUND, PrefixError, User, UserRole, check_prefixes};
pub use value::{
    AnyValue, ConfigMarker, SecretMarker, StackValue, StoredConfig, StoredSecret, StoredValue, VALUE_BOUND, ValueBytes,
    ValueData, ValueKind, ValueSpec, ValueVersion,
};
pub use value_use::{CONFIGS_FOLDER, PinnedValue, SECRETS_FOLDER, TaskValue, ValueUse, clashes, folder_of};
pub use volume::{
    NOT_PER_SLOT, TaskVolume, VOLUME_NAME_BOUND, Volume, VolumeNameError, VolumePlace, VolumeSpec,
    check_name as check_volume_name,
};

/// Serializes a duration as a text such as `1.5s`.
fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{}s", duration.as_secs_f64()))
}

/// Serializes an absent duration as one of zero.
fn seconds_or_zero<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    seconds(&duration.unwrap_or_default(), serializer)
}

/// Serializes an absent value as an empty text.
fn text_or_empty<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_str(""),
    }
}
