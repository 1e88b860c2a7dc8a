//! The runtime that creates the container: the embedded one, or any OCI command line by its path. Each method is
//! called in a separate process, forked by the supervisor, so its memory is freed with that process.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::order::{ExecSpec, Order};
use super::{console, mounts, prepare};
use crate::cgroup::Groups;
use crate::container::{Container, Creation, Execution, GroupChoice};
use crate::error::{Act, RunError, StepError};
use crate::oci::{Process, Spec, read_json};
use crate::process::{clone, wait_readable};
use crate::state;
use crate::syscall::process as kernel;

/// Longest wait for a runtime to say which process it has started.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks for that.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The operations that a supervisor needs from a runtime.
pub(super) trait Runtime {
    /// Creates the container and starts its program, with this process's standard descriptors or with a terminal,
    /// which is sent to `console`. Its init becomes the supervisor's child. Returns init's process id.
    fn run(&self, spec: &Spec, console: Option<OwnedFd>) -> Result<i32, RunError>;
    /// Starts a further process, with this process's standard descriptors or a terminal.
    /// If it is to be contained, its group is among those of [`Groups::nested`].
    fn exec(&self, process: Process, exec: &ExecSpec, console: Option<OwnedFd>) -> Result<StartedExec, RunError>;
    /// Returns the process that the container's own configuration describes.
    fn process(&self) -> Result<Process, StepError>;
    /// Removes what is left of the container.
    fn delete(&self) -> Result<(), RunError>;
}

/// A process that was started in a container.
pub(super) enum StartedExec {
    /// The process is the supervisor's child.
    Child(i32),
    /// This process represents it: it must wait for this child, remove the files and exit with the child's exit code.
    Through(std::process::Child, [PathBuf; 2]),
}

/// Returns whether this child of the supervisor is a helper that represents a process of another runtime.
pub(super) fn is_helper(dir: &Path, child: Pid) -> bool {
    files_of(dir, child)[0].exists()
}

/// Kills the process that a runtime has started, or is about to start, and then the runtime.
pub(super) fn end_represented(runtime: &mut std::process::Child, files: &[PathBuf; 2]) {
    let until = Instant::now() + PATIENCE;
    let id = i32::try_from(runtime.id()).expect("process ids fit");
    let process = kernel::open(id);
    let has_ended = || process.as_ref().map_or(true, |it| wait_readable(it, LOOK_AGAIN).unwrap_or(true));
    // The program may run before the runtime has written its id.
    while Instant::now() < until {
        if let Some(pid) = read_pid(&files[1])
            && let Ok(represented) = kernel::open(pid)
            // Whatever else has its id by now is no child of the runtime.
            && parent(pid) == Some(id)
        {
            let _ = kernel::signal(represented.as_fd(), libc::SIGKILL);
            break;
        }
        if has_ended() {
            break;
        }
    }
    let _ = runtime.kill();
}

/// Returns the files of a helper: the process for the runtime, and the id that the runtime has given it.
fn files_of(dir: &Path, helper: Pid) -> [PathBuf; 2] {
    ["json", "pid"].map(|ending| dir.join(format!("exec-{helper}.{ending}")))
}

/// Removes the files that exist.
pub(super) fn remove_all(files: &[PathBuf]) {
    for file in files {
        let _ = std::fs::remove_file(file);
    }
}

fn read_pid(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns the parent of a process, by field 4 of /proc/PID/stat (proc_pid_stat(5)).
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may contain any character.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the runtime that an order selects.
pub(super) fn of(dir: &Path, order: &Order) -> Box<dyn Runtime> {
    match &order.runtime {
        None => Box::new(Embedded::new(dir, order)),
        Some(program) => Box::new(CommandLine { dir: dir.to_owned(), id: order.id.clone(), program: program.clone() }),
    }
}

/// Makes the spawner of a container that the embedded runtime runs: a process that starts the contained processes that it
/// is asked for over this connection ([`crate::process::spawner`]). It becomes the supervisor's child. Returns its process
/// id.
pub(super) fn spawner(dir: &Path, order: &Order, connection: OwnedFd) -> Result<i32, RunError> {
    Embedded::new(dir, order).spawner(connection)
}

/// Returns the folder in which a runtime keeps its states.
fn states(dir: &Path) -> PathBuf {
    dir.join("runtime")
}

struct Embedded {
    dir: PathBuf,
    id: String,
    groups: Groups,
    /// The container and its configuration, which are read once.
    loaded: OnceCell<(Container, Spec)>,
}

impl Embedded {
    fn new(dir: &Path, order: &Order) -> Self {
        Self { dir: dir.to_owned(), id: order.id.clone(), groups: order.groups.clone(), loaded: OnceCell::new() }
    }

    fn container(&self) -> Result<Container, StepError> {
        Container::load(&states(&self.dir), &self.id)
    }

    fn loaded(&self) -> Result<&(Container, Spec), StepError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let container = self.container()?;
        let spec = container.spec()?;
        Ok(self.loaded.get_or_init(|| (container, spec)))
    }

    fn spawner(&self, connection: OwnedFd) -> Result<i32, RunError> {
        let (container, spec) = self.loaded()?;
        let nested = self.groups.nested().ok_or_else(|| RunError::new("there is no group for contained processes"))?;
        nested.make()?;
        let process = Process { args: Vec::new(), terminal: false, console_size: None, ..self.process()? };
        let mut execution = Execution::new(process);
        execution.supervised = true;
        execution.subgroups.push(nested.name);
        execution.spawns_for = Some(connection);
        execution.start(container, spec, || Ok(()))
    }
}

impl Runtime for Embedded {
    fn run(&self, spec: &Spec, console: Option<OwnedFd>) -> Result<i32, RunError> {
        let mut creation = Creation::new(&states(&self.dir), &self.id, &mounts::bundle(&self.dir));
        creation.console = console;
        creation.supervised = true;
        // The daemon knows where its groups are. This process can't find out, because it may be in another group.
        creation.groups = GroupChoice::Given(self.groups.clone());
        if spec.linux().seccomp.is_some() {
            creation.filter = Some(prepare::filter(&self.dir)?);
        }
        crate::validate::validate(spec)?;
        if spec.hooks.is_some() {
            // Hooks look into the bundle, for the root among others.
            prepare::write(&self.dir, spec)?;
        }
        Ok(creation.run(spec, drop, |_| Ok(()))?.pid)
    }

    fn exec(&self, process: Process, exec: &ExecSpec, console: Option<OwnedFd>) -> Result<StartedExec, RunError> {
        let (container, spec) = self.loaded()?;
        let mut execution = Execution::new(process);
        execution.console = console;
        execution.supervised = true;
        if let Some(nested) = self.groups.nested().filter(|_| exec.contained) {
            nested.make()?;
            execution.subgroups.push(nested.name);
        }
        execution.start(container, spec, || Ok(())).map(StartedExec::Child)
    }

    fn process(&self) -> Result<Process, StepError> {
        Ok(self.loaded()?.1.process.clone().unwrap_or_default())
    }

    fn delete(&self) -> Result<(), RunError> {
        Ok(self.container()?.delete(true, drop)?)
    }
}

/// A runtime with runc's command line, such as `crun` or `runc`.
struct CommandLine {
    dir: PathBuf,
    id: String,
    program: PathBuf,
}

/// One line of a runtime's log.
#[derive(serde::Deserialize)]
struct ReportLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl CommandLine {
    fn log(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(states(&self.dir)).arg("--log").arg(self.log()).args(["--log-format", "json", verb]);
        command
    }

    fn call(&self, mut command: Command, what: &str) -> Result<(), RunError> {
        let act = || format!("{what} with {}", self.program.display());
        let status = command.status().act(act)?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<ReportLine>(line).ok());
        let reported = lines.find(|it| it.level == "error" || it.level == "fatal").map(|it| it.msg);
        let why = reported.unwrap_or_else(|| format!("it ended with {status}"));
        Err(StepError::refuse(act(), why.trim().replace('\n', " ")).into())
    }

    fn init(&self) -> Result<i32, StepError> {
        let path = self.pid_file();
        let text = std::fs::read_to_string(&path).act(|| format!("read {}", path.display()))?;
        let pid = text.trim().parse();
        pid.map_err(|_| StepError::refuse(format!("read {}", path.display()), "it holds no process id"))
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("init.pid")
    }
}

impl Runtime for CommandLine {
    fn run(&self, spec: &Spec, console: Option<OwnedFd>) -> Result<i32, RunError> {
        prepare::write(&self.dir, spec)?;
        let mut command = self.command("create");
        command.arg("--bundle").arg(mounts::bundle(&self.dir)).arg("--pid-file").arg(self.pid_file());
        let relay = console.map(|it| console::Relay::listen(&self.dir, it)).transpose()?;
        if let Some(relay) = &relay {
            command.arg("--console-socket").arg(relay.path());
        }
        command.arg(&self.id);
        // The runtime's own messages go to the log, because these descriptors are the container's.
        self.call(command, "create the container")?;
        relay.map_or(Ok(()), console::Relay::pass_on)?;
        let mut command = self.command("start");
        command.arg(&self.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.call(command, "start the container")?;
        Ok(self.init()?)
    }

    fn exec(&self, process: Process, _: &ExecSpec, console: Option<OwnedFd>) -> Result<StartedExec, RunError> {
        let files = files_of(&self.dir, Pid::this());
        // Left by an earlier helper with this id, if by any.
        remove_all(&files);
        state::write_volatile(&files[0], &process).act(|| "write the process".into())?;
        let mut command = self.command("exec");
        command.arg("--process").arg(&files[0]).arg("--pid-file").arg(&files[1]);
        clone::with_parents_life(&mut command);
        let relay = console.map(|it| console::Relay::listen(&self.dir, it)).transpose()?;
        if let Some(relay) = &relay {
            command.arg("--console-socket").arg(relay.path());
        }
        command.arg(&self.id);
        let mut child = command.spawn().act(|| format!("exec with {}", self.program.display()))?;
        if let Err(error) = relay.map_or(Ok(()), console::Relay::pass_on) {
            let _ = child.kill();
            return Err(error.into());
        }
        Ok(StartedExec::Through(child, files))
    }

    fn process(&self) -> Result<Process, StepError> {
        let spec: Spec = read_json(&mounts::bundle(&self.dir).join("config.json"))?;
        Ok(spec.process.unwrap_or_default())
    }

    fn delete(&self) -> Result<(), RunError> {
        let mut command = self.command("delete");
        command.args(["--force", &self.id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.call(command, "delete the container")
    }
}
