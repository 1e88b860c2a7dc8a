//! Why a task waits for a node. The scheduler writes the reason, the planner of updates decides by it, and users read
//! it.

use std::collections::BTreeMap;
use std::fmt;

use super::platform::Platform;
use crate::id::NodeId;
use crate::state::states;

/// Largest number of platforms of an image that a reason names.
const NAMED_PLATFORMS: usize = 8;

states! {
    /// A reason that excludes a node when the scheduler chooses one, as a claim about the node. The variants are in the
    /// order of their texts, in which users read them.
    Filter {
        /// Its tasks move to other nodes.
        Drained = "drained",
        /// A constraint of the spec excludes it.
        Constraint = "excluded by a constraint",
        /// Its owner does not allow a bind mount of the spec.
        BindMount = "not allowing a bind mount",
        /// Its owner does not allow a capability that the spec adds.
        Capability = "not allowing a capability",
        /// Its owner does not allow a device that the spec maps.
        Device = "not allowing a device",
        /// Its owner does not allow a volume of the spec, which is a file system.
        FileSystem = "not allowing a file system",
        /// Its owner does not allow privileged tasks.
        Privileged = "not allowing privileged tasks",
        /// It is not connected.
        NotReady = "not ready",
        /// Its version does not know a part of the spec, and would leave it out.
        Outdated = "of a version that is too old",
        /// The image of the spec is made for other machines.
        Platform = "of another platform than the image's",
        /// It takes no new tasks.
        Paused = "paused",
        /// A task of a service beside which the spec does not run is there.
        AntiAffinity = "with a task of a service to keep apart from",
        /// It has as many tasks of the service as the spec allows on a node.
        MaxReplicas = "with as many tasks of the service as allowed",
        /// Another task has a port of the node that the spec asks for.
        Port = "with the port taken",
        /// Its kernel can't encrypt a network of the spec.
        Encryption = "without WireGuard for an encrypted network",
        /// It does not have a CDI device of the spec.
        CdiDevice = "without a CDI device",
        /// No task of a service beside which the spec runs is there.
        Affinity = "without a task of a service to run beside",
        /// Less CPU is free than the spec reserves.
        Cpu = "without enough CPU",
        /// Fewer devices of a kind are free than the spec asks for.
        GenericResource = "without enough free devices",
        /// Less memory is free than the spec reserves.
        Memory = "without enough memory",
        /// It does not have the data of a volume of the spec.
        Volume = "without the data of a volume",
        /// It does not have the runtime class.
        Runtime = "without the runtime",
        /// Tasks can't have user and group ids of their own there.
        UserNamespace = "without user namespaces for tasks",
    }
}

/// Why a task has no node yet. The counts are the nodes that each filter excluded; each node is counted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingReason {
    /// The cluster has no node.
    NoNode,
    /// Every node is excluded by a filter.
    NoNodeFits(BTreeMap<Filter, u64>),
    /// The data of volumes is on certain nodes, and those are excluded by a filter. With `needs_room`, one of them has
    /// room once the task that this one replaces has ended there.
    VolumesElsewhere {
        /// Where the volumes are.
        volumes: Vec<VolumeAt>,
        /// The counts.
        refused: BTreeMap<Filter, u64>,
        /// Whether the task that this one replaces is all that it waits for.
        needs_room: bool,
    },
    /// Every node is excluded by a filter, some of them because they have none of the platforms of the image. With
    /// `needs_room`, another one has room once the task that this one replaces has ended there.
    OtherPlatforms {
        /// The platforms of the image.
        image: Vec<Platform>,
        /// The counts.
        refused: BTreeMap<Filter, u64>,
        /// Whether the task that this one replaces is all that it waits for.
        needs_room: bool,
    },
    /// Every node is excluded by a filter, but one of them has room once the task that this one replaces has ended
    /// there.
    NeedsRoom(BTreeMap<Filter, u64>),
    /// Every node is excluded by a filter, but this one has room once tasks that are being stopped there have ended. No task
    /// of a lower priority gets that room.
    AwaitsRoom {
        /// The node.
        node_id: NodeId,
        /// Its name.
        node: String,
        /// The counts.
        refused: BTreeMap<Filter, u64>,
    },
    /// No address is free in the network of this name.
    NoAddress(String),
}

/// A volume and a node that has its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAt {
    /// Name of the volume.
    pub volume: String,
    /// Name of the node, or its id if it was removed from the cluster.
    pub node: String,
    /// Whether the node was removed from the cluster, and the data with it.
    pub is_gone: bool,
}

impl fmt::Display for VolumeAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, node, is_gone } = self;
        match is_gone {
            true => write!(f, "the data of volume `{volume}` was on node {node}, which was removed"),
            false => write!(f, "the data of volume `{volume}` is on node {node}"),
        }
    }
}

impl PendingReason {
    /// Returns whether the task has a place as soon as the task that it replaces has ended.
    pub fn needs_room(&self) -> bool {
        let others = matches!(
            self,
            Self::VolumesElsewhere { needs_room: true, .. } | Self::OtherPlatforms { needs_room: true, .. }
        );
        matches!(self, Self::NeedsRoom(_)) || others
    }

    /// Returns the node on which the task waits until others have stopped.
    pub fn claim(&self) -> Option<&NodeId> {
        match self {
            Self::AwaitsRoom { node_id, .. } => Some(node_id),
            _ => None,
        }
    }
}

/// Returns the names of the first of these platforms.
fn names(platforms: &[Platform]) -> String {
    let names = platforms.iter().take(NAMED_PLATFORMS).map(ToString::to_string);
    let more = platforms.len().saturating_sub(NAMED_PLATFORMS);
    names.chain((more > 0).then(|| format!("{more} more"))).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for PendingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = match self {
            Self::NoNode => return f.write_str("there is no node"),
            Self::NoAddress(network) => return write!(f, "no address is free in network {network}"),
            Self::NoNodeFits(counts)
            | Self::NeedsRoom(counts)
            | Self::AwaitsRoom { refused: counts, .. }
            | Self::VolumesElsewhere { refused: counts, .. }
            | Self::OtherPlatforms { refused: counts, .. } => counts,
        };
        let nodes: u64 = counts.values().sum();
        let claim = |filter: &Filter| match self {
            Self::OtherPlatforms { image, .. } if *filter == Filter::Platform => format!("{filter} ({})", names(image)),
            _ => filter.to_string(),
        };
        let counts: Vec<String> =
            counts.iter().map(|(filter, count)| format!("{count} of {nodes} {}", claim(filter))).collect();
        write!(f, "no node fits: {}", counts.join(", "))?;
        match self {
            Self::VolumesElsewhere { volumes, .. } => volumes.iter().try_for_each(|volume| write!(f, "; {volume}")),
            Self::AwaitsRoom { node, .. } => write!(f, "; it gets the room of tasks that are being stopped on {node}"),
            Self::NoNode
            | Self::NoNodeFits(_)
            | Self::NeedsRoom(_)
            | Self::OtherPlatforms { .. }
            | Self::NoAddress(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_counts_in_the_order_of_the_texts() {
        let counts = BTreeMap::from([(Filter::Memory, 1), (Filter::Drained, 2), (Filter::NotReady, 1)]);
        let text = "no node fits: 2 of 4 drained, 1 of 4 not ready, 1 of 4 without enough memory";
        assert_eq!(PendingReason::NoNodeFits(counts.clone()).to_string(), text);
        assert_eq!(PendingReason::NeedsRoom(counts.clone()).to_string(), text);
        let awaits = PendingReason::AwaitsRoom { node_id: "n".into(), node: "w1".into(), refused: counts };
        assert_eq!(awaits.to_string(), format!("{text}; it gets the room of tasks that are being stopped on w1"));
        assert!(Filter::ALL.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()));
    }

    #[test]
    fn a_reason_without_counts_is_a_sentence() {
        assert_eq!(PendingReason::NoNode.to_string(), "there is no node");
        assert_eq!(PendingReason::NoAddress("back".into()).to_string(), "no address is free in network back");
    }

    #[test]
    fn a_task_whose_data_is_elsewhere_says_where() {
        let at = |node: &str, is_gone| VolumeAt { volume: "db".into(), node: node.into(), is_gone };
        let refused = BTreeMap::from([(Filter::Drained, 1), (Filter::Volume, 2)]);
        let reason =
            |at| PendingReason::VolumesElsewhere { volumes: vec![at], refused: refused.clone(), needs_room: false };
        let text = "no node fits: 1 of 3 drained, 2 of 3 without the data of a volume";
        assert_eq!(reason(at("w1", false)).to_string(), format!("{text}; the data of volume `db` is on node w1"));
        let gone = "; the data of volume `db` was on node w1, which was removed";
        assert_eq!(reason(at("w1", true)).to_string(), format!("{text}{gone}"));
    }

    #[test]
    fn a_task_of_another_platform_names_those_of_its_image() {
        let image = |count| (0..count).filter_map(|it| Platform::new("linux", &format!("a{it}"), None)).collect();
        let refused = BTreeMap::from([(Filter::NotReady, 1), (Filter::Platform, 2)]);
        let reason = |image| PendingReason::OtherPlatforms { image, refused: refused.clone(), needs_room: false };
        let text = "no node fits: 1 of 3 not ready, 2 of 3 of another platform than the image's (linux/a0, linux/a1)";
        assert_eq!(reason(image(2)).to_string(), text);
        assert!(reason(image(10)).to_string().ends_with("linux/a7, 2 more)"));
    }
}
