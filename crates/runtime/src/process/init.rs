//! The container's init from its creation to exec: an ordered list of steps. Comments give the reasons for their
//! order.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{read, sethostname, setsid};

use super::channel::{Channel, ChildMessage};
use super::launch::become_root;
use super::namespaces::Namespaces;
use super::program::{InitProgram, enter_folder};
use super::{clone, hooks, identity, labels, settings, sysctl, terminal};
use crate::error::{Act, StepError};
use crate::oci::{NamespaceKind, Process, State};
use crate::rootfs;
use crate::security::Filter;
use crate::syscall::{files, process as kernel};

/// The parameters of init.
pub(crate) struct Init<'a> {
    pub(crate) plan: rootfs::Plan<'a>,
    pub(crate) process: &'a Process,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) filter: Option<&'a Filter>,
    /// The state that hooks receive.
    pub(crate) state: State,
    /// Where the terminal is sent, if there is one.
    pub(crate) console: Option<OwnedFd>,
    /// The FIFOs of a later start; `None` if the creating runtime starts the program at once.
    pub(crate) later: Option<Later>,
    /// Whether init ends with its parent process.
    pub(crate) supervised: bool,
    /// Number of descriptors, from 3 on, that the program inherits.
    pub(crate) keep_descriptors: u32,
    pub(crate) no_new_keyring: bool,
}

/// Two FIFOs, each open for both directions.
pub(crate) struct Later {
    /// Readable when the program is to be run.
    pub(crate) start: OwnedFd,
    /// Open until the program runs or the failure is reported.
    pub(crate) started: OwnedFd,
}

impl Init<'_> {
    /// Becomes the program; returns only if that fails.
    pub(crate) fn run(mut self, channel: &Channel) -> StepError {
        // As the container sees it, like the hooks that get it.
        self.state.pid = nix::unistd::getpid().as_raw();
        let program = match self.prepare(channel) {
            Ok(program) => program,
            Err(error) => return error,
        };
        let error = match self.wait(channel).and_then(|()| self.become_program(&program)) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let Some(Later { started, .. }) = &self.later else { return error };
        // The channel has no reader any more.
        let text = format!("{}\n{error}", error.code().unwrap_or(1));
        let _ = nix::unistd::write(started, text.as_bytes());
        clone::exit(error.code().unwrap_or(1))
    }

    fn prepare(&mut self, channel: &Channel) -> Result<InitProgram, StepError> {
        clone::reset_signals();
        if self.supervised {
            kernel::die_with_parent().act(|| "tie the container to its supervisor".into())?;
        }
        files::close_on_exec_from(3 + self.keep_descriptors).act(|| "close descriptors".into())?;
        // In the meantime the runtime moves the process into its cgroups, sets its limits and maps its ids.
        channel.await_answer()?;
        self.enter_namespaces()?;
        let spec = self.plan.spec;
        let labels = labels::Labels::open(self.process)?;
        if let Some(policy) = &spec.linux().memory_policy {
            settings::set_memory_policy(policy)?;
        }
        let prepared = rootfs::prepare(&mut self.plan)?;
        let terminal = self.make_terminal(&prepared)?;
        if let Some(hooks) = &spec.hooks {
            channel.request(&ChildMessage::Hooks)?;
            // These hooks are programs of the machine, but they act on the container's root.
            prepared.stand_in_root()?;
            hooks::run("createContainer", &hooks.create_container, &self.state, &[])?;
        }
        prepared.protect(spec)?;
        prepared.enter(spec, self.plan.no_pivot)?;
        let has_terminal = match (terminal, self.console.take()) {
            (Some(terminal), Some(socket)) => terminal.use_here(&socket).map(|()| true)?,
            _ => false,
        };
        self.close_all(channel, &labels)?;
        // From here on every path is the container's own.
        if !has_terminal {
            own_null()?;
        }
        settings::apply(self.process, spec.linux())?;
        if !self.process.cwd.as_os_str().is_empty() {
            enter_folder(&self.process.cwd)?;
        }
        labels.apply()?;
        assume_and_find(self.process, self.supervised, self.filter, channel)
    }

    /// Closes what the program does not inherit and is not needed any more. Until the program runs, its path, that of its
    /// interpreter and PATH may lead through /proc/self/fd, and no folder of the machine may be there (CVE-2024-21626).
    fn close_all(&self, channel: &Channel, labels: &labels::Labels) -> Result<(), StepError> {
        let [exec, other] = labels.files();
        let [start, started] = match &self.later {
            Some(Later { start, started }) => [Some(start.as_fd()), Some(started.as_fd())],
            None => [None, None],
        };
        let kept = [Some(channel.as_fd()), exec, other, start, started];
        files::close_all_except(self.keep_descriptors, kept).act(|| "close descriptors".into())
    }

    fn enter_namespaces(&self) -> Result<(), StepError> {
        let spec = self.plan.spec;
        if self.plan.user_namespace {
            become_root()?;
        }
        setsid().act(|| "begin a session".into())?;
        if !self.no_new_keyring {
            own_keyring(&self.state.id)?;
        }
        let is_joined = self.namespaces.joins(NamespaceKind::Network);
        if is_joined || self.namespaces.makes(NamespaceKind::Network) {
            match clone::loopback_up() {
                // A joined namespace may belong to another user namespace, and is then configured from there.
                Err(Errno::EPERM) if is_joined => {}
                other => other.act(|| "take the loopback interface up".into())?,
            }
        }
        if self.namespaces.makes(NamespaceKind::Cgroup) {
            // The process is in its cgroup now, so the namespace shows the container's own group as its root.
            unshare(CloneFlags::CLONE_NEWCGROUP).act(|| "make a cgroup namespace".into())?;
        }
        if let Some(name) = spec.hostname.as_deref().filter(|it| !it.is_empty()) {
            sethostname(name).act(|| format!("set hostname `{name}`"))?;
        }
        if let Some(name) = spec.domainname.as_deref().filter(|it| !it.is_empty()) {
            kernel::set_domain_name(name).act(|| format!("set domainname `{name}`"))?;
        }
        sysctl::write(&spec.linux().sysctl)
    }

    fn make_terminal(&self, prepared: &rootfs::Prepared) -> Result<Option<terminal::Terminal>, StepError> {
        if self.console.is_none() {
            return Ok(None);
        }
        let terminal = terminal::make(prepared.root(), self.process.console_size)?;
        terminal.bind_console(prepared.root())?;
        Ok(Some(terminal))
    }

    /// Waits for the start. A filter may forbid nearly everything: only read, write and execve are called from here
    /// on, unless there is a hook.
    fn wait(&self, channel: &Channel) -> Result<(), StepError> {
        let Some(Later { start, .. }) = &self.later else { return channel.request(&ChildMessage::Ready) };
        channel.send(&ChildMessage::Ready)?;
        loop {
            match read(start, &mut [0]) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).act(|| "wait to be started".into()),
            }
        }
    }

    fn become_program(&self, program: &InitProgram) -> Result<std::convert::Infallible, StepError> {
        if let Some(hooks) = &self.plan.spec.hooks {
            let state = State { status: crate::oci::Status::Created, ..self.state.clone() };
            hooks::run("startContainer", &hooks.start_container, &state, &self.process.env)?;
        }
        program.run()
    }
}

/// Joins the session keyring of a container, which the first of its processes makes.
pub(crate) fn own_keyring(container: &str) -> Result<(), StepError> {
    match kernel::join_session_keyring(&format!("_ses.{container}")) {
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT) => Ok(()),
        Err(error) => Err(error).act(|| "make a session keyring".into()),
    }
}

/// Drops the rights that the program must not have, and finds the program. This precedes the filter, which may forbid
/// the search.
pub(crate) fn assume_and_find(
    process: &Process,
    supervised: bool,
    filter: Option<&Filter>,
    channel: &Channel,
) -> Result<InitProgram, StepError> {
    if process.args.is_empty() {
        identity::assume(process, supervised, || Ok(()))?;
        return Ok(InitProgram::none());
    }
    let mut program = None;
    identity::assume(process, supervised, || {
        let Some(filter) = filter else { return Ok(()) };
        program = Some(InitProgram::find(process)?);
        install(filter, channel)
    })?;
    program.map_or_else(|| InitProgram::find(process), Ok)
}

/// Drops the rights that the programs of a spawner must not have.
pub(crate) fn assume_for_spawner(
    process: &Process,
    filter: Option<&Filter>,
    channel: &Channel,
) -> Result<(), StepError> {
    identity::assume(process, true, || filter.map_or(Ok(()), |it| install(it, channel)))
}

/// Installs the filter for this process. The runtime sends its listener, if there is one, to the agent.
fn install(filter: &Filter, channel: &Channel) -> Result<(), StepError> {
    match filter.install()? {
        Some(listener) => {
            channel.request(&ChildMessage::Listener(listener))?;
            drop(files::own(listener));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Replaces the machine's /dev/null at standard input by the container's own, because the container must not be able
/// to change mode and owner of the machine's.
fn own_null() -> Result<(), StepError> {
    let is_null = |about: nix::sys::stat::FileStat| about.st_rdev == nix::sys::stat::makedev(1, 3);
    if !nix::sys::stat::fstat(files::standard()[0]).is_ok_and(is_null) {
        return Ok(());
    }
    match File::open(Path::new("/dev/null")) {
        Ok(null) => nix::unistd::dup2_stdin(&null).act(|| "set standard input".into()),
        // A root without /dev/null is legal.
        Err(_) => Ok(()),
    }
}
