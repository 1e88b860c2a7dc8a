//! The user and group ids that a container has of its own.

use serde::{Deserialize, Serialize};

use crate::error::{Act, StepError};
use crate::oci::IdMapping;
use crate::security::capabilities::raise_permitted;
use crate::syscall::process as kernel;

/// A range of user and group ids of the machine, which a container has as its own from 0 on (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The machine's id of the container's root.
    pub first: u32,
    /// Number of ids.
    pub count: u32,
}

impl IdRange {
    /// Returns the machine's id for one of the container; `None` if the container does not have it.
    pub fn outside(&self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first + id)
    }

    /// Returns the range as the configuration of a container has it.
    pub fn mapping(&self) -> IdMapping {
        IdMapping { container_id: 0, host_id: self.first, size: self.count }
    }
}

/// Does work whose files belong to the root of a container with these ids. On a mount that shows ids as the container's, only a
/// process with ids of the container can create files.
pub(crate) fn as_root_of<T>(ids: Option<IdRange>, work: impl FnOnce() -> Result<T, StepError>) -> Result<T, StepError> {
    let Some(ids) = ids else { return work() };
    kernel::set_file_ids(ids.first, ids.first);
    // The change has taken the rights to files of others, which this root has in its container.
    let done = raise_permitted().act(|| "keep the rights to the container's files".into()).and_then(|()| work());
    kernel::set_file_ids(0, 0);
    done
}

/// Returns the machine's id for one of a container with these mappings, or the same id if it is not mapped.
pub(crate) fn outside(mappings: &[IdMapping], id: u32) -> u32 {
    let is_inside =
        |it: &&IdMapping| id >= it.container_id && u64::from(id) < u64::from(it.container_id) + u64::from(it.size);
    mappings.iter().find(is_inside).map_or(id, |it| it.host_id + (id - it.container_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_outside_as_far_as_the_container_has_it() {
        let range = IdRange { first: 1_000, count: 10 };
        assert_eq!([0, 9, 10, u32::MAX].map(|id| range.outside(id)), [Some(1_000), Some(1_009), None, None]);
        assert_eq!([0, 9, 10].map(|id| outside(&[range.mapping()], id)), [1_000, 1_009, 10]);
    }
}
