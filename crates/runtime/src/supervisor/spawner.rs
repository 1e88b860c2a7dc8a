//! The supervisor's side of a spawner: the process in the container that starts contained processes
//! ([`crate::process::spawner`]). It is made for the first one and stays, so that a check of health each second costs little
//! more than its program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::fstat;
use nix::unistd::{Gid, Pid, Uid, fchown};

use super::Place;
use super::order::ExecSpec;
use super::peer::PeerId;
use super::starting::Starting;
use super::{report, runtime};
use crate::connection::{Connection, Wait};
use crate::error::{Act, RunError, StepError};
use crate::process::spawner::{FromSpawner, ToSpawner};

/// A process that was given to the spawner and has not started yet.
pub(super) struct Given {
    pub(super) peer: PeerId,
    pub(super) spec: ExecSpec,
    pub(super) descriptors: Vec<OwnedFd>,
}

enum Stage {
    /// It is being made.
    Starting(Starting),
    Ready {
        pid: Pid,
        /// Its user and group, as the machine sees them.
        owner: (Uid, Gid),
    },
}

pub(super) struct Spawner {
    connection: Connection,
    stage: Stage,
    /// What it has been given last, until that has started.
    given: Option<Given>,
    /// The client whose process it runs.
    runs: Option<PeerId>,
    /// Whether it has run a process to its end.
    has_served: bool,
}

/// What has become of the process that a spawner was given last.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It runs.
    Started(PeerId),
    /// It can't be run, for this reason.
    Failed(PeerId, RunError),
    /// It has ended with this exit code.
    Ended(PeerId, i32),
    /// The spawner is gone, or of no use.
    Lost,
}

impl Spawner {
    /// Returns whether a spawner can start such a process in such a container.
    pub(super) fn can_start(place: Place<'_>, spec: &ExecSpec) -> bool {
        let is_plain = spec.env.is_empty() && spec.cwd.is_empty() && spec.user.is_empty() && !spec.tty;
        spec.contained && is_plain && place.order.runtime.is_none() && place.order.groups.nested().is_some()
    }

    /// Begins to make the container's spawner.
    pub(super) fn start(place: Place<'_>) -> Result<Self, RunError> {
        let (connection, theirs) = Connection::pair().act(|| "make a connection".into())?;
        let (dir, order) = (place.dir, place.order);
        let starting = Starting::fork(|pipe| {
            let made = runtime::spawner(dir, order, theirs.into());
            report::write(pipe, &made);
            i32::from(made.is_err())
        })?;
        Ok(Self { connection, stage: Stage::Starting(starting), given: None, runs: None, has_served: false })
    }

    /// Returns its process id, once it is known.
    pub(super) fn pid(&self) -> Option<i32> {
        match self.stage {
            Stage::Starting(_) => None,
            Stage::Ready { pid, .. } => Some(pid.as_raw()),
        }
    }

    /// Returns the client whose process it starts or runs.
    pub(super) fn client(&self) -> Option<PeerId> {
        self.given.as_ref().map(|it| it.peer).or(self.runs)
    }

    /// Returns whether it runs a process.
    pub(super) fn has_started(&self) -> bool {
        self.runs.is_some()
    }

    /// Returns whether it has run a process to its end, so that another like it can, too.
    pub(super) fn has_served(&self) -> bool {
        self.has_served
    }

    /// Gives it a process to start. It must not have another one.
    pub(super) fn give(&mut self, given: Given) -> Result<(), StepError> {
        let given = self.given.insert(given);
        let Stage::Ready { owner: (user, group), .. } = &self.stage else { return Ok(()) };
        // The program must be able to open /dev/stdout. Devices and files of the machine stay its own.
        let is_pipe = |it: &&OwnedFd| fstat(it).is_ok_and(|about| about.st_mode & libc::S_IFMT == libc::S_IFIFO);
        for descriptor in given.descriptors.iter().filter(is_pipe) {
            let _ = fchown(descriptor, Some(*user), Some(*group));
        }
        let descriptors: Vec<BorrowedFd<'_>> = given.descriptors.iter().map(AsFd::as_fd).collect();
        let sent = self.connection.send(&ToSpawner::Run(given.spec.argv.clone()), &descriptors, Wait::Fail);
        sent.act(|| "ask for a process".into())
    }

    /// Returns the process that has not started, so that it can be started in another way.
    pub(super) fn take_given(&mut self) -> Option<Given> {
        self.given.take()
    }

    /// Returns the descriptor to poll.
    pub(super) fn polled(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Starting(starting) => starting.report.as_fd(),
            Stage::Ready { .. } => self.connection.as_fd(),
        }
    }

    /// Reads what the descriptor has; `None` if it is nothing that a client has to know.
    pub(super) fn read(&mut self) -> Option<News> {
        if let Stage::Starting(starting) = &self.stage {
            return match report::read(&starting.report)? {
                Ok(pid) => self.begin(Pid::from_raw(pid)).err().map(|_| News::Lost),
                Err(_) => Some(News::Lost),
            };
        }
        match self.connection.recv(Wait::Fail) {
            Ok(Some((FromSpawner::Started, _))) => {
                let peer = self.given.take()?.peer;
                self.runs = Some(peer);
                Some(News::Started(peer))
            }
            Ok(Some((FromSpawner::Failed(error), _))) => Some(News::Failed(self.given.take()?.peer, error)),
            Ok(Some((FromSpawner::Ended(code), _))) => {
                self.has_served = true;
                Some(News::Ended(self.runs.take()?, code))
            }
            Ok(Some((FromSpawner::Unable, _)) | None) => Some(News::Lost),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => Some(News::Lost),
        }
    }

    fn begin(&mut self, pid: Pid) -> Result<(), StepError> {
        self.stage = Stage::Ready { pid, owner: owner(pid)? };
        self.given.take().map_or(Ok(()), |given| self.give(given))
    }

    /// Kills the helper that starts the spawner. The caller kills the spawner and what it has started, by their control group.
    pub(super) fn kill_helper(&self) {
        if let Stage::Starting(starting) = &self.stage {
            starting.kill();
        }
    }
}

/// Returns the effective user and group of a process (proc_pid_status(5)).
fn owner(pid: Pid) -> Result<(Uid, Gid), StepError> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).act(|| format!("read {path}"))?;
    let effective = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|it| it.split_whitespace().nth(1)).and_then(|it| it.parse().ok())
    };
    let found = effective("Uid:").zip(effective("Gid:"));
    let (user, group) = found.ok_or_else(|| StepError::refuse(format!("read {path}"), "it names no user"))?;
    Ok((Uid::from_raw(user), Gid::from_raw(group)))
}
