//! The rules for the settings of a task's processes and of their surroundings: kernel limits and parameters, swap, groups,
//! labels, the stop signal, the log.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use crate::model::{Bound, LogDriver, LogSpec, ServiceSpec};
use crate::signal;

/// Largest number of kernel parameters and of groups.
const ENTRIES_BOUND: usize = 64;
/// Longest name of a group (LOGIN_NAME_MAX has the same bound), and longest name and value of a kernel parameter.
const TEXT_BOUND: usize = 256;
/// Adjustments that the kernel accepts (proc_pid_oom_score_adj(5)).
const OOM_SCORES: RangeInclusive<i32> = -1_000..=1_000;
/// Smallest log in bytes. It is kept in two files, and each holds whole entries of up to 16 KiB.
const LEAST_LOG: u64 = 64 << 10;
/// Largest log in bytes. A daemon reads one from its beginning, and a supervisor half of it before a restart.
const MOST_LOG: u64 = 1 << 30;
/// Largest number of Docker's log files.
const LOG_FILES: u64 = 1_000;
/// Parameters of an IPC namespace, in addition to `fs.mqueue.…`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Calls `check` with the result for every field.
pub(super) fn judge(spec: &ServiceSpec, check: &mut impl FnMut(&str, Result<(), String>)) {
    if let Some(text) = spec.stop_signal.as_ref().filter(|it| signal::number(it).is_none()) {
        let why = "is not a signal: it is a name such as TERM, SIGUSR1 or RTMIN+3, or a number from 1 to 64";
        check("stop_signal", Err(format!("`{}` {why}", text.escape_debug())));
    }
    check("memory_swap", memory_swap(spec));
    if let Some(size) = spec.shm_size.filter(|it| i64::try_from(it.get()).is_err()) {
        check("shm_size", Err(format!("{size} bytes are more than the kernel can count")));
    }
    if let Some(score) = spec.oom_score_adj.filter(|it| !OOM_SCORES.contains(it)) {
        let (least, most) = (OOM_SCORES.start(), OOM_SCORES.end());
        check("oom_score_adj", Err(format!("{score} is not from {least} to {most}")));
    }
    let mut limited = BTreeSet::new();
    for (index, limit) in spec.ulimits.iter().enumerate() {
        let result = limit.check().map_err(|error| error.to_string());
        check(
            &format!("ulimits[{index}]"),
            result.and_then(|()| once(limited.insert(limit.name), limit.name.as_str())),
        );
    }
    check("sysctls", few(spec.sysctls.len()));
    for (name, value) in &spec.sysctls {
        check(&format!("sysctls.{}", name.escape_debug()), sysctl(name, value));
    }
    check("groups", few(spec.groups.len()));
    let mut groups = BTreeSet::new();
    for (index, name) in spec.groups.iter().enumerate() {
        check(&format!("groups[{index}]"), group(name).and_then(|()| once(groups.insert(name), name)));
    }
    for (key, value) in &spec.container_labels {
        let is_good = !key.is_empty() && !key.contains('\0') && !value.contains('\0');
        let why = || "a label has a name, and no NUL byte".to_owned();
        check(&format!("container_labels.{}", key.escape_debug()), is_good.then_some(()).ok_or_else(why));
    }
    for (field, why) in log(&spec.log) {
        check(field, Err(why));
    }
}

fn once(first: bool, what: &str) -> Result<(), String> {
    if first { Ok(()) } else { Err(format!("`{what}` is there twice")) }
}

fn few(entries: usize) -> Result<(), String> {
    let why = || format!("there are {entries}, and {ENTRIES_BOUND} is the most");
    (entries <= ENTRIES_BOUND).then_some(()).ok_or_else(why)
}

fn memory_swap(spec: &ServiceSpec) -> Result<(), String> {
    match (spec.memory_swap, spec.limits.memory_bytes) {
        (None, _) => Ok(()),
        (Some(_), None) => Err("it needs a limit of memory".into()),
        (Some(swap), Some(memory)) if swap < Bound::At(memory.get()) => {
            Err("it counts memory and swap together, so it can't be less than the limit of memory".into())
        }
        (Some(Bound::At(bytes)), Some(_)) if i64::try_from(bytes).is_err() => Err(format!("{bytes} is too large")),
        (Some(_), Some(_)) => Ok(()),
    }
}

fn sysctl(name: &str, value: &str) -> Result<(), String> {
    let dotted = name.replace('/', ".");
    let is_name = name.bytes().all(|it| it.is_ascii_graphic()) && dotted.split('.').all(|part| !part.is_empty());
    if !is_name || name.len() > TEXT_BOUND {
        return Err("that is not a name of a kernel parameter".into());
    }
    if !IPC.contains(&dotted.as_str()) && !dotted.starts_with("fs.mqueue.") && !is_of_network(name) {
        let ipc = IPC.join(", ");
        return Err(format!("it is the machine's: a task has only net.…, fs.mqueue.…, {ipc} of its own"));
    }
    let is_value = (1..=TEXT_BOUND).contains(&value.len()) && !value.contains(['\0', '\n']);
    is_value.then_some(()).ok_or_else(|| format!("a value has one line of at most {TEXT_BOUND} bytes"))
}

/// Whether a kernel parameter belongs to a network namespace. In its name, slashes may take the place of dots
/// (sysctl.d(5)).
pub fn is_of_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// Checks a group, which only the image knows by its name.
fn group(name: &str) -> Result<(), String> {
    let is_name = (1..=TEXT_BOUND).contains(&name.len()) && !name.contains([':', ',', '/']);
    let is_name = is_name && !name.chars().any(|it| it.is_whitespace() || it.is_control());
    let is_number =
        name.bytes().all(|it| it.is_ascii_digit()) && name.parse().is_ok_and(|number: u32| number != u32::MAX);
    let is_good = is_name && (is_number || !name.bytes().all(|it| it.is_ascii_digit()));
    is_good.then_some(()).ok_or_else(|| format!("`{}` is neither a name nor a number of a group", name.escape_debug()))
}

/// Returns what is wrong with a log, by field.
fn log(log: &LogSpec) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let options = [("log.max_size", log.max_size), ("log.max_file", log.max_file)];
    if log.driver == LogDriver::None {
        let given = options.into_iter().filter(|(_, value)| value.is_some());
        found.extend(given.map(|(field, _)| (field, "the driver `none` keeps nothing and has no options".to_owned())));
        return found;
    }
    if log.max_file.is_some() && log.max_size.is_none() {
        found.push(("log.max_file", "it needs max-size, the size of one file".into()));
    }
    if let Some(files) = log.max_file.filter(|it| it.get() > LOG_FILES) {
        found.push(("log.max_file", format!("{files} is over the bound of {LOG_FILES}")));
    }
    let files = log.max_file.map_or(1, NonZeroU64::get);
    if let Some(size) = log.max_size.filter(|it| it.get().saturating_mul(files) > MOST_LOG) {
        let why = format!("{files} file(s) of {size} bytes are more than the largest log, {MOST_LOG} bytes");
        found.push(("log.max_size", why));
    }
    if let Some(size) = log.max_size.filter(|it| it.get().saturating_mul(files) < LEAST_LOG) {
        let why = format!("{files} file(s) of {size} bytes are less than the least log, {LEAST_LOG} bytes");
        found.push(("log.max_size", why));
    }
    found
}

/// Returns the texts of these fields, which count towards the size of a spec.
pub(super) fn texts(spec: &ServiceSpec) -> impl Iterator<Item = &String> {
    let pairs = spec.sysctls.iter().chain(&spec.container_labels).flat_map(|(key, value)| [key, value]);
    pairs.chain(&spec.groups).chain(&spec.stop_signal)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::validate::violations;

    fn spec() -> ServiceSpec {
        ServiceSpec { name: "web".into(), image: "web".into(), ..ServiceSpec::default() }
    }

    fn broken(spec: &ServiceSpec) -> Vec<String> {
        violations(spec).iter().map(ToString::to_string).collect()
    }

    fn map(names: &[&str]) -> BTreeMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect()
    }

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_docker_takes_is_taken() {
        let with_memory = |memory_swap| {
            let mut spec = ServiceSpec { memory_swap: Some(memory_swap), ..spec() };
            spec.limits.memory_bytes = NonZeroU64::new(8 << 20);
            spec
        };
        let log = |driver, max_size, max_file| {
            let log = LogSpec { driver, max_size: NonZeroU64::new(max_size), max_file: NonZeroU64::new(max_file) };
            ServiceSpec { log, ..spec() }
        };
        for good in [
            ServiceSpec { stop_signal: Some("SIGRTMIN+3".into()), ..spec() },
            ServiceSpec { stop_signal: Some("9".into()), ..spec() },
            with_memory(Bound::At(8 << 20)),
            with_memory(Bound::Unlimited),
            ServiceSpec { oom_score_adj: Some(-1_000), ..spec() },
            ServiceSpec { ulimits: vec!["nofile=1:2".parse().expect("a limit")], ..spec() },
            ServiceSpec {
                sysctls: map(&["net.core.somaxconn", "net/ipv4/conf/eth0.1/forwarding", "kernel.sem", "fs.mqueue.x"]),
                ..spec()
            },
            ServiceSpec { groups: list("audio 4 domain-users"), ..spec() },
            ServiceSpec { container_labels: map(&["com.example/a b"]), ..spec() },
            log(LogDriver::None, 0, 0),
            log(LogDriver::JsonFile, 1 << 20, 5),
            log(LogDriver::JsonFile, 32 << 10, 2),
        ] {
            assert_eq!(broken(&good), [""; 0]);
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused_by_field_all_at_once() {
        let ulimit = |text: &str| text.parse().expect("a limit");
        let mut bad = ServiceSpec {
            stop_signal: Some("SIGSTOPPED".into()),
            memory_swap: Some(Bound::At(1)),
            oom_score_adj: Some(1_001),
            ulimits: vec![ulimit("nofile=1"), ulimit("nofile=2")],
            sysctls: map(&["kernel.core_pattern", "net..ipv4", "vm.swappiness", "net.a\nb"]),
            groups: list("audio a:b 4294967296 audio"),
            container_labels: map(&[""]),
            log: LogSpec { max_file: NonZeroU64::new(2), ..LogSpec::default() },
            ..spec()
        };
        bad.sysctls.insert("net.ipv4.tcp_rmem".into(), String::new());
        let beginnings = [
            "stop_signal: `SIGSTOPPED` is not a signal: it is a name such as TERM",
            "memory_swap: it needs a limit of memory",
            "oom_score_adj: 1001 is not from -1000 to 1000",
            "ulimits[1]: `nofile` is there twice",
            "sysctls.kernel.core_pattern: it is the machine's: a task has only net.…",
            "sysctls.net..ipv4: that is not a name of a kernel parameter",
            "sysctls.net.a\\nb: that is not a name of a kernel parameter",
            "sysctls.net.ipv4.tcp_rmem: a value has one line",
            "sysctls.vm.swappiness: it is the machine's",
            "groups[1]: `a:b` is neither a name nor a number of a group",
            "groups[2]: `4294967296` is neither",
            "groups[3]: `audio` is there twice",
            "container_labels.: a label has a name",
            "log.max_file: it needs max-size",
        ];
        let found = broken(&bad);
        assert_eq!(found.len(), beginnings.len(), "{found:#?}");
        for (found, beginning) in found.iter().zip(beginnings) {
            assert!(found.starts_with(beginning), "{found}");
        }
        bad = spec();
        bad.limits.memory_bytes = NonZeroU64::new(8 << 20);
        bad.memory_swap = Some(Bound::At(4 << 20));
        bad.log = LogSpec { driver: LogDriver::None, max_size: NonZeroU64::new(1), max_file: None };
        let found = broken(&bad);
        assert!(found[0].starts_with("memory_swap: it counts memory and swap together"), "{found:?}");
        assert!(found[1].starts_with("log.max_size: the driver `none` keeps nothing"), "{found:?}");
        let small = LogSpec { max_size: NonZeroU64::new(1 << 10), max_file: NonZeroU64::new(3), ..LogSpec::default() };
        let found = broken(&ServiceSpec { log: small, ..spec() });
        assert_eq!(found, ["log.max_size: 3 file(s) of 1024 bytes are less than the least log, 65536 bytes"]);
    }

    #[test]
    fn a_spec_that_is_too_large_by_its_labels_is_refused() {
        let labels = (0..1_000).map(|number| (format!("{number}"), "x".repeat(300)));
        let large = ServiceSpec { container_labels: labels.collect(), ..spec() };
        assert!(violations(&large).iter().any(|it| it.field == "spec"));
    }
}
