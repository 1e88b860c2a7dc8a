//! A bundle with busybox, and the program under test. What a test leaves is removed when its bundle is dropped, also
//! when the test fails.
//!
//! ```ignore
//! let mut bundle = Bundle::new();
//! let ran = bundle.sh("echo hello").run();
//! assert_eq!((ran.code, ran.out.as_str()), (0, "hello\n"));
//! ```

use std::fs::{self, File};
use std::io::Read;
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::census::Census;
pub(crate) use crate::running::{Ran, Running};
pub(crate) use crate::waiting::{DEADLINE, wait_for};

const APPLETS: &str = "sh cat ls echo id sleep mkdir touch ln rm cp mv chmod chown stat mount umount env kill head tail \
    grep sed cut tr wc sort readlink mknod dd true false test ps hostname date uname find seq printf sync ulimit nice \
    mkfifo dirname basename tty stty od hexdump setsid sha256sum pwd chroot ip ipcmk wget nc usleep yes dnsdomainname";

/// The program under test.
pub(crate) fn program() -> PathBuf {
    let folder = std::env::var_os("FLOTA_PROGRAMS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug"));
    let path = folder.join("flota-runtime").canonicalize();
    path.unwrap_or_else(|_| panic!("{} has no flota-runtime: `make dev` builds it", folder.display()))
}

/// A part of every name that a test makes.
pub(crate) fn token() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("oci{}x{:x}x{number}x", std::process::id(), since.subsec_nanos())
}

/// Whether this machine has control groups of version 2 alone.
pub(crate) fn only_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A folder with config.json and a root of its own, and a state root.
pub(crate) struct Bundle {
    pub(crate) id: String,
    /// Folder of the test, which is removed at its end.
    pub(crate) dir: PathBuf,
    pub(crate) config: Value,
    calls: AtomicUsize,
}

fn template() -> &'static Value {
    static TEMPLATE: OnceLock<Value> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = std::env::temp_dir().join(token());
        fs::create_dir(&dir).unwrap();
        let status = Command::new(program()).arg("spec").arg("--bundle").arg(&dir).status().unwrap();
        assert!(status.success());
        let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        config
    })
}

impl Bundle {
    /// `spec`'s configuration without a terminal, in its own control groups.
    pub(crate) fn new() -> Self {
        let id = token();
        let dir = std::env::temp_dir().join(&id);
        fs::create_dir_all(dir.join("states")).unwrap();
        let bundle = Self { id, dir, config: template().clone(), calls: AtomicUsize::new(0) };
        let bin = bundle.rootfs().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in APPLETS.split_whitespace() {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let mut bundle = bundle;
        let cgroups = format!("/{}", bundle.id);
        bundle.set("/process/terminal", json!(false)).set("/process/env", json!(["PATH=/bin"]));
        bundle.set("/root/readonly", json!(false)).set("/linux/cgroupsPath", json!(cgroups));
        bundle.sh("true");
        bundle
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("bundle/rootfs")
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.dir.join("states")
    }

    /// A file of its group: in the v1 hierarchy of a controller, or, where all are v2, the one that it has there.
    pub(crate) fn cgroup(&self, controller: &str, v1: &str, v2: &str) -> PathBuf {
        let root = Path::new("/sys/fs/cgroup");
        if only_v2() { root.join(&self.id).join(v2) } else { root.join(controller).join(&self.id).join(v1) }
    }

    /// Returns its traces on this machine.
    pub(crate) fn census(&self) -> Census {
        Census::of(&self.id, &self.states())
    }

    /// Puts a value at a JSON pointer; objects on the way are made, `-` is a list's end.
    pub(crate) fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let mut place = &mut self.config;
        for key in pointer.split('/').skip(1) {
            if key == "-" || place.is_array() {
                if !place.is_array() {
                    *place = json!([]);
                }
                let list = place.as_array_mut().unwrap();
                let index = key.parse().unwrap_or(list.len());
                list.resize(list.len().max(index + 1), Value::Null);
                place = &mut list[index];
                continue;
            }
            if !place.is_object() {
                *place = json!({});
            }
            place = place.as_object_mut().unwrap().entry(key).or_insert(Value::Null);
        }
        *place = value;
        self
    }

    /// Takes a value away.
    pub(crate) fn unset(&mut self, pointer: &str) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match self.config.pointer_mut(parent) {
            Some(Value::Object(map)) => drop(map.remove(key)),
            Some(Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
            _ => panic!("{pointer} is not there"),
        }
        self
    }

    pub(crate) fn args(&mut self, args: &[&str]) -> &mut Self {
        self.set("/process/args", json!(args))
    }

    pub(crate) fn sh(&mut self, script: &str) -> &mut Self {
        self.args(&["/bin/sh", "-c", script])
    }

    /// A container that does nothing until it is killed.
    pub(crate) fn idle(&mut self) -> &mut Self {
        self.args(&["sleep", "1000"])
    }

    pub(crate) fn mount(&mut self, mount: Value) -> &mut Self {
        self.set("/mounts/-", mount)
    }

    /// A namespace in the place of the one of its kind.
    pub(crate) fn namespace(&mut self, namespace: Value) -> &mut Self {
        let list = self.config.pointer_mut("/linux/namespaces").unwrap().as_array_mut().unwrap();
        list.retain(|it| it["type"] != namespace["type"]);
        list.push(namespace);
        self
    }

    /// All capabilities, and no ban on new privileges.
    pub(crate) fn privileged(&mut self) -> &mut Self {
        let all = json!(flota_runtime::security::capabilities::names());
        for set in ["bounding", "effective", "permitted"] {
            self.set(&format!("/process/capabilities/{set}"), all.clone());
        }
        self.set("/process/noNewPrivileges", json!(false))
    }

    pub(crate) fn write(&self) -> &Self {
        fs::write(self.dir.join("bundle/config.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
        self
    }

    /// A call of the program, with its state root.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.states()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Running {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.dir.join(format!("out{number}")), self.dir.join(format!("err{number}")));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap();
        Running { child, out, err }
    }

    #[track_caller]
    pub(crate) fn call(&self, args: &[&str]) -> Ran {
        self.spawn(&mut self.command(args)).wait()
    }

    /// `verb … --bundle B ID`, with the configuration as it is now.
    pub(crate) fn make_command(&self, verb: &str, flags: &[&str]) -> Command {
        self.write();
        let mut command = self.command(&[verb]);
        command.args(flags).arg("--bundle").arg(self.dir.join("bundle")).arg(&self.id);
        command
    }

    #[track_caller]
    pub(crate) fn make(&self, verb: &str, flags: &[&str]) -> Ran {
        self.spawn(&mut self.make_command(verb, flags)).wait()
    }

    #[track_caller]
    pub(crate) fn run(&self) -> Ran {
        self.make("run", &[])
    }

    /// Runs it to its end and returns its output.
    #[track_caller]
    pub(crate) fn output(&self) -> String {
        self.run().ok()
    }

    /// Creates the container and starts its program.
    #[track_caller]
    pub(crate) fn start(&self) -> &Self {
        self.make("create", &[]).ok();
        self.call(&["start", &self.id]).ok();
        self
    }

    /// Runs a script in it with `exec` and returns its output.
    #[track_caller]
    pub(crate) fn exec(&self, script: &str) -> String {
        self.call(&["exec", &self.id, "/bin/sh", "-c", script]).ok()
    }

    #[track_caller]
    pub(crate) fn state(&self) -> Value {
        self.call(&["state", &self.id]).json()
    }

    #[track_caller]
    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    pub(crate) fn wait_status(&self, status: &str) {
        wait_for(&format!("the container is {status}"), || (self.status() == status).then_some(()));
    }

    /// Nothing of it is left on the machine.
    #[track_caller]
    pub(crate) fn assert_gone(&self) {
        let until = Instant::now() + DEADLINE;
        // The process that adopted a killed one reaps it a moment later.
        while self.census() != Census::default() && Instant::now() < until {
            let _ = poll(&mut [], PollTimeout::from(2_u8));
        }
        assert_eq!(self.census(), Census::default(), "something is left");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        for mount in self.census().mounts.iter().rev() {
            let point = mount.split(' ').nth(4).unwrap_or_default();
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let until = Instant::now() + Duration::from_secs(5);
        while let census = self.census()
            && (!census.processes.is_empty() || !census.cgroups.is_empty())
            && Instant::now() < until
        {
            for pid in &census.processes {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            for path in census.cgroups.iter().rev() {
                let _ = fs::write(path.join("freezer.state"), "THAWED");
                let _ = fs::remove_dir(path);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Lends a file to a program as its descriptors of these numbers.
#[expect(unsafe_code, reason = "a descriptor can be given a number only between fork and exec")]
pub(crate) fn lend(command: &mut Command, file: &File, numbers: RangeInclusive<i32>) {
    // Above what is asked for, so that it is not overwritten itself.
    let copy = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(200)).unwrap();
    // SAFETY: dup2(2) may be called between fork and exec, and `copy` is never closed.
    unsafe {
        command.pre_exec(move || {
            numbers.clone().try_for_each(|number| nix::errno::Errno::result(libc::dup2(copy, number)).map(drop))?;
            Ok(())
        });
    }
}

/// Reads a file without its last line end.
#[track_caller]
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let mut text = String::new();
    let opened = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}
