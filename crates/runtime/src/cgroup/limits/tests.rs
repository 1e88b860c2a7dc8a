//! Tests of limits as tables: which field leads to which write, and then the same with folders of ordinary files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::oci::{BlockIo, Cpu, DeviceRule, HugepageLimit, Memory, Network, Rdma, ThrottleDevice, WeightDevice};

/// Groups made of ordinary files, which are removed when it is dropped.
pub(super) struct Fixture {
    dir: PathBuf,
    groups: Groups,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Controllers, whether the group is v2, and files with their content.
type Made<'a> = (&'a [&'a str], bool, &'a [(&'a str, &'a str)]);

impl Fixture {
    /// Creates one folder for each list of controllers, with these files.
    fn new(name: &str, folders: &[Made<'_>]) -> Self {
        let dir = std::env::temp_dir().join(format!("flota-limits-{name}-{}", std::process::id()));
        let folder = |(controllers, v2, files): &Made<'_>| {
            let path = dir.join(controllers.join(","));
            fs::create_dir_all(&path).expect("in a temporary folder");
            for (file, text) in *files {
                fs::write(path.join(file), text).expect("in a temporary folder");
            }
            let controllers = controllers.iter().map(|it| (*it).to_owned()).collect();
            Folder { path, point: dir.clone(), root: dir.clone(), controllers, v2: *v2, made: 1 }
        };
        let groups = Groups { folders: folders.iter().map(folder).collect() };
        Self { dir, groups }
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).expect("it is there")
    }
}

fn groups(folders: &[(&[&str], bool)]) -> Groups {
    let folder = |(controllers, v2): &(&[&str], bool)| Folder {
        path: Path::new("/nowhere").join(controllers.join(",")),
        point: "/nowhere".into(),
        root: "/nowhere".into(),
        controllers: controllers.iter().map(|it| (*it).to_owned()).collect(),
        v2: *v2,
        made: 0,
    };
    Groups { folders: folders.iter().map(folder).collect() }
}

const V1: [(&[&str], bool); 9] = [
    (&["cpu", "cpuacct"], false),
    (&["memory"], false),
    (&["pids"], false),
    (&["blkio"], false),
    (&["cpuset"], false),
    (&["hugetlb"], false),
    (&["net_cls"], false),
    (&["net_prio"], false),
    (&["rdma"], false),
];
const V2: [(&[&str], bool); 1] = [(&["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma"], true)];

/// Returns the writes as `file=value file=value`, in order, or the text of the error.
fn written(folders: &[(&[&str], bool)], resources: &Resources) -> String {
    match plan(&groups(folders), resources) {
        Ok(steps) => {
            let writes = steps.iter().flat_map(|step| &step.writes);
            writes.map(|it| format!("{}={}", it.file, it.value)).collect::<Vec<_>>().join(", ")
        }
        Err(error) => error.to_string().replace("failed to set linux.resources.", "✗ "),
    }
}

fn check(table: Vec<(Resources, &str, &str)>) {
    for (resources, v1, v2) in table {
        assert_eq!(written(&V1, &resources), v1, "v1: {resources:?}");
        assert_eq!(written(&V2, &resources), v2, "v2: {resources:?}");
    }
}

const M: i64 = 1 << 20;

fn memory(limit: i64, swap: i64, other: Memory) -> Resources {
    let memory = Memory { limit: Some(limit), swap: Some(swap), ..other };
    Resources { memory: Some(memory), ..Resources::default() }
}

#[test]
fn memory_is_limited_in_the_words_of_either_version() {
    let none = Memory::default;
    let soft = Memory { reservation: Some(M), ..none() };
    let v1_only = Memory { swappiness: Some(60), disable_oom_killer: Some(true), use_hierarchy: Some(true), ..none() };
    let wrong = Memory { swappiness: Some(101), ..none() };
    let unset = Memory {
        swappiness: Some(u64::MAX),
        disable_oom_killer: Some(false),
        kernel: Some(1),
        kernel_tcp: Some(1),
        ..none()
    };
    let less =
        "✗ memory.swap: it counts memory and swap together, so it can't be less than linux.resources.memory.limit";
    let alone = "✗ memory.swap: it counts memory and swap together: linux.resources.memory.limit must be set too";
    check(vec![
        (memory(M, 0, none()), "memory.limit_in_bytes=1048576", "memory.max=1048576"),
        (
            memory(M, 3 * M, none()),
            "memory.limit_in_bytes=1048576, memory.memsw.limit_in_bytes=3145728",
            "memory.swap.max=2097152, memory.max=1048576",
        ),
        (
            memory(M, M, none()),
            "memory.limit_in_bytes=1048576, memory.memsw.limit_in_bytes=1048576",
            "memory.swap.max=0, memory.max=1048576",
        ),
        (
            memory(M, -1, none()),
            "memory.limit_in_bytes=1048576, memory.memsw.limit_in_bytes=-1",
            "memory.swap.max=max, memory.max=1048576",
        ),
        (
            memory(-1, 0, none()),
            "memory.limit_in_bytes=-1, memory.memsw.limit_in_bytes=-1",
            "memory.swap.max=max, memory.max=max",
        ),
        (
            memory(-1, M, none()),
            "memory.limit_in_bytes=-1, memory.memsw.limit_in_bytes=1048576",
            "memory.swap.max=1048576, memory.max=max",
        ),
        (memory(2 * M, M, none()), less, less),
        (memory(0, M, none()), "memory.memsw.limit_in_bytes=1048576", alone),
        (
            memory(-2, 0, none()),
            "✗ memory.limit: -2 is not a number of bytes",
            "✗ memory.limit: -2 is not a number of bytes",
        ),
        (memory(0, 0, soft), "memory.soft_limit_in_bytes=1048576", "memory.low=1048576"),
        (
            memory(0, 0, v1_only),
            "memory.swappiness=60, memory.oom_control=1, memory.use_hierarchy=1",
            "✗ memory.swappiness: cgroup v2 has no such limit",
        ),
        (memory(0, 0, unset), "memory.oom_control=0", ""),
        (
            memory(0, 0, wrong.clone()),
            "✗ memory.swappiness: it is not from 0 to 100",
            "✗ memory.swappiness: cgroup v2 has no such limit",
        ),
    ]);
}

fn cpu(cpu: Cpu) -> Resources {
    Resources { cpu: Some(cpu), ..Resources::default() }
}

#[test]
fn time_and_cpus_are_limited_in_the_words_of_either_version() {
    let none = Cpu::default;
    let quota = |quota, period| cpu(Cpu { quota, period, ..none() });
    let realtime = Cpu { realtime_period: Some(1_000_000), realtime_runtime: Some(950_000), ..none() };
    check(vec![
        (
            cpu(Cpu { shares: Some(512), cpus: "0-1".into(), mems: "0".into(), ..none() }),
            "cpu.shares=512, cpuset.cpus=0-1, cpuset.mems=0",
            "cpu.weight=59, cpuset.cpus=0-1, cpuset.mems=0",
        ),
        (cpu(Cpu { shares: Some(0), ..none() }), "", ""),
        (cpu(Cpu { shares: Some(1), ..none() }), "✗ cpu.shares: it is not from 2 to 262144", "cpu.weight=1"),
        (
            quota(Some(50_000), Some(100_000)),
            "cpu.cfs_period_us=100000, cpu.cfs_quota_us=50000",
            "cpu.max=50000 100000",
        ),
        (quota(Some(50_000), None), "cpu.cfs_quota_us=50000", "cpu.max=50000"),
        (quota(Some(-1), None), "cpu.cfs_quota_us=-1", "cpu.max=max"),
        (quota(Some(0), Some(0)), "cpu.cfs_quota_us=-1", "cpu.max=max"),
        (quota(None, Some(5_000)), "cpu.cfs_period_us=5000", "cpu.max=max 5000"),
        (
            cpu(Cpu { quota: Some(9_000), burst: Some(4_000), ..none() }),
            "cpu.cfs_quota_us=9000, cpu.cfs_burst_us=4000",
            "cpu.max=9000, cpu.max.burst=4000",
        ),
        (cpu(Cpu { idle: Some(1), ..none() }), "cpu.idle=1", "cpu.idle=1"),
        (
            cpu(Cpu { idle: Some(1), shares: Some(2), ..none() }),
            "cpu.idle=0, cpu.shares=2, cpu.idle=1",
            "cpu.idle=0, cpu.weight=1, cpu.idle=1",
        ),
        (
            cpu(Cpu { idle: Some(0), shares: Some(1024), ..none() }),
            "cpu.idle=0, cpu.shares=1024",
            "cpu.idle=0, cpu.weight=100",
        ),
        (
            cpu(Cpu { idle: Some(2), ..none() }),
            "✗ cpu.idle: it is neither 0 nor 1",
            "✗ cpu.idle: it is neither 0 nor 1",
        ),
        (
            cpu(realtime),
            "cpu.rt_period_us=1000000, cpu.rt_runtime_us=950000",
            "✗ cpu.realtimePeriod: cgroup v2 has no such limit",
        ),
    ]);
}

#[test]
fn disks_are_limited_in_the_words_of_either_version() {
    let none = BlockIo::default;
    let of = |block_io| Resources { block_io: Some(block_io), ..Resources::default() };
    let rate = |rate| vec![ThrottleDevice { major: 8, minor: 0, rate }];
    let weight = |weight, leaf_weight| vec![WeightDevice { major: 8, minor: 16, weight, leaf_weight }];
    check(vec![
        (of(BlockIo { weight: Some(0), leaf_weight: Some(0), ..none() }), "", ""),
        (of(BlockIo { weight: Some(500), ..none() }), "blkio.bfq.weight=500", "io.bfq.weight=500"),
        (
            of(BlockIo { weight_device: weight(Some(100), None), ..none() }),
            "blkio.bfq.weight_device=8:16 100",
            "io.bfq.weight=8:16 100",
        ),
        (
            of(BlockIo { leaf_weight: Some(10), ..none() }),
            "blkio.leaf_weight=10",
            "✗ blockIO.leafWeight: cgroup v2 has no such limit",
        ),
        (
            of(BlockIo {
                throttle_read_bps_device: rate(1),
                throttle_write_bps_device: rate(2),
                throttle_read_iops_device: rate(3),
                throttle_write_iops_device: rate(0),
                ..none()
            }),
            "blkio.throttle.read_bps_device=8:0 1, blkio.throttle.write_bps_device=8:0 2, \
             blkio.throttle.read_iops_device=8:0 3, blkio.throttle.write_iops_device=8:0 0",
            "io.max=8:0 rbps=1, io.max=8:0 wbps=2, io.max=8:0 riops=3, io.max=8:0 wiops=max",
        ),
    ]);
}

#[test]
fn other_controllers_are_limited_in_the_words_of_either_version() {
    let pids = |limit| Resources { pids: Some(crate::oci::Pids { limit }), ..Resources::default() };
    let pages = |size: &str| Resources {
        hugepage_limits: vec![HugepageLimit { page_size: size.into(), limit: 9 }],
        ..Resources::default()
    };
    let rdma = Rdma { hca_handles: Some(3), hca_objects: Some(10_000) };
    let rdma = BTreeMap::from([("mlx5_1".to_owned(), rdma), ("none".to_owned(), Rdma::default())]);
    let priorities = vec![crate::oci::InterfacePriority { name: "eth0".into(), priority: 5 }];
    let network = |network| Resources { network: Some(network), ..Resources::default() };
    check(vec![
        (pids(7), "pids.max=7", "pids.max=7"),
        (pids(0), "pids.max=max", "pids.max=max"),
        (pids(-1), "pids.max=max", "pids.max=max"),
        (
            pages("2MB"),
            "hugetlb.2MB.limit_in_bytes=9, hugetlb.2MB.rsvd.limit_in_bytes=9",
            "hugetlb.2MB.max=9, hugetlb.2MB.rsvd.max=9",
        ),
        (
            pages("../x"),
            "✗ hugepageLimits: `../x` is not a size of pages (like 2MB)",
            "✗ hugepageLimits: `../x` is not a size of pages (like 2MB)",
        ),
        (
            Resources { rdma, ..Resources::default() },
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
        ),
        (
            network(Network { class_id: Some(0x10_0001), priorities }),
            "net_cls.classid=1048577, net_prio.ifpriomap=eth0 5",
            "✗ network.classID: cgroup v2 has no such limit",
        ),
        (network(Network { class_id: Some(0), priorities: vec![] }), "", ""),
    ]);
}

#[test]
fn files_of_v2_are_set_where_their_controller_is_there() {
    let unified = |file: &str, value: &str| Resources {
        unified: BTreeMap::from([(file.to_owned(), value.to_owned())]),
        ..Resources::default()
    };
    let hybrid: [(&[&str], bool); 2] = [(&["memory"], false), (&["hugetlb"], true)];
    let missing = "✗ unified: `memory.high`: this machine has no `memory` controller of cgroup v2";
    for (folders, resources, expected) in [
        (&V2[..], unified("memory.high", "9"), "memory.high=9"),
        (&V2[..], unified("cgroup.max.depth", "2"), "cgroup.max.depth=2"),
        (&V2[..], unified("io.max", "8:0 rbps=1\n8:0 wbps=2\n"), "io.max=8:0 rbps=1, io.max=8:0 wbps=2"),
        (
            &V2[..],
            unified("../memory.high", "9"),
            "✗ unified: `../memory.high` is not a file of a controller (like memory.high)",
        ),
        (&V2[..], unified("memory", "9"), "✗ unified: `memory` is not a file of a controller (like memory.high)"),
        (&V1[..], unified("memory.high", "9"), "✗ unified: this machine has no cgroup v2"),
        (&hybrid[..], unified("memory.high", "9"), missing),
        (&hybrid[..], unified("hugetlb.2MB.max", "9"), "hugetlb.2MB.max=9"),
    ] {
        assert_eq!(written(folders, &resources), expected);
    }
}

#[test]
fn a_limit_without_its_controller_is_refused_but_not_the_lack_of_one() {
    let only: [(&[&str], bool); 1] = [(&["devices"], false)];
    let asked = |resources: Resources| written(&only, &resources);
    assert_eq!(
        asked(memory(M, 0, Memory::default())),
        "✗ memory.limit: this machine has no `memory` cgroup controller"
    );
    assert_eq!(asked(memory(-1, 0, Memory::default())), "");
    let quota = |quota| cpu(Cpu { quota: Some(quota), ..Cpu::default() });
    assert_eq!(asked(quota(1_000)), "✗ cpu.quota: this machine has no `cpu` cgroup controller");
    assert_eq!(asked(quota(-1)), "");
    let pids = |limit| Resources { pids: Some(crate::oci::Pids { limit }), ..Resources::default() };
    assert_eq!(asked(pids(7)), "✗ pids.limit: this machine has no `pids` cgroup controller");
    assert_eq!(asked(pids(0)), "");
    let devices = Resources { devices: vec![DeviceRule::default()], ..Resources::default() };
    let error = apply(&groups(&[]), &devices, true).expect_err("nothing guards them");
    let expected =
        "failed to set linux.resources.devices: this machine has no `devices` cgroup controller, and no cgroup v2";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_is_set_already_decides_what_an_update_means_on_v2() {
    let files = [("memory.max", "1048576\n"), ("memory.current", "524288\n"), ("cpu.max", "50000 100000\n")];
    let fixture = Fixture::new("now", &[(&["memory", "cpu"], true, &files)]);
    let asked = |resources: &Resources| match plan(&fixture.groups, resources) {
        Ok(steps) => steps.iter().flat_map(|it| &it.writes).map(|it| it.value.clone()).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    };
    assert_eq!(asked(&memory(0, 3 * M, Memory::default())), "2097152");
    assert_eq!(asked(&cpu(Cpu { period: Some(5_000), ..Cpu::default() })), "50000 5000");
    let careful = || Memory { check_before_update: Some(true), ..Memory::default() };
    assert_eq!(asked(&memory(M, 0, careful())), "1048576");
    let expected =
        "failed to set linux.resources.memory.limit: 524288 bytes are not more than the 524288 that are in use";
    assert_eq!(asked(&memory(M / 2, 0, careful())), expected);
}

#[test]
fn files_that_are_not_there_are_passed_by_where_another_will_do() {
    let v1: &[(&str, &str)] = &[("memory.limit_in_bytes", ""), ("memory.memsw.limit_in_bytes", "")];
    let weights = BlockIo { weight: Some(500), ..BlockIo::default() };
    let fixture = Fixture::new(
        "missing",
        &[
            (&["memory"], false, &v1[..1]),
            (&["blkio"], false, &[("blkio.weight", "")]),
            (&["hugetlb"], true, &[("hugetlb.2MB.max", "")]),
        ],
    );
    let pages = vec![HugepageLimit { page_size: "2MB".into(), limit: 4 }];
    let resources =
        Resources { block_io: Some(weights.clone()), hugepage_limits: pages, ..memory(M, M, Memory::default()) };
    apply(&fixture.groups, &resources, false).expect("nothing is lost");
    assert_eq!(fixture.text("memory/memory.limit_in_bytes"), "1048576");
    assert_eq!(fixture.text("blkio/blkio.weight"), "500");
    assert_eq!(fixture.text("hugetlb/hugetlb.2MB.max"), "4");
    let error = apply(&fixture.groups, &memory(M, 2 * M, Memory::default()), false).expect_err("swap can't be limited");
    assert!(error.to_string().starts_with("failed to set linux.resources.memory.swap (`2097152` to "), "{error}");

    let v2 = Fixture::new("weights", &[(&["io"], true, &[("io.weight", "")])]);
    apply(&v2.groups, &Resources { block_io: Some(weights), ..Resources::default() }, false).expect("a weight");
    assert_eq!(v2.text("io/io.weight"), "4950");
}

#[test]
fn a_v2_limit_says_when_its_controller_is_not_handed_down() {
    let fixture = Fixture::new("down", &[(&["memory"], true, &[("cgroup.controllers", "cpu pids\n")])]);
    let error = apply(&fixture.groups, &memory(M, 0, Memory::default()), false).expect_err("no file");
    let path = fixture.dir.join("memory");
    let expected =
        "the groups above PATH don't hand the `memory` controller down".replace("PATH", &path.display().to_string());
    assert_eq!(error.to_string(), format!("failed to set linux.resources.memory.limit: {expected}"));
}

#[test]
fn a_new_group_is_not_freed_of_limits_that_it_has_not() {
    let fixture = Fixture::new("fresh", &[(&["pids"], false, &[("pids.max", "as it was")])]);
    let resources = Resources { pids: Some(crate::oci::Pids { limit: -1 }), ..Resources::default() };
    apply(&fixture.groups, &resources, true).expect("nothing to do");
    assert_eq!(fixture.text("pids/pids.max"), "as it was");
    apply(&fixture.groups, &resources, false).expect("an update");
    assert_eq!(fixture.text("pids/pids.max"), "maxit was");
}
