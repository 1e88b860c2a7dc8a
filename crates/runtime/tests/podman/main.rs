//! podman as a caller: it knows nothing of this runtime but the specification and runc's command line.
//!
//! Put here what a user of podman would notice. Each test has a podman of its own: images, states, locks and control
//! groups in places of its own, without a network, removed at its end. Needs root, podman, conmon and busybox.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(40);
const APPLETS: &str = "sh cat echo id kill mkdir sleep touch tty";

/// Without rights to raise limits (CAP_SYS_RESOURCE), as in some virtual machines, podman's own would be refused.
const SETTINGS: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"none\"\n\
    [engine]\nlock_type = \"file\"\nevents_logger = \"none\"\nruntime_supports_nocgroup = [\"runtime\"]\n";

fn program() -> PathBuf {
    let folder = std::env::var_os("FLOTA_PROGRAMS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug"));
    let path = folder.join("flota-runtime").canonicalize();
    path.unwrap_or_else(|_| panic!("{} has no flota-runtime: `make dev` builds it", folder.display()))
}

#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "waited {DEADLINE:?} in vain: {what}");
        let _ = poll(&mut [], PollTimeout::from(10_u8));
    }
}

/// podman with an image `box` of busybox.
struct Podman {
    dir: PathBuf,
    /// Control groups of its containers.
    parent: String,
}

impl Podman {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        assert_eq!(ran(Command::new("podman").arg("--version")).code, 0, "podman is missing: `make test-tools`");
        let name = format!("flota-podman-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let podman = Self { dir: Path::new("/var/tmp").join(&name), parent: name };
        podman.import();
        podman
    }

    fn import(&self) {
        let rootfs = self.dir.join("rootfs");
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS.split(' ') {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
        fs::write(self.dir.join("containers.conf"), SETTINGS).unwrap();
        self.write_runtime();
        let archive = self.dir.join("box.tar");
        ran(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg(".")).ok();
        self.call(&["import", &archive.display().to_string(), "box"]).ok();
    }

    /// The runtime with states of its own. podman's `--runtime-flag` does not reach what its monitor calls at the end.
    fn write_runtime(&self) {
        let script = format!("#!/bin/sh\nexec {} --root {} \"$@\"\n", program().display(), self.states().display());
        let path = self.dir.join("runtime");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn states(&self) -> PathBuf {
        self.dir.join("states")
    }

    fn call(&self, words: &[&str]) -> Ran {
        let place = |name: &str| self.dir.join(name);
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", "podman", "--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"]);
        for (flag, name) in [("--root", "images"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(place(name));
        }
        command.arg("--network-config-dir").arg(place("networks")).arg("--runtime").arg(place("runtime"));
        ran(command.args(words).env("CONTAINERS_CONF", place("containers.conf")))
    }

    fn run(&self, flags: &str, program: &[&str]) -> Ran {
        let parent = format!("/{}", self.parent);
        let mut words = vec!["run", "--network", "none", "--cgroup-parent", &parent];
        words.extend(flags.split_whitespace());
        words.push("box");
        words.extend(program);
        self.call(&words)
    }

    fn status(&self, name: &str) -> String {
        self.call(&["inspect", "--format", "{{.State.Status}}", name]).ok().trim().to_owned()
    }

    /// As the runtime itself says it.
    fn runtime_status(&self, name: &str) -> String {
        let id = self.call(&["inspect", "--format", "{{.Id}}", name]).ok();
        let printed = ran(Command::new(program()).arg("--root").arg(self.states()).args(["state", id.trim()])).ok();
        serde_json::from_str::<Value>(&printed).unwrap()["status"].as_str().unwrap().to_owned()
    }

    fn groups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|it| it.path());
        let places = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|it| it.join(&self.parent));
        places.filter(|it| it.exists()).collect()
    }

    /// The groups of what was removed: only podman's own for its monitors may be there.
    fn assert_nothing_left(&self) {
        let states = fs::read_dir(self.states()).map_or(0, Iterator::count);
        assert_eq!(states, 0, "the runtime has states left");
        for group in self.groups() {
            let below = fs::read_dir(&group).unwrap().flatten().filter(|it| it.path().is_dir());
            let names: Vec<_> = below.map(|it| it.file_name()).filter(|it| it != "conmon").collect();
            assert!(names.is_empty(), "{names:?} is left in {}", group.display());
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["rm", "--all", "--force", "--time", "0"]);
        let until = Instant::now() + DEADLINE;
        // The monitors end a moment after their containers.
        while Instant::now() < until {
            for group in self.groups() {
                let _ = fs::remove_dir(group.join("conmon"));
                let _ = fs::remove_dir(&group);
            }
            if self.groups().is_empty() {
                break;
            }
            let _ = poll(&mut [], PollTimeout::from(10_u8));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points =
            mounts.lines().filter_map(|it| it.split(' ').nth(1)).filter(|it| Path::new(it).starts_with(&self.dir));
        for point in points.collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_run_ends_with_the_programs_output_and_code_and_leaves_nothing() {
    let podman = Podman::new();
    let ended = podman.run("--rm", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ended.code, ended.out.as_str()), (7, "out\n"), "{ended:?}");
    assert!(ended.err.contains("err\n"), "{ended:?}");
    podman.assert_nothing_left();
}

#[test]
fn a_missing_program_is_127_and_one_that_can_not_run_126() {
    let podman = Podman::new();
    for (program, code) in [("/missing", 127), ("missing", 127), ("/etc", 126), ("/etc/passwd", 126)] {
        let ended = podman.run("--rm", &[program]);
        assert_eq!(ended.code, code, "{program}: {ended:?}");
    }
    podman.assert_nothing_left();
}

#[test]
fn a_detached_container_takes_processes_keeps_its_output_and_stops() {
    let podman = Podman::new();
    let script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done";
    podman.run("--detach --name web", &["sh", "-c", script]).ok();
    wait_for("its output", || podman.call(&["logs", "web"]).out == "hello\n");
    assert_eq!((podman.status("web"), podman.runtime_status("web")), ("running".into(), "running".into()));
    assert_eq!(podman.call(&["exec", "web", "echo", "inside"]).ok(), "inside\n");
    assert_eq!(podman.call(&["exec", "web", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(podman.call(&["exec", "web", "/missing"]).code, 127);
    assert_eq!(podman.call(&["exec", "--user", "5:6", "--workdir", "/tmp", "web", "id", "-u"]).ok(), "5\n");
    podman.call(&["stop", "--time", "20", "web"]).ok();
    assert_eq!(podman.status("web"), "exited");
    assert_eq!(podman.call(&["inspect", "--format", "{{.State.ExitCode}}", "web"]).ok(), "3\n");
    assert_eq!(podman.call(&["logs", "web"]).out, "hello\nbye\n");
    podman.call(&["start", "web"]).ok();
    wait_for("it runs again", || podman.call(&["logs", "web"]).out == "hello\nbye\nhello\n");
    podman.call(&["rm", "--force", "--time", "0", "web"]).ok();
    podman.assert_nothing_left();
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let podman = Podman::new();
    podman.run("--detach --name web", &["sleep", "1000"]).ok();
    podman.call(&["pause", "web"]).ok();
    assert_eq!((podman.status("web"), podman.runtime_status("web")), ("paused".into(), "paused".into()));
    podman.call(&["unpause", "web"]).ok();
    assert_eq!((podman.status("web"), podman.runtime_status("web")), ("running".into(), "running".into()));
    assert_eq!(podman.call(&["exec", "web", "echo", "on"]).ok(), "on\n");
    podman.call(&["kill", "web"]).ok();
    wait_for("its end", || podman.status("web") == "exited");
    podman.call(&["rm", "web"]).ok();
    podman.assert_nothing_left();
}

#[test]
fn limits_of_memory_and_processes_are_in_the_control_groups() {
    let podman = Podman::new();
    let look = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let flags = "--detach --name web --memory 32m --pids-limit 20";
    podman.run(flags, &["sleep", "1000"]).ok();
    let inside = podman.call(&["exec", "web", "sh", "-c", look]).ok();
    assert_eq!(inside.trim(), (32 << 20).to_string());
    let look = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max";
    assert_eq!(podman.call(&["exec", "web", "sh", "-c", look]).ok(), "20\n");
}

#[test]
fn container_without_control_groups_of_its_own_stays_in_those_of_its_caller() {
    let podman = Podman::new();
    let flags = ["--network", "none", "--cgroups", "disabled"];
    let run = |more: &[&str]| podman.call(&[&["run"], &flags[..], more].concat());
    assert!(!run(&["--rm", "box", "cat", "/proc/self/cgroup"]).ok().contains("libpod"));
    run(&["--detach", "--name", "web", "box", "sleep", "1000"]).ok();
    assert_eq!(podman.call(&["exec", "web", "echo", "inside"]).ok(), "inside\n");
    podman.call(&["rm", "--force", "--time", "0", "web"]).ok();
    podman.assert_nothing_left();
}

#[test]
fn a_read_only_root_takes_no_files() {
    let podman = Podman::new();
    let ended = podman.run("--rm --read-only", &["sh", "-c", "touch /tmp/yes && touch /no"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains("touch: /no: Read-only file system"), "{ended:?}");
}

#[test]
fn a_user_is_who_it_is_told_to_be() {
    let podman = Podman::new();
    let printed = podman.run("--rm --user 1000:1001 --group-add 7", &["id"]).ok();
    assert_eq!(printed.trim(), "uid=1000(1000) gid=1001 groups=7,1001", "{printed}");
    let look = podman.run("--rm --user 1000", &["sh", "-c", "cat /proc/self/status"]).ok();
    assert!(look.contains("CapEff:\t0000000000000000"), "{look}");
}

#[test]
fn a_terminal_is_one_only_where_it_is_asked_for() {
    let podman = Podman::new();
    assert_eq!(podman.run("--rm --tty", &["tty"]).ok(), "/dev/pts/0\r\n");
    let without = podman.run("--rm", &["tty"]);
    assert_eq!((without.code, without.out.as_str()), (1, "not a tty\n"));
    podman.run("--detach --name web", &["sleep", "1000"]).ok();
    assert_eq!(podman.call(&["exec", "--tty", "web", "tty"]).ok(), "/dev/pts/0\r\n");
}
