//! The library's side: a supervisor for each container, and a client of it. What a daemon does.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use flota_runtime::process::receive_terminal;
use flota_runtime::state::ContainerState;
use flota_runtime::{ContainerClient, ContainerEvent, ContainerEvents, ExecSpec, ExitStatus, OomVictim, Program};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
use nix::unistd::Pid;
use serde_json::json;

use crate::census::entries;
use crate::harness::{program, read, wait_for};
use crate::supervised::Supervised;

#[test]
fn output_is_in_the_log_and_the_code_in_a_file() {
    let container = Supervised::new("echo out; echo err >&2; echo -n rest; exit 4").start();
    let exit = container.wait();
    assert_eq!((exit.code, exit.out_of_memory), (4, None));
    let mut lines = container.lines();
    lines.sort();
    assert_eq!(lines, [(1, "out".into()), (1, "rest".into()), (2, "err".into())]);
    container.assert_gone();
}

#[test]
fn container_has_its_name_and_the_name_servers_of_the_machine() {
    let container = Supervised::new("cat /etc/hostname /etc/resolv.conf; grep -c box /etc/hosts");
    let etc = container.bundle.rootfs().join("etc");
    std::fs::create_dir(&etc).unwrap();
    // The image's links are replaced, and what they lead to is not written.
    std::os::unix::fs::symlink("../run/stub", etc.join("resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", etc.join("hostname")).unwrap();
    let container = container.start();
    assert_eq!(container.wait().code, 0);
    let lines: Vec<String> = container.lines().into_iter().map(|it| it.1).collect();
    assert_eq!(lines.join("\n"), format!("box\n{}\n1", read("/etc/resolv.conf")));
}

#[test]
fn container_has_the_name_servers_and_hosts_that_it_was_given() {
    let mut container = Supervised::new("cat /etc/resolv.conf; grep box /etc/hosts");
    container.order.resolver = Some("nameserver 127.0.0.11\n".into());
    let container = container.start();
    assert_eq!(container.wait().code, 0);
    let lines: Vec<String> = container.lines().into_iter().map(|it| it.1).collect();
    assert_eq!(lines, ["nameserver 127.0.0.11", "198.18.0.9\tbox"]);
}

#[test]
fn container_has_its_name_servers_and_hosts_although_a_mount_hides_etc() {
    let files = "cat /etc/resolv.conf /etc/hostname; grep -c 'box$' /etc/hosts; cat /etc/own";
    for (options, name) in [(&["rbind"][..], "box"), (&["rbind", "ro"], "kept")] {
        let mut container = Supervised::new(files);
        let volume = container.bundle.dir.join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("own"), "of the volume\n").unwrap();
        std::fs::write(volume.join("hostname"), "of the volume\n").unwrap();
        container.bundle.mount(json!({"destination": "/etc/", "type": "bind", "source": volume, "options": options}));
        container.bundle.mount(
            json!({"destination": "/etc/own", "type": "bind", "source": volume.join("own"), "options": ["bind"]}),
        );
        container.order.resolver = Some("nameserver 127.0.0.11\n".into());
        if name == "kept" {
            ["resolv.conf", "hosts"].iter().for_each(|it| std::fs::write(volume.join(it), "").unwrap());
        }
        let container = container.start();
        assert_eq!(container.wait().code, 0);
        let lines: Vec<String> = container.lines().into_iter().map(|it| it.1).collect();
        assert_eq!(lines, ["nameserver 127.0.0.11", "box", "1", "of the volume"], "{options:?}");
        assert_eq!(read(volume.join("hostname")), "of the volume", "the volume has what it had");
    }
}

#[test]
fn kept_descriptors_are_handed_back_and_the_container_has_none_of_them() {
    let container = Supervised::new("ls /proc/1/fd; echo ready; exec sleep 1000");
    let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let addresses = sockets.each_ref().map(|it| it.local_addr().unwrap());
    container.start_keeping(&sockets.map(OwnedFd::from)).unwrap();
    // Nothing of the daemon that made them is left, so another one gets them from the supervisor.
    for _ in 0..2 {
        let kept = container.client().kept().unwrap().into_iter().map(UdpSocket::from);
        assert_eq!(kept.map(|it| it.local_addr().unwrap()).collect::<Vec<_>>(), addresses);
    }
    container.wait_line("ready");
    let listed: Vec<String> = container.lines().into_iter().map(|it| it.1).collect();
    assert_eq!(listed, ["0", "1", "2", "ready"]);
    container.client().kill(libc::SIGKILL).unwrap();
    container.wait();
    wait_for("the sockets are closed", || UdpSocket::bind(addresses[0]).ok());
}

#[test]
fn every_process_of_a_container_is_in_its_group_of_every_hierarchy() {
    // Its cgroup namespace is the machine's, so that the names are those of the machine.
    let mut container = Supervised::new("exec sleep 1000");
    let namespaces = container.bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|it| it["type"] != "cgroup");
    let container = container.start();
    let groups = format!("/{}", container.bundle.id);
    let (_, of_exec) = container.exec("cat /proc/1/cgroup /proc/self/cgroup");
    let unified: Vec<&str> = of_exec.lines().filter_map(|line| line.strip_prefix("0::")).collect();
    assert_eq!(unified, [&groups, &groups], "{of_exec}");
    let other = of_exec.lines().filter(|line| !line.ends_with(&groups));
    assert_eq!(other.count(), 0, "{of_exec}");
}

#[test]
fn a_container_that_can_not_start_says_why_and_leaves_nothing() {
    let mut container = Supervised::new("");
    container.bundle.args(&["/nope"]);
    assert!(container.try_start().unwrap_err().text.contains("`/nope`"));
    assert!(ContainerClient::connect(&container.dir).is_err());
    container.assert_gone();
}

#[test]
fn a_signal_ends_the_container_with_128_and_its_number() {
    let container = Supervised::new("exec sleep 1000").start();
    container.client().kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait().code, 137);
    container.assert_gone();
}

/// The next event; `None` when no more will come.
fn next_event(events: &ContainerEvents) -> Option<ContainerEvent> {
    wait_for("an event", || match events.next_event() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        other => Some(other.unwrap()),
    })
}

#[test]
fn memory_that_ran_out_is_an_event_before_the_exit() {
    // The kernel prefers the others, of which each may have to end before the memory of the first is free.
    let others = "(echo 1000 >/proc/self/oom_score_adj; head -c 60m /dev/zero | tail -c 60m | wc -c)";
    let mut container = Supervised::new(&format!("{others}; read go; kill -9 $$; exit 137"));
    container.bundle.set("/linux/resources/memory", json!({"limit": 16 << 20, "swap": 16 << 20}));
    let events = container.start_watched();
    while next_event(&events) != Some(ContainerEvent::OutOfMemory) {}
    let exited = std::iter::from_fn(|| next_event(&events)).last();
    let Some(ContainerEvent::Exited(status)) = exited else { panic!("{exited:?}") };
    assert_eq!((status.code, status.out_of_memory), (137, Some(OomVictim::Other)), "init ended by itself");
    assert_eq!(status, container.wait());
}

#[test]
fn init_that_the_kernel_kills_for_want_of_memory_is_told_from_another_process() {
    let mut container = Supervised::new("exec dd if=/dev/zero of=/dev/null bs=60M count=1");
    container.bundle.set("/linux/resources/memory", json!({"limit": 16 << 20, "swap": 16 << 20}));
    let status = container.start().wait();
    assert_eq!((status.code, status.out_of_memory), (137, Some(OomVictim::Init)));
}

#[test]
fn exit_code_is_kept_even_if_the_disk_is_full() {
    let container = Supervised::new("trap 'exit 3' TERM; echo ready; while :; do usleep 10000; done");
    let size = Some("size=1m");
    mount(Some("tmpfs"), &container.dir, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let container = container.start();
    container.wait_line("ready");
    let mut filler = File::create(container.dir.join("filler")).unwrap();
    while filler.write(&[0; 4096]).is_ok() {}
    container.client().kill(libc::SIGTERM).unwrap();
    assert_eq!(container.wait().code, 3);
}

#[test]
fn one_connection_takes_signals_and_gives_the_exit_before_it_ends() {
    let container = Supervised::new("exec sleep 1000");
    let of_the_start = container.start_watched();
    // As a daemon that was restarted.
    let reconnected = container.client().watch().unwrap();
    of_the_start.kill(libc::SIGKILL).unwrap();
    for events in [of_the_start, reconnected] {
        assert!(matches!(next_event(&events), Some(ContainerEvent::Exited(ExitStatus { code: 137, .. }))));
        assert_eq!(next_event(&events), None);
    }
}

#[test]
fn requests_that_arrive_together_are_all_carried_out() {
    let script = "trap 'echo first' USR1; trap 'echo second' USR2; echo ready; while :; do usleep 500; done";
    let container = Supervised::new(script);
    let events = container.start_watched();
    container.wait_line("ready");
    // The supervisor finds both when it continues.
    let supervisor = Pid::from_raw(ContainerState::load(&container.dir).unwrap().unwrap().supervisor);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    events.kill(libc::SIGUSR1).unwrap();
    events.kill(libc::SIGUSR2).unwrap();
    kill(supervisor, Signal::SIGCONT).unwrap();
    container.wait_line("first");
    container.wait_line("second");
}

#[test]
fn process_that_does_not_begin_holds_up_no_other_request() {
    let mut container = Supervised::new("exec sleep 1000");
    let (runtime, asked) = (container.bundle.dir.join("runtime"), container.bundle.dir.join("asked"));
    // A runtime that never gives a terminal.
    let script = format!(
        "#!/bin/sh\nfor word; do [ $word = exec ] && {{ touch {0}; while [ -e {0} ]; do sleep 0.01; done; exit 1; }}; \
        done\nexec {1} \"$@\"\n",
        asked.display(),
        program().display()
    );
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    container.order.runtime = Some(runtime);
    let container = container.start();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let spec = ExecSpec {
        argv: vec!["true".into()],
        env: vec![],
        cwd: String::new(),
        user: String::new(),
        tty: true,
        contained: false,
    };
    let client = container.client();
    let starting = std::thread::spawn(move || client.exec(&spec, vec![theirs.into()]).map(drop));
    wait_for("the process is being started", || asked.exists().then_some(()));
    let (_reader, writer) = std::io::pipe().unwrap();
    container.client().attach(writer.into(), None).unwrap();
    assert!(!starting.is_finished());
    container.client().kill(libc::SIGKILL).unwrap();
    assert!(starting.join().unwrap().unwrap_err().text.contains("has ended"));
}

#[test]
fn a_process_is_run_in_the_container_and_its_code_comes_back() {
    let container = Supervised::new("exec sleep 1000").start();
    assert_eq!(container.exec("echo here; hostname; exit 3"), (3, "here\nflota\n".into()));
    assert_eq!(container.exec("kill -TERM $$").0, 143);
    let spec = ExecSpec {
        argv: vec!["/nope".into()],
        env: vec![],
        cwd: String::new(),
        user: String::new(),
        tty: false,
        contained: false,
    };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let error = container.client().exec(&spec, vec![null(), null(), null()]).unwrap_err();
    assert!(error.text.contains("/nope"), "{error}");
    let error = container.client().exec(&spec, vec![null()]).unwrap_err();
    assert!(error.text.contains("number of descriptors"), "{error}");
}

#[test]
fn a_process_has_the_user_environment_and_folder_that_are_asked_for() {
    let container = Supervised::new("exec sleep 1000").start();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let argv = ["/bin/sh", "-c", "echo $A; pwd; id -u; id -g"].map(str::to_owned).to_vec();
    let spec = ExecSpec {
        argv,
        env: vec!["A=b".into()],
        cwd: "/bin".into(),
        user: "12:13".into(),
        tty: false,
        contained: false,
    };
    let process = container.client().exec(&spec, vec![null(), OwnedFd::from(writer), null()]).unwrap();
    let mut printed = String::new();
    reader.read_to_string(&mut printed).unwrap();
    assert_eq!((process.wait(), printed.as_str()), (0, "b\n/bin\n12\n13\n"));
}

#[test]
fn a_process_at_a_terminal_gives_its_other_end() {
    let container = Supervised::new("exec sleep 1000").start();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let argv = ["/bin/sh", "-c", "tty; echo $TERM; read x; exit $x"].map(str::to_owned).to_vec();
    let spec = ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: true, contained: false };
    let process = container.client().exec(&spec, vec![theirs.into()]).unwrap();
    let mut master = File::from(receive_terminal(&ours.into()).unwrap());
    master.write_all(b"7\n").unwrap();
    assert_eq!(process.wait(), 7);
    // The kernel passes on what was written to a terminal in several pieces, some of it later than the writer's end.
    let mut printed = Vec::new();
    let end = master.read_to_end(&mut printed).unwrap_err();
    assert_eq!(end.raw_os_error(), Some(libc::EIO), "the other end is closed");
    let printed = String::from_utf8_lossy(&printed);
    assert!(printed.contains("/dev/pts/0") && printed.contains("xterm"), "{printed:?}");
}

#[test]
fn a_process_whose_asker_goes_is_ended() {
    let container = Supervised::new("exec sleep 1000").start();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let argv = ["sleep", "1001"].map(str::to_owned).to_vec();
    let spec =
        ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: false };
    let process = container.client().exec(&spec, vec![null(), null(), null()]).unwrap();
    let count = || container.bundle.census().processes.len();
    // The helper that started the process reports it and ends afterwards.
    wait_for("only supervisor, init and the process are left", || (count() == 3).then_some(()));
    drop(process);
    wait_for("the process has ended", || (count() == 2).then_some(()));
}

#[test]
fn a_reader_that_stalls_stops_no_writer_and_is_told_what_it_lost() {
    let script = "until [ -e /attached ]; do usleep 500; done; yes | head -c 1000000; touch /done; \
        until [ -e /go ]; do usleep 500; done; echo after; exec sleep 1000";
    let container = Supervised::new(script).start();
    let file = |name: &str| container.bundle.rootfs().join(name);
    let (mut reader, writer) = std::io::pipe().unwrap();
    container.client().attach(writer.into(), None).unwrap();
    File::create(file("attached")).unwrap();
    wait_for("all is written although there is no reader", || file("done").exists().then_some(()));
    let mut text = Vec::new();
    let mut buffer = [0; 65536];
    let count = reader.read(&mut buffer).unwrap();
    text.extend_from_slice(&buffer[..count]);
    File::create(file("go")).unwrap();
    wait_for("what was lost is told", || {
        let count = reader.read(&mut buffer).unwrap();
        text.extend_from_slice(&buffer[..count]);
        String::from_utf8_lossy(&text).contains("bytes were dropped]").then_some(())
    });
    let text = String::from_utf8_lossy(&text).into_owned();
    let told = text.rsplit_once('[').unwrap().1.split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(told > 500_000 && told < 1_000_000, "{told}");
}

#[test]
fn a_terminal_has_the_size_that_it_is_told_and_takes_what_is_typed() {
    let mut container =
        Supervised::new("stty -echo; trap 'stty size' WINCH; echo ready; while :; do read x && echo got $x; done");
    container.order.terminal = true;
    container.bundle.set("/process/terminal", json!(true));
    let container = container.start();
    container.wait_line("ready");
    let client = container.client();
    client.resize(40, 100).unwrap();
    container.wait_line("40 100");
    let (_reader, output) = std::io::pipe().unwrap();
    let (input, mut writer) = std::io::pipe().unwrap();
    client.attach(output.into(), Some(input.into())).unwrap();
    writer.write_all(b"typed\n").unwrap();
    container.wait_line("got typed");
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_while_is_read_again() {
    // An init system closes its standard descriptors and opens the console for each message.
    let mut container = Supervised::new("exec <&- >&- 2>&-; sleep 1; echo again >/dev/console; exec sleep 1000");
    container.order.terminal = true;
    container.bundle.set("/process/terminal", json!(true));
    let container = container.start();
    container.wait_line("again");
    container.client().kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait().code, 137);
}

#[test]
fn with_its_supervisor_the_container_ends() {
    let container = Supervised::new("sleep 1000 & exec sleep 1000").start();
    let state = ContainerState::load(&container.dir).unwrap().unwrap();
    let events = container.client().watch().unwrap();
    kill(Pid::from_raw(state.supervisor), Signal::SIGKILL).unwrap();
    assert_eq!(next_event(&events), None, "the connection ends without an exit");
    wait_for("all its processes have ended", || container.bundle.census().processes.is_empty().then_some(()));
    assert_eq!(ExitStatus::load(&container.dir).unwrap(), None);
    container.order.groups.sweep().unwrap();
    assert_eq!(container.bundle.census().cgroups, Vec::<PathBuf>::new());
}

/// Names the files from which another process starts a container, as a daemon that is then killed.
const STARTER: &str = "FLOTA_TEST_STARTS";

#[test]
#[ignore = "another test runs it in a process of its own"]
fn starter() {
    let dir = PathBuf::from(std::env::var_os(STARTER).expect("the other test sets it"));
    let load = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let (order, spec) = (load("starter.order"), load("starter.spec"));
    let order = serde_json::from_slice(&order).unwrap();
    let spec = serde_json::from_slice(&spec).unwrap();
    drop(flota_runtime::start(&Program::open(program()), &dir, &order, spec, &[]));
}

#[test]
fn a_container_outlives_a_daemon_that_is_killed_while_it_starts() {
    let mut container = Supervised::new("echo runs; exec sleep 1000");
    let (begun, go) = (container.dir.join("begun"), container.dir.join("go"));
    let script = format!("touch {}; read line < {}", begun.display(), go.display());
    container.bundle.set("/hooks", json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}));
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(container.dir.join("starter.order"), serde_json::to_vec(&container.order).unwrap()).unwrap();
    std::fs::write(container.dir.join("starter.spec"), container.bundle.config.to_string()).unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervisor::starter", "--ignored"])
        .env(STARTER, &container.dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the hook runs", || begun.exists().then_some(()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    std::fs::write(&go, "go\n").unwrap();
    container.wait_line("runs");
    assert_eq!(container.exec("echo here").1, "here\n", "it is not killed");
    container.client().kill(libc::SIGKILL).unwrap();
    assert_eq!(container.wait().code, 137);
}

#[test]
fn processes_of_users_leave_room_for_the_daemon() {
    let container = Supervised::new("exec sleep 1000").start();
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let argv = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let spec =
        ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: false };
    let exec = || container.client().exec(&spec, vec![null(), null(), null()]);
    let running: Vec<_> = (0..64).map(|_| exec().unwrap()).collect();
    assert_eq!(exec().unwrap_err().text, "failed to exec: users have 64 processes in it already");
    assert_eq!(container.exec_contained("echo well").1, "well\n");
    drop(running);
    wait_for("they are gone", || exec().ok());
}

#[test]
fn a_daemon_that_comes_back_finds_its_container() {
    let container = Supervised::new("exec sleep 1000").start();
    let state = ContainerState::load(&container.dir).unwrap().unwrap();
    for _ in 0..3 {
        let first = container.client();
        let (_reader, writer) = std::io::pipe().unwrap();
        first.attach(writer.into(), None).unwrap();
        drop(first);
        assert_eq!(container.exec("echo here").1, "here\n");
    }
    assert!(state.is_alive());
    // Signals to the daemon's group must not end it.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(state.supervisor), signal).unwrap();
    }
    assert_eq!(container.exec("echo here").1, "here\n");
}

#[test]
fn a_log_keeps_what_it_may_and_no_more() {
    let mut container = Supervised::new("yes 0123456789 | head -c 1000000; echo last");
    container.order.log_bytes = Some(100_000);
    let container = container.start();
    container.wait();
    let size: u64 = entries(&container.dir)
        .into_iter()
        .filter(|it| it.file_stem().is_some_and(|it| it == "log"))
        .map(|it| it.metadata().unwrap().len())
        .sum();
    assert!(size > 40_000 && size <= 100_000, "{size}");
    assert!(container.lines().last().unwrap().1.ends_with("last"));
}

#[test]
fn a_container_without_a_log_writes_to_its_clients_alone() {
    let mut container = Supervised::new("read line < /go; echo $line; sleep 1000");
    nix::unistd::mkfifo(&container.bundle.rootfs().join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    container.order.log_bytes = None;
    let container = container.start();
    let (mut reader, writer) = std::io::pipe().unwrap();
    container.client().attach(writer.into(), None).unwrap();
    assert_eq!(container.exec("echo hello > /go").0, 0);
    let mut printed = [0; 6];
    reader.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"hello\n");
    assert!(!container.order.log.exists());
}

#[test]
fn nonsense_at_the_socket_does_no_harm() {
    let container = Supervised::new("exec sleep 1000").start();
    for text in [&b"nonsense"[..], b"{\"Kill\":\"x\"}", &[b'x'; 150_000], b"\"Attach\"", b"\"Watch\"\"Watch\"", b""] {
        let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(client.as_raw_fd(), &UnixAddr::new(&container.dir.join("sock")).unwrap()).unwrap();
        send(client.as_raw_fd(), text, MsgFlags::empty()).unwrap();
    }
    assert_eq!(container.exec("echo here").1, "here\n");
}

#[test]
fn a_process_that_ends_the_container_at_once_has_started() {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // On a busy machine it is gone before the helper that starts it says that it runs.
        for _ in 0..6 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        let ended = std::panic::catch_unwind(|| {
            for _ in 0..30 {
                let container = Supervised::new("until [ -e /end ]; do :; done").start();
                let (code, _) = container.exec("exec touch /end");
                assert!([0, 137].contains(&code), "{code}");
                assert_eq!(container.wait().code, 0);
            }
        });
        is_over.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
}

#[test]
fn a_supervisor_does_not_grow() {
    let container = Supervised::new("exec sleep 1000").start();
    let state = ContainerState::load(&container.dir).unwrap().unwrap();
    // Anonymous pages count even if other processes map them. Private pages are not enough: a page of the program becomes
    // private when the supervisor of another test ends.
    let anonymous = || {
        let text = read(format!("/proc/{}/smaps_rollup", state.supervisor));
        let line = text.lines().find(|it| it.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    container.exec("true");
    let before = anonymous();
    for _ in 0..40 {
        assert_eq!(container.exec("true").0, 0);
    }
    let after = anonymous();
    println!("a supervisor has {after} KiB of its own, {before} KiB before 40 execs");
    assert!(after <= before + 64, "{before} KiB became {after}");
}
