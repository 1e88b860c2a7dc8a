//! Conversion of task assignments and image sources, in a worker's session and in a worker's records on disk.

use std::sync::Arc;

use prost::Message;

use super::networks::all;
use super::restarts::untimed;
use super::{FromNumber, Malformed, require};
use crate::model::{Assignment, Grant, ImageSource, NodeAddress, RegistryCredentials, ServiceSpec, TaskStatus};
use crate::proto::dispatcher as pd;
use crate::version::Timestamp;

impl From<&Assignment> for pd::TaskAssignment {
    fn from(it: &Assignment) -> Self {
        Self {
            task_id: it.task_id.to_string(),
            service_id: it.service_id.to_string(),
            service_name: it.service_name.clone(),
            slot: it.slot,
            desired_state: it.desired_state.number(),
            spec_version: it.spec_version,
            spec: Some(it.spec.as_ref().into()),
            status: Some((&it.status).into()),
            inherited_restarts: it.restarts.count,
            restarts: Some((&it.restarts).into()),
            not_before: it.not_before.map(|it| it.0),
            image: it.image.as_ref().map(Into::into),
            credentials: it.credentials.as_ref().map(Into::into),
            paused: it.paused,
            device_ids: it.device_ids.iter().map(Into::into).collect(),
            attachments: it.attachments.iter().map(Into::into).collect(),
            unconfirmed_nodes: it.unconfirmed_nodes.clone(),
            withdrawn_attempt: it.withdrawn_attempt.unwrap_or_default(),
            no_new_privileges: it.no_new_privileges,
            volumes: it.volumes.iter().map(Into::into).collect(),
            values: it.values.iter().map(Into::into).collect(),
            measured: it.measured.as_ref().map(Into::into),
            mounted_images: it.mounted_images.iter().map(Into::into).collect(),
        }
    }
}

impl Assignment {
    /// Converts an assignment whose spec was sent separately, as in a session.
    ///
    /// # Errors
    /// A field is malformed; the error names it.
    pub fn with_spec(it: pd::TaskAssignment, spec: Arc<ServiceSpec>) -> Result<Self, Malformed> {
        let status = match it.status {
            // The store has no status of a new task.
            None => TaskStatus::default(),
            known => known.try_into()?,
        };
        Ok(Self {
            task_id: it.task_id.into(),
            service_id: it.service_id.into(),
            service_name: it.service_name,
            slot: it.slot,
            desired_state: FromNumber::from_number(it.desired_state)?,
            spec_version: it.spec_version,
            spec,
            status,
            restarts: it.restarts.map_or_else(|| untimed(it.inherited_restarts), Into::into),
            not_before: it.not_before.map(Timestamp),
            image: it.image.map(Into::into),
            credentials: it.credentials.map(Into::into),
            paused: it.paused,
            device_ids: it.device_ids.into_iter().map(Into::into).collect(),
            attachments: all(it.attachments)?,
            volumes: it.volumes.into_iter().map(Into::into).collect(),
            values: it.values.into_iter().map(Into::into).collect(),
            unconfirmed_nodes: it.unconfirmed_nodes,
            // Attempts count from 1.
            withdrawn_attempt: Some(it.withdrawn_attempt).filter(|attempt| *attempt != 0),
            no_new_privileges: it.no_new_privileges,
            measured: it.measured.map(TryInto::try_into).transpose()?,
            mounted_images: it.mounted_images.into_iter().map(Into::into).collect(),
        })
    }
}

impl Assignment {
    /// Encodes the assignment for a record on disk, as on the wire.
    pub fn encode(&self) -> Vec<u8> {
        pd::TaskAssignment::from(self).encode_to_vec()
    }

    /// Decodes the assignment of a record.
    ///
    /// # Errors
    /// The bytes are damaged, or a field is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        pd::TaskAssignment::decode(bytes)
            .map_err(|_| Malformed::new("assignment", "is no protobuf message"))?
            .try_into()
    }
}

impl TryFrom<pd::TaskAssignment> for Assignment {
    type Error = Malformed;

    /// Converts an assignment that contains its spec.
    fn try_from(mut it: pd::TaskAssignment) -> Result<Self, Malformed> {
        let spec = require(it.spec.take(), "task.spec")?.try_into()?;
        Self::with_spec(it, Arc::new(spec))
    }
}

impl From<&ImageSource> for pd::ImageSource {
    fn from(it: &ImageSource) -> Self {
        Self {
            digest: it.digest.clone(),
            holders: it.holders.iter().map(Into::into).collect(),
            grant: it.grant.as_ref().map(Into::into),
        }
    }
}

impl From<pd::ImageSource> for ImageSource {
    fn from(it: pd::ImageSource) -> Self {
        Self {
            digest: it.digest,
            holders: it.holders.into_iter().map(Into::into).collect(),
            grant: it.grant.map(Into::into),
        }
    }
}

impl From<&NodeAddress> for pd::Peer {
    fn from(it: &NodeAddress) -> Self {
        Self { node_id: it.node_id.to_string(), address: it.address.clone() }
    }
}

impl From<pd::Peer> for NodeAddress {
    fn from(it: pd::Peer) -> Self {
        Self { node_id: it.node_id.into(), address: it.address }
    }
}

impl From<&Grant> for pd::Grant {
    fn from(it: &Grant) -> Self {
        Self {
            digest: it.digest.clone(),
            node_id: it.node_id.to_string(),
            expires_at: it.expires_at.0,
            signature: it.signature.clone().into(),
        }
    }
}

impl From<pd::Grant> for Grant {
    fn from(it: pd::Grant) -> Self {
        Self {
            digest: it.digest,
            node_id: it.node_id.into(),
            expires_at: Timestamp(it.expires_at),
            signature: it.signature.into(),
        }
    }
}

impl From<&RegistryCredentials> for pd::RegistryCredentials {
    fn from(it: &RegistryCredentials) -> Self {
        let password = it.password.as_text().to_owned();
        Self { host: it.host.clone(), username: it.username.clone(), password }
    }
}

impl From<pd::RegistryCredentials> for RegistryCredentials {
    fn from(it: pd::RegistryCredentials) -> Self {
        Self { host: it.host, username: it.username, password: it.password.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FileSystem;
    use crate::model::{Attachment, DeviceId, MountedImage, RestartHistory, TaskVolume};
    use crate::state::{DesiredState, TaskState};

    #[test]
    fn an_assignment_survives_the_way_to_the_wire_and_back() {
        let grant =
            Grant { node_id: "n".into(), expires_at: Timestamp(7), signature: vec![1, 255], ..Grant::default() };
        let holder = NodeAddress { node_id: "h".into(), address: "h:1".into() };
        let source = ImageSource { digest: "d".into(), holders: vec![holder], grant: Some(grant) };
        let credentials = Some(RegistryCredentials { password: "p".to_owned().into(), ..Default::default() });
        let assignment = Assignment {
            task_id: "t".into(),
            service_id: "s".into(),
            service_name: "web".into(),
            slot: 3,
            desired_state: DesiredState::Complete,
            spec_version: 9,
            spec: Arc::new(ServiceSpec { name: "web".into(), ..ServiceSpec::default() }),
            status: TaskStatus { attempt: 4, state: TaskState::Running, ..TaskStatus::default() },
            restarts: RestartHistory { in_a_row: 1, count: 2, times: vec![Timestamp(7)] },
            not_before: Some(Timestamp(5)),
            image: Some(source.clone()),
            credentials: credentials.clone(),
            mounted_images: vec![
                MountedImage { reference: "data:1".into(), source: Some(source), credentials },
                MountedImage { reference: "data:2".into(), source: None, credentials: None },
            ],
            paused: true,
            device_ids: vec![DeviceId { kind: "gpu".into(), id: "a".into() }],
            attachments: vec![Attachment {
                network: "n".into(),
                addresses: vec![std::net::IpAddr::from([10, 0, 1, 2])],
            }],
            volumes: vec![TaskVolume {
                name: "db".into(),
                id: "v".into(),
                slot: Some(3),
                file_system: Some(FileSystem::of("tmpfs", "", "size=1m").expect("a good one")),
            }],
            values: vec![crate::model::TaskValue { version: 2, data: "d".into(), template: true, bytes: None }],
            unconfirmed_nodes: vec!["w2".into()],
            withdrawn_attempt: Some(4),
            measured: Some(crate::model::Measured::default()),
            no_new_privileges: true,
        };
        assert_eq!(Assignment::decode(&assignment.encode()), Ok(assignment.clone()));
        let nobody = Assignment { withdrawn_attempt: None, ..assignment.clone() };
        assert_eq!(Assignment::decode(&nobody.encode()), Ok(nobody));
        let mut secret = Assignment::decode(&assignment.encode()).expect("it was just encoded");
        secret.values[0].bytes = Some(b"hunter2".to_vec().into());
        assert!(!secret.encode().windows(7).any(|it| it == b"hunter2"), "no record has it");
        assert!(!secret.has_values() || !format!("{secret:?}").contains("hunter2"));
        assert_eq!(Assignment::decode(&[255]).expect_err("damaged").field, "assignment");
    }

    #[test]
    fn an_assignment_needs_a_spec_and_known_numbers_but_no_status() {
        let bare = || pd::TaskAssignment::default();
        let assignment = Assignment::with_spec(bare(), Arc::default()).expect("zero is the state `ready`");
        assert_eq!(assignment.status, TaskStatus::default());
        assert_eq!(Assignment::try_from(bare()).expect_err("no spec").field, "task.spec");
        let unknown = pd::TaskAssignment { desired_state: 77, ..bare() };
        assert_eq!(Assignment::with_spec(unknown, Arc::default()).expect_err("77").field, "desired_state");
    }
}
