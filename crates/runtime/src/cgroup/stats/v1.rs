//! The counters of v1's controllers. The mapping from files to fields is runc's (opencontainers/cgroups, fs/).

use super::{BlockIoEntry, BlockIoStats, Hugetlb, MemoryEntry, Stats, huge_page_sizes, lines};
use crate::cgroup::Folder;

/// A clock tick of cpuacct.stat in nanoseconds: USER_HZ is 100 on every supported machine.
const TICK: u64 = 10_000_000;

/// Reads the counters of this folder's controllers.
pub(super) fn read(folder: &Folder, stats: &mut Stats) {
    for controller in &folder.controllers {
        match controller.as_str() {
            "cpu" => cpu(folder, stats),
            "cpuacct" => cpuacct(folder, stats),
            "cpuset" => cpuset(folder, stats),
            "memory" => memory(folder, stats),
            "pids" => pids(folder, stats),
            "blkio" => block_io(folder, &mut stats.blkio),
            "hugetlb" => hugetlb(folder, stats),
            _ => (),
        }
    }
}

fn number(folder: &Folder, file: &str) -> u64 {
    folder.number(file).unwrap_or(0)
}

fn cpu(folder: &Folder, stats: &mut Stats) {
    let lines = lines(folder, "cpu.stat");
    let value = |key: &str| lines.get(key).copied().unwrap_or(0);
    let throttling = &mut stats.cpu.throttling;
    throttling.periods = value("nr_periods");
    throttling.throttled_periods = value("nr_throttled");
    throttling.throttled_time = value("throttled_time");
}

fn cpuacct(folder: &Folder, stats: &mut Stats) {
    let usage = &mut stats.cpu.usage;
    usage.total = number(folder, "cpuacct.usage");
    let lines = lines(folder, "cpuacct.stat");
    usage.user = lines.get("user").copied().unwrap_or(0) * TICK;
    usage.kernel = lines.get("system").copied().unwrap_or(0) * TICK;
    let all = folder.read("cpuacct.usage_percpu").unwrap_or_default();
    usage.percpu = all.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    (usage.percpu_user, usage.percpu_kernel) = usage_all(&folder.read("cpuacct.usage_all").unwrap_or_default());
}

/// Parses the header `cpu user system` and a line for each CPU; returns the time in user mode and in the kernel.
fn usage_all(text: &str) -> (Vec<u64>, Vec<u64>) {
    let pair = |line: &str| -> Option<(u64, u64)> {
        let mut numbers = line.split(' ').skip(1).map(|it| it.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    text.lines().skip(1).filter_map(pair).unzip()
}

fn cpuset(folder: &Folder, stats: &mut Stats) {
    let list = |file: &str| numbers(folder.read(file).unwrap_or_default().trim());
    let set = &mut stats.cpuset;
    set.cpus = list("cpuset.cpus");
    set.mems = list("cpuset.mems");
    for (value, file) in [
        (&mut set.cpu_exclusive, "cpuset.cpu_exclusive"),
        (&mut set.mem_hardwall, "cpuset.mem_hardwall"),
        (&mut set.mem_exclusive, "cpuset.mem_exclusive"),
        (&mut set.memory_migrate, "cpuset.memory_migrate"),
        (&mut set.memory_spread_page, "cpuset.memory_spread_page"),
        (&mut set.memory_spread_slab, "cpuset.memory_spread_slab"),
        (&mut set.memory_pressure, "cpuset.memory_pressure"),
        (&mut set.sched_load_balance, "cpuset.sched_load_balance"),
    ] {
        *value = number(folder, file);
    }
    let level = folder.read("cpuset.sched_relax_domain_level").unwrap_or_default();
    set.sched_relax_domain_level = level.trim().parse().unwrap_or(0);
}

/// Parses a list such as `0-2,7`.
pub(super) fn numbers(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn memory(folder: &Folder, stats: &mut Stats) {
    let entry = |kind: &str| MemoryEntry {
        limit: number(folder, &format!("memory.{kind}limit_in_bytes")),
        usage: number(folder, &format!("memory.{kind}usage_in_bytes")),
        max: number(folder, &format!("memory.{kind}max_usage_in_bytes")),
        failcnt: number(folder, &format!("memory.{kind}failcnt")),
    };
    let memory = &mut stats.memory;
    memory.usage = entry("");
    memory.swap = entry("memsw.");
    memory.kernel = entry("kmem.");
    memory.kernel_tcp = entry("kmem.tcp.");
    memory.raw = lines(folder, "memory.stat");
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
}

fn pids(folder: &Folder, stats: &mut Stats) {
    stats.pids.current = number(folder, "pids.current");
    stats.pids.limit = folder.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0);
}

fn hugetlb(folder: &Folder, stats: &mut Stats) {
    for size in huge_page_sizes() {
        let value = |file: &str| {
            let reserved = folder.number(&format!("hugetlb.{size}.rsvd.{file}"));
            reserved.unwrap_or_else(|| number(folder, &format!("hugetlb.{size}.{file}")))
        };
        let (usage, max) = (value("usage_in_bytes"), value("max_usage_in_bytes"));
        let failcnt = value("failcnt");
        stats.hugetlb.insert(size, Hugetlb { usage, max, failcnt });
    }
}

type Place = fn(&mut BlockIoStats) -> &mut Vec<BlockIoEntry>;

const SERVICED: Place = |it| &mut it.io_serviced_recursive;
const BYTES: Place = |it| &mut it.io_service_bytes_recursive;
/// Files that only exist if the kernel was built with debugging of its I/O scheduler.
const DEBUG: [(&str, Place); 6] = [
    ("sectors_recursive", |it| &mut it.sectors_recursive),
    ("io_service_time_recursive", |it| &mut it.io_service_time_recursive),
    ("io_wait_time_recursive", |it| &mut it.io_wait_time_recursive),
    ("io_merged_recursive", |it| &mut it.io_merged_recursive),
    ("io_queued_recursive", |it| &mut it.io_queued_recursive),
    ("time_recursive", |it| &mut it.io_time_recursive),
];

/// Reads the first set of files that has counted anything: BFQ's, the old CFQ's, then those of throttling, which
/// always exist.
fn block_io(folder: &Folder, stats: &mut BlockIoStats) {
    let read = |file: String| entries(&folder.read(&file).unwrap_or_default());
    for (prefix, end) in [("blkio.bfq.", "_recursive"), ("blkio.", "_recursive"), ("blkio.throttle.", "_recursive")] {
        let serviced = read(format!("{prefix}io_serviced{end}"));
        if serviced.is_empty() {
            continue;
        }
        *SERVICED(stats) = serviced;
        *BYTES(stats) = read(format!("{prefix}io_service_bytes{end}"));
        if prefix != "blkio.throttle." {
            for (file, place) in DEBUG {
                *place(stats) = read(format!("{prefix}{file}"));
            }
        }
        return;
    }
    *SERVICED(stats) = read("blkio.throttle.io_serviced".into());
    *BYTES(stats) = read("blkio.throttle.io_service_bytes".into());
}

/// Parses lines such as `8:0 Read 4096` or `8:0 4096`, and skips the sum over all disks.
pub(super) fn entries(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let rest: Vec<&str> = words.collect();
        let (op, value) = match rest.as_slice() {
            [value] => ("", value),
            [op, value] => (*op, value),
            _ => return None,
        };
        let [major, minor, value] = [major, minor, value].map(|it| it.parse().ok());
        Some(BlockIoEntry { major: major?, minor: minor?, op: op.to_owned(), value: value? })
    };
    text.lines().filter_map(entry).collect()
}
