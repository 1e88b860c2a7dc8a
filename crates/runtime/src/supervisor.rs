//! The supervisor: has one container made, keeps its output and exit code, answers over a socket, and ends with it.
//! One thread, one poll loop, a few buffers.
//!
//! What takes memory (reading a configuration, making a container) is done in processes that it forks and that end. The
//! container's init is its child all the same: the embedded runtime makes it so, and what another runtime leaves
//! behind it adopts.

mod attached;
mod console;
mod conversation;
mod exec;
pub(crate) mod launcher;
mod message;
mod order;
mod output;
mod prepare;
mod runtime;
mod signals;
mod start;
mod user;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Act, RunError};
use crate::log::LogWriter;
use crate::process::exit_code;
use crate::state::{self, ExitStatus};
use crate::syscall::process as kernel;

use conversation::Conversation;
pub use launcher::launch;
pub use message::Message;
pub use order::{ExecSpec, Order, Root};
use output::Output;
pub(crate) use prepare::bundle;
use start::Started;

/// Connections at once; a further one is closed.
const CONVERSATIONS: usize = 64;

struct Supervisor {
    dir: PathBuf,
    order: Order,
    init: Pid,
    process: OwnedFd,
    signals: signals::Signals,
    listener: UnixListener,
    output: Output,
    conversations: Vec<Conversation>,
    ended: Option<i32>,
}

impl Supervisor {
    fn start(dir: &Path, order: Order) -> Result<Self, RunError> {
        nix::unistd::setsid().act(|| "begin a session".into())?;
        detach_stdio().act(|| "let go of the standard descriptors".into())?;
        kernel::adopt_orphans().act(|| "adopt orphans".into())?;
        kernel::set_name(&std::ffi::CString::new(order.id.as_str()).unwrap_or_default())
            .act(|| "take a name".into())?;
        let signals = signals::Signals::watch().act(|| "watch for signals".into())?;
        let socket = dir.join("sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).act(|| format!("listen at {}", socket.display()))?;
        listener.set_nonblocking(true).act(|| "listen".into())?;
        let log = LogWriter::open(&order.log, order.log_bytes).act(|| format!("open {}", order.log.display()))?;
        let Started { init, process, streams } = start::start(dir, &order)?;
        Ok(Self {
            dir: dir.to_owned(),
            init,
            process,
            signals,
            listener,
            output: Output::new(log, streams),
            conversations: Vec::new(),
            ended: None,
            order,
        })
    }

    /// Ends the container, and all that was kept for it.
    fn stop(self) -> i32 {
        let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
        self.run()
    }

    /// Until the container has ended and its output is read.
    fn run(mut self) -> i32 {
        while self.ended.is_none() || self.output.is_open() {
            if let Err(error) = self.turn() {
                // Nobody would watch the container any more: it goes too, and its folder says why it ended.
                let _ = kernel::signal(self.process.as_fd(), libc::SIGKILL);
                self.output.note(&format!("supervisor: {error}"));
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
        polled.extend(self.output.descriptors().map(|it| PollFd::new(it, PollFlags::POLLIN)));
        // After its end only what is already in the pipes is of interest.
        let timeout = if self.ended.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let ready = match poll(&mut polled, timeout) {
            Err(nix::Error::EINTR) => return Ok(()),
            other => other?,
        };
        let flags: Vec<bool> = polled.iter().map(|it| it.any() == Some(true)).collect();
        drop(polled);
        if ready == 0 {
            self.output.close();
        }
        let conversations = self.conversations.len();
        self.output.read(&flags[2 + conversations..])?;
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

    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(code) = exit_code(status) else {
                if status == WaitStatus::StillAlive { return } else { continue }
            };
            if status.pid() == Some(self.init) {
                self.ended = Some(code);
            }
            let theirs = |it: &&mut Conversation| it.process.is_some() && it.process == status.pid();
            for conversation in self.conversations.iter_mut().filter(theirs) {
                conversation.say(&Message::ExecExited(code));
                conversation.process = None;
            }
        }
    }

    fn converse(&mut self, index: usize) {
        let conversation = &mut self.conversations[index];
        match conversation.hear() {
            Ok(Some(message)) => self.obey(index, message),
            Ok(None) => {}
            Err(_) => {
                let gone = self.conversations.remove(index);
                if let Some(process) = gone.process {
                    // Whoever asked for it has gone: so shall it, as when a terminal is closed.
                    let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
    }

    fn obey(&mut self, index: usize, message: Message) {
        let conversation = &mut self.conversations[index];
        match message {
            Message::Kill(signal) => drop(kernel::signal(self.process.as_fd(), signal)),
            Message::Exec(spec) => {
                match exec::start(&self.dir, &self.order, self.init, &spec, conversation.take_descriptors()) {
                    Ok(pid) => {
                        conversation.process = Some(pid);
                        conversation.say(&Message::ExecStarted);
                    }
                    Err(error) => conversation.say(&Message::Failed(error)),
                }
            }
            Message::Attach => match self.output.attach(conversation.take_descriptors()) {
                Ok(()) => conversation.say(&Message::Attached),
                Err(error) => conversation.say(&Message::Failed(RunError::new(error.to_string()))),
            },
            Message::Resize { rows, columns } => self.output.resize(rows, columns),
            // What only a supervisor says.
            _ => {}
        }
    }

    fn finish(mut self) -> i32 {
        self.output.finish();
        let out_of_memory = self.order.groups.out_of_memory() > 0;
        let status = ExitStatus { code: self.ended.unwrap_or(137), out_of_memory, at: crate::log::now() };
        let _ = state::write(&self.dir.join("exit.json"), &status);
        if let Ok(dir) = File::open(&self.dir) {
            let _ = dir.sync_all();
        }
        start::delete(&self.dir, &self.order);
        let _ = std::fs::remove_file(self.dir.join("sock"));
        for conversation in &mut self.conversations {
            conversation.say(&Message::Exited(status.clone()));
        }
        0
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
