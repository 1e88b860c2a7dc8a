//! Runs a further process in a running container, in the namespaces of the container's init.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::unistd::{Pid, setsid};

use super::Container;
use crate::cgroup::Groups;
use crate::error::{Act, RunError, StepError};
use crate::oci::{Linux, NamespaceKind, Process, Seccomp, Spec, Status};
use crate::process::channel::{Channel, ChildMessage};
use crate::process::clone::{self, Parent};
use crate::process::launch::{self, Launch, Launched, become_root};
use crate::process::namespaces::Namespaces;
use crate::process::program::enter_folder;
use crate::process::{identity, init, labels, listener, settings, spawner, start, terminal};
use crate::rootfs::RootDir;
use crate::security::Filter;
use crate::syscall::{files, process as kernel};

/// The parameters of `exec`.
#[derive(Debug)]
pub struct Execution {
    /// The process to run.
    pub process: Process,
    /// Connected unix socket that receives the terminal.
    pub console: Option<OwnedFd>,
    /// File that receives the process's id.
    pub pid_file: Option<PathBuf>,
    /// Number of descriptors, from 3 on, that the program inherits.
    pub keep_descriptors: u32,
    /// Whether the process becomes the child of this process's parent and ends with it.
    pub supervised: bool,
    /// Whether a paused container is accepted, in which the process begins when the container is resumed.
    pub ignore_paused: bool,
    /// Groups of the process below the container's own, each `[CONTROLLER[,…]:]PATH`, as of `runc exec --cgroup`. They
    /// must exist.
    pub subgroups: Vec<String>,
    /// If set, no program is executed: the process starts those that it is asked for over this connection.
    pub(crate) spawns_for: Option<OwnedFd>,
}

impl Execution {
    /// Returns parameters with the default choices.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            console: None,
            pid_file: None,
            keep_descriptors: 0,
            supervised: false,
            ignore_paused: false,
            subgroups: Vec::new(),
            spawns_for: None,
        }
    }

    /// Starts the process with the caller's standard descriptors and returns its id once it runs. `ready` is called
    /// once, for a terminal just before the program runs; it may take the terminal. Only for a process with one
    /// thread.
    ///
    /// # Errors
    /// The container does not run, or the process can't be started.
    pub fn start(
        &self,
        container: &Container,
        spec: &Spec,
        ready: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<i32, RunError> {
        let refuse = |why: &str| StepError::refuse(format!("exec in the container `{}`", container.id), why);
        let (process, status) = container.reach()?;
        match status {
            Status::Paused if !self.ignore_paused => return Err(refuse("cannot exec in a paused container").into()),
            _ => {}
        }
        settings::check(&self.process)?;
        labels::check(&self.process)?;
        if self.process.terminal != self.console.is_some() {
            return Err(refuse("a terminal needs a console socket, and that a terminal").into());
        }
        let groups = container.groups.subgroups(&self.subgroups)?;
        let filter = container.filter()?;
        let linux = spec.linux();
        let own_user = linux.namespaces.iter().any(|it| it.kind == NamespaceKind::User);
        let namespaces = Namespaces::of_process(container.pid, process, own_user)?;
        let console = self.console.as_ref().map(OwnedFd::try_clone).transpose();
        let console = console.act(|| "copy a descriptor".into())?;
        identity::own_stdio_outside(&self.process, linux);
        let parent = if self.supervised { Parent::CallersParent } else { Parent::Caller };
        let joined_user = namespaces.joins_user();
        let spawns_for = self.spawns_for.as_ref().map(OwnedFd::try_clone).transpose();
        let spawns_for = spawns_for.act(|| "copy a descriptor".into())?;
        let mut child = Some(Child {
            execution: self,
            container,
            linux,
            filter: filter.as_ref(),
            console,
            spawns_for,
            joined_user,
        });
        let launch = Launch { namespaces: &namespaces, linux, parent };
        let launched = launch.start(|channel| child.take().expect("called once").run(channel))?;
        let asks = process_asks(&self.process, filter.as_ref());
        let result = launched
            .begin(self.admit(launched.pid, container, spec, groups.as_ref()))
            .and_then(|()| self.serve_process(&launched, container, linux.seccomp.as_ref(), asks, ready));
        if result.is_err() {
            launched.kill(parent);
        }
        result.map(|()| launched.pid.as_raw())
    }

    /// Performs for the new process what it can't do itself, until its program runs.
    fn serve_process(
        &self,
        launched: &Launched,
        container: &Container,
        profile: Option<&Seccomp>,
        asks: bool,
        ready: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let until = Instant::now() + launch::PATIENCE;
        if !asks {
            // A single wait for the end saves wake-ups.
            launched.channel.await_end(until)?;
        }
        let mut is_ready = false;
        let mut ready = Some(ready);
        // A successful exec closes the channel; a message before that is the reason of the failure.
        while let Some(message) = launched.channel.receive(until)? {
            match message {
                ChildMessage::Listener(number) => {
                    let state = container.state(container.status());
                    listener::hand_over(profile, launched, number, &state)?;
                    launched.channel.answer()?;
                }
                ChildMessage::Ready => {
                    is_ready = true;
                    if self.process.terminal {
                        ready.take().map_or(Ok(()), |ready| ready())?;
                        launched.channel.answer()?;
                    }
                }
                ChildMessage::Failed(code, text) => return Err(RunError { text, code }),
                message => return Err(RunError::new(format!("failed to start a process: it sent {message:?}"))),
            }
        }
        if !is_ready {
            return Err(RunError::new("failed to start a process: it was killed before it ran"));
        }
        if let Some(path) = &self.pid_file {
            start::write_pid_file(path, launched.pid.as_raw())?;
        }
        ready.take().map_or(Ok(()), |ready| ready())
    }

    /// Moves the process into the container's control groups and sets its limits.
    fn admit(&self, pid: Pid, container: &Container, spec: &Spec, groups: Option<&Groups>) -> Result<(), StepError> {
        let affinity = self.process.exec_cpu_affinity.clone().unwrap_or_default();
        // The CPU affinity is set before and after the process joins the groups (config.md, "execCPUAffinity").
        settings::bind_to_cpus(pid, "process.execCPUAffinity.initial", &affinity.initial)?;
        match groups {
            Some(groups) => groups.join(pid.as_raw())?,
            None => container.groups.join_beside(pid.as_raw(), container.pid)?,
        }
        settings::bind_to_cpus(pid, "process.execCPUAffinity.final", &affinity.last)?;
        settings::set_limits(pid.as_raw(), &self.process.rlimits)?;
        // A process without a value of its own has the container's.
        let adjustment = self.process.oom_score_adj.or_else(|| spec.process.as_ref()?.oom_score_adj);
        adjustment.map_or(Ok(()), |it| settings::adjust_oom_score(pid.as_raw(), it))
    }
}

/// Returns whether the process sends a request that needs an answer.
fn process_asks(process: &Process, filter: Option<&Filter>) -> bool {
    process.terminal || filter.is_some_and(Filter::uses_notify)
}

struct Child<'a> {
    execution: &'a Execution,
    container: &'a Container,
    linux: &'a Linux,
    filter: Option<&'a Filter>,
    console: Option<OwnedFd>,
    spawns_for: Option<OwnedFd>,
    joined_user: bool,
}

impl Child<'_> {
    fn run(mut self, channel: &Channel) -> StepError {
        match self.become_program(channel) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn become_program(&mut self, channel: &Channel) -> Result<std::convert::Infallible, StepError> {
        let execution = self.execution;
        let process = &execution.process;
        clone::reset_signals();
        if execution.supervised {
            kernel::die_with_parent().act(|| "tie the process to its supervisor".into())?;
        }
        // Every path is the container's own here, and may lead through /proc/self/fd, where no folder of the machine may be
        // (CVE-2024-21626).
        let kept =
            [Some(channel.as_fd()), self.console.as_ref().map(AsFd::as_fd), self.spawns_for.as_ref().map(AsFd::as_fd)];
        let closed = files::close_all_except(execution.keep_descriptors, kept);
        closed.act(|| "close descriptors".into())?;
        // The runtime moves the process into the container's control groups and sets its limits. It may lack the
        // rights for this once the process has changed its user.
        channel.await_answer()?;
        if self.joined_user {
            become_root()?;
        }
        setsid().act(|| "begin a session".into())?;
        if !self.container.no_new_keyring {
            init::own_keyring(&self.container.id)?;
        }
        // /proc is the container's here, but the kernel verifies that it is a real procfs.
        let labels = labels::Labels::open(process)?;
        if let Some(socket) = self.console.take() {
            let root = RootDir::open(Path::new("/"))?;
            terminal::make(&root, process.console_size)?.use_here(&socket)?;
        }
        settings::apply(process, self.linux)?;
        enter_folder(&process.cwd)?;
        labels.apply()?;
        if let Some(connection) = self.spawns_for.take() {
            init::assume_for_spawner(process, self.filter, channel)?;
            channel.send(&ChildMessage::Ready)?;
            spawner::serve(process, connection)
        }
        let program = init::assume_and_find(process, execution.supervised, self.filter, channel)?;
        if process.terminal {
            // The process must not begin before the client has set the terminal's size and mode.
            channel.request(&ChildMessage::Ready)?;
        } else {
            channel.send(&ChildMessage::Ready)?;
        }
        program.run()
    }
}
