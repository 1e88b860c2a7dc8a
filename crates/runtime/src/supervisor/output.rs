//! A container's output: read, written to the log, and copied to whoever is attached.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::attached::Attached;
use crate::error::StepError;
use crate::log::LogWriter;
use crate::syscall::files::set_terminal_size;

/// Attached at once; a further one is refused.
const ATTACHED: usize = 8;

/// What a container's standard descriptors are.
pub(super) enum Streams {
    /// Standard output and error.
    Pipes([OwnedFd; 2]),
    /// The supervisor's side of a terminal.
    Terminal(OwnedFd),
}

pub(super) struct Output {
    log: LogWriter,
    /// Standard output and error; `None` once it has ended. A terminal is standard output.
    streams: [Option<File>; 2],
    terminal: bool,
    attached: Vec<Attached>,
}

impl Output {
    pub(super) fn new(log: LogWriter, streams: Streams) -> Self {
        let (streams, terminal) = match streams {
            Streams::Pipes(pipes) => (pipes.map(|it| Some(File::from(it))), false),
            Streams::Terminal(master) => ([Some(File::from(master)), None], true),
        };
        Self { log, streams, terminal, attached: Vec::new() }
    }

    /// Whether anything may still come.
    pub(super) fn is_open(&self) -> bool {
        self.streams.iter().any(Option::is_some)
    }

    /// What is to be polled; [`Output::read`] takes the results in this order.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let inputs = self.attached.iter().filter_map(Attached::input);
        self.streams.iter().flatten().map(AsFd::as_fd).chain(inputs)
    }

    pub(super) fn close(&mut self) {
        self.streams = [None, None];
    }

    pub(super) fn read(&mut self, ready: &[bool]) -> io::Result<()> {
        let mut ready = ready.iter();
        let mut take = || ready.next() == Some(&true);
        for index in 0..2 {
            if self.streams[index].is_some() && take() {
                self.read_stream(index)?;
            }
        }
        let terminal = self.streams[0].as_ref().filter(|_| self.terminal);
        for attached in self.attached.iter_mut().filter(|it| it.input().is_some()) {
            if take() {
                attached.pass_input(terminal);
            }
        }
        self.attached.retain(|it| !it.is_gone());
        Ok(())
    }

    fn read_stream(&mut self, index: usize) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else { return Ok(()) };
        let mut buffer = [0; 8 << 10];
        match stream.read(&mut buffer) {
            Ok(0) => self.streams[index] = None,
            // A terminal whose last user has gone answers with an error: that is its end.
            Err(_) if self.terminal => self.streams[index] = None,
            Err(error) => return Err(error),
            Ok(count) => {
                // A full disk must not stop the container: what can't be kept is lost.
                let _ = self.log.write(index + 1, &buffer[..count]);
                for attached in &mut self.attached {
                    attached.copy(&buffer[..count]);
                }
            }
        }
        Ok(())
    }

    /// Copies what comes from now on to the first descriptor; what comes at the second goes to the terminal.
    pub(super) fn attach(&mut self, descriptors: Vec<OwnedFd>) -> Result<(), StepError> {
        if self.attached.len() >= ATTACHED {
            return Err(StepError::refuse("attach", format!("{ATTACHED} are attached already")));
        }
        self.attached.push(Attached::new(descriptors)?);
        Ok(())
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) {
        if let Some(terminal) = self.streams[0].as_ref().filter(|_| self.terminal) {
            let _ = set_terminal_size(terminal.as_fd(), rows, columns);
        }
    }

    /// A line of the supervisor's own.
    pub(super) fn note(&mut self, text: &str) {
        let _ = self.log.write(2, format!("{text}\n").as_bytes());
    }

    pub(super) fn finish(&mut self) {
        let _ = self.log.finish();
        for attached in &mut self.attached {
            attached.copy(b"");
        }
    }
}
