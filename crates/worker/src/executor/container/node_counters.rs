//! Reads how much of the machine is in use: the processors from `/proc/stat`, the memory from `/proc/meminfo` (proc(5)).

use std::fs;

use crate::executor::NodeCounters;

/// Reads the counters; `None` if the kernel does not say.
pub(super) fn read() -> Option<NodeCounters> {
    let (stat, memory) = (fs::read_to_string("/proc/stat").ok()?, fs::read_to_string("/proc/meminfo").ok()?);
    parse(&stat, &memory)
}

fn parse(stat: &str, memory: &str) -> Option<NodeCounters> {
    // Time in ticks: user, nice, system, idle, iowait, irq, softirq and steal. That of guests, which follows, is part of user
    // and nice.
    let times = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<u64> = times.split_whitespace().take(8).map_while(|it| it.parse().ok()).collect();
    let all: u64 = times.iter().sum();
    let waiting = times.get(3)? + times.get(4).copied().unwrap_or_default();
    let kilobytes = |name: &str| -> Option<u64> {
        let rest = memory.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (total, available) = (kilobytes("MemTotal:")?, kilobytes("MemAvailable:")?);
    let used = (total.saturating_sub(available) * 1_000).checked_div(total)?;
    Some(NodeCounters { busy: all - waiting, all, memory: u32::try_from(used).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: &str = "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   6000 kB\nBuffers: 7 kB\n";

    #[test]
    fn processors_are_busy_unless_they_are_idle_or_wait_for_a_disk() {
        let stat = "cpu  100 20 30 800 40 5 4 1 99 9\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 1 2 3\n";
        assert_eq!(parse(stat, MEMORY), Some(NodeCounters { busy: 160, all: 1_000, memory: 250 }));
        assert_eq!(parse("cpu0 1 1 1 1\n", MEMORY), None);
        assert_eq!(parse("cpu  1 2\n", MEMORY), None);
        assert_eq!(parse(stat, "MemTotal: 0 kB\nMemAvailable: 0 kB\n"), None);
    }

    #[test]
    fn this_machine_says_what_it_uses() {
        let counters = read().expect("the kernel says it");
        assert!(counters.all >= counters.busy && counters.memory <= 1_000, "{counters:?}");
    }
}
