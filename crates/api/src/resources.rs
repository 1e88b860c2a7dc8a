//! Amounts of CPU, memory and processes, in whole numbers.

use serde::{Deserialize, Serialize};

/// CPU in 10^-9 cores, memory in bytes, and a number of processes. Zero means "not given".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU in 10^-9 cores.
    pub nano_cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Largest number of processes and threads.
    pub pids: u64,
}

impl Resources {
    /// Returns whether the CPU and memory of `wanted` fit into these.
    pub fn fits(&self, wanted: &Self) -> bool {
        wanted.nano_cpus <= self.nano_cpus && wanted.memory_bytes <= self.memory_bytes
    }

    /// Returns the sum of both; the number of processes stays.
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_add(more.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_add(more.memory_bytes),
            pids: self.pids,
        }
    }

    /// Returns what is left after `taken` is subtracted; never below zero.
    pub fn minus(&self, taken: &Self) -> Self {
        Self {
            nano_cpus: self.nano_cpus.saturating_sub(taken.nano_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
            pids: self.pids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Resources;

    #[test]
    fn both_cpu_and_memory_must_fit() {
        let free = Resources { nano_cpus: 2, memory_bytes: 10, pids: 0 };
        let want = |nano_cpus, memory_bytes| Resources { nano_cpus, memory_bytes, pids: 0 };
        assert!(free.fits(&want(2, 10)) && free.fits(&want(0, 0)));
        assert!(!free.fits(&want(3, 0)) && !free.fits(&want(0, 11)));
        assert_eq!(free.minus(&want(5, 1)), want(0, 9));
    }
}
