//! From a plan of namespaces to a process that is in them, with a channel to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::channel::{Channel, Word};
use super::clone::{self, Parent, Side};
use super::namespaces::Namespaces;
use super::user_namespace;
use crate::error::{Act, RunError, StepError};
use crate::oci::{Linux, NamespaceKind};
use crate::syscall::process as kernel;

/// A new process that says nothing for so long is given up. Hooks have their own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Its end without a word.
const KILLED: &str = "failed to start the container: its init was killed";

/// How it is made.
pub(crate) struct Launch<'a> {
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) linux: &'a Linux,
    pub(crate) parent: Parent,
}

/// A process that waits to be told to go on, as soon as it is in its namespaces.
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    pub(crate) process: OwnedFd,
    pub(crate) channel: Channel,
    /// Whether its user namespace still has no maps.
    pub(crate) unmapped: bool,
}

impl Launch<'_> {
    /// Makes it; `child` is what it does, in its namespaces, and does not return.
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
                let launched = self.hear_of_init(step, channel);
                if self.parent == Parent::Caller {
                    let _ = waitpid(step, None);
                }
                launched
            }
        }
    }

    /// Forks into the PID namespace that is to be joined, if there is one; this process's children to come stay where
    /// they were.
    fn fork(&self, flags: u64, parent: Parent) -> Result<Side, StepError> {
        let act = || "make the namespaces".to_owned();
        let Some(theirs) = self.namespaces.joined_pids() else { return clone::fork(flags, parent).act(act) };
        let join = || "join the pid namespace".to_owned();
        // Who is in there must not look into the new process before it is another program (CVE-2016-9962).
        kernel::hide().act(|| "hide the process".into())?;
        let own = kernel::open(nix::unistd::getpid().as_raw()).act(join)?;
        setns(theirs, CloneFlags::CLONE_NEWPID).act(join)?;
        let forked = clone::fork(flags, parent).act(act)?;
        if matches!(forked, Side::Parent(..)) {
            setns(own, CloneFlags::CLONE_NEWPID).act(join)?;
        }
        Ok(forked)
    }

    /// In between: joins what is to be joined, then forks once more. True in the process that was wanted.
    fn step(&self, channel: &Channel) -> Result<bool, StepError> {
        let new_time = self.namespaces.makes(NamespaceKind::Time);
        // One of the machine's is joined while this process has the machine's rights, one of the container's after.
        let mut pids = self.namespaces.joined_pids();
        if pids.is_some() {
            kernel::hide().act(|| "hide the process".into())?;
            pids = pids.filter(|fd| setns(fd, CloneFlags::CLONE_NEWPID).is_err());
        }
        // While /proc is still the machine's.
        let offsets = new_time.then(|| File::options().write(true).open("/proc/self/timens_offsets"));
        self.namespaces.enter()?;
        let mut flags = self.namespaces.flags();
        if let Some(offsets) = offsets {
            let mut offsets = offsets.act(|| "open the time offsets".into())?;
            if self.namespaces.makes(NamespaceKind::User) {
                unshare(CloneFlags::CLONE_NEWUSER).act(|| "make a user namespace".into())?;
                channel.ask(&Word::MapIds)?;
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
            Side::Parent(pid, _) => channel.say(&Word::Init(pid.as_raw())).map(|()| false),
        }
    }

    fn hear_of_init(&self, step: Pid, channel: Channel) -> Result<Launched, RunError> {
        let mut mapped = false;
        loop {
            match channel.hear(Instant::now() + PATIENCE)? {
                Some(Word::MapIds) => {
                    user_namespace::map(step, &self.linux.uid_mappings, &self.linux.gid_mappings)?;
                    mapped = true;
                    channel.answer()?;
                }
                Some(Word::Init(pid)) => {
                    // It waits for an answer: its number can't be another's yet.
                    let process = kernel::open(pid).act(|| "open the container's init".into())?;
                    let unmapped = self.namespaces.makes(NamespaceKind::User) && !mapped;
                    return Ok(Launched { pid: Pid::from_raw(pid), process, channel, unmapped });
                }
                Some(Word::Failed(code, text)) => return Err(RunError { text, code }),
                _ => return Err(RunError::new("failed to start a process: it ended before it began")),
            }
        }
    }
}

impl Launched {
    /// Tells it to go on when `done` is done. Where that failed because it has ended meanwhile, why it did is the error.
    pub(crate) fn begin(&self, done: Result<(), StepError>) -> Result<(), RunError> {
        let Err(error) = done else { return Ok(self.channel.answer()?) };
        match self.channel.hear(Instant::now()) {
            Ok(Some(Word::Failed(code, text))) => Err(RunError { text, code }),
            Ok(None) => Err(RunError::new(KILLED)),
            _ => Err(error.into()),
        }
    }

    /// What it says next; its failure as an error.
    pub(crate) fn hear(&self) -> Result<Word, RunError> {
        match self.channel.hear(Instant::now() + PATIENCE)? {
            Some(Word::Failed(code, text)) => Err(RunError { text, code }),
            Some(word) => Ok(word),
            None => Err(RunError::new(KILLED)),
        }
    }

    /// Ends it, whatever it is at.
    pub(crate) fn kill(&self, parent: Parent) {
        let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
        if parent == Parent::Caller {
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Ids of the container's root, in a user namespace that has just been mapped or joined.
pub(crate) fn become_root() -> Result<(), StepError> {
    match kernel::become_user(0, 0) {
        // A namespace without a root is legal; the process stays nobody until it becomes its user.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).act(|| "become root in the user namespace".into()),
    }
}

fn fail(channel: &Channel, error: &StepError) -> ! {
    let _ = channel.say(&Word::Failed(error.code(), error.to_string()));
    clone::exit(error.code().unwrap_or(1))
}
