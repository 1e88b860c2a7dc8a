//! Settings that a process applies to itself before it drops its rights: scheduler, priorities, memory policy,
//! personality.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, geteuid};

use crate::error::{Act, StepError};
use crate::oci::{IoPriority, Linux, MemoryPolicy, Personality, Process, Rlimit, Scheduler};
use crate::syscall::process as kernel;

fn unknown<T>(field: &str, value: &str) -> Result<T, StepError> {
    Err(StepError::refuse(format!("read {field}"), format!("`{value}` is not known")))
}

fn lookup<T: Copy>(field: &str, table: &[(&str, T)], value: &str) -> Result<T, StepError> {
    let found = table.iter().find(|(name, _)| *name == value).map(|(_, it)| *it);
    found.map_or_else(|| unknown(field, value), Ok)
}

const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
const IO_CLASSES: [(&str, i32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
const MEMORY_MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
const MEMORY_FLAGS: [(&str, i32); 3] =
    [("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];
const LIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
];

/// Checks names and ranges, so that an error is found before anything is created.
pub(crate) fn check(process: &Process) -> Result<(), StepError> {
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        lookup(&format!("{field}.type"), &LIMITS, &limit.kind)?;
        if limit.soft > limit.hard {
            let why = format!("soft ({}) is above hard ({})", limit.soft, limit.hard);
            return Err(StepError::refuse(format!("read {field}"), why));
        }
        if process.rlimits[..index].iter().any(|other| other.kind == limit.kind) {
            return Err(StepError::refuse(format!("read {field}.type"), format!("{} comes twice", limit.kind)));
        }
    }
    if let Some(scheduler) = &process.scheduler {
        attributes(scheduler)?;
    }
    if let Some(priority) = &process.io_priority {
        io_priority(priority)?;
    }
    let affinity = process.exec_cpu_affinity.clone().unwrap_or_default();
    cpus("process.execCPUAffinity.initial", &affinity.initial)?;
    cpus("process.execCPUAffinity.final", &affinity.last).map(drop)
}

/// Sets limits with prlimit(2). The runtime does this, because the container may lack the right to raise them.
pub(crate) fn set_limits(pid: i32, limits: &[Rlimit]) -> Result<(), StepError> {
    limits.iter().try_for_each(|limit| {
        let resource = lookup("process.rlimits.type", &LIMITS, &limit.kind)?;
        kernel::set_limit(pid, resource, limit.soft, limit.hard)
            .act(|| format!("set {} to {} and {}", limit.kind, limit.soft, limit.hard))
    })
}

/// Sets the adjustment of the OOM score (proc_pid_oom_score_adj(5)). A user without privileges can't lower the value, and
/// its process keeps that of the caller.
pub(crate) fn adjust_oom_score(pid: i32, adjustment: i32) -> Result<(), StepError> {
    let written = std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string());
    if !geteuid().is_root() {
        return Ok(());
    }
    written.act(|| format!("set process.oomScoreAdj to {adjustment}"))
}

fn attributes(scheduler: &Scheduler) -> Result<libc::sched_attr, StepError> {
    let policy = lookup("process.scheduler.policy", &POLICIES, &scheduler.policy)?;
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= lookup("process.scheduler.flags", &SCHEDULER_FLAGS, flag)?;
    }
    Ok(libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("a small structure"),
        sched_policy: policy,
        sched_flags: flags,
        sched_nice: scheduler.nice,
        sched_priority: u32::try_from(scheduler.priority).map_err(|_| {
            StepError::refuse("read process.scheduler.priority", format!("{} is negative", scheduler.priority))
        })?,
        sched_runtime: scheduler.runtime,
        sched_deadline: scheduler.deadline,
        sched_period: scheduler.period,
    })
}

fn io_priority(priority: &IoPriority) -> Result<(i32, i32), StepError> {
    let class = lookup("process.ioPriority.class", &IO_CLASSES, &priority.class)?;
    if !(0..8).contains(&priority.priority) {
        let why = format!("{} is not between 0 and 7", priority.priority);
        return Err(StepError::refuse("read process.ioPriority.priority", why));
    }
    Ok((class, priority.priority))
}

/// Sets scheduler, I/O priority and personality, for the container's init and for every further process.
pub(crate) fn apply(process: &Process, linux: &Linux) -> Result<(), StepError> {
    if let Some(scheduler) = &process.scheduler {
        kernel::set_scheduler(&attributes(scheduler)?)
            .act(|| format!("set process.scheduler to {}", scheduler.policy))?;
    }
    if let Some(priority) = &process.io_priority {
        let (class, value) = io_priority(priority)?;
        kernel::set_io_priority(class, value).act(|| format!("set process.ioPriority to {}", priority.class))?;
    }
    linux.personality.as_ref().map_or(Ok(()), set_personality)
}

/// Sets the memory policy with set_mempolicy(2). Must be called before memory is touched.
pub(crate) fn set_memory_policy(policy: &MemoryPolicy) -> Result<(), StepError> {
    let mut mode = lookup("linux.memoryPolicy.mode", &MEMORY_MODES, &policy.mode)?;
    for flag in &policy.flags {
        mode |= lookup("linux.memoryPolicy.flags", &MEMORY_FLAGS, flag)?;
    }
    let mut bits = Vec::new();
    for node in numbers("linux.memoryPolicy.nodes", &policy.nodes)? {
        let word = node / 64;
        if bits.len() <= word {
            bits.resize(word + 1, 0u64);
        }
        bits[word] |= 1 << (node % 64);
    }
    kernel::set_memory_policy(mode, &bits).act(|| format!("set linux.memoryPolicy to {}", policy.mode))
}

/// Sets the execution domain with personality(2).
fn set_personality(personality: &Personality) -> Result<(), StepError> {
    if let Some(flag) = personality.flags.first() {
        return unknown("linux.personality.flags", flag);
    }
    let persona = lookup("linux.personality.domain", &[("LINUX", 0), ("LINUX32", 8)], &personality.domain)?;
    kernel::personality(persona).act(|| format!("set linux.personality to {}", personality.domain))
}

/// Parses a list such as `0-3,7`.
fn numbers(field: &str, text: &str) -> Result<Vec<usize>, StepError> {
    let refuse = || StepError::refuse(format!("read {field}"), format!("`{text}` is not a list of numbers"));
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| refuse())?;
        let last: usize = last.trim().parse().map_err(|_| refuse())?;
        if first > last || last >= CpuSet::count() {
            return Err(refuse());
        }
        found.extend(first..=last);
    }
    Ok(found)
}

fn cpus(field: &str, text: &str) -> Result<Option<CpuSet>, StepError> {
    let mut set = CpuSet::new();
    let list = numbers(field, text)?;
    for cpu in &list {
        set.set(*cpu).act(|| format!("read {field}"))?;
    }
    Ok((!list.is_empty()).then_some(set))
}

/// Binds a process to the given CPUs, if there are any.
pub(crate) fn bind_to_cpus(process: Pid, field: &str, text: &str) -> Result<(), StepError> {
    match cpus(field, text)? {
        Some(set) => sched_setaffinity(process, &set).act(|| format!("bind to {field} `{text}`")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read_and_nonsense_refused() {
        let read = |text: &str| numbers("it", text).map_err(|error| error.to_string());
        assert_eq!(read("0-2, 5"), Ok(vec![0, 1, 2, 5]));
        assert_eq!(read(""), Ok(vec![]));
        for nonsense in ["3-1", "a", "0-99999999", "-1", "1-"] {
            assert_eq!(read(nonsense), Err(format!("failed to read it: `{nonsense}` is not a list of numbers")));
        }
    }

    #[test]
    fn limits_are_checked_by_name_order_and_number() {
        let limit = |kind: &str, soft, hard| Rlimit { kind: kind.into(), soft, hard };
        let error = |limits: Vec<Rlimit>| {
            check(&Process { rlimits: limits, ..Process::default() }).err().map(|it| it.to_string())
        };
        assert_eq!(error(vec![limit("RLIMIT_CORE", 1, 2)]), None);
        let twice = vec![limit("RLIMIT_CORE", 1, 2), limit("RLIMIT_CORE", 1, 2)];
        assert_eq!(error(twice).as_deref(), Some("failed to read process.rlimits[1].type: RLIMIT_CORE comes twice"));
        let odd = "failed to read process.rlimits[0].type: `RLIMIT_ODD` is not known";
        assert_eq!(error(vec![limit("RLIMIT_ODD", 1, 2)]).as_deref(), Some(odd));
        let above = "failed to read process.rlimits[0]: soft (3) is above hard (2)";
        assert_eq!(error(vec![limit("RLIMIT_CPU", 3, 2)]).as_deref(), Some(above));
    }
}
