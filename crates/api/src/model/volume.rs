//! Volumes: folders on nodes, or file systems that tasks mount, that outlive tasks and services.
//!
//! The data of a folder is on the node where it was used first, and stays there. It has one set of data for all slots, or
//! with `per_slot` one for each slot; a global service, whose slots are nodes, has one on each node.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{FileSystem, text_or_empty};
use crate::id::{NodeId, StackId, VolumeId};
use crate::version::Meta;

/// Why a volume that is a file system is not divided among slots.
pub const NOT_PER_SLOT: &str = "a volume that is a file system has one set of data, for all slots";

/// Longest name of a volume.
pub const VOLUME_NAME_BOUND: usize = 255;

/// Why the name of a volume is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeNameError {
    /// The name is longer than a file's name may be.
    #[error("the name of a volume has at most {VOLUME_NAME_BOUND} characters")]
    TooLong,
    /// The name is too short, or contains an illegal character.
    #[error(
        "`{0}`: the name of a volume has two or more letters, digits, `-`, `_` and `.`, begins with a letter or digit, \
         and has no `..`"
    )]
    Form(String),
}

/// Checks the name of a volume by Docker's rules (moby, `volume/service/restricted names`), and refuses `..`.
///
/// # Errors
/// A rule is broken; the error names it.
pub fn check_name(name: &str) -> Result<(), VolumeNameError> {
    if name.len() > VOLUME_NAME_BOUND {
        return Err(VolumeNameError::TooLong);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if name.len() < 2 || !begins_well || !name.bytes().all(legal) || name.contains("..") {
        return Err(VolumeNameError::Form(name.escape_debug().to_string()));
    }
    Ok(())
}

/// The specification of a volume, which users write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// Name, unique in the cluster.
    pub name: String,
    /// Labels, for people and tools.
    pub labels: BTreeMap<String, String>,
    /// Whether each slot has data of its own.
    pub per_slot: bool,
    /// The file system that tasks mount in place of a folder of their node.
    pub file_system: Option<FileSystem>,
}

/// A node that has data of a volume, or gets it with the task that was placed there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumePlace {
    /// The slot that the data belongs to; `None` for all slots, or for the tasks of global services on the node.
    pub slot: Option<u64>,
    /// The node.
    pub node_id: NodeId,
}

/// A volume as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Identifier of the volume, which also names its folder on nodes.
    pub id: VolumeId,
    /// Times and version.
    pub meta: Meta,
    /// The spec that the user set.
    pub spec: VolumeSpec,
    /// Where its data is, in the order in which the places were chosen.
    pub places: Vec<VolumePlace>,
    /// The stack that declares it, if any.
    #[serde(serialize_with = "text_or_empty")]
    pub stack_id: Option<StackId>,
    /// Whether a user has removed it. It has no name any more, and goes when no node has data of it.
    pub is_removed: bool,
}

impl Volume {
    /// Returns the slot whose data a task of this slot uses; `None` for data that is not of a slot. The slots of a global
    /// service are its nodes.
    pub fn data_slot(&self, is_global: bool, slot: u64) -> Option<u64> {
        (self.spec.per_slot && !is_global).then_some(slot)
    }

    /// Returns the nodes that have the data of this slot. Several can have data that is not of a slot.
    pub fn nodes_with(&self, slot: Option<u64>) -> impl Iterator<Item = &NodeId> {
        self.places.iter().filter(move |place| place.slot == slot).map(|place| &place.node_id)
    }

    /// Returns the volume with this place added; `None` if it has the place already.
    pub fn placed(&self, slot: Option<u64>, node: &NodeId) -> Option<Self> {
        if self.nodes_with(slot).any(|it| it == node) {
            return None;
        }
        let mut volume = self.clone();
        volume.places.push(VolumePlace { slot, node_id: node.clone() });
        Some(volume)
    }

    /// Returns the volume without what this node has of it; `None` if that has nothing.
    pub fn without_node(&self, node: &NodeId) -> Option<Self> {
        let mut volume = self.clone();
        volume.places.retain(|place| place.node_id != *node);
        (volume.places.len() < self.places.len()).then_some(volume)
    }
}

/// A volume as a task uses it on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskVolume {
    /// Name by which the mounts of the spec know it.
    pub name: String,
    /// Identifies the volume.
    pub id: VolumeId,
    /// The slot whose data it is; `None` for data that is not of a slot.
    pub slot: Option<u64>,
    /// The file system that it is, if it is not a folder of the node.
    pub file_system: Option<FileSystem>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_docker_without_two_dots_in_a_row() {
        for good in ["db", "0a", "shop_db.1-a", &"x".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "_a", "..", "a..b", "a/b", "a b", "ä1", "a\0", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn data_belongs_to_all_slots_to_one_or_to_a_node() {
        let volume = |per_slot| Volume { spec: VolumeSpec { per_slot, ..VolumeSpec::default() }, ..Volume::default() };
        assert_eq!(volume(false).data_slot(false, 2), None);
        assert_eq!(volume(true).data_slot(false, 2), Some(2));
        assert_eq!(volume(true).data_slot(true, 2), None, "the slot of a global service is its node");
    }

    #[test]
    fn a_place_is_recorded_once_and_forgotten_with_its_node() {
        let first = Volume::default().placed(Some(1), &"a".into()).expect("it is new");
        assert_eq!(first.placed(Some(1), &"a".into()), None);
        let both = first.placed(Some(2), &"a".into()).and_then(|it| it.placed(Some(2), &"b".into())).expect("new ones");
        assert_eq!(both.nodes_with(Some(2)).map(NodeId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(both.nodes_with(None).count(), 0);
        assert_eq!(both.without_node(&"a".into()).expect("it has data").places.len(), 1);
        assert_eq!(both.without_node(&"c".into()), None);
    }
}
