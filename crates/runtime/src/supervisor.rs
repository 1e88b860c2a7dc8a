//! The supervisor: starts one container, keeps its output and exit code, answers over a socket, and ends with it.
//! One thread, one poll loop, a few buffers.

mod conversation;
mod signals;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::cgroup;
use crate::client::Message;
use crate::error::{Act, RunError, StepError};
use crate::log::LogWriter;
use crate::process::{clone, exit_code, init, read_report};
use crate::security::Filter;
use crate::spec::ContainerSpec;
use crate::state::{self, ExitStatus, State};

use conversation::Conversation;

/// Connections at once; a further one is closed.
const CONVERSATIONS: usize = 64;

/// Runs the container of `dir` (its `spec.json`). Returns in the process that was called when the container's
/// program runs, or could not be started; a process of its own goes on and watches it.
///
/// # Errors
/// Why the container did not start. Nothing of it is left then.
pub fn supervise(dir: &Path) -> Result<(), RunError> {
    clone::close_from_3();
    let text = |error: StepError| RunError(error.to_string());
    let spec: Option<ContainerSpec> =
        state::read(&dir.join("spec.json")).act(|| "read the spec".into()).map_err(text)?;
    let spec = spec.ok_or_else(|| RunError(format!("failed to read the spec: {} has none", dir.display())))?;
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into()).map_err(text)?;
    match clone::fork(0).act(|| "start the supervisor".into()).map_err(text)? {
        clone::Side::Parent(..) => {
            drop(writer);
            read_report(reader)
        }
        clone::Side::Child => {
            drop(reader);
            let code = match Supervisor::start(dir, spec) {
                Ok(supervisor) => {
                    drop(writer);
                    supervisor.run()
                }
                Err(error) => {
                    let _ = File::from(writer).write_all(error.0.as_bytes());
                    1
                }
            };
            clone::exit(code)
        }
    }
}

struct Supervisor {
    dir: std::path::PathBuf,
    spec: ContainerSpec,
    filter: Filter,
    init: Pid,
    init_fd: OwnedFd,
    signals: signals::Signals,
    listener: UnixListener,
    /// Standard output and error; `None` once it has ended.
    output: [Option<File>; 2],
    log: LogWriter,
    conversations: Vec<Conversation>,
    ended: Option<i32>,
}

impl Supervisor {
    fn start(dir: &Path, spec: ContainerSpec) -> Result<Self, RunError> {
        let prepare = || -> Result<_, StepError> {
            nix::unistd::setsid().act(|| "begin a session".into())?;
            detach_stdio().act(|| "let go of the standard descriptors".into())?;
            let signals = signals::Signals::watch().act(|| "watch for signals".into())?;
            let socket = dir.join("sock");
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).act(|| format!("listen at {}", socket.display()))?;
            listener.set_nonblocking(true).act(|| "listen".into())?;
            let log = LogWriter::open(&spec.log, spec.log_bytes).act(|| format!("open {}", spec.log.display()))?;
            Ok((signals, listener, log, Filter::compile()?))
        };
        let text = |error: StepError| RunError(error.to_string());
        let (signals, listener, log, filter) = prepare().map_err(text)?;
        cgroup::create(&spec.cgroups, &spec.limits).map_err(text)?;
        let started = start_init(&spec, &filter).and_then(|started| {
            let own = i32::try_from(std::process::id()).expect("process ids fit");
            let start_time = state::start_time(started.init.as_raw()).unwrap_or(0);
            let state = State { pid: started.init.as_raw(), start_time, supervisor: own };
            let written = state::write(&dir.join("state.json"), &state).act(|| "write the state".into());
            written.map(|()| started).map_err(text)
        });
        let started = started.inspect_err(|_| cgroup::remove(&spec.cgroups))?;
        Ok(Self {
            dir: dir.to_owned(),
            filter,
            init: started.init,
            init_fd: started.init_fd,
            signals,
            listener,
            output: started.output.map(|pipe| Some(File::from(pipe))),
            log,
            conversations: Vec::new(),
            ended: None,
            spec,
        })
    }

    /// Until the container has ended and its output is read.
    fn run(mut self) -> i32 {
        while self.ended.is_none() || self.output.iter().any(Option::is_some) {
            if let Err(error) = self.turn() {
                // Nobody would watch the container any more: it goes too, and its folder says why it ended.
                let _ = kill(self.init, Signal::SIGKILL);
                let _ = self.log.write(2, format!("supervisor: {error}\n").as_bytes());
                self.ended = self.ended.or(Some(137));
                break;
            }
        }
        self.finish()
    }

    fn turn(&mut self) -> io::Result<()> {
        let mut polled: Vec<PollFd<'_>> = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        polled.extend(self.conversations.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        polled.extend(self.output.iter().flatten().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        // After its end only what is already in the pipes is of interest.
        let timeout = if self.ended.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let ready = match poll(&mut polled, timeout) {
            Err(nix::Error::EINTR) => return Ok(()),
            other => other?,
        };
        let is_ready = |it: &PollFd<'_>| it.revents().is_some_and(|events| !events.is_empty());
        let flags: Vec<bool> = polled.iter().map(is_ready).collect();
        drop(polled);
        if ready == 0 {
            self.output = [None, None];
        }
        let conversations = self.conversations.len();
        self.read_output(&flags[2 + conversations..])?;
        if flags[0] {
            self.signals.clear()?;
            self.reap();
        }
        for index in (0..conversations).rev().filter(|index| flags[2 + index]) {
            self.converse(index);
        }
        if flags[1]
            && let Ok((stream, _)) = self.listener.accept()
            && self.conversations.len() < CONVERSATIONS
        {
            self.conversations.push(Conversation::new(stream));
        }
        Ok(())
    }

    fn read_output(&mut self, ready: &[bool]) -> io::Result<()> {
        let mut ready = ready.iter();
        for index in 0..2 {
            let Some(pipe) = &mut self.output[index] else { continue };
            if ready.next() != Some(&true) {
                continue;
            }
            let mut buffer = [0; 8 << 10];
            match pipe.read(&mut buffer)? {
                0 => self.output[index] = None,
                // A full disk must not stop the container: what can't be kept is lost.
                count => drop(self.log.write(index + 1, &buffer[..count])),
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(code) = exit_code(status) else {
                if status == WaitStatus::StillAlive { return } else { continue }
            };
            if status.pid() == Some(self.init) {
                self.ended = Some(code);
            }
            for conversation in
                self.conversations.iter_mut().filter(|it| it.process.is_some() && it.process == status.pid())
            {
                conversation.say(&Message::ExecExited(code));
                conversation.process = None;
            }
        }
    }

    fn converse(&mut self, index: usize) {
        let container = crate::process::exec::Container { spec: &self.spec, init: &self.init_fd, filter: &self.filter };
        let conversation = &mut self.conversations[index];
        let goes_on = match conversation.hear() {
            Ok(Some(Message::Kill(signal))) => {
                if let Ok(signal) = Signal::try_from(signal) {
                    let _ = kill(self.init, signal);
                }
                true
            }
            Ok(Some(Message::Exec(spec))) => {
                match conversation.take_stdio() {
                    Some(stdio) => match crate::process::exec::start(&container, &spec, stdio) {
                        Ok(pid) => {
                            conversation.process = Some(pid);
                            conversation.say(&Message::ExecStarted);
                        }
                        Err(error) => conversation.say(&Message::Failed(error.0)),
                    },
                    None => conversation.say(&Message::Failed("exec needs three descriptors".into())),
                }
                true
            }
            Ok(Some(_)) | Ok(None) => true,
            Err(_) => false,
        };
        if !goes_on {
            let gone = self.conversations.remove(index);
            if let Some(process) = gone.process {
                // Whoever asked for it has gone: so shall it, as when a terminal is closed.
                let _ = kill(process, Signal::SIGKILL);
            }
        }
    }

    fn finish(mut self) -> i32 {
        let _ = self.log.finish();
        let out_of_memory = cgroup::out_of_memory(&self.spec.cgroups);
        let status = ExitStatus { code: self.ended.unwrap_or(137), out_of_memory, at: crate::log::now() };
        let _ = state::write(&self.dir.join("exit.json"), &status);
        if let Ok(dir) = File::open(&self.dir) {
            let _ = dir.sync_all();
        }
        cgroup::remove(&self.spec.cgroups);
        let _ = std::fs::remove_file(self.dir.join("sock"));
        for conversation in &mut self.conversations {
            conversation.say(&Message::Exited(status.clone()));
        }
        0
    }
}

struct Started {
    init: Pid,
    init_fd: OwnedFd,
    output: [OwnedFd; 2],
}

fn start_init(spec: &ContainerSpec, filter: &Filter) -> Result<Started, RunError> {
    let failed = |error: nix::Error| RunError(format!("failed to start the container: {}", error.desc()));
    let pipe = || pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed);
    let ((go_reader, go_writer), (report_reader, report_writer)) = (pipe()?, pipe()?);
    let ((out_reader, out_writer), (err_reader, err_writer)) = (pipe()?, pipe()?);
    let flags = u64::try_from(init::NAMESPACES).expect("positive flags");
    match clone::fork(flags).map_err(failed)? {
        clone::Side::Child => {
            drop((go_writer, report_reader));
            let _ = nix::unistd::dup2_stdout(&out_writer);
            let _ = nix::unistd::dup2_stderr(&err_writer);
            signals::unblock();
            init::run(spec, filter, &go_reader, report_writer)
        }
        clone::Side::Parent(init, init_fd) => {
            drop((go_reader, report_writer, out_writer, err_writer));
            let joined = cgroup::join(&spec.cgroups, init.as_raw()).map_err(|error| RunError(error.to_string()));
            let go = || nix::unistd::write(&go_writer, b"g").map(drop).map_err(failed);
            let result = joined.and_then(|()| go()).and_then(|()| read_report(report_reader));
            if let Err(error) = result {
                let _ = kill(init, Signal::SIGKILL);
                let _ = waitpid(init, None);
                return Err(error);
            }
            Ok(Started { init, init_fd, output: [out_reader, err_reader] })
        }
    }
}

/// Standard descriptors to /dev/null: whoever called waits for the end of the ones that were given.
fn detach_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}
