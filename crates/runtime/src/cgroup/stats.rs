//! A container's resource usage in the format of `runc events --stats` (runc's types/events.go), which other tools
//! read.
//!
//! Zeros are omitted in the same fields as in runc. A value that a hierarchy does not count is zero.

mod pressure;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

pub use pressure::{Pressure, PressureData};

use super::{Folder, Groups};
use crate::error::{Act, StepError};

/// The `data` of an event of the type `stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// CPUs and memory nodes; v1 only.
    pub cpuset: CpusetStats,
    /// Memory usage.
    pub memory: MemoryStats,
    /// Number of processes and threads.
    pub pids: PidsStats,
    /// Disk I/O.
    pub blkio: BlockIoStats,
    /// Huge pages by page size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// Not supported; always empty.
    pub intel_rdt: IntelRdtStats,
    /// Always empty, because network interfaces do not belong to a group.
    pub network_interfaces: Vec<()>,
}

fn is_none<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuStats {
    /// Used time.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: CpuUsage,
    /// Time in which a quota prevented processes from running.
    #[serde(skip_serializing_if = "is_none")]
    pub throttling: Throttling,
    /// Time in which processes waited for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Used CPU time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// Total time.
    #[serde(skip_serializing_if = "is_none")]
    pub total: u64,
    /// Time on each CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// Time in the kernel on each CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// Time in user mode on each CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// Time in the kernel on all CPUs.
    pub kernel: u64,
    /// Time in user mode on all CPUs.
    pub user: u64,
}

/// Effects of a CPU quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Number of periods with a quota.
    #[serde(skip_serializing_if = "is_none")]
    pub periods: u64,
    /// Number of periods in which the quota was used up.
    #[serde(skip_serializing_if = "is_none")]
    pub throttled_periods: u64,
    /// Total throttled time in nanoseconds.
    #[serde(skip_serializing_if = "is_none")]
    pub throttled_time: u64,
}

/// The files of v1's `cpuset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "named as the kernel's files: cpuset.cpu_exclusive and so on")]
pub struct CpusetStats {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory usage in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryStats {
    /// Page cache.
    #[serde(skip_serializing_if = "is_none")]
    pub cache: u64,
    /// Total memory.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: MemoryEntry,
    /// Memory and swap together, on v2 too.
    #[serde(skip_serializing_if = "is_none")]
    pub swap: MemoryEntry,
    /// Kernel memory; v1 only.
    #[serde(skip_serializing_if = "is_none")]
    pub kernel: MemoryEntry,
    /// Kernel memory of TCP buffers; v1 only.
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_none")]
    pub kernel_tcp: MemoryEntry,
    /// All lines of `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Time in which processes waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Usage of one kind of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// Limit; the largest number if there is none.
    pub limit: u64,
    /// Current usage.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: u64,
    /// Peak usage.
    #[serde(skip_serializing_if = "is_none")]
    pub max: u64,
    /// Number of times that the limit was reached.
    pub failcnt: u64,
}

/// Number of processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// Current number.
    #[serde(skip_serializing_if = "is_none")]
    pub current: u64,
    /// Limit; 0 if there is none.
    #[serde(skip_serializing_if = "is_none")]
    pub limit: u64,
}

/// Disk I/O.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as the kernel's files: blkio.io_service_bytes_recursive and so on")]
pub struct BlockIoStats {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockIoEntry>,
    /// Time in which processes waited for disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// A counter of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockIoEntry {
    /// Major number of the device.
    #[serde(skip_serializing_if = "is_none")]
    pub major: u64,
    /// Minor number of the device.
    #[serde(skip_serializing_if = "is_none")]
    pub minor: u64,
    /// Kind of operation, such as `Read` or `Write`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// A number of bytes or operations, or a time.
    #[serde(skip_serializing_if = "is_none")]
    pub value: u64,
}

/// Usage of huge pages of one size in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hugetlb {
    /// Current usage.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: u64,
    /// Peak usage; v1 only.
    #[serde(skip_serializing_if = "is_none")]
    pub max: u64,
    /// Number of times that the limit was reached.
    pub failcnt: u64,
}

/// Cache and memory bandwidth monitoring, which is not supported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdtStats {}

impl Groups {
    /// Returns what the container has used so far.
    ///
    /// # Errors
    /// The groups were removed.
    pub fn stats(&self) -> Result<Stats, StepError> {
        if let Some(folder) = self.folders.first() {
            fs::metadata(&folder.path).act(|| format!("read the use of the cgroup {}", folder.path.display()))?;
        }
        let mut stats = Stats::default();
        // v2 counts time in each group, and hybrid machines have pressure there. v1's own numbers are read afterwards
        // and replace them.
        for folder in self.folders.iter().filter(|folder| folder.v2) {
            v2::read(folder, &mut stats);
        }
        for folder in self.folders.iter().filter(|folder| !folder.v2) {
            v1::read(folder, &mut stats);
        }
        Ok(stats)
    }
}

/// Parses lines `key number`.
fn lines(folder: &Folder, file: &str) -> BTreeMap<String, u64> {
    let text = folder.read(file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// Returns the page sizes of this kernel, as in the files' names (mm/hugetlb_cgroup.c, mem_fmt).
fn huge_page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok().map(page_size)).collect()
}

fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        1_048_576.. => format!("{}GB", kilobytes >> 20),
        1_024.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    }
}

#[cfg(test)]
mod tests;
