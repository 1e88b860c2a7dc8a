//! The counters of a v2 group, converted to v1's fields as runc does it (opencontainers/cgroups, fs2/).

use super::pressure;
use super::{BlockIoEntry, BlockIoStats, Hugetlb, MemoryEntry, Stats, huge_page_sizes, lines};
use crate::cgroup::Folder;

/// Factor from microseconds to nanoseconds.
const MICROSECOND: u64 = 1_000;

/// Reads the counters of this group: time and pressure always, others if it has the controller.
pub(super) fn read(folder: &Folder, stats: &mut Stats) {
    cpu(folder, stats);
    if folder.has("memory") {
        memory(folder, stats);
    }
    if folder.has("pids") {
        pids(folder, stats);
    }
    if folder.has("io") {
        block_io(&folder.read("io.stat").unwrap_or_default(), &mut stats.blkio);
    }
    if folder.has("hugetlb") {
        hugetlb(folder, stats);
    }
    stats.cpu.psi = pressure::read(folder, "cpu.pressure");
    stats.memory.psi = pressure::read(folder, "memory.pressure");
    stats.blkio.psi = pressure::read(folder, "io.pressure");
}

fn cpu(folder: &Folder, stats: &mut Stats) {
    let lines = lines(folder, "cpu.stat");
    let value = |key: &str| lines.get(key).copied().unwrap_or(0);
    let usage = &mut stats.cpu.usage;
    usage.total = value("usage_usec") * MICROSECOND;
    usage.user = value("user_usec") * MICROSECOND;
    usage.kernel = value("system_usec") * MICROSECOND;
    let throttling = &mut stats.cpu.throttling;
    throttling.periods = value("nr_periods");
    throttling.throttled_periods = value("nr_throttled");
    throttling.throttled_time = value("throttled_usec") * MICROSECOND;
}

fn memory(folder: &Folder, stats: &mut Stats) {
    let number = |file: &str| folder.number(file).unwrap_or(0);
    let memory = &mut stats.memory;
    memory.raw = lines(folder, "memory.stat");
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    memory.usage = MemoryEntry {
        limit: number("memory.max"),
        usage: number("memory.current"),
        max: number("memory.peak"),
        failcnt: 0,
    };
    // v1's swap includes memory. The peaks of both occur at different times, so their sum has no meaning.
    memory.swap = MemoryEntry {
        limit: number("memory.swap.max").saturating_add(memory.usage.limit),
        usage: number("memory.swap.current") + memory.usage.usage,
        ..MemoryEntry::default()
    };
}

fn pids(folder: &Folder, stats: &mut Stats) {
    let counted = folder.number("pids.current");
    // The controller is not delegated to this group.
    let found = || folder.read("cgroup.procs").map_or(0, |text| text.lines().count() as u64);
    stats.pids.current = counted.unwrap_or_else(found);
    stats.pids.limit = folder.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0);
}

fn hugetlb(folder: &Folder, stats: &mut Stats) {
    for size in huge_page_sizes() {
        let file = |end: &str| format!("hugetlb.{size}.{end}");
        let Some(usage) = folder.number(&file("rsvd.current")).or_else(|| folder.number(&file("current"))) else {
            return;
        };
        let failcnt = folder.key(&file("events"), "max").unwrap_or(0);
        stats.hugetlb.insert(size, Hugetlb { usage, max: 0, failcnt });
    }
}

/// Parses lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
pub(super) fn block_io(text: &str, stats: &mut BlockIoStats) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let numbers = words.next().and_then(|device| device.split_once(':'));
        let numbers = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some((major, minor)) = numbers else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(BlockIoEntry { major, minor, op: op.to_owned(), value });
        }
    }
}
