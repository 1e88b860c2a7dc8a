//! The supervisor: creates one container through a runtime, keeps its output and exit code, serves requests over a
//! socket, and exits after the container. It has one thread, one poll loop and a few buffers. Nothing in the loop
//! blocks, except on the disk.
//!
//! Work that needs much memory (reading a configuration, creating a container) is done in short-lived child processes.
//! The container's init is nevertheless the supervisor's child: the embedded runtime creates it as such, and an init
//! that another runtime leaves behind is adopted.

mod apart;
mod attached;
mod console;
mod container_dir;
mod events;
mod exec;
pub(crate) mod launcher;
pub(crate) mod message;
mod mounts;
mod order;
mod output;
mod peer;
mod prepare;
mod report;
mod runtime;
mod signals;
mod spawner;
mod start;
mod starting;
mod timers;
mod user;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup::{OomEvent, OomWatch};
use crate::connection::{Connection, Listener, Wait};
use crate::error::{Act, RunError};
use crate::log::LogWriter;
use crate::process::exit_code;
use crate::state::{self, ExitStatus, KILLED, OomVictim, Reserved};
use crate::syscall::process as kernel;

use container_dir::ContainerDir;
use exec::{ExecSource, Execs};
pub use launcher::launch;
pub use message::ContainerEvent;
use message::{FromSupervisor, ToSupervisor};
pub(crate) use mounts::{bundle, try_ids};
pub use order::{ExecSpec, FileSystemMount, ImageFiles, ImageMount, Order, Part, RootSource};
use output::Output;
use peer::{Peer, PeerId};
use spawner::Given;
use start::Started;
use timers::Timers;

/// Name of the supervisor's socket in its container's folder.
pub(crate) const SOCKET: &str = "sock";

/// Largest number of clients; a further one is disconnected.
const PEERS: usize = 128;

/// Largest number of processes that users have in the container at once. They must not take the places of the daemon, which
/// watches the container and checks its health.
const USER_EXECS: usize = 64;

/// Time after the end of the container in which its last output is read, although others go on writing.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Time after the end of the container in which processes that were being started are reported.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);

/// Pause before a terminal that nobody has open is read again.
const TERMINAL_PAUSE: Duration = Duration::from_millis(100);

/// Time after SIGKILL for a container to end before everything in its control groups is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Time after an out-of-memory kill in which an init that it hit has received the signal.
const OOM_PATIENCE: Duration = Duration::from_secs(1);

/// The events of the loop besides descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// The process of this client has not started in time.
    ExecStart(PeerId),
    /// The container has not ended although its init was killed.
    KillGroups,
    /// All out-of-memory kills so far either have hit the init or have hit other processes.
    OomSettled,
    /// The container ended a while ago, and there is still output.
    DrainEnds,
    /// Somebody may have opened the terminal again.
    Terminal,
}

/// The container in which further processes are started.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The container's folder.
    dir: &'a Path,
    order: &'a Order,
    init: Pid,
}

struct Supervisor {
    dir: ContainerDir,
    order: Order,
    init: Pid,
    process: OwnedFd,
    signals: signals::Signals,
    listener: Listener,
    /// `None` if the machine does not count OOM kills, or if no more events follow.
    memory: Option<OomWatch>,
    /// Number of out-of-memory kills that have hit other processes than the init.
    oom_spared: u64,
    /// Whether a client has sent SIGKILL.
    kill_sent: bool,
    output: Output,
    peers: Vec<Peer>,
    next_peer: u64,
    execs: Execs,
    /// Descriptors of the daemon that this process only holds, so that they outlive the daemon.
    kept: Vec<OwnedFd>,
    timers: Timers<Timer>,
    /// How init ended, once it has.
    ended: Option<WaitStatus>,
    exit_file: Reserved,
}

impl Supervisor {
    fn start(dir: &Path, order: Order, kept: Vec<OwnedFd>) -> Result<Self, RunError> {
        nix::unistd::setsid().act(|| "begin a session".into())?;
        detach_stdio().act(|| "let go of the standard descriptors".into())?;
        kernel::adopt_orphans().act(|| "adopt orphans".into())?;
        kernel::set_name(&std::ffi::CString::new(order.id.as_str()).unwrap_or_default())
            .act(|| "take a name".into())?;
        let signals = signals::Signals::watch().act(|| "watch for signals".into())?;
        let folder = ContainerDir::open(dir).act(|| format!("open {}", dir.display()))?;
        let socket = dir.join(SOCKET);
        let listener = Listener::bind(&socket).act(|| format!("listen at {}", socket.display()))?;
        let log = order.log_bytes.map(|most| LogWriter::open(&order.log, most)).transpose();
        let log = log.act(|| format!("open {}", order.log.display()))?;
        let exit_file = Reserved::new(&dir.join("exit.json")).act(|| "reserve space for the exit status".into())?;
        let Started { init, process, streams } = start::start(&folder, &order)?;
        Ok(Self {
            dir: folder,
            init,
            process,
            signals,
            listener,
            memory: order.groups.watch_out_of_memory().ok(),
            oom_spared: 0,
            kill_sent: false,
            output: Output::new(log, streams).act(|| "take the container's output".into())?,
            peers: Vec::new(),
            next_peer: 0,
            execs: Execs::default(),
            kept,
            timers: Timers::new(),
            ended: None,
            exit_file,
            order,
        })
    }

    /// Reports to the daemon that the container runs, and supervises it until it has ended and its output is read.
    /// Returns this process's exit code.
    fn run(mut self, daemon: Connection) -> i32 {
        // A daemon that ended during the start is followed by one that finds the container.
        if daemon.send(&FromSupervisor::Started, &[], Wait::Fail).is_err() && self.dir.is_removed() {
            let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
        }
        self.add_peer(daemon).watches = true;
        while self.ended.is_none() || self.output.is_open() {
            if let Err(error) = self.turn() {
                // A container must not run without supervision. Its log records why it ended.
                let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
                self.output.note(&format!("supervisor: {error}"));
                break;
            }
        }
        self.finish()
    }

    fn add_peer(&mut self, connection: Connection) -> &mut Peer {
        self.peers.push(Peer::new(PeerId(self.next_peer), connection));
        self.next_peer += 1;
        self.peers.last_mut().expect("just added")
    }

    fn send(&self, peer: PeerId, message: &FromSupervisor) {
        if let Some(peer) = self.peers.iter().find(|it| it.id == peer) {
            peer.send(message);
        }
    }

    fn publish(&self, event: &ContainerEvent) {
        let message = FromSupervisor::Event(event.clone());
        self.peers.iter().filter(|it| it.watches).for_each(|it| it.send(&message));
    }

    fn accept(&mut self) {
        if let Ok(connection) = self.listener.accept()
            && self.peers.len() < PEERS
        {
            let id = self.add_peer(connection).id;
            // A client's first request often comes with it.
            self.read_peer(id);
        }
    }

    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(code) = exit_code(status) else {
                if status == WaitStatus::StillAlive { return } else { continue }
            };
            let Some(pid) = status.pid() else { continue };
            if pid == self.init {
                self.ended = Some(status);
                self.timers.set(Timer::DrainEnds, Instant::now() + DRAIN_PATIENCE);
            } else if let Some(peer) = self.execs.reaped(pid, code) {
                self.send(peer, &FromSupervisor::ExecExited(code));
            }
        }
    }

    /// Publishes an event when memory has run out.
    fn read_memory(&mut self) {
        match self.memory.as_mut().map(OomWatch::read) {
            Some(OomEvent::OutOfMemory) => {
                self.publish(&ContainerEvent::OutOfMemory);
                self.timers.set(Timer::OomSettled, Instant::now() + OOM_PATIENCE);
            }
            Some(OomEvent::Ended) => self.memory = None,
            Some(OomEvent::Nothing) | None => {}
        }
    }

    /// Handles the next request of a client. If there are more, its connection is ready again.
    fn read_peer(&mut self, id: PeerId) {
        let Some(index) = self.peers.iter().position(|it| it.id == id) else { return };
        match self.peers[index].recv() {
            Ok(Some((request, descriptors))) => self.handle(index, request, descriptors),
            Ok(None) => {}
            Err(_) => {
                self.peers.remove(index);
                self.execs.abandon(self.dir.path(), id);
            }
        }
    }

    fn handle(&mut self, peer: usize, request: ToSupervisor, descriptors: Vec<OwnedFd>) {
        match request {
            ToSupervisor::Watch => self.peers[peer].watches = true,
            ToSupervisor::Kill(signal) => self.kill(signal),
            ToSupervisor::Exec(spec) => {
                let id = self.peers[peer].id;
                match self.exec(id, spec, descriptors) {
                    Ok(()) => self.timers.set(Timer::ExecStart(id), Instant::now() + exec::PATIENCE),
                    Err(error) => self.send(id, &FromSupervisor::Failed(error)),
                }
            }
            ToSupervisor::Attach => self.peers[peer].send(&match self.output.attach(descriptors) {
                Ok(()) => FromSupervisor::Started,
                Err(error) => FromSupervisor::Failed(RunError::new(error.to_string())),
            }),
            ToSupervisor::Resize { rows, columns } => self.output.resize(rows, columns),
            ToSupervisor::Kept => self.peers[peer].send_with(&FromSupervisor::Kept, &self.kept),
        }
    }

    fn kill(&mut self, signal: i32) {
        // An init that has ended needs no signal.
        let _ = kernel::signal(self.process.as_fd(), signal);
        if signal == libc::SIGKILL {
            self.kill_sent = true;
            self.timers.set(Timer::KillGroups, Instant::now() + KILL_PATIENCE);
        }
    }

    fn exec(&mut self, peer: PeerId, spec: ExecSpec, descriptors: Vec<OwnedFd>) -> Result<(), RunError> {
        if self.execs.contains(peer) {
            return Err(RunError::new("failed to exec: this connection has a process already"));
        }
        if !spec.contained && self.execs.of_users() >= USER_EXECS {
            return Err(RunError::new(format!("failed to exec: users have {USER_EXECS} processes in it already")));
        }
        let place = Place { dir: self.dir.path(), order: &self.order, init: self.init };
        self.execs.start(place, Given { peer, spec, descriptors })
    }

    /// Reads the result of starting a process, or its end.
    fn read_exec(&mut self, source: ExecSource) {
        let place = Place { dir: self.dir.path(), order: &self.order, init: self.init };
        let answers = match source {
            ExecSource::Report(peer) => {
                self.execs.report(place.dir, peer).into_iter().map(|answer| (peer, answer)).collect()
            }
            ExecSource::Spawner => Vec::from_iter(self.execs.read_spawner(place)),
        };
        for (peer, answer) in answers {
            self.timers.cancel(&Timer::ExecStart(peer));
            self.send(peer, &answer);
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::ExecStart(peer) => {
                if let Some(answer) = self.execs.expire(peer) {
                    self.send(peer, &answer);
                }
            }
            // The daemon's next sweep finds the processes that can't be killed now.
            Timer::KillGroups => drop(self.order.groups.kill_all(libc::SIGKILL)),
            Timer::OomSettled => {
                // The kernel counts a kill before it sends the signal.
                let kills = self.order.groups.out_of_memory();
                if !state::is_killed(self.init.as_raw()) {
                    self.oom_spared = kills;
                }
            }
            Timer::DrainEnds => self.output.close(),
            Timer::Terminal => self.output.read_terminal_again(),
        }
    }

    /// Answers the clients whose processes were being started when the container ended: such a process may have run,
    /// and may have ended the container.
    fn settle_execs(&mut self) {
        let until = Instant::now() + SETTLE_PATIENCE;
        while Instant::now() < until
            && let Some(peer) = self.execs.next_report(until)
        {
            let answers = self.execs.report(self.dir.path(), peer);
            // One that could not be started any more is told that the container has ended.
            if answers.first() == Some(&FromSupervisor::Started) {
                answers.iter().for_each(|answer| self.send(peer, answer));
            }
        }
        self.reap();
    }

    fn finish(mut self) -> i32 {
        self.output.finish();
        self.settle_execs();
        self.execs.end();
        // An init that has not ended was killed with this supervisor's last error.
        let code = self.ended.and_then(exit_code).unwrap_or(KILLED);
        let unexplained = matches!(self.ended, Some(WaitStatus::Signaled(_, Signal::SIGKILL, _))) && !self.kill_sent;
        let out_of_memory = oom_victim(self.order.groups.out_of_memory(), self.oom_spared, unexplained);
        let status = ExitStatus { code, out_of_memory, at: crate::log::now() };
        // What is at its path now may belong to another attempt.
        if !self.dir.is_removed() {
            let _ = self.exit_file.write(&status);
            self.dir.sync();
            start::delete(self.dir.path(), &self.order);
        }
        if !self.dir.is_removed() {
            let _ = std::fs::remove_file(self.dir.path().join(SOCKET));
        }
        self.publish(&ContainerEvent::Exited(status));
        0
    }
}

/// Returns which process the kernel killed because memory was short. `unexplained` is whether init was ended by a
/// SIGKILL that no client had sent.
fn oom_victim(kills: u64, spared: u64, unexplained: bool) -> Option<OomVictim> {
    match kills {
        0 => None,
        _ if unexplained && kills > spared => Some(OomVictim::Init),
        _ => Some(OomVictim::Other),
    }
}

/// Redirects the standard descriptors to /dev/null, because the caller waits for the end of those that it passed.
fn detach_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn victim_is_the_init_only_if_a_kill_is_left_that_can_explain_its_end() {
        for (kills, spared, unexplained, expected) in [
            (0, 0, true, None),
            (1, 0, true, Some(OomVictim::Init)),
            // Init exited by itself, or was killed by a client or long after.
            (1, 0, false, Some(OomVictim::Other)),
            (1, 1, true, Some(OomVictim::Other)),
            (3, 2, true, Some(OomVictim::Init)),
        ] {
            assert_eq!(oom_victim(kills, spared, unexplained), expected, "{kills} {spared} {unexplained}");
        }
    }
}
