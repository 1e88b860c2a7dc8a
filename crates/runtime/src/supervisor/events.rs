//! One turn of the supervisor's loop: waits for ready descriptors and handles them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::exec::ExecSource;
use super::output;
use super::peer::PeerId;
use super::{Supervisor, TERMINAL_PAUSE, Timer};

/// The sources in the order in which they are handled: output comes before the end of its container, and an OOM event
/// comes before the end that it caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Output(output::OutputSource),
    Memory,
    Signals,
    Exec(ExecSource),
    Peer(PeerId),
    Listener,
}

impl Supervisor {
    /// Waits for events and handles them.
    ///
    /// # Errors
    /// The kernel refuses to wait, or the container's output can't be read.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        if ready.is_empty() && self.ended.is_some() {
            // The data in the pipes has been read. A process that left the container may hold them open for ever.
            self.output.close();
        }
        for source in ready {
            match source {
                Source::Output(source) => self.output.read(source)?,
                Source::Memory => self.read_memory(),
                Source::Signals => {
                    self.signals.clear()?;
                    self.reap();
                }
                Source::Exec(source) => self.read_exec(source),
                Source::Peer(peer) => self.read_peer(peer),
                Source::Listener => self.accept(),
            }
        }
        self.output.settle();
        let now = Instant::now();
        if self.output.is_hung_up() {
            self.timers.set_unless_pending(Timer::Terminal, now + TERMINAL_PAUSE);
        }
        while let Some(timer) = self.timers.pop_due(now) {
            self.fire(timer);
        }
        Ok(())
    }

    /// Returns the ready sources; empty if a timer is due, or if the container has ended and nothing was ready.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let (sources, mut polled): (Vec<_>, Vec<_>) =
            self.polled().map(|(source, descriptor, flags)| (source, PollFd::new(descriptor, flags))).unzip();
        loop {
            let timeout = if self.ended.is_some() { PollTimeout::ZERO } else { self.timers.timeout(Instant::now()) };
            match poll(&mut polled, timeout) {
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let ready = sources.into_iter().zip(polled);
        Ok(ready.filter(|(_, it)| it.any() == Some(true)).map(|(source, _)| source).collect())
    }

    fn polled(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>, PollFlags)> {
        let output =
            self.output.polled().map(|(source, descriptor, flags)| (Source::Output(source), descriptor, flags));
        let memory = self.memory.iter().map(|it| (Source::Memory, it.as_fd()));
        let signals = std::iter::once((Source::Signals, self.signals.as_fd()));
        let execs = self.execs.polled().map(|(source, descriptor)| (Source::Exec(source), descriptor));
        let peers = self.peers.iter().map(|it| (Source::Peer(it.id), it.as_fd()));
        let listener = std::iter::once((Source::Listener, self.listener.as_fd()));
        let readers = memory.chain(signals).chain(execs).chain(peers).chain(listener);
        output.chain(readers.map(|(source, descriptor)| (source, descriptor, PollFlags::POLLIN)))
    }
}
