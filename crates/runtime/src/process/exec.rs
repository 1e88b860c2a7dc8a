//! A further process in a running container: through the container's namespaces, which its init shows.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::unistd::setsid;

use super::channel::{Channel, Word};
use super::clone::{self, Parent};
use super::launch::{Launch, Launched, become_root};
use super::namespaces::Namespaces;
use super::program::enter_folder;
use super::{init, labels, listener, settings, start, terminal};
use crate::container::Container;
use crate::error::{Act, RunError, StepError};
use crate::oci::{Process, Seccomp, Spec, Status};
use crate::rootfs::RootDir;
use crate::security::Filter;
use crate::syscall::{files, process as kernel};

/// What `exec` is told.
#[derive(Debug)]
pub struct Execution {
    /// The whole process.
    pub process: Process,
    /// Connected unix socket to which the terminal goes.
    pub console: Option<OwnedFd>,
    /// Gets the process's id.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the program gets.
    pub keep_descriptors: u32,
    /// Whether it is to be the child of this process's parent, and to end with it.
    pub supervised: bool,
    /// Also into a paused container, where it begins when that is resumed.
    pub ignore_paused: bool,
}

impl Execution {
    /// With the usual choices.
    pub fn new(process: Process) -> Self {
        Self { process, console: None, pid_file: None, keep_descriptors: 0, supervised: false, ignore_paused: false }
    }

    /// Starts the process with the caller's standard descriptors; its id, when it runs. Just before that `ready` is
    /// called: it may take the terminal. Only in a process with one thread.
    ///
    /// # Errors
    /// The container does not run, or the process can't.
    pub fn start(
        &self,
        container: &Container,
        spec: &Spec,
        ready: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<i32, RunError> {
        let refuse = |why: &str| StepError::refuse(format!("exec in the container `{}`", container.id), why);
        match container.status() {
            Status::Created | Status::Running => {}
            Status::Paused if self.ignore_paused => {}
            Status::Paused => return Err(refuse("cannot exec in a paused container").into()),
            Status::Stopped => return Err(refuse("cannot exec in a stopped container: container not running").into()),
            Status::Creating => return Err(refuse("the container is still being created").into()),
        }
        settings::check(&self.process)?;
        labels::check(&self.process)?;
        if self.process.terminal != self.console.is_some() {
            return Err(refuse("a terminal needs a console socket, and that a terminal").into());
        }
        let filter = container.filter()?;
        let namespaces = Namespaces::of_process(container.pid, container.open_process()?)?;
        let console = self.console.as_ref().map(OwnedFd::try_clone).transpose();
        let console = console.act(|| "copy a descriptor".into())?;
        let parent = if self.supervised { Parent::CallersParent } else { Parent::Caller };
        let linux = spec.linux();
        let joined_user = namespaces.joins_user();
        let mut child = Some(Child { execution: self, filter: filter.as_ref(), console, joined_user });
        let launch = Launch { namespaces: &namespaces, linux, parent };
        let launched = launch.start(|channel| child.take().expect("called once").run(channel))?;
        let result = self.converse(&launched, container, spec.linux().seccomp.as_ref(), ready);
        if result.is_err() {
            launched.kill(parent);
        }
        result.map(|()| launched.pid.as_raw())
    }

    fn converse(
        &self,
        launched: &Launched,
        container: &Container,
        profile: Option<&Seccomp>,
        ready: impl FnOnce() -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        loop {
            match launched.hear()? {
                Word::Begin => {
                    container.groups.join(launched.pid.as_raw())?;
                    settings::set_limits(launched.pid.as_raw(), &self.process.rlimits)?;
                }
                Word::Listener(number) => {
                    let state = container.state(container.status());
                    listener::hand_over(profile, launched, number, &state)?;
                }
                Word::Ready => break,
                word => return Err(RunError::new(format!("failed to start a process: it said {word:?}"))),
            }
            launched.channel.answer()?;
        }
        if let Some(path) = &self.pid_file {
            start::write_pid_file(path, launched.pid.as_raw())?;
        }
        ready()?;
        launched.channel.answer()?;
        // Exec closes the channel; what comes before that is why it failed.
        match launched.channel.hear(std::time::Instant::now() + super::launch::PATIENCE)? {
            None => Ok(()),
            Some(Word::Failed(code, text)) => Err(RunError { text, code }),
            Some(word) => Err(RunError::new(format!("failed to start a process: it said {word:?}"))),
        }
    }
}

struct Child<'a> {
    execution: &'a Execution,
    filter: Option<&'a Filter>,
    console: Option<OwnedFd>,
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
        files::close_on_exec_from(3 + execution.keep_descriptors).act(|| "close descriptors".into())?;
        let affinity = process.exec_cpu_affinity.clone().unwrap_or_default();
        settings::bind_to_cpus("process.execCPUAffinity.initial", &affinity.initial)?;
        channel.ask(&Word::Begin)?;
        settings::bind_to_cpus("process.execCPUAffinity.final", &affinity.last)?;
        if self.joined_user {
            become_root()?;
        }
        setsid().act(|| "begin a session".into())?;
        // /proc is the container's here, but it is the kernel that says whether it is one.
        let labels = labels::Labels::open(process)?;
        if let Some(socket) = self.console.take() {
            let root = RootDir::open(Path::new("/"))?;
            terminal::make(&root, process.console_size)?.use_here(&socket)?;
        }
        settings::apply(process)?;
        enter_folder(&process.cwd)?;
        labels.apply()?;
        let program = init::assume_and_find(process, execution.supervised, self.filter, channel)?;
        channel.ask(&Word::Ready)?;
        program.run()
    }
}
