//! Tests of limits that the kernel accepts, enforces and counts.

use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;

use super::*;
use crate::oci::{BlockIo, Cpu, HugepageLimit, Memory, Pids};

const M: i64 = 1 << 20;

fn memory(limit: i64, swap: Option<i64>) -> Resources {
    Resources { memory: Some(Memory { limit: Some(limit), swap, ..Memory::default() }), ..Resources::default() }
}

fn time(period: Option<u64>, quota: Option<i64>, burst: Option<u64>) -> Resources {
    Resources { cpu: Some(Cpu { period, quota, burst, ..Cpu::default() }), ..Resources::default() }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let cpu = Cpu { shares: Some(512), quota: Some(50_000), cpus: "0".into(), ..Cpu::default() };
    let limits = Resources {
        cpu: Some(cpu),
        pids: Some(Pids { limit: 7 }),
        block_io: Some(BlockIo { weight: Some(500), ..BlockIo::default() }),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        ..memory(64 * M, Some(64 * M))
    };
    let _handed_down = Hugetlb::hold();
    let real = Real::create("limits", Which::All, &limits);
    for (controller, file, expected) in [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "67108864"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "7"),
        ("blkio", "blkio.bfq.weight", "500"),
        ("hugetlb", "hugetlb.2MB.max", "4194304"),
    ] {
        assert_eq!(real.text(controller, file), expected, "{file}");
    }
    let mut process = real.run("echo; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000");
    process.line();
    assert!(!real.text("cpuset", "cpuset.mems").is_empty(), "inherited with the first process");
    assert_eq!(process.line(), "done");
    let stats = real.groups.stats().expect("it is there");
    assert!((1..=7).contains(&stats.pids.current) && stats.pids.limit == 7, "{:?}", stats.pids);
    assert!(stats.cpu.usage.total > 1_000_000 && !stats.cpu.usage.percpu.is_empty(), "{:?}", stats.cpu);
    assert!(stats.memory.usage.usage > 0 && stats.memory.usage.limit == 64 << 20, "{:?}", stats.memory);
    assert!(stats.memory.raw.len() > 10 && stats.cpu.psi.is_some(), "{stats:?}");
    assert_eq!((stats.cpuset.cpus, stats.cpuset.mems.is_empty()), (vec![0], false));
    assert!(stats.hugetlb.contains_key("2MB"), "{:?}", stats.hugetlb);
}

#[test]
fn memory_goes_up_and_down_in_the_order_that_the_kernel_wants() {
    let real = Real::create("memory", Which::V1, &memory(64 * M, Some(128 * M)));
    for (limit, swap) in [(256 * M, 512 * M), (32 * M, 48 * M), (32 * M, 32 * M), (33 * M, 33 * M), (-1, -1), (M, M)] {
        real.groups.apply(&memory(limit, Some(swap))).expect("in one order or the other");
        let unlimited = "9223372036854771712".to_owned();
        let expected = |value: i64| if value < 0 { unlimited.clone() } else { value.to_string() };
        assert_eq!(real.text("memory", "memory.limit_in_bytes"), expected(limit));
        assert_eq!(real.text("memory", "memory.memsw.limit_in_bytes"), expected(swap));
    }
    let error = real.groups.apply(&memory(2 * M, None)).expect_err("above that of memory and swap");
    let expected = "failed to set linux.resources.memory.limit: it is more than the limit of memory and swap, which must \
                    be raised with it";
    assert_eq!(error.to_string(), expected);
    real.groups.apply(&memory(-1, None)).expect("lifts both");
}

#[test]
fn time_goes_up_and_down_in_the_order_that_the_kernel_wants() {
    let real = Real::create("time", Which::V1, &Resources::default());
    // The parent has half of a CPU, and no intermediate state of period and quota may exceed that.
    let parent = real.folder("cpu").path.parent().expect("it has one").to_owned();
    folder::write(&parent.join("cpu.cfs_quota_us"), "50000").expect("taken");
    for (period, quota, burst) in
        [(100_000, 50_000, 50_000), (10_000, 5_000, 1_000), (200_000, 100_000, 90_000), (10_000, 5_000, 0)]
    {
        let limits = time(Some(period), Some(quota), Some(burst));
        real.groups.apply(&limits).unwrap_or_else(|error| panic!("{period} {quota} {burst}: {error}"));
        let files = ["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us"].map(|it| real.text("cpu", it));
        assert_eq!(files, [period.to_string(), quota.to_string(), burst.to_string()]);
    }
    let error = real.groups.apply(&time(Some(10_000), Some(6_000), None)).expect_err("more than the parent has");
    assert!(error.to_string().starts_with("failed to set linux.resources.cpu.quota (`6000` to "), "{error}");
    let idle = |idle, shares| {
        let limits =
            Resources { cpu: Some(Cpu { idle: Some(idle), shares, ..Cpu::default() }), ..Resources::default() };
        real.groups.apply(&limits).expect("in the right order");
        (real.text("cpu", "cpu.idle"), real.text("cpu", "cpu.shares"))
    };
    assert_eq!(idle(1, Some(2_000)).0, "1");
    assert_eq!(idle(1, Some(3_000)).0, "1");
    assert_eq!(idle(0, Some(4_000)), ("0".into(), "4000".into()));
}

#[test]
fn want_of_memory_is_told() {
    let real = Real::create("oom", Which::All, &memory(8 * M, Some(8 * M)));
    let mut watch = real.groups.watch_out_of_memory().expect("there is a memory controller");
    assert_eq!(real.groups.out_of_memory(), 0);
    // `tail` keeps the last line in memory, and this line has no end.
    let mut process = real.run("tail /dev/zero; echo over; sleep 1000");
    assert_eq!(process.line(), "over");
    let readable = |watch: &OomWatch| {
        poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], 5_000u16).is_ok_and(|ready| ready == 1)
    };
    assert!(readable(&watch));
    assert_eq!((watch.read(), real.groups.out_of_memory()), (OomEvent::OutOfMemory, 1));
    assert_eq!(watch.read(), OomEvent::Nothing);
    real.groups.kill_all(libc::SIGKILL).expect("killed");
    process.signal();
    real.groups.remove().expect("all have ended");
    assert!(readable(&watch), "the end is told too");
    assert_eq!(watch.read(), OomEvent::Ended);
}
