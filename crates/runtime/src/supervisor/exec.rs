//! Starts further processes in the container for clients.
//!
//! A process is prepared in a helper that the supervisor forks. The helper reports over a pipe which child of the
//! supervisor represents the process. Meanwhile the supervisor continues: it polls the pipe, and a timer bounds the
//! wait.
//!
//! Contained processes are given to the container's [`Spawner`]. If it can't start one, a helper does.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::message::FromSupervisor;
use super::order::ExecSpec;
use super::peer::PeerId;
use super::runtime::{self, StartedExec};
use super::spawner::{Given, News, Spawner};
use super::starting::Starting;
use super::{Place, prepare, report, user};
use crate::cgroup::Nested;
use crate::error::{Act, RunError, StepError};
use crate::oci::Process;
use crate::process::{exit_code, wait_readable};
use crate::rootfs::RootDir;
use crate::state::KILLED;
use crate::validate::check_process;

/// Longest wait for a process to start.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Number of exit codes that are remembered while a process starts.
const UNCLAIMED: usize = 1024;

enum ExecState {
    Starting(Starting),
    Running(Pid),
    /// The spawner starts or runs it.
    WithSpawner,
}

/// The descriptors that are polled for processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExecSource {
    /// The report on the process of this client.
    Report(PeerId),
    Spawner,
}

struct RunningExec {
    /// The client that requested it.
    peer: PeerId,
    /// Whether that client has disconnected.
    abandoned: bool,
    /// Whether it ends with everything that it has started.
    contained: bool,
    /// The group of everything that it starts, if that is to end with it.
    nested: Option<Nested>,
    state: ExecState,
}

/// The further processes of one container, each with the client that requested it.
#[derive(Default)]
pub(super) struct Execs {
    list: Vec<RunningExec>,
    /// Children that ended while a process was starting. One of them may be that process, whose id is not known yet.
    unclaimed: VecDeque<(Pid, i32)>,
    spawner: Option<Spawner>,
    /// Whether the first spawner could not do its work in this container. No other is made then.
    without_spawner: bool,
}

impl Execs {
    /// Returns whether this client has a process.
    pub(super) fn contains(&self, peer: PeerId) -> bool {
        self.list.iter().any(|it| it.peer == peer)
    }

    /// Returns the number of processes that are not contained.
    pub(super) fn of_users(&self) -> usize {
        self.list.iter().filter(|it| !it.contained).count()
    }

    /// Begins to start this client's process with these descriptors.
    pub(super) fn start(&mut self, place: Place<'_>, given: Given) -> Result<(), RunError> {
        if given.descriptors.len() != if given.spec.tty { 1 } else { 3 } {
            return Err(RunError::new("failed to exec: the wrong number of descriptors came along"));
        }
        if self.spawner.is_none() && !self.without_spawner && Spawner::can_start(place, &given.spec) {
            self.spawner = Spawner::start(place).ok();
        }
        let peer = given.peer;
        let contained = given.spec.contained;
        let nested = place.order.groups.nested().filter(|_| contained);
        let spawner = self.spawner.as_mut().filter(|_| Spawner::can_start(place, &given.spec));
        let state = match spawner.filter(|it| it.client().is_none()) {
            None => ExecState::Starting(start(place, &given.spec, given.descriptors)?),
            Some(spawner) => match spawner.give(given) {
                Ok(()) => ExecState::WithSpawner,
                Err(_) => ExecState::Starting(self.start_without(place)?),
            },
        };
        self.list.push(RunningExec { peer, abandoned: false, contained, nested, state });
        Ok(())
    }

    /// Begins to start the process that the spawner was given last, but could not start.
    fn start_without(&mut self, place: Place<'_>) -> Result<Starting, RunError> {
        let spawner = self.spawner.take();
        self.without_spawner |= !spawner.as_ref().is_some_and(Spawner::has_served);
        let given = spawner.and_then(|mut it| it.take_given());
        let given = given.ok_or_else(|| RunError::new("failed to start a process: its spawner is gone"))?;
        start(place, &given.spec, given.descriptors)
    }

    /// Removes a process that has ended or does not start. What is left in its group is killed, unless another process
    /// has the group by now.
    fn remove(&mut self, index: usize) -> PeerId {
        let exec = self.list.remove(index);
        if let Some(nested) = exec.nested.filter(|_| self.list.iter().all(|it| it.nested.is_none()))
            && nested.kill_unless_only(self.spawner.as_ref().and_then(Spawner::pid))
        {
            self.spawner = None;
        }
        exec.peer
    }

    /// Returns the descriptors to poll.
    pub(super) fn polled(&self) -> impl Iterator<Item = (ExecSource, BorrowedFd<'_>)> {
        let reports = self.reports().map(|(peer, report)| (ExecSource::Report(peer), report));
        reports.chain(self.spawner.iter().map(|it| (ExecSource::Spawner, it.polled())))
    }

    /// Returns the report pipes of the processes that start without the spawner.
    fn reports(&self) -> impl Iterator<Item = (PeerId, BorrowedFd<'_>)> {
        self.list.iter().filter_map(|exec| match &exec.state {
            ExecState::Starting(starting) => Some((exec.peer, starting.report.as_fd())),
            ExecState::Running(_) | ExecState::WithSpawner => None,
        })
    }

    /// Waits for a report on a process that starts without the spawner. Returns its client; `None` if there is no such
    /// process, or none has reported by then.
    pub(super) fn next_report(&self, until: Instant) -> Option<PeerId> {
        let (peer, report) = self.reports().next()?;
        wait_readable(&report, until.saturating_duration_since(Instant::now())).ok()?.then_some(peer)
    }

    /// Reads what the spawner says. Returns the client that it concerns, and the messages to send to it.
    pub(super) fn read_spawner(&mut self, place: Place<'_>) -> Option<(PeerId, FromSupervisor)> {
        let spawner = self.spawner.as_mut()?;
        let client = spawner.client();
        let news = spawner.read()?;
        let index = |peer: PeerId| self.list.iter().position(|it| it.peer == peer);
        match news {
            News::Started(peer) => Some((peer, FromSupervisor::Started)),
            News::Failed(peer, error) => {
                self.remove(index(peer)?);
                Some((peer, FromSupervisor::Failed(error)))
            }
            News::Ended(peer, code) => {
                self.remove(index(peer)?);
                Some((peer, FromSupervisor::ExecExited(code)))
            }
            News::Lost => self.lose_spawner(place, client),
        }
    }

    /// Gives up the spawner. Its process is started without it, or has ended with it.
    fn lose_spawner(&mut self, place: Place<'_>, client: Option<PeerId>) -> Option<(PeerId, FromSupervisor)> {
        let started = client.filter(|_| self.spawner.as_ref().is_some_and(Spawner::has_started));
        let Some(index) = self.list.iter().position(|it| Some(it.peer) == client) else {
            self.spawner = None;
            return None;
        };
        // What it has started goes with it, whether it could still say so or not.
        self.kill_nested(index);
        if let Some(peer) = started {
            // The container's processes have killed it.
            self.spawner = None;
            self.remove(index);
            return Some((peer, FromSupervisor::ExecExited(KILLED)));
        }
        match self.start_without(place) {
            Ok(starting) => {
                self.list[index].state = ExecState::Starting(starting);
                None
            }
            Err(error) => Some((self.remove(index), FromSupervisor::Failed(error))),
        }
    }

    /// Reads the report on this client's process, in the container of this folder. Returns the messages to send to the client.
    pub(super) fn report(&mut self, dir: &Path, peer: PeerId) -> Vec<FromSupervisor> {
        let Some(index) = self.list.iter().position(|it| it.peer == peer) else { return Vec::new() };
        let ExecState::Starting(starting) = &mut self.list[index].state else { return Vec::new() };
        let answers = match report::read(&starting.report).map(|it| it.map(Pid::from_raw)) {
            None => return Vec::new(),
            Some(Err(error)) => {
                starting.kill();
                self.remove(index);
                vec![FromSupervisor::Failed(error)]
            }
            Some(Ok(pid)) => match self.unclaimed.iter().find(|(ended, _)| *ended == pid) {
                Some((_, code)) => {
                    let code = *code;
                    self.remove(index);
                    vec![FromSupervisor::Started, FromSupervisor::ExecExited(code)]
                }
                None => {
                    self.list[index].state = ExecState::Running(pid);
                    if self.list[index].abandoned {
                        self.abandon(dir, peer);
                    }
                    vec![FromSupervisor::Started]
                }
            },
        };
        self.forget_unclaimed();
        answers
    }

    /// Gives up a process that has not started in time. Returns the message to send to its client.
    pub(super) fn expire(&mut self, peer: PeerId) -> Option<FromSupervisor> {
        let index = self.list.iter().position(|it| it.peer == peer)?;
        match &self.list[index].state {
            // The container's root may have stopped the helper.
            ExecState::Starting(starting) => starting.kill(),
            ExecState::WithSpawner if !self.spawner.as_ref().is_some_and(Spawner::has_started) => {
                self.end_spawner(index);
            }
            ExecState::WithSpawner | ExecState::Running(_) => return None,
        }
        self.remove(index);
        self.forget_unclaimed();
        let text = format!("failed to start a process: it did not begin within {PATIENCE:?}");
        Some(FromSupervisor::Failed(RunError::new(text)))
    }

    /// Kills the process of a client that has disconnected, as when a terminal is closed. A process that is still
    /// starting is killed once its id is known.
    pub(super) fn abandon(&mut self, dir: &Path, peer: PeerId) {
        let Some(index) = self.list.iter().position(|it| it.peer == peer) else { return };
        self.list[index].abandoned = true;
        match self.list[index].state {
            ExecState::Starting(_) => {}
            // The child has not been waited for, so no other process can have its id.
            ExecState::Running(pid) => {
                let signal = if runtime::is_helper(dir, pid) { Signal::SIGTERM } else { Signal::SIGKILL };
                let _ = kill(pid, signal);
            }
            ExecState::WithSpawner => {
                self.end_spawner(index);
                self.remove(index);
            }
        }
    }

    /// Ends the spawner, and all contained processes with it. One of them is that of this place.
    fn end_spawner(&mut self, index: usize) {
        if let Some(spawner) = self.spawner.take() {
            spawner.kill_helper();
        }
        self.kill_nested(index);
    }

    /// Kills everything in the group of this process.
    fn kill_nested(&self, index: usize) {
        if let Some(nested) = &self.list[index].nested {
            nested.kill_unless_only(None);
        }
    }

    /// Kills the helpers of all processes that have not started, because the container has ended.
    pub(super) fn end(&self) {
        for exec in &self.list {
            if let ExecState::Starting(starting) = &exec.state {
                starting.kill();
            }
        }
        self.spawner.iter().for_each(Spawner::kill_helper);
    }

    /// Records that a child has ended. Returns the client whose process it was.
    pub(super) fn reaped(&mut self, pid: Pid, code: i32) -> Option<PeerId> {
        let is_it = |it: &RunningExec| matches!(it.state, ExecState::Running(running) if running == pid);
        if let Some(index) = self.list.iter().position(is_it) {
            return Some(self.remove(index));
        }
        if self.reports().next().is_some() {
            self.unclaimed.truncate(UNCLAIMED - 1);
            self.unclaimed.push_front((pid, code));
        }
        None
    }

    fn forget_unclaimed(&mut self) {
        if self.reports().next().is_none() {
            self.unclaimed.clear();
        }
    }
}

/// Begins to start a process with these descriptors: its standard ones, or a socket for its terminal.
fn start(place: Place<'_>, spec: &ExecSpec, descriptors: Vec<OwnedFd>) -> Result<Starting, RunError> {
    Starting::fork(|pipe| help(place, spec, descriptors, pipe))
}

/// Runs in the helper: starts the process and reports. Returns the helper's exit code.
fn help(place: Place<'_>, spec: &ExecSpec, descriptors: Vec<OwnedFd>, pipe: &File) -> i32 {
    match run(place, spec, descriptors) {
        Ok(StartedExec::Child(pid)) => {
            report::write(pipe, &Ok(pid));
            0
        }
        Ok(StartedExec::Through(child, files)) => {
            let code = represent(child, &files, pipe).unwrap_or(255);
            runtime::remove_all(&files);
            code
        }
        Err(error) => {
            report::write(pipe, &Err(error));
            1
        }
    }
}

/// Represents a process that a runtime has started: returns its exit code when the runtime ends, and kills it if the supervisor
/// asks for that with SIGTERM.
fn represent(mut runtime: Child, files: &[PathBuf; 2], pipe: &File) -> std::io::Result<i32> {
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGCHLD].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    let watch = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    // The supervisor sends the signal only to what it knows.
    report::write(pipe, &Ok(Pid::this().as_raw()));
    loop {
        if let Some(status) = runtime.try_wait()? {
            return Ok(code_of(status));
        }
        if watch.read_signal()?.is_some_and(|it| it.ssi_signo == libc::SIGTERM.cast_unsigned()) {
            runtime::end_represented(&mut runtime, files);
        }
    }
}

fn code_of(status: std::process::ExitStatus) -> i32 {
    let status =
        nix::sys::wait::WaitStatus::from_raw(Pid::this(), std::os::unix::process::ExitStatusExt::into_raw(status));
    status.ok().and_then(exit_code).unwrap_or(255)
}

fn run(place: Place<'_>, exec: &ExecSpec, mut descriptors: Vec<OwnedFd>) -> Result<StartedExec, RunError> {
    let runtime = runtime::of(place.dir, place.order);
    let process = process(runtime.process()?, place, exec)?;
    if exec.tty {
        return runtime.exec(process, exec, descriptors.pop());
    }
    let [stdin, stdout, stderr] = descriptors.as_slice() else { unreachable!("counted before") };
    nix::unistd::dup2_stdin(stdin).act(|| "set standard input".into())?;
    nix::unistd::dup2_stdout(stdout).act(|| "set standard output".into())?;
    nix::unistd::dup2_stderr(stderr).act(|| "set standard error".into())?;
    runtime.exec(process, exec, None)
}

/// Changes the container's own process to the one that is wanted.
fn process(mut process: Process, place: Place<'_>, exec: &ExecSpec) -> Result<Process, StepError> {
    process.args.clone_from(&exec.argv);
    process.terminal = exec.tty;
    process.console_size = None;
    // Programs at a terminal need the variable, and images rarely set it.
    if exec.tty && !process.env.iter().any(|it| it.starts_with("TERM=")) {
        process.set_variable("TERM=xterm");
    }
    exec.env.iter().for_each(|variable| process.set_variable(variable));
    if !exec.cwd.is_empty() {
        process.cwd = exec.cwd.clone().into();
    }
    let root = RootDir::open(Path::new(&format!("/proc/{}/root", place.init)))?;
    // If it can't be created, entering it fails with the reason.
    let _ = root.make_folder(&process.cwd);
    if !exec.user.is_empty() && exec.user != place.order.user {
        process.env.retain(|it| !it.starts_with("HOME=") || exec.env.contains(it));
        prepare::take_user(&mut process, &user::find(&root, &exec.user, &place.order.extra_groups)?);
    }
    check_process(&process)?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::syscall::files::set_nonblocking;
    use crate::syscall::process as kernel;

    /// Nothing is there.
    const DIR: &str = "/nowhere";

    /// Returns a helper that does nothing, and the pipe for its report.
    fn starting() -> (Starting, Child, File) {
        let helper = Command::new("sleep").arg("1000").spawn().expect("every machine has it");
        let pid = i32::try_from(helper.id()).expect("process ids fit");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        set_nonblocking(reader.as_fd()).expect("a pipe");
        let (reader, writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
        (Starting { helper: kernel::open(pid).expect("it runs"), report: reader }, helper, writer)
    }

    fn end(mut helper: Child) {
        let _ = helper.kill();
        let _ = helper.wait();
    }

    const PEER: PeerId = PeerId(7);

    fn begin(execs: &mut Execs, starting: Starting) {
        let state = ExecState::Starting(starting);
        execs.list.push(RunningExec { peer: PEER, abandoned: false, contained: false, nested: None, state });
    }

    #[test]
    fn process_that_ends_before_its_report_is_read_keeps_its_code() {
        let (starting, helper, pipe) = starting();
        let mut execs = Execs::default();
        begin(&mut execs, starting);
        assert_eq!(execs.report(DIR.as_ref(), PEER), [], "nothing is reported yet");
        assert_eq!(execs.reaped(Pid::from_raw(4_000_001), 3), None);
        assert_eq!(execs.reaped(Pid::from_raw(4_000_002), 0), None, "a stranger");
        report::write(&pipe, &Ok(4_000_001));
        assert_eq!(execs.report(DIR.as_ref(), PEER), [FromSupervisor::Started, FromSupervisor::ExecExited(3)]);
        assert!(!execs.contains(PEER) && execs.unclaimed.is_empty());
        end(helper);
    }

    #[test]
    fn process_that_does_not_begin_in_time_is_given_up_with_its_helper() {
        let (starting, mut helper, _pipe) = starting();
        let mut execs = Execs::default();
        begin(&mut execs, starting);
        assert!(
            matches!(execs.expire(PEER), Some(FromSupervisor::Failed(error)) if error.text.contains("did not begin"))
        );
        assert_eq!((execs.contains(PEER), execs.expire(PEER)), (false, None));
        assert!(!helper.wait().expect("it has been killed").success());
    }

    #[test]
    fn process_whose_client_goes_while_it_starts_is_killed_once_it_is_known() {
        let (starting, helper, pipe) = starting();
        let mut process = Command::new("sleep").arg("1000").spawn().expect("every machine has it");
        let mut execs = Execs::default();
        begin(&mut execs, starting);
        execs.abandon(DIR.as_ref(), PEER);
        let pid = i32::try_from(process.id()).expect("process ids fit");
        report::write(&pipe, &Ok(pid));
        execs.report(DIR.as_ref(), PEER);
        assert!(!process.wait().expect("it has been killed").success());
        assert_eq!((execs.reaped(Pid::from_raw(pid), 137), execs.contains(PEER)), (Some(PEER), false));
        end(helper);
    }

    #[test]
    fn children_that_end_are_not_remembered_without_bound() {
        let (starting, helper, _pipe) = starting();
        let mut execs = Execs::default();
        assert_eq!((execs.reaped(Pid::from_raw(1), 0), execs.unclaimed.len()), (None, 0), "nothing is starting");
        begin(&mut execs, starting);
        for pid in 1..5000 {
            assert_eq!(execs.reaped(Pid::from_raw(pid), 0), None);
        }
        assert_eq!(execs.unclaimed.len(), UNCLAIMED);
        assert_eq!(execs.unclaimed.front(), Some(&(Pid::from_raw(4999), 0)), "the newest are kept");
        end(helper);
    }
}
