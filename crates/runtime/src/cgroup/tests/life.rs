//! Tests that groups are created, joined, frozen, killed, swept and removed.

use super::*;

fn state(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(") ").next().unwrap_or_default().chars().take(1).collect()
}

#[test]
fn a_container_leaves_nothing_of_its_groups() {
    let mut real = Real::create("life", Which::All, &Resources::default());
    let hierarchies = real.groups.folders().len();
    assert_eq!(real.folders(), 2 * hierarchies, "one, and one above, in each");
    let mut process = real.run("echo here; sleep 1000 & wait");
    assert_eq!(process.line(), "here");
    eventually("a child is there", || real.groups.processes().expect("readable").len() == 2);
    for folder in real.groups.folders() {
        assert!(folder.processes().expect("readable").contains(&process.pid()), "{}", folder.path.display());
    }
    let state = serde_json::to_string(&real.groups).expect("plain data");
    let again: Groups = serde_json::from_str(&state).expect("plain data");
    assert_eq!(again, real.groups);
    again.kill_all(libc::SIGKILL).expect("killed");
    assert_eq!(process.signal(), Some(libc::SIGKILL));
    again.remove().expect("all have ended");
    assert_eq!(real.folders(), 0);
    again.remove().expect("what is gone is not an error");
    // The same groups are created once more, in a parent that belongs to another process.
    let hierarchies = table::hierarchies().expect("/proc can be read");
    prepare(&hierarchies, std::path::Path::new(&real.name)).expect("ordinary groups");
    real.groups.create(&Resources::default()).expect("made");
    real.groups.remove().expect("empty");
    assert_eq!(real.folders(), hierarchies.len(), "the parent stays");
}

#[test]
fn what_was_made_goes_when_a_step_fails() {
    let mut real = Real::new("fails", Which::All);
    let cpu = crate::oci::Cpu { cpus: "4000".into(), ..Default::default() };
    let limits = Resources { cpu: Some(cpu), ..Resources::default() };
    let error = real.groups.create(&limits).expect_err("there is no such CPU");
    assert!(error.to_string().starts_with("failed to set linux.resources.cpu.cpus (`4000` to /sys"), "{error}");
    assert_eq!(real.folders(), 0);
    let network = crate::oci::Network { class_id: Some(1), ..Default::default() };
    let limits = Resources { network: Some(network), ..Resources::default() };
    let error = real.groups.create(&limits).expect_err("net_cls is not mounted here");
    let expected = "failed to set linux.resources.network.classID: this machine has no `net_cls` cgroup controller";
    assert_eq!((error.to_string().as_str(), real.folders()), (expected, 0));
}

#[test]
fn groups_of_others_are_not_taken() {
    let real = Real::create("taken", Which::All, &Resources::default());
    let process = real.run("exec sleep 1000");
    let mut other = real.groups.clone();
    let error = other.create(&Resources::default()).expect_err("there are processes");
    let expected = format!("it is there already, and has processes ({})", process.pid());
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert!(!real.groups.processes().expect("readable").is_empty(), "nothing was removed");
}

#[test]
fn a_frozen_container_goes_on_where_it_was() {
    for which in [Which::V1, Which::V2, Which::All] {
        let real = Real::create(&format!("freeze-{}", which as u8), which, &Resources::default());
        let mut process = real.run("while :; do echo; sleep 0.01; done");
        process.line();
        assert!(!real.groups.is_frozen());
        real.groups.freeze().expect("frozen");
        assert!(real.groups.is_frozen());
        real.groups.freeze().expect("again is not an error");
        real.groups.thaw().expect("thawed");
        assert!(!real.groups.is_frozen());
        process.line();
        // A frozen container is killed, too.
        real.groups.freeze().expect("frozen");
        real.groups.kill_all(libc::SIGKILL).expect("killed");
        assert_eq!(process.signal(), Some(libc::SIGKILL));
        real.groups.remove().expect("all have ended");
        assert_eq!(real.folders(), 0);
    }
}

#[test]
fn a_signal_reaches_all_that_fork_meanwhile() {
    for (which, signal) in
        [(Which::V1, libc::SIGKILL), (Which::V2, libc::SIGKILL), (Which::V1, libc::SIGTERM), (Which::V2, libc::SIGTERM)]
    {
        let name = format!("kill-{}-{signal}", which as u8);
        let real = Real::create(&name, which, &Resources::default());
        let mut process = real.run("while :; do sleep 1000 & echo; done");
        (0..20).for_each(|_| drop(process.line()));
        real.groups.kill_all(signal).expect("killed");
        assert_eq!(process.signal(), Some(signal));
        eventually("all have ended", || real.groups.processes().expect("readable").is_empty());
        real.groups.remove().expect("all have ended");
        assert_eq!(real.folders(), 0);
    }
}

#[test]
fn other_signals_wait_for_a_frozen_container() {
    let real = Real::create("wait", Which::V1, &Resources::default());
    let mut process = real.run("echo; exec sleep 1000");
    process.line();
    real.groups.freeze().expect("frozen");
    real.groups.kill_all(libc::SIGTERM).expect("sent");
    assert!(real.groups.is_frozen());
    assert!(["S", "D"].contains(&state(process.pid()).as_str()), "it is there");
    real.groups.thaw().expect("thawed");
    assert_eq!(process.signal(), Some(libc::SIGTERM));
}

#[test]
fn groups_that_a_container_made_go_with_it() {
    let real = Real::create("nested", Which::All, &Resources::default());
    for folder in real.groups.folders() {
        std::fs::create_dir_all(folder.path.join("a/b")).expect("made");
        std::fs::create_dir_all(folder.path.join("c")).expect("made");
    }
    let process = real.run("exec sleep 1000");
    let v2 = real.groups.folders().iter().find(|folder| folder.v2).expect("it is hybrid");
    folder::write(&v2.path.join("a/b/cgroup.procs"), &process.pid().to_string()).expect("moved");
    assert_eq!(real.groups.processes().expect("readable"), [process.pid()]);
    // A process that died between two joins is in some hierarchies only.
    let lost = Process::start("exec sleep 1000", |pid| real.folder("pids").join(pid, None).expect("joined"));
    // The kernel keeps a process in its group until it is reaped.
    let reaped = std::thread::spawn(move || [process, lost].map(|mut it| it.signal()));
    real.groups.sweep().expect("swept");
    assert_eq!(reaped.join().expect("no panic"), [Some(libc::SIGKILL); 2]);
    assert_eq!(real.folders(), 0);
    real.groups.sweep().expect("again is not an error");
}

#[test]
fn a_process_joins_beside_one_that_has_moved() {
    let _handed_down = Hugetlb::hold();
    let real = Real::create("beside", Which::V2, &Resources::default());
    let v2 = &real.groups.folders()[0];
    let init = real.run("exec sleep 1000");
    std::fs::create_dir(v2.path.join("inner")).expect("made");
    folder::write(&v2.path.join("inner/cgroup.procs"), &init.pid().to_string()).expect("moved");
    // The container delegates a controller, so its own group accepts no process any more.
    v2.want(&["hugetlb"]);
    folder::write(&v2.path.join("cgroup.subtree_control"), "+hugetlb").expect("this machine has hugetlb on v2");
    let other = Process::start("exec sleep 1000", |pid| real.groups.join_beside(pid, init.pid()).expect("joined"));
    let inside = v2.read("inner/cgroup.procs").expect("readable");
    assert!(inside.lines().any(|line| line == other.pid().to_string()), "{inside}");
}

#[test]
fn processes_in_the_way_of_a_controller_move_to_a_leaf_only_when_a_daemon_prepares_its_groups() {
    let _handed_down = Hugetlb::hold();
    let real = Real::create("leaf", Which::V2, &Resources::default());
    // As in a sandbox or under systemd, this process may only use one group and is in it.
    let outer = real.groups.folders()[0].clone();
    outer.want(&["hugetlb"]);
    let process = real.run("exec sleep 1000");
    let controllers = vec!["hugetlb".to_owned()];
    let (root, point, own) = (outer.path.clone(), outer.path.clone(), outer.path.clone());
    let mut inner = Groups::below(&[Hierarchy { root, point, own, controllers, v2: true }], "a".as_ref(), "box");
    let pages = vec![crate::oci::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    let resources = Resources { hugepage_limits: pages, ..Resources::default() };
    let error = inner.create(&resources).expect_err("the process is in the way").to_string();
    assert!(error.contains("don't hand the `hugetlb` controller down"), "{error}");
    assert_eq!(outer.read("cgroup.procs").expect("where it was").trim(), process.pid().to_string());
    std::fs::create_dir_all(outer.path.join("a")).expect("it was removed");
    super::super::make::hand_down_from_busy(&outer.path, &outer.path.join("a"), &["hugetlb"]).expect("prepared");
    inner.create(&resources).expect("handed down");
    assert_eq!(outer.read("flota-daemon/cgroup.procs").expect("the leaf").trim(), process.pid().to_string());
    let other = real.run("exec sleep 1000");
    assert!(outer.read("flota-daemon/cgroup.procs").expect("the leaf").contains(&other.pid().to_string()));
    inner.remove().expect("empty");
    std::fs::remove_dir(outer.path.join("a")).expect("the daemon's own");
}
