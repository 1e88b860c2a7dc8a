//! Contained processes, as the checks of health are: they end with all that they have started, and a process that stays in
//! the container starts them.

use std::fs::File;
use std::io::ErrorKind::WouldBlock;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use flota_runtime::ExecSpec;
use serde_json::json;

use crate::harness::wait_for;
use crate::supervised::Supervised;

/// Prints everything by which two processes of a container may differ, but for what numbers processes.
const ABOUT: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|SigBlk|SigIgn|SigCgt)' /proc/self/status; \
    ulimit -a; umask; pwd; env | sort; cat /proc/self/oom_score_adj; cd /proc/self/ns; for it in *; do readlink $it; done; \
    ls -l /proc/self/fd | sed -E 's/.* ([0-9]+) ->/\\1/; s/pipe:.*/pipe/; s,/proc/[0-9]+,/proc,'; stat -c %t:%T /dev/stdin; \
    grep -v freezer /proc/self/cgroup; echo written > /dev/stdout";

fn count(container: &Supervised) -> usize {
    container.bundle.census().processes.len()
}

#[test]
fn a_contained_process_takes_with_it_what_it_has_started_however_it_ends() {
    let container = Supervised::new("exec sleep 1000").start();
    // Both have left the session and the process group of the script.
    let daemons = "setsid sleep 1001 >/dev/null 2>&1 & (setsid setsid sleep 1002 >/dev/null 2>&1 &)";
    let (code, printed) = container.exec_contained(&format!("{daemons}\nsleep 0.05; echo done; exit 4"));
    assert_eq!((code, printed.as_str()), (4, "done\n"));
    wait_for("only supervisor and init are left", || (count(&container) == 2).then_some(()));

    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let argv = ["/bin/sh", "-c", &format!("{daemons}\nexec sleep 1003")].map(str::to_owned).to_vec();
    let spec = ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: true };
    let process = container.client().exec(&spec, vec![null(), null(), null()]).unwrap();
    wait_for("it has started everything", || (count(&container) == 6).then_some(()));
    drop(process);
    wait_for("only supervisor and init are left", || (count(&container) == 2).then_some(()));

    assert_eq!(container.exec("setsid sleep 1004 >/dev/null 2>&1 & sleep 0.05").0, 0);
    assert_eq!(count(&container), 3, "a plain process leaves what it has started");
    container.client().kill(libc::SIGKILL).unwrap();
    container.assert_gone();
}

#[test]
fn contained_processes_are_like_others_and_are_started_by_one_that_stays() {
    let mut container = Supervised::new("exec sleep 1000");
    container.order.user = "12:13".into();
    container.bundle.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}]));
    container.bundle.set("/process/oomScoreAdj", json!(77));
    container.bundle.set("/process/env", json!(["PATH=/bin", "EMPTY=", "TWO=a=b"]));
    container.bundle.set("/process/cwd", json!("/bin"));
    let container = container.start();
    let (code, plain) = container.exec(ABOUT);
    assert!(code == 0 && plain.contains("written") && plain.contains("TWO=a=b"), "{code} {plain}");
    assert_eq!(container.exec_contained(ABOUT), (0, plain));
    let starter = container.exec_contained("echo $PPID");
    assert_eq!(container.exec_contained("echo $PPID"), starter);
    assert_eq!(count(&container), 3, "supervisor, init and the starter");
    assert_eq!(container.exec_contained("kill -TERM $$").0, 143);
    assert_eq!(container.exec_contained("exit 7"), (7, String::new()));
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let spec = |program: &str| ExecSpec {
        argv: vec![program.into()],
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        tty: false,
        contained: true,
    };
    let error = container.client().exec(&spec("nope"), vec![null(), null(), null()]).unwrap_err();
    assert_eq!((error.text.contains("`nope`"), error.code), (true, Some(127)), "{error}");
    let process = container.client().exec_later(&spec("nope"), vec![null(), null(), null()]).unwrap();
    let error = wait_for("it does not start", || process.exit_code().err().filter(|it| it.kind() != WouldBlock));
    assert!(error.to_string().contains("`nope`"), "{error}");
    assert!(std::fs::metadata("/dev/null").unwrap().uid() == 0, "the machine's own stays so");
    let process = container.client().exec_later(&spec("true"), vec![null(), null(), null()]).unwrap();
    assert_eq!(wait_for("it ends", || process.exit_code().ok()), 0);
    let error = container.client().exec(&spec("true"), vec![null()]).unwrap_err();
    assert!(error.text.contains("number of descriptors"), "{error}");
    assert_eq!(container.exec_contained("echo $PPID"), starter, "it has outlived all of them");
    container.client().kill(libc::SIGKILL).unwrap();
    container.assert_gone();
}

#[test]
fn the_container_can_kill_what_starts_its_checks_and_not_look_into_it() {
    let container = Supervised::new("exec sleep 1000").start();
    let (_, starter) = container.exec_contained("echo $PPID");
    let starter = starter.trim();
    for path in ["exe", "fd", "mem", "environ", "root"] {
        let look = format!("ls -lL /proc/{starter}/{path}/ 2>&1 || cat /proc/{starter}/{path} 2>&1");
        let (code, printed) = container.exec(&look);
        assert!(code != 0 && printed.contains("ermission denied"), "{path}: {code} {printed}");
    }
    container.exec(&format!("kill -KILL {starter}"));
    let (code, other) = container.exec_contained("echo $PPID");
    assert!(code == 0 && other.trim() != starter, "{code} {other}");
    assert_eq!(container.exec_contained("sleep 1001 & kill -KILL $PPID; exec sleep 1002").0, 137);
    wait_for("only supervisor and init are left", || (count(&container) == 2).then_some(()));
    let (_, third) = container.exec_contained("echo $PPID");
    assert_eq!(container.exec_contained("echo $PPID"), (0, third), "checks are started by one that stays again");
    container.client().kill(libc::SIGKILL).unwrap();
    container.assert_gone();
}

#[test]
fn contained_processes_that_overlap_end_together_when_one_is_abandoned() {
    let container = Supervised::new("exec sleep 1000").start();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let begin = || {
        let argv = ["sleep", "1001"].map(str::to_owned).to_vec();
        let spec =
            ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained: true };
        container.client().exec(&spec, vec![null(), null(), null()]).unwrap()
    };
    let (first, _second) = (begin(), begin());
    wait_for("both run beside supervisor, init and the starter", || (count(&container) == 5).then_some(()));
    drop(first);
    wait_for("only supervisor and init are left", || (count(&container) == 2).then_some(()));
    assert_eq!(container.exec_contained("echo on"), (0, "on\n".into()));
}

#[test]
fn a_check_is_run_where_nothing_can_stay_to_start_it() {
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["recvmsg", "recvfrom"], "action": "SCMP_ACT_ERRNO"}],
    });
    for (pointer, value) in [("/linux/seccomp", filter), ("/linux/resources/pids", json!({"limit": 2}))] {
        let mut container = Supervised::new("exec sleep 1000");
        container.bundle.set(pointer, value);
        let container = container.start();
        for _ in 0..3 {
            assert_eq!(container.exec_contained("echo on; exit 3"), (3, "on\n".into()), "{pointer}");
        }
        wait_for("only supervisor and init are left", || (count(&container) == 2).then_some(()));
        container.client().kill(libc::SIGKILL).unwrap();
        container.assert_gone();
    }
}
