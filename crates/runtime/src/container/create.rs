//! The runtime's side of making a container: folder, control groups, namespaces, hooks. Every step has its undo.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::Container;
use crate::cgroup::{self, Groups};
use crate::error::{Act, RunError, StepError};
use crate::oci::{Linux, NamespaceKind, Process, Resources, Seccomp, Spec, Status};
use crate::process::channel::Word;
use crate::process::clone::Parent;
use crate::process::init::{Init, Later};
use crate::process::launch::{self, Launch, Launched};
use crate::process::namespaces::Namespaces;
use crate::process::{hooks, listener, settings, start, user_namespace};
use crate::rootfs::{self, sources};
use crate::security::Filter;
use crate::state;

/// What `create` is told.
#[derive(Debug)]
pub struct Creation {
    /// State root.
    pub root: PathBuf,
    /// Of the container.
    pub id: String,
    /// Folder with `config.json`.
    pub bundle: PathBuf,
    /// Another file than `config.json`; absolute, or relative to the bundle.
    pub config: Option<PathBuf>,
    /// Whether it is left in the caller's control groups, without limits.
    pub no_groups: bool,
    /// Connected unix socket to which the terminal goes.
    pub console: Option<OwnedFd>,
    /// Compiled before; else the configuration's profile is.
    pub(crate) filter: Option<Filter>,
    /// Variables that the program gets beside those of the configuration.
    pub environment: Vec<String>,
    /// Gets init's process id.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program gets.
    pub keep_descriptors: u32,
    /// chroot(2) instead of pivot_root(2).
    pub no_pivot: bool,
    /// Leaves the caller's session keyring.
    pub no_new_keyring: bool,
    /// Whether init is to be the child of this process's parent, and to end with it.
    pub supervised: bool,
}

impl Creation {
    /// With the usual choices.
    pub fn new(root: &Path, id: &str, bundle: &Path) -> Self {
        Self {
            root: root.to_owned(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            config: None,
            no_groups: false,
            console: None,
            filter: None,
            environment: Vec::new(),
            pid_file: None,
            keep_descriptors: 0,
            no_pivot: false,
            no_new_keyring: false,
            supervised: false,
        }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// It can't be read, or asks for what can't be.
    pub fn load(&self) -> Result<Spec, RunError> {
        let bundle = std::path::absolute(&self.bundle).act(|| "find the bundle".into())?;
        let mut spec = Spec::load(&bundle.join(self.config.as_deref().unwrap_or(Path::new("config.json"))))?;
        user_namespace::fill_in(&mut spec);
        if let Some(process) = &mut spec.process {
            process.env.extend(self.environment.iter().cloned());
        }
        Ok(spec)
    }

    /// Makes the container up to its program, which waits for [`Container::start`]. Only in a process with one thread.
    ///
    /// # Errors
    /// Why not; nothing of it is left.
    pub fn create(&self, spec: &Spec, warn: impl FnMut(String)) -> Result<Container, RunError> {
        let (container, _) = self.make(spec, warn, false)?;
        Ok(container)
    }

    /// Makes the container and lets its program run. In between `ready` is called: it may take the terminal.
    ///
    /// # Errors
    /// Why not; nothing of it is left.
    pub fn run(
        &self,
        spec: &Spec,
        warn: impl FnMut(String),
        ready: impl FnOnce(&Container) -> Result<(), RunError>,
    ) -> Result<Container, RunError> {
        if spec.process.is_none() {
            return Err(StepError::refuse("read process", "it is missing").into());
        }
        let (container, launched) = self.make(spec, warn, true)?;
        let started = ready(&container).and_then(|()| {
            launched.channel.answer()?;
            // Exec closes the channel; what comes before that is why it failed.
            match launched.channel.hear(Instant::now() + launch::PATIENCE * 10)? {
                None => container.run_poststart(),
                Some(Word::Failed(code, text)) => Err(RunError { text, code }),
                Some(word) => Err(RunError::new(format!("failed to start the container: its init said {word:?}"))),
            }
        });
        if started.is_err() {
            let _ = container.delete(true, drop);
        }
        started.map(|()| container)
    }

    fn make(&self, spec: &Spec, warn: impl FnMut(String), at_once: bool) -> Result<(Container, Launched), RunError> {
        let bundle = std::path::absolute(&self.bundle).act(|| "find the bundle".into())?;
        let rootfs = bundle.join(spec.root.as_ref().map(|it| it.path.clone()).unwrap_or_default());
        let rootfs = rootfs.canonicalize().act(|| format!("find root.path `{}`", rootfs.display()))?;
        if !rootfs.is_dir() {
            return Err(StepError::refuse(format!("use root.path `{}`", rootfs.display()), "it is no folder").into());
        }
        self.check_terminal(spec)?;
        let filter = self.filter.clone().map_or_else(|| compile(spec, warn), |it| Ok(Some(it)))?;
        let dir = Container::make_dir(&self.root, &self.id)?;
        let container = self.container(spec, bundle, rootfs, dir)?;
        let mut making = Making { spec, creation: self, filter, container };
        let made = making.make(at_once);
        if made.is_err() {
            making.undo();
        }
        made.map(|launched| (making.container, launched))
    }

    fn check_terminal(&self, spec: &Spec) -> Result<(), StepError> {
        let terminal = spec.process.as_ref().is_some_and(|it| it.terminal);
        match (terminal, &self.console) {
            (true, None) => Err(StepError::refuse("use process.terminal", "no --console-socket is given")),
            (false, Some(_)) => Err(StepError::refuse("use --console-socket", "process.terminal is false")),
            _ => Ok(()),
        }
    }

    fn container(&self, spec: &Spec, bundle: PathBuf, rootfs: PathBuf, dir: PathBuf) -> Result<Container, StepError> {
        let hierarchies = if self.no_groups { Ok(Vec::new()) } else { cgroup::hierarchies() };
        let hierarchies = hierarchies.act(|| "read the cgroup hierarchies".into())?;
        let groups = Groups::new(&hierarchies, spec.linux().cgroups_path.as_deref(), &self.id);
        let groups = groups.inspect_err(|_| drop(std::fs::remove_dir(&dir)))?;
        let own = nix::unistd::getpid().as_raw();
        Ok(Container {
            oci_version: spec.oci_version.clone(),
            id: self.id.clone(),
            bundle,
            rootfs,
            pid: 0,
            start_time: 0,
            creator: (own, state::start_time(own).unwrap_or(0)),
            created: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            owner: nix::unistd::getuid().as_raw(),
            annotations: spec.annotations.clone(),
            groups,
            poststart: spec.hooks.as_ref().map_or_else(Vec::new, |it| it.poststart.clone()),
            poststop: spec.hooks.as_ref().map_or_else(Vec::new, |it| it.poststop.clone()),
            has_process: spec.process.is_some(),
            own_mounts: spec.linux().namespaces.iter().any(|it| it.kind == NamespaceKind::Mount),
            own_pids: spec.linux().namespaces.iter().any(|it| it.kind == NamespaceKind::Pid),
            dir,
        })
    }
}

fn compile(spec: &Spec, mut warn: impl FnMut(String)) -> Result<Option<Filter>, StepError> {
    if let Some(capabilities) = spec.process.as_ref().and_then(|it| it.capabilities.as_ref()) {
        for name in crate::security::capabilities::unknown(capabilities) {
            warn(format!("process.capabilities: `{name}` is not known and left out"));
        }
    }
    let Some(profile) = &spec.linux().seccomp else { return Ok(None) };
    let filter = Filter::compile(profile)?;
    filter.warnings().iter().cloned().for_each(warn);
    Ok(Some(filter))
}

struct Making<'a> {
    spec: &'a Spec,
    creation: &'a Creation,
    filter: Option<Filter>,
    container: Container,
}

impl Making<'_> {
    fn parent(&self) -> Parent {
        if self.creation.supervised { Parent::CallersParent } else { Parent::Caller }
    }

    fn make(&mut self, at_once: bool) -> Result<Launched, RunError> {
        // First: whoever finds a folder without init knows from it what else there may be.
        self.container.save_first()?;
        self.write_config()?;
        self.make_groups()?;
        // They are its own from here on. Whole or not at all: without a state nobody would find them.
        self.container.save()?;
        let later =
            if at_once { None } else { Some(Later { start: self.fifo("start")?, started: self.fifo("started")? }) };
        let launched = self.launch(later)?;
        let result = self.converse(&launched);
        if let Err(error) = result {
            launched.kill(self.parent());
            return Err(error);
        }
        Ok(launched)
    }

    /// Of the configuration only what a further process needs, and the compiled filter.
    fn write_config(&self) -> Result<(), StepError> {
        let linux = self.spec.linux();
        let agent = linux.seccomp.as_ref().map(|it| Seccomp {
            listener_path: it.listener_path.clone(),
            listener_metadata: it.listener_metadata.clone(),
            ..Seccomp::default()
        });
        let spec = Spec {
            oci_version: self.spec.oci_version.clone(),
            process: self.spec.process.clone(),
            linux: Some(Linux { namespaces: linux.namespaces.clone(), seccomp: agent, ..Linux::default() }),
            ..Spec::default()
        };
        let dir = &self.container.dir;
        state::write_new(&dir.join("config.json"), &spec).act(|| "keep the configuration".into())?;
        if let Some(filter) = &self.filter {
            std::fs::write(dir.join("seccomp"), filter.to_bytes()).act(|| "keep the seccomp filter".into())?;
        }
        Ok(())
    }

    /// The default devices may be used whatever the configuration's rules are, as it can't do without them.
    fn make_groups(&mut self) -> Result<(), StepError> {
        let linux = self.spec.linux();
        let mut resources = linux.resources.clone().unwrap_or_default();
        if self.creation.no_groups {
            resources = Resources::default();
        }
        if !resources.devices.is_empty() {
            resources.devices.extend(cgroup::default_device_rules());
        }
        if self.container.groups.is_frozen() {
            // Init would never get to its first step. They are another's, who shall keep them.
            self.container.groups = Groups::default();
            let why = "container's cgroup unexpectedly frozen";
            return Err(StepError::refuse(format!("use the control groups of `{}`", self.container.id), why));
        }
        let Err(error) = self.container.groups.create(&resources) else { return Ok(()) };
        // What was made is removed again; what is left is another's, which shall not be killed with this one.
        self.container.groups = Groups::default();
        // A user without rights to groups has none. Devices are guarded by its user namespace all the same.
        if self.is_rootless() && only_devices(&resources) { Ok(()) } else { Err(error) }
    }

    fn is_rootless(&self) -> bool {
        !nix::unistd::geteuid().is_root()
    }

    fn fifo(&self, name: &str) -> Result<OwnedFd, StepError> {
        let path = self.container.dir.join(name);
        mkfifo(&path, Mode::from_bits_truncate(0o600)).act(|| format!("make {}", path.display()))?;
        // Both ways, so that opening does not wait for another side.
        nix::fcntl::open(&path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .act(|| format!("open {}", path.display()))
    }

    fn launch(&mut self, later: Option<Later>) -> Result<Launched, RunError> {
        let (spec, linux) = (self.spec, self.spec.linux());
        let namespaces = Namespaces::of(linux)?;
        let user_namespace = linux.namespaces.iter().any(|it| it.kind == NamespaceKind::User);
        let privileged = nix::unistd::geteuid().is_root();
        let Container { rootfs, bundle, dir, .. } = &self.container;
        let sources = sources::open(spec, rootfs, bundle, dir, user_namespace && privileged, user_namespace::mapped)?;
        let console = self.creation.console.as_ref().map(OwnedFd::try_clone).transpose();
        let console = console.act(|| "copy a descriptor".into())?;
        let none = Process::default();
        let process = spec.process.as_ref().unwrap_or(&none);
        let mut init = Some(Init {
            plan: rootfs::Plan {
                spec,
                root: &self.container.rootfs,
                bundle: &self.container.bundle,
                sources,
                cgroups: self.container.groups.folders(),
                user_namespace,
                no_pivot: self.creation.no_pivot,
            },
            process,
            namespaces: &namespaces,
            filter: self.filter.as_ref(),
            state: self.container.state(Status::Creating),
            console,
            later,
            supervised: self.creation.supervised,
            keep_descriptors: self.creation.keep_descriptors,
            no_new_keyring: self.creation.no_new_keyring,
        });
        let launch = Launch { namespaces: &namespaces, linux, parent: self.parent() };
        launch.start(|channel| init.take().expect("called once").run(channel))
    }

    /// Does for init what it can't do itself, until only its program is left.
    fn converse(&mut self, launched: &Launched) -> Result<(), RunError> {
        launched.begin(self.admit(launched))?;
        loop {
            match launched.hear()? {
                Word::Hooks => {
                    self.container.pid = launched.pid.as_raw();
                    let state = self.container.state(Status::Creating);
                    let hooks = self.spec.hooks.clone().unwrap_or_default();
                    hooks::run("prestart", &hooks.prestart, &state, &[])?;
                    hooks::run("createRuntime", &hooks.create_runtime, &state, &[])?;
                }
                Word::Listener(number) => {
                    let profile = self.spec.linux().seccomp.as_ref();
                    let state = self.container.state(Status::Creating);
                    listener::hand_over(profile, launched, number, &state)?;
                }
                Word::Ready => break,
                word => return Err(RunError::new(format!("failed to start the container: its init said {word:?}"))),
            }
            launched.channel.answer()?;
        }
        self.container.pid = launched.pid.as_raw();
        self.container.start_time = state::start_time(self.container.pid).unwrap_or(0);
        self.container.save()?;
        self.write_pid_file()
    }

    /// Maps its ids, puts it into its control groups and sets its limits.
    fn admit(&self, launched: &Launched) -> Result<(), StepError> {
        let linux = self.spec.linux();
        let pid = launched.pid.as_raw();
        if launched.unmapped {
            user_namespace::map(launched.pid, &linux.uid_mappings, &linux.gid_mappings)?;
        }
        self.container.groups.join(pid)?;
        let none = Process::default();
        let process = self.spec.process.as_ref().unwrap_or(&none);
        settings::set_limits(pid, &process.rlimits)?;
        if let Some(adjustment) = process.oom_score_adj {
            let path = format!("/proc/{pid}/oom_score_adj");
            let written = std::fs::write(&path, adjustment.to_string());
            // A user without rights can't lower it, and has what it had.
            if !self.is_rootless() {
                written.act(|| format!("set process.oomScoreAdj to {adjustment}"))?;
            }
        }
        Ok(())
    }

    fn write_pid_file(&self) -> Result<(), RunError> {
        let Some(path) = &self.creation.pid_file else { return Ok(()) };
        start::write_pid_file(path, self.container.pid).map_err(RunError::from)
    }

    fn undo(&mut self) {
        let _ = self.container.groups.kill_all(libc::SIGKILL);
        let _ = self.container.groups.remove();
        if !self.container.own_mounts {
            let _ = nix::mount::umount2(&self.container.rootfs, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.container.dir);
        if let Some(path) = &self.creation.pid_file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether nothing but devices is limited, which a user namespace does anyway.
fn only_devices(resources: &Resources) -> bool {
    Resources { devices: Vec::new(), ..resources.clone() } == Resources::default()
}
