//! Creates a process in its namespaces, with a channel to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::channel::{Channel, ChildMessage};
use super::clone::{self, Parent, Side};
use super::namespaces::Namespaces;
use super::user_namespace;
use crate::error::{Act, RunError, StepError};
use crate::oci::{Linux, NamespaceKind};
use crate::syscall::process as kernel;

/// Longest wait for a message of a new process. Hooks have a timeout of their own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The error for a process that ended without a message.
const KILLED: &str = "failed to start the container: its init was killed";

/// The parameters of a new process.
pub(crate) struct Launch<'a> {
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) linux: &'a Linux,
    pub(crate) parent: Parent,
}

/// A process that waits for permission to continue once it is in its namespaces.
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    pub(crate) process: OwnedFd,
    pub(crate) channel: Channel,
    /// Whether its user namespace has no maps yet.
    pub(crate) unmapped: bool,
}

impl Launch<'_> {
    /// Creates the process, which calls `child` in its namespaces; `child` does not return on success.
    pub(crate) fn start(&self, child: impl FnOnce(&Channel) -> StepError) -> Result<Launched, RunError> {
        let (channel, theirs) = Channel::pair()?;
        let new_user = self.namespaces.makes(NamespaceKind::User);
        if !self.namespaces.need_a_step() {
            return match self.fork(self.namespaces.flags(), self.parent)? {
                Side::Child => {
                    drop(channel);
                    let error = self.namespaces.enter().err().unwrap_or_else(|| child(&theirs));
                    fail(&theirs, &error)
                }
                Side::Parent(pid, process) => Ok(Launched { pid, process, channel, unmapped: new_user }),
            };
        }
        match clone::fork(0, self.parent).act(|| "start a process".into())? {
            Side::Child => {
                drop(channel);
                let error = match self.step(&theirs) {
                    Ok(true) => child(&theirs),
                    Ok(false) => clone::exit(0),
                    Err(error) => error,
                };
                fail(&theirs, &error)
            }
            Side::Parent(step, _) => {
                drop(theirs);
                let launched = self.receive_init(step, channel);
                if self.parent == Parent::Caller {
                    let _ = waitpid(step, None);
                }
                launched
            }
        }
    }

    /// Forks into the PID namespace to join, if there is one. Later children of this process stay in its own
    /// namespace.
    fn fork(&self, flags: u64, parent: Parent) -> Result<Side, StepError> {
        let act = || "make the namespaces".to_owned();
        let Some(theirs) = self.namespaces.joined_pids() else { return clone::fork(flags, parent).act(act) };
        let join = || "join the pid namespace".to_owned();
        // Processes in that namespace must not inspect the new process before it executes another program
        // (CVE-2016-9962).
        kernel::hide().act(|| "hide the process".into())?;
        let own = kernel::open(nix::unistd::getpid().as_raw()).act(join)?;
        setns(theirs, CloneFlags::CLONE_NEWPID).act(join)?;
        let forked = clone::fork(flags, parent).act(act)?;
        if matches!(forked, Side::Parent(..)) {
            setns(own, CloneFlags::CLONE_NEWPID).act(join)?;
        }
        Ok(forked)
    }

    /// Runs in the intermediate process: joins namespaces, then forks once more. Returns true in the process that was
    /// wanted.
    fn step(&self, channel: &Channel) -> Result<bool, StepError> {
        let new_time = self.namespaces.makes(NamespaceKind::Time);
        // A PID namespace of the machine is joined while this process has the machine's rights, one of the container
        // afterwards.
        let mut pids = self.namespaces.joined_pids();
        if pids.is_some() {
            kernel::hide().act(|| "hide the process".into())?;
            pids = pids.filter(|fd| setns(fd, CloneFlags::CLONE_NEWPID).is_err());
        }
        // The file is opened while /proc is still the machine's.
        let offsets = new_time.then(|| File::options().write(true).open("/proc/self/timens_offsets"));
        self.namespaces.enter()?;
        let mut flags = self.namespaces.flags();
        if let Some(offsets) = offsets {
            let mut offsets = offsets.act(|| "open the time offsets".into())?;
            if self.namespaces.makes(NamespaceKind::User) {
                unshare(CloneFlags::CLONE_NEWUSER).act(|| "make a user namespace".into())?;
                channel.request(&ChildMessage::MapIds)?;
                become_root()?;
                flags &= !u64::try_from(libc::CLONE_NEWUSER).expect("a positive constant");
            }
            let time = CloneFlags::from_bits_retain(NamespaceKind::Time.flag());
            unshare(time).act(|| "make a time namespace".into())?;
            for (clock, offset) in &self.linux.time_offsets {
                let line = format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
                offsets.write_all(line.as_bytes()).act(|| format!("set linux.timeOffsets.{clock}"))?;
            }
        }
        if let Some(fd) = pids {
            setns(fd, CloneFlags::CLONE_NEWPID).act(|| "join the pid namespace".into())?;
        }
        match clone::fork(flags, Parent::CallersParent).act(|| "make the namespaces".into())? {
            Side::Child => Ok(true),
            Side::Parent(pid, _) => channel.send(&ChildMessage::Init(pid.as_raw())).map(|()| false),
        }
    }

    fn receive_init(&self, step: Pid, channel: Channel) -> Result<Launched, RunError> {
        let mut mapped = false;
        loop {
            match channel.receive(Instant::now() + PATIENCE)? {
                Some(ChildMessage::MapIds) => {
                    user_namespace::map(step, &self.linux.uid_mappings, &self.linux.gid_mappings)?;
                    mapped = true;
                    channel.answer()?;
                }
                Some(ChildMessage::Init(pid)) => {
                    // The process waits for an answer, so its id can't have been reused yet.
                    let process = kernel::open(pid).act(|| "open the container's init".into())?;
                    let unmapped = self.namespaces.makes(NamespaceKind::User) && !mapped;
                    return Ok(Launched { pid: Pid::from_raw(pid), process, channel, unmapped });
                }
                Some(ChildMessage::Failed(code, text)) => return Err(RunError { text, code }),
                _ => return Err(RunError::new("failed to start a process: it ended before it began")),
            }
        }
    }
}

impl Launched {
    /// Lets the process continue if `done` succeeded. If `done` failed because the process had ended, the error is the
    /// reason that the process reported.
    pub(crate) fn begin(&self, done: Result<(), StepError>) -> Result<(), RunError> {
        let Err(error) = done else { return Ok(self.channel.answer()?) };
        match self.channel.receive(Instant::now()) {
            Ok(Some(ChildMessage::Failed(code, text))) => Err(RunError { text, code }),
            Ok(None) => Err(RunError::new(KILLED)),
            _ => Err(error.into()),
        }
    }

    /// Receives the next message of the process; a reported failure becomes an error.
    pub(crate) fn receive(&self) -> Result<ChildMessage, RunError> {
        match self.channel.receive(Instant::now() + PATIENCE)? {
            Some(ChildMessage::Failed(code, text)) => Err(RunError { text, code }),
            Some(message) => Ok(message),
            None => Err(RunError::new(KILLED)),
        }
    }

    /// Kills the process in any state.
    pub(crate) fn kill(&self, parent: Parent) {
        let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
        if parent == Parent::Caller {
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Takes the ids of the container's root, in a user namespace that has just been mapped or joined.
pub(crate) fn become_root() -> Result<(), StepError> {
    match kernel::become_user(0, 0) {
        // A namespace without a root is legal; the process keeps the overflow id until it becomes its user.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).act(|| "become root in the user namespace".into()),
    }
}

fn fail(channel: &Channel, error: &StepError) -> ! {
    let _ = channel.send(&ChildMessage::Failed(error.code(), error.to_string()));
    clone::exit(error.code().unwrap_or(1))
}
