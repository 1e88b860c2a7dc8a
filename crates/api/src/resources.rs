//! Amounts of CPU, memory and processes, in whole numbers: what a node has and a task reserves, and what a task can't
//! exceed.

use std::num::NonZeroU64;

use serde::{Serialize, Serializer};

/// The CPU and memory of a node, or those that a task reserves on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU in 10^-9 cores.
    pub nano_cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// Upper bounds on the resources of a task; `None` sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// CPU in 10^-9 cores.
    #[serde(serialize_with = "number_or_zero")]
    pub nano_cpus: Option<NonZeroU64>,
    /// Memory in bytes.
    #[serde(serialize_with = "number_or_zero")]
    pub memory_bytes: Option<NonZeroU64>,
    /// Number of processes and threads.
    #[serde(serialize_with = "number_or_zero")]
    pub pids: Option<NonZeroU64>,
}

/// Serializes an absent number as zero.
pub(crate) fn number_or_zero<T: Copy + Into<u64>, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.map_or(0, Into::into))
}

impl Resources {
    /// Returns whether the CPU and memory of `wanted` fit into these.
    pub fn fits(&self, wanted: &Self) -> bool {
        wanted.nano_cpus <= self.nano_cpus && wanted.memory_bytes <= self.memory_bytes
    }

    /// Returns the sum of both.
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_add(more.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_add(more.memory_bytes),
        }
    }

    /// Returns what is left after `taken` is subtracted; never below zero.
    pub fn minus(&self, taken: &Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_sub(taken.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Resources;

    #[test]
    fn both_cpu_and_memory_must_fit() {
        let free = Resources { nano_cpus: 2, memory_bytes: 10 };
        let want = |nano_cpus, memory_bytes| Resources { nano_cpus, memory_bytes };
        assert!(free.fits(&want(2, 10)) && free.fits(&want(0, 0)));
        assert!(!free.fits(&want(3, 0)) && !free.fits(&want(0, 11)));
        assert_eq!(free.minus(&want(5, 1)), want(0, 9));
    }
}
