//! Tests of the counters with folders of ordinary files, compared as JSON, which is what other tools read.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

struct Fixture(PathBuf);

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the statistics of a group with these files.
fn stats(name: &str, controllers: &str, v2: bool, files: &[(&str, &str)]) -> Value {
    let dir = Fixture(std::env::temp_dir().join(format!("flota-stats-{name}-{}", std::process::id())));
    fs::create_dir_all(&dir.0).expect("in a temporary folder");
    for (file, text) in files {
        fs::write(dir.0.join(file), text).expect("in a temporary folder");
    }
    let controllers = controllers.split(' ').map(str::to_owned).collect();
    let folder = Folder { path: dir.0.clone(), point: dir.0.clone(), root: dir.0.clone(), controllers, v2, made: 0 };
    let stats = Groups { folders: vec![folder] }.stats().expect("it is there");
    serde_json::to_value(stats).expect("plain data")
}

const NO_CPUSET: [&str; 9] = [
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
];

fn no_cpuset() -> Value {
    Value::Object(NO_CPUSET.iter().map(|key| ((*key).to_owned(), json!(0))).collect())
}

#[test]
fn nothing_counted_is_what_runc_writes_for_it() {
    let expected = json!({
        "cpu": {}, "cpuset": no_cpuset(), "memory": {}, "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {},
        "network_interfaces": [],
    });
    assert_eq!(serde_json::to_value(Stats::default()).expect("plain data"), expected);
}

#[test]
fn counters_of_v1_have_the_names_of_runc() {
    let found = stats(
        "v1",
        "cpu cpuacct cpuset memory pids blkio",
        false,
        &[
            ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 900\n"),
            ("cpuacct.usage", "1000\n"),
            ("cpuacct.stat", "user 3\nsystem 4\n"),
            ("cpuacct.usage_percpu", "600 400 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 500 100\n1 300 100\n"),
            ("cpuset.cpus", "0-1,3\n"),
            ("cpuset.mems", "0\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.failcnt", "1\n"),
            ("memory.kmem.usage_in_bytes", "7\n"),
            ("memory.kmem.tcp.limit_in_bytes", "8\n"),
            ("memory.stat", "cache 12\nrss 34\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 2\n8:0 Total 2\nTotal 2\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\n8:0 Discard 0\nTotal 4096\n"),
        ],
    );
    let mut cpuset = no_cpuset();
    cpuset["cpus"] = json!([0, 1, 3]);
    cpuset["mems"] = json!([0]);
    cpuset["sched_load_balance"] = json!(1);
    cpuset["sched_relax_domain_level"] = json!(-1);
    let expected = json!({
        "cpu": {
            "usage": {
                "total": 1000, "percpu": [600, 400], "percpu_kernel": [100, 100], "percpu_user": [500, 300],
                "kernel": 40_000_000, "user": 30_000_000,
            },
            "throttling": { "periods": 5, "throttledPeriods": 2, "throttledTime": 900 },
        },
        "cpuset": cpuset,
        "memory": {
            "cache": 12,
            "usage": { "limit": 9_223_372_036_854_771_712_u64, "usage": 4096, "max": 8192, "failcnt": 1 },
            "kernel": { "limit": 0, "usage": 7, "failcnt": 0 },
            "kernelTCP": { "limit": 8, "failcnt": 0 },
            "raw": { "cache": 12, "rss": 34 },
        },
        "pids": { "current": 3 },
        "blkio": {
            "ioServicedRecursive": [
                { "major": 8, "op": "Read", "value": 2 }, { "major": 8, "op": "Total", "value": 2 },
            ],
            "ioServiceBytesRecursive": [
                { "major": 8, "op": "Read", "value": 4096 }, { "major": 8, "op": "Discard" },
            ],
        },
        "hugetlb": {}, "intel_rdt": {}, "network_interfaces": [],
    });
    assert_eq!(found, expected);
}

#[test]
fn counters_of_v2_have_the_names_of_runc() {
    let pressure = "some avg10=2.00 avg60=0.00 avg300=0.00 total=9\n";
    let found = stats(
        "v2",
        "cpu memory pids io",
        true,
        &[
            ("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 1\nnr_throttled 1\nthrottled_usec 2\n"),
            ("cpu.pressure", pressure),
            ("memory.current", "100\n"),
            ("memory.max", "1000\n"),
            ("memory.peak", "200\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "500\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("pids.current", "3\n"),
            ("pids.max", "9\n"),
            ("io.stat", "253:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
        ],
    );
    let expected = json!({
        "cpu": {
            "usage": { "total": 7000, "kernel": 3000, "user": 4000 },
            "throttling": { "periods": 1, "throttledPeriods": 1, "throttledTime": 2000 },
            "psi": { "some": { "avg10": 2.0, "avg60": 0.0, "avg300": 0.0, "total": 9 } },
        },
        "cpuset": no_cpuset(),
        "memory": {
            "cache": 2,
            "usage": { "limit": 1000, "usage": 100, "max": 200, "failcnt": 0 },
            "swap": { "limit": 1500, "usage": 105, "failcnt": 0 },
            "raw": { "anon": 1, "file": 2 },
        },
        "pids": { "current": 3, "limit": 9 },
        "blkio": {
            "ioServiceBytesRecursive": [
                { "major": 253, "op": "Read", "value": 1 }, { "major": 253, "op": "Write", "value": 2 },
            ],
            "ioServicedRecursive": [
                { "major": 253, "op": "Read", "value": 3 }, { "major": 253, "op": "Write", "value": 4 },
            ],
        },
        "hugetlb": {}, "intel_rdt": {}, "network_interfaces": [],
    });
    assert_eq!(found, expected);
}

#[test]
fn memory_without_limits_is_the_largest_number_on_v2() {
    let found = stats("max", "memory", true, &[("memory.max", "max\n"), ("memory.swap.max", "max\n")]);
    assert_eq!(found["memory"]["usage"]["limit"], json!(u64::MAX));
    assert_eq!(found["memory"]["swap"]["limit"], json!(u64::MAX));
}

#[test]
fn parsers_pass_over_what_they_do_not_know() {
    for (text, expected) in [("", vec![]), ("3", vec![3]), ("0-2,7", vec![0, 1, 2, 7]), ("x,1-,2", vec![2])] {
        assert_eq!(v1::numbers(text), expected, "{text}");
    }
    assert_eq!(v1::entries("8:0 1\nTotal 3\nrubbish\n").len(), 1);
    for (kilobytes, expected) in [(64, "64KB"), (2_048, "2MB"), (1_048_576, "1GB"), (33_554_432, "32GB")] {
        assert_eq!(page_size(kilobytes), expected);
    }
}

#[test]
fn a_container_that_is_gone_has_no_statistics() {
    let folder = Folder {
        path: "/nowhere/x".into(),
        point: "/nowhere".into(),
        root: "/nowhere".into(),
        controllers: vec![],
        v2: true,
        made: 0,
    };
    let error = Groups { folders: vec![folder] }.stats().expect_err("no folder");
    assert_eq!(error.to_string(), "failed to read the use of the cgroup /nowhere/x: No such file or directory");
}
