//! What a container has used, in the words of `runc events --stats` (runc's types/events.go): other tools read them.
//!
//! A zero is left out where runc leaves it out. What a hierarchy does not count is zero.

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
    /// Time.
    pub cpu: Cpu,
    /// CPUs and memory nodes; of v1 only.
    pub cpuset: Cpuset,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Disks.
    pub blkio: BlockIo,
    /// By the size of the pages.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// Not counted.
    pub intel_rdt: IntelRdt,
    /// Always empty: interfaces are not a group's.
    pub network_interfaces: Vec<()>,
}

fn is_none<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Used.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: CpuUsage,
    /// Waited, for a limit.
    #[serde(skip_serializing_if = "is_none")]
    pub throttling: Throttling,
    /// Waited, for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// In nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "is_none")]
    pub total: u64,
    /// Of each CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// In programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel, of all CPUs.
    pub kernel: u64,
    /// In programs, of all CPUs.
    pub user: u64,
}

/// What a quota did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods with a quota.
    #[serde(skip_serializing_if = "is_none")]
    pub periods: u64,
    /// Those in which it was used up.
    #[serde(skip_serializing_if = "is_none")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_none")]
    pub throttled_time: u64,
}

/// The files of v1's `cpuset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "named as the kernel's files: cpuset.cpu_exclusive and so on")]
pub struct Cpuset {
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

/// Bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of files.
    #[serde(skip_serializing_if = "is_none")]
    pub cache: u64,
    /// In all.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: MemoryEntry,
    /// Memory and swap together, also of v2.
    #[serde(skip_serializing_if = "is_none")]
    pub swap: MemoryEntry,
    /// Of the kernel; of v1 only.
    #[serde(skip_serializing_if = "is_none")]
    pub kernel: MemoryEntry,
    /// Of its TCP buffers; of v1 only.
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_none")]
    pub kernel_tcp: MemoryEntry,
    /// All lines of `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// The largest number: none.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: u64,
    /// The most there was.
    #[serde(skip_serializing_if = "is_none")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_none")]
    pub current: u64,
    /// 0: none.
    #[serde(skip_serializing_if = "is_none")]
    pub limit: u64,
}

/// Disks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as the kernel's files: blkio.io_service_bytes_recursive and so on")]
pub struct BlockIo {
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
    /// Waited for disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockIoEntry {
    /// Of the device.
    #[serde(skip_serializing_if = "is_none")]
    pub major: u64,
    /// Likewise.
    #[serde(skip_serializing_if = "is_none")]
    pub minor: u64,
    /// `Read`, `Write`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// Bytes, operations, or time.
    #[serde(skip_serializing_if = "is_none")]
    pub value: u64,
}

/// Bytes in huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hugetlb {
    /// Now.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: u64,
    /// The most there was; of v1 only.
    #[serde(skip_serializing_if = "is_none")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Caches and memory bandwidth: empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdt {}

impl Groups {
    /// What the container has used so far.
    ///
    /// # Errors
    /// Its groups are gone.
    pub fn stats(&self) -> Result<Stats, StepError> {
        if let Some(folder) = self.folders.first() {
            fs::metadata(&folder.path).act(|| format!("read the use of the cgroup {}", folder.path.display()))?;
        }
        let mut stats = Stats::default();
        // v2 counts time in each group, and hybrid machines have pressure there: v1's own numbers come after.
        for folder in self.folders.iter().filter(|folder| folder.v2) {
            v2::read(folder, &mut stats);
        }
        for folder in self.folders.iter().filter(|folder| !folder.v2) {
            v1::read(folder, &mut stats);
        }
        Ok(stats)
    }
}

/// Lines `key number`.
fn lines(folder: &Folder, file: &str) -> BTreeMap<String, u64> {
    let text = folder.read(file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// The sizes that this kernel has, as in the files' names (mm/hugetlb_cgroup.c, mem_fmt).
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
