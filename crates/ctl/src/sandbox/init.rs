//! Two hidden entries of `ctl`: one starts PID 1 of a node, the other runs a command in a node.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use flota_runtime::cgroup::{self, Groups, Hierarchy};
use flota_runtime::oci::Resources;

use super::hidden::{Hidden, close_other_descriptors, close_standard_streams};

/// The parameters of a node's PID 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InitSpec {
    pub(crate) hostname: String,
    pub(crate) cgroups: Groups,
    /// Folder that becomes /var/lib/flota in the node.
    pub(crate) data: PathBuf,
    /// Folder that becomes /run/flota in the node.
    pub(crate) run: PathBuf,
}

/// A command in a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EnterSpec {
    pub(crate) pid: i32,
    pub(crate) cgroups: Groups,
    pub(crate) command: Vec<String>,
    /// The file that gets the command's output, in which case this program prints the command's process id in the node
    /// and ends at once. With `None`, it waits and exits with the command's exit code.
    pub(crate) log: Option<PathBuf>,
}

impl Hidden for InitSpec {
    const ENTRY: &'static str = "__sandbox-init";

    fn run(self) -> anyhow::Result<u8> {
        start_init(self)?;
        Ok(0)
    }
}

impl Hidden for EnterSpec {
    const ENTRY: &'static str = "__sandbox-enter";

    fn run(self) -> anyhow::Result<u8> {
        enter(&self)
    }
}

fn start_init(mut spec: InitSpec) -> anyhow::Result<()> {
    close_other_descriptors();
    nix::unistd::setsid()?;
    spec.cgroups.create(&Resources::default())?;
    spec.cgroups.join(i32::try_from(std::process::id())?)?;
    let hierarchies = cgroup::hierarchies()?;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET;
    let (ready, say) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let reader = ready.try_clone()?;
    let pid = flota_runtime::process::spawn(flags, move || {
        drop(reader);
        match furnish(&spec, &hierarchies) {
            Ok(()) => {
                let _ = nix::unistd::write(&say, b"k");
                drop(say);
                be_init()
            }
            Err(error) => {
                crate::printer::message(&format!("{error:#}"));
                1
            }
        }
    })?;
    let mut answer = [0];
    if nix::unistd::read(&ready, &mut answer)? == 0 {
        bail!("the node's init did not start");
    }
    crate::printer::line(&pid.to_string());
    Ok(())
}

/// Sets up the node's own mounts, host name and loopback.
fn furnish(spec: &InitSpec, hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP).context("failed to make a cgroup namespace")?;
    nix::unistd::sethostname(&spec.hostname)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("failed to make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).context("failed to mount /proc")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("failed to mount /sys")?;
    // Where the kernel has AppArmor, `flotad` reads there which profiles are loaded.
    let _ = mount(Some("securityfs"), "/sys/kernel/security", Some("securityfs"), MsFlags::empty(), None::<&str>);
    mount_cgroups(hierarchies)?;
    for (from, to) in [(&spec.data, "/var/lib/flota"), (&spec.run, "/run/flota")] {
        fs_err::create_dir_all(to)?;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from), to, None::<&str>, bind, None::<&str>).with_context(|| format!("failed to mount {to}"))?;
    }
    flota_runtime::process::loopback_up().context("failed to take loopback up")?;
    close_standard_streams()
}

/// Mounts each hierarchy again, so that its root in the new cgroup namespace is the node's own group.
fn mount_cgroups(hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    let single = hierarchies.iter().any(|it| it.v2 && it.point == Path::new("/sys/fs/cgroup"));
    if !single {
        mount(Some("tmpfs"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .context("failed to mount /sys/fs/cgroup")?;
    }
    for hierarchy in hierarchies {
        fs_err::create_dir_all(&hierarchy.point)?;
        let name = hierarchy.point.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (kind, options) = match (hierarchy.v2, hierarchy.controllers.is_empty()) {
            (true, _) => ("cgroup2", String::new()),
            (false, true) => ("cgroup", format!("none,name={name}")),
            (false, false) => ("cgroup", hierarchy.controllers.join(",")),
        };
        mount(Some(kind), &hierarchy.point, Some(kind), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("failed to mount the cgroup hierarchy {}", hierarchy.point.display()))?;
    }
    Ok(())
}

/// Runs as PID 1: reaps orphans for ever. Only SIGKILL from outside ends it.
fn be_init() -> i32 {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let _ = children.thread_block();
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let _ = children.wait();
    }
}

fn enter(spec: &EnterSpec) -> anyhow::Result<u8> {
    if spec.log.is_some() {
        close_other_descriptors();
    }
    let [program, arguments @ ..] = spec.command.as_slice() else { bail!("no command") };
    spec.cgroups.join_beside(i32::try_from(std::process::id())?, spec.pid)?;
    let node = pidfd(spec.pid)?;
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    let log = spec.log.as_ref().map(|path| File::options().create(true).append(true).open(path)).transpose()?;
    setns(node.as_fd(), CloneFlags::from_bits_retain(all)).context("failed to enter the node")?;
    let detached = log.is_some();
    let run = || {
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/");
        if let Some(log) = log {
            let _ = nix::unistd::setsid();
            let _ = nix::unistd::dup2_stdout(&log);
            let _ = nix::unistd::dup2_stderr(&log);
            command.stdin(std::process::Stdio::null());
        }
        let error = command.exec();
        crate::printer::message(&format!("error: failed to run {program}: {error}"));
        127
    };
    let pid = flota_runtime::process::spawn(0, || {
        if !detached {
            return run();
        }
        // The command is forked once more inside the node: an orphan goes to the init of the namespace of its parent
        // (the machine's, for a child of this program), and a node's PID 1 can't end before all its processes are
        // reaped.
        match flota_runtime::process::spawn(0, run) {
            Ok(pid) => {
                crate::printer::line(&pid.to_string());
                0
            }
            Err(error) => {
                crate::printer::message(&format!("error: failed to start {program}: {error}"));
                1
            }
        }
    })?;
    match waitpid(nix::unistd::Pid::from_raw(pid), None)? {
        WaitStatus::Exited(_, code) => Ok(u8::try_from(code).unwrap_or(1)),
        WaitStatus::Signaled(_, signal, _) => Ok(128 + signal as u8),
        _ => Ok(1),
    }
}

#[expect(unsafe_code, reason = "pidfd_open has no safe wrapper")]
fn pidfd(pid: i32) -> anyhow::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open(2) takes two integers; its result is checked before it is owned.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let descriptor = i32::try_from(nix::errno::Errno::result(descriptor).context("the node does not run")?)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(descriptor) })
}
