//! The process that a daemon's supervisors are forked from.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use flota_runtime::cgroup::{Groups, hierarchies};
use flota_runtime::{ContainerClient, Order, Program, Root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{program, read, wait_for};
use crate::supervised::Supervised;

/// The runtime from a path of the test's own, so that what runs from it can be told from others'.
fn own_program(container: &Supervised) -> Program {
    let path = container.bundle.dir.join("flota-runtime");
    std::os::unix::fs::symlink(program(), &path).unwrap();
    Program::open(path)
}

/// By the name of the thread; the command line names the test.
fn launchers(container: &Supervised) -> Vec<i32> {
    let mut found = container.bundle.census().processes;
    found.retain(|pid| read(format!("/proc/{pid}/comm")) == "flota-launcher");
    found
}

fn start(program: &Program, container: &Supervised) {
    let spec = serde_json::from_value(container.bundle.config.clone()).unwrap();
    flota_runtime::start(program, &container.dir, &container.order, spec, &[]).unwrap();
}

#[test]
fn one_launcher_serves_all_starts_and_ends_with_its_program() {
    let containers = [(); 3].map(|()| Supervised::new("exec sleep 1000"));
    let program = own_program(&containers[0]);
    assert_eq!(launchers(&containers[0]), [] as [i32; 0], "before the first start");
    containers.iter().for_each(|it| start(&program, it));
    assert_eq!(launchers(&containers[0]).len(), 1);
    drop(program);
    assert_eq!(launchers(&containers[0]), [] as [i32; 0], "after its program has gone");
    for container in &containers {
        container.client().kill(libc::SIGKILL).unwrap();
        assert_eq!(container.wait().code, 137, "supervised without a launcher");
    }
}

#[test]
fn a_killed_launcher_leaves_its_supervisors_alive_and_is_replaced() {
    let containers = [(); 2].map(|()| Supervised::new("exec sleep 1000"));
    let program = own_program(&containers[0]);
    start(&program, &containers[0]);
    let launcher = launchers(&containers[0])[0];
    kill(Pid::from_raw(launcher), Signal::SIGKILL).unwrap();
    // A process whose memory is gone may still hold its connection, in which a request would be lost.
    let is_zombie = || read(format!("/proc/{launcher}/stat")).contains(") Z ");
    wait_for("the launcher has closed its connection", || is_zombie().then_some(()));
    start(&program, &containers[1]);
    assert_eq!(launchers(&containers[0]).len(), 1);
    assert_eq!(containers[0].exec("echo here"), (0, "here\n".into()));
}

#[test]
fn a_supervisor_is_called_by_its_folder_and_holds_nothing_of_the_daemons() {
    let container = Supervised::new("exec sleep 1000");
    let (secret, _other) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&secret, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    start(&own_program(&container), &container);
    let pid = flota_runtime::State::load(&container.dir).unwrap().unwrap().supervisor;
    let shown = read(format!("/proc/{pid}/cmdline"));
    assert!(shown.trim_end_matches('\0').ends_with(&format!(" supervise {}", container.dir.display())), "{shown:?}");
    let leaked = std::fs::read_link(format!("/proc/self/fd/{}", secret.as_raw_fd())).unwrap();
    let held = crate::census::entries(Path::new(&format!("/proc/{pid}/fd")));
    assert!(held.iter().all(|it| std::fs::read_link(it).ok().as_ref() != Some(&leaked)), "{leaked:?} in {held:?}");
}

#[test]
fn a_launcher_that_can_not_be_is_an_error_of_the_start() {
    let container = Supervised::new("true");
    let spec = serde_json::from_value(container.bundle.config.clone()).unwrap();
    let nowhere = Program::open("/nowhere/flota-runtime".into());
    let error = flota_runtime::start(&nowhere, &container.dir, &container.order, spec, &[]).unwrap_err();
    assert!(error.text.starts_with("failed to start /nowhere/flota-runtime: "), "{}", error.text);
    assert!(ContainerClient::connect(&container.dir).is_err());
}

#[test]
fn two_hundred_starts_at_once_all_run_although_the_launcher_queues_only_a_few() {
    let first = Supervised::new("exec sleep 1000");
    let program = own_program(&first);
    start(&program, &first);
    let launcher = launchers(&first);
    let dirs: Vec<_> = (0..200).map(|number| first.dir.join(number.to_string())).collect();
    let start = |dir: &Path| {
        let (number, hierarchies) = (dir.file_name().unwrap().to_str().unwrap(), hierarchies().unwrap());
        let path = format!("/{}/{number}", first.bundle.id);
        let groups = Groups::new(&hierarchies, Some(&path), number).unwrap();
        let bin = dir.join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::hard_link(first.bundle.rootfs().join("bin/busybox"), bin.join("busybox")).unwrap();
        ["sh", "sleep"].iter().for_each(|name| std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap());
        let root = Root::Folder(dir.join("rootfs"));
        let order = Order { id: number.into(), root, groups, log: dir.join("log"), ..first.order.clone() };
        let mut config = first.bundle.config.clone();
        config["linux"]["cgroupsPath"] = path.into();
        flota_runtime::start(&program, dir, &order, serde_json::from_value(config).unwrap(), &[]).map(drop)
    };
    // While it stands still, most of the requests find no room.
    kill(Pid::from_raw(launcher[0]), Signal::SIGSTOP).unwrap();
    std::thread::scope(|scope| {
        let starts: Vec<_> = dirs.iter().map(|dir| scope.spawn(|| start(dir))).collect();
        wait_for("all starts", || dirs.iter().all(|it| it.join("order.json").exists()).then_some(()));
        kill(Pid::from_raw(launcher[0]), Signal::SIGCONT).unwrap();
        starts.into_iter().for_each(|it| it.join().unwrap().unwrap());
    });
    assert_eq!(launchers(&first), launcher, "it was not replaced");
    for dir in &dirs {
        ContainerClient::connect(dir).unwrap().kill(libc::SIGKILL).unwrap();
    }
    let ended = |dir: &PathBuf| flota_runtime::ExitStatus::load(dir).unwrap().is_some();
    wait_for("the end of all", || dirs.iter().all(ended).then_some(()));
}
