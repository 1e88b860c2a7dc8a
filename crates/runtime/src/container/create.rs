//! Creates a container on the runtime's side: folder, control groups, namespaces, hooks. Every step has its undo.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Container, GroupChoice};
use crate::cgroup::Groups;
use crate::error::{Act, RunError, StepError};
use crate::oci::{Linux, NamespaceKind, Process, Resources, Seccomp, Spec, Status};
use crate::process::channel::ChildMessage;
use crate::process::clone::Parent;
use crate::process::init::{Init, Later};
use crate::process::launch::{self, Launch, Launched};
use crate::process::namespaces::Namespaces;
use crate::process::{hooks, identity, listener, settings, start, user_namespace};
use crate::rootfs::{self, sources};
use crate::security::Filter;
use crate::state;

/// The parameters of `create`.
#[derive(Debug)]
pub struct Creation {
    /// The state root.
    pub root: PathBuf,
    /// Id of the container.
    pub id: String,
    /// Folder with `config.json`.
    pub bundle: PathBuf,
    /// A configuration file to use instead of `config.json`; absolute, or relative to the bundle.
    pub config: Option<PathBuf>,
    /// Who decides where the container's control groups are.
    pub groups: GroupChoice,
    /// Connected unix socket that receives the terminal.
    pub console: Option<OwnedFd>,
    /// The compiled filter; if absent, the configuration's profile is compiled.
    pub(crate) filter: Option<Filter>,
    /// Environment variables of the program in addition to those of the configuration.
    pub environment: Vec<String>,
    /// File that receives init's process id.
    pub pid_file: Option<PathBuf>,
    /// Number of descriptors, from 3 on, that the program inherits.
    pub keep_descriptors: u32,
    /// Whether to use chroot(2) instead of pivot_root(2).
    pub no_pivot: bool,
    /// Whether to keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Whether init becomes the child of this process's parent and ends with it.
    pub supervised: bool,
}

impl Creation {
    /// Returns parameters with the default choices.
    pub fn new(root: &Path, id: &str, bundle: &Path) -> Self {
        Self {
            root: root.to_owned(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            config: None,
            groups: GroupChoice::Configured,
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

    /// Reads and validates the configuration.
    ///
    /// # Errors
    /// The file can't be read, or it asks for something impossible.
    pub fn load(&self) -> Result<Spec, RunError> {
        let bundle = std::path::absolute(&self.bundle).act(|| "find the bundle".into())?;
        let mut spec = Spec::load(&bundle.join(self.config.as_deref().unwrap_or(Path::new("config.json"))))?;
        user_namespace::fill_in(&mut spec);
        if let Some(process) = &mut spec.process {
            process.env.extend(self.environment.iter().cloned());
        }
        Ok(spec)
    }

    /// Creates the container up to its program, which waits for [`Container::start`]. Only for a process with one
    /// thread.
    ///
    /// # Errors
    /// A step failed; nothing of the container is left.
    pub fn create(&self, spec: &Spec, warn: impl FnMut(String)) -> Result<Container, RunError> {
        let (container, _) = self.make(spec, warn, false)?;
        Ok(container)
    }

    /// Creates the container and starts its program. In between, `ready` is called, which may take the terminal.
    ///
    /// # Errors
    /// A step failed; nothing of the container is left.
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
            // A successful exec closes the channel; a message before that is the reason of the failure.
            match launched.channel.receive(Instant::now() + launch::PATIENCE * 10)? {
                None => container.run_poststart(),
                Some(ChildMessage::Failed(code, text)) => Err(RunError { text, code }),
                Some(message) => {
                    Err(RunError::new(format!("failed to start the container: its init sent {message:?}")))
                }
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
            return Err(StepError::refuse(format!("use root.path `{}`", rootfs.display()), "it is not a folder").into());
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
        let (groups, scope) = self.groups.choose(spec, &self.id).inspect_err(|_| drop(std::fs::remove_dir(&dir)))?;
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
            scope,
            poststart: spec.hooks.as_ref().map_or_else(Vec::new, |it| it.poststart.clone()),
            poststop: spec.hooks.as_ref().map_or_else(Vec::new, |it| it.poststop.clone()),
            has_process: spec.process.is_some(),
            own_mounts: spec.linux().namespaces.iter().any(|it| it.kind == NamespaceKind::Mount),
            // Processes of a namespace that it joins do not end with its init.
            own_pids: spec.linux().namespaces.iter().any(|it| it.kind == NamespaceKind::Pid && it.is_new()),
            no_new_keyring: self.no_new_keyring,
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
        // The state is saved first, so that a process that finds a folder without an init knows what else may exist.
        self.container.save_first()?;
        self.write_config()?;
        self.make_groups()?;
        // The groups belong to the container from here on. The state is written atomically, because without it they
        // could not be found.
        self.container.save()?;
        let later =
            if at_once { None } else { Some(Later { start: self.fifo("start")?, started: self.fifo("started")? }) };
        let launched = self.launch(later)?;
        let result = self.serve_init(&launched);
        if let Err(error) = result {
            launched.kill(self.parent());
            return Err(error);
        }
        Ok(launched)
    }

    /// Writes the part of the configuration that a further process needs, and the compiled filter.
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
            linux: Some(Linux {
                namespaces: linux.namespaces.clone(),
                uid_mappings: linux.uid_mappings.clone(),
                gid_mappings: linux.gid_mappings.clone(),
                personality: linux.personality.clone(),
                seccomp: agent,
                ..Linux::default()
            }),
            ..Spec::default()
        };
        let dir = &self.container.dir;
        state::write_new(&dir.join("config.json"), &spec).act(|| "keep the configuration".into())?;
        if let Some(filter) = &self.filter {
            std::fs::write(dir.join("seccomp"), filter.to_bytes()).act(|| "keep the seccomp filter".into())?;
        }
        Ok(())
    }

    /// Creates the control groups. systemd does this itself when there is a process for them.
    fn make_groups(&mut self) -> Result<(), StepError> {
        if self.container.scope.is_some() {
            return Ok(());
        }
        let resources = self.creation.groups.resources(self.spec);
        if self.container.groups.is_frozen() {
            // In a frozen group init would never reach its first step. The groups belong to another process, so they
            // are kept.
            self.container.groups = Groups::default();
            let why = "container's cgroup unexpectedly frozen";
            return Err(StepError::refuse(format!("use the control groups of `{}`", self.container.id), why));
        }
        let Err(error) = self.container.groups.create(&resources) else { return Ok(()) };
        // Created groups are removed. What is left belongs to another process and must not be killed with this
        // container.
        self.container.groups = Groups::default();
        // A user without the rights to create groups has none. The user namespace still protects devices.
        if self.is_rootless() && only_devices(&resources) { Ok(()) } else { Err(error) }
    }

    fn is_rootless(&self) -> bool {
        !nix::unistd::geteuid().is_root()
    }

    fn fifo(&self, name: &str) -> Result<OwnedFd, StepError> {
        let path = self.container.dir.join(name);
        mkfifo(&path, Mode::from_bits_truncate(0o600)).act(|| format!("make {}", path.display()))?;
        // The FIFO is opened for both directions, so that opening does not wait for a peer.
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
        identity::own_stdio_outside(process, linux);
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

    /// Performs for init what it can't do itself, until only its program is left to run.
    fn serve_init(&mut self, launched: &Launched) -> Result<(), RunError> {
        launched.begin(self.admit(launched))?;
        loop {
            match launched.receive()? {
                ChildMessage::Hooks => {
                    self.container.pid = launched.pid.as_raw();
                    let state = self.container.state(Status::Creating);
                    let hooks = self.spec.hooks.clone().unwrap_or_default();
                    hooks::run("prestart", &hooks.prestart, &state, &[])?;
                    hooks::run("createRuntime", &hooks.create_runtime, &state, &[])?;
                }
                ChildMessage::Listener(number) => {
                    let profile = self.spec.linux().seccomp.as_ref();
                    let state = self.container.state(Status::Creating);
                    listener::hand_over(profile, launched, number, &state)?;
                }
                ChildMessage::Ready => break,
                message => {
                    return Err(RunError::new(format!("failed to start the container: its init sent {message:?}")));
                }
            }
            launched.channel.answer()?;
        }
        self.container.pid = launched.pid.as_raw();
        self.container.start_time = state::start_time(self.container.pid).unwrap_or(0);
        self.container.save()?;
        self.write_pid_file()
    }

    /// Maps its ids, moves it into its control groups and sets its limits.
    fn admit(&mut self, launched: &Launched) -> Result<(), StepError> {
        let linux = self.spec.linux();
        let pid = launched.pid.as_raw();
        if launched.unmapped {
            user_namespace::map(launched.pid, &linux.uid_mappings, &linux.gid_mappings)?;
        }
        if let Some(scope) = &self.container.scope {
            let resources = self.creation.groups.resources(self.spec);
            scope.start(pid, &resources, self.container.groups.is_pure_v2())?;
            self.container.groups.adopt(&resources)?;
        }
        self.container.groups.join(pid)?;
        let none = Process::default();
        let process = self.spec.process.as_ref().unwrap_or(&none);
        settings::set_limits(pid, &process.rlimits)?;
        process.oom_score_adj.map_or(Ok(()), |it| settings::adjust_oom_score(pid, it))
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

/// Returns whether the only limits are for devices, which a user namespace enforces anyway.
fn only_devices(resources: &Resources) -> bool {
    Resources { devices: Vec::new(), ..resources.clone() } == Resources::default()
}
