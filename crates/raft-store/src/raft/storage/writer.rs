//! The owner of the write-ahead log. It takes commands in order, writes all that are waiting together, and syncs once
//! for them. It runs on a thread of its own, and as a task in simulations.

use std::io;
use std::sync::{Arc, Mutex};

use openraft::entry::RaftEntry as _;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot, watch};

use super::index::Index;
use super::wal::{Position, Wal};
use crate::faults::{self, Fault};
use crate::raft::disk::Disk;
use crate::raft::threads::Threads;
use crate::raft::type_config::{LogId, RaftEntry, TypeConfig, Vote};

/// Commands to the writer, which it executes in order.
pub(super) enum Command {
    Append(Vec<RaftEntry>, IOFlushed<TypeConfig>),
    Vote(Vote, oneshot::Sender<io::Result<()>>),
    Truncate(Option<LogId>, oneshot::Sender<io::Result<()>>),
    Purge(LogId),
    /// The log is idle; see [`Wal::settle`].
    Settle,
}

/// Caller to notify when the preceding commands are on disk.
enum Waiting {
    Appended(IOFlushed<TypeConfig>),
    Noted(oneshot::Sender<io::Result<()>>),
}

impl Waiting {
    fn done(self, result: io::Result<()>) {
        match self {
            Self::Appended(flushed) => flushed.io_completed(result),
            Self::Noted(sender) => drop(sender.send(result)),
        }
    }
}

pub(super) struct Writer {
    wal: Wal,
    index: Arc<Mutex<Index>>,
    disk: Arc<dyn Disk>,
    /// The first error. After it nothing is written, because the content of the disk is unknown.
    failed: Option<io::Error>,
    /// Notifies the duties of the error, even if no caller waits.
    alarm: watch::Sender<bool>,
    /// Whether anything was synced since the log was last settled.
    unsettled: bool,
}

impl Writer {
    pub(super) fn new(wal: Wal, index: Arc<Mutex<Index>>, disk: Arc<dyn Disk>, alarm: watch::Sender<bool>) -> Self {
        Self { wal, index, disk, failed: None, alarm, unsettled: false }
    }

    /// Runs until the last sender is dropped.
    pub(super) fn start(mut self, threads: Threads) -> io::Result<mpsc::UnboundedSender<Command>> {
        let (sender, mut commands) = mpsc::unbounded_channel();
        match threads {
            Threads::Own => {
                std::thread::Builder::new().name("raft-log".into()).spawn(move || {
                    while let Some(first) = commands.blocking_recv() {
                        let waiting = self.write(first, &mut commands);
                        self.finish(waiting);
                    }
                })?;
            }
            Threads::Current => {
                tokio::spawn(async move {
                    while let Some(first) = commands.recv().await {
                        let waiting = self.write(first, &mut commands);
                        tokio::time::sleep(self.disk.delay()).await;
                        self.finish(waiting);
                    }
                });
            }
        }
        Ok(sender)
    }

    /// Writes this command and all that wait behind it. Returns the callers that wait for the sync.
    fn write(&mut self, first: Command, commands: &mut mpsc::UnboundedReceiver<Command>) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        let mut written = Vec::new();
        let mut next = Some(first);
        while let Some(command) = next {
            if self.failed.is_none()
                && let Err(error) = self.append(&command, &mut written)
            {
                self.fail(error);
            }
            waiting.extend(command.waiting());
            next = commands.try_recv().ok();
        }
        if self.failed.is_none()
            && let Err(error) = self.wal.write()
        {
            self.fail(error);
        }
        if self.failed.is_none() {
            self.publish(&written);
        }
        if faults::is_on(Fault::EarlyAcknowledgement) {
            waiting.drain(..).for_each(|it| it.done(Ok(())));
        }
        waiting
    }

    fn append(&mut self, command: &Command, written: &mut Vec<(LogId, Position)>) -> io::Result<()> {
        match command {
            Command::Append(entries, _) => {
                for entry in entries {
                    let body = postcard::to_stdvec(entry).map_err(io::Error::other)?;
                    written.push((entry.log_id(), self.wal.append_entry(entry.log_id(), &body)?));
                }
            }
            Command::Vote(vote, _) => self.wal.append_vote(*vote)?,
            Command::Truncate(last, _) => self.wal.append_truncation(*last)?,
            Command::Purge(upto) => {
                self.wal.append_purge(*upto)?;
                // The purge mark must be durable before the segments that it makes dispensable are reused.
                self.wal.sync()?;
                self.wal.recycle()?;
                let first = self.wal.first_segment();
                self.index.lock().expect("no holder panics").files.retain(|segment, _| *segment >= first);
            }
            Command::Settle if self.unsettled => {
                self.unsettled = false;
                self.note_committed()?;
                self.wal.settle()?;
            }
            Command::Settle => {}
        }
        Ok(())
    }

    fn fail(&mut self, error: io::Error) {
        tracing::error!(%error, "the Raft log can't be written any more");
        self.failed = Some(error);
        self.alarm.send_replace(true);
    }

    fn publish(&mut self, written: &[(LogId, Position)]) {
        let mut index = self.index.lock().expect("no holder panics");
        for (id, at) in written {
            index.written(*id, *at);
            if !index.files.contains_key(&at.segment)
                && let Some(file) = self.wal.file(at.segment)
            {
                index.files.insert(at.segment, file);
            }
        }
        index.evict();
    }

    /// Syncs if any caller waits for it, and notifies all of them.
    fn finish(&mut self, waiting: Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        if self.failed.is_none()
            && let Err(error) = self.sync()
        {
            self.fail(error);
        }
        for it in waiting {
            it.done(match &self.failed {
                None => Ok(()),
                // An `io::Error` can't be cloned, so each caller gets a new one.
                Some(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.note_committed()?;
        self.unsettled = true;
        self.wal.sync()
    }

    /// Appends the commit mark together with other records. Alone, it does not justify a sync or a wake of this thread.
    fn note_committed(&mut self) -> io::Result<()> {
        let committed = self.index.lock().expect("no holder panics").committed;
        match committed.filter(|_| committed != self.wal.head().committed) {
            Some(committed) => self.wal.append_committed(committed),
            None => Ok(()),
        }
    }
}

impl Command {
    fn waiting(self) -> Option<Waiting> {
        match self {
            Self::Append(_, flushed) => Some(Waiting::Appended(flushed)),
            Self::Vote(_, sender) | Self::Truncate(_, sender) => Some(Waiting::Noted(sender)),
            Self::Purge(_) | Self::Settle => None,
        }
    }
}
