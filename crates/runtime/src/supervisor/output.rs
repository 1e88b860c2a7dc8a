//! A container's output: reads it, writes it to the log, and copies it to attached clients.
//!
//! No descriptor here blocks. A container can read its own output pipe, and thereby take the data that poll(2) has
//! reported; it can also leave the input of its terminal unread.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use super::attached::Attached;
use crate::error::StepError;
use crate::log::LogWriter;
use crate::syscall::files::{set_nonblocking, set_terminal_size};

/// Largest number of attached clients; a further one is refused.
const ATTACHED: usize = 8;

/// The supervisor's side of a container's standard descriptors.
pub(super) enum Streams {
    /// Standard output and error.
    Pipes([OwnedFd; 2]),
    /// A terminal.
    Terminal(OwnedFd),
}

/// A source that can be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputSource {
    /// Standard output (0) or error (1).
    Stream(usize),
    /// The input of the client with this index.
    Input(usize),
}

pub(super) struct Output {
    /// `None` if no log is kept.
    log: Option<LogWriter>,
    /// Standard output and error; `None` once it has ended. A terminal counts as standard output.
    streams: [Option<File>; 2],
    terminal: bool,
    /// Whether nobody in the container has the terminal open. Its other end returns an error then, until somebody opens it
    /// again, as an init system does.
    hung_up: bool,
    attached: Vec<Attached>,
}

impl Output {
    pub(super) fn new(log: Option<LogWriter>, streams: Streams) -> io::Result<Self> {
        let (streams, terminal) = match streams {
            Streams::Pipes(pipes) => (pipes.map(|it| Some(File::from(it))), false),
            Streams::Terminal(master) => ([Some(File::from(master)), None], true),
        };
        for stream in streams.iter().flatten() {
            set_nonblocking(stream.as_fd())?;
        }
        Ok(Self { log, streams, terminal, hung_up: false, attached: Vec::new() })
    }

    /// Returns whether more output may follow.
    pub(super) fn is_open(&self) -> bool {
        self.streams.iter().any(Option::is_some)
    }

    /// Returns the descriptors to poll, with their events.
    pub(super) fn polled(&self) -> impl Iterator<Item = (OutputSource, BorrowedFd<'_>, PollFlags)> {
        let typed = self.terminal && self.attached.iter().any(Attached::has_typed);
        let flags = if typed { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let streams = self.streams.iter().enumerate().filter(|_| !self.hung_up);
        let streams =
            streams.filter_map(move |(index, it)| Some((OutputSource::Stream(index), it.as_ref()?.as_fd(), flags)));
        let inputs = self.attached.iter().enumerate();
        let inputs =
            inputs.filter_map(|(index, it)| Some((OutputSource::Input(index), it.input()?, PollFlags::POLLIN)));
        streams.chain(inputs)
    }

    pub(super) fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    pub(super) fn read_terminal_again(&mut self) {
        self.hung_up = false;
    }

    pub(super) fn close(&mut self) {
        self.streams = [None, None];
    }

    /// Reads from a ready source. Sources stay valid until [`Output::settle`].
    pub(super) fn read(&mut self, source: OutputSource) -> io::Result<()> {
        match source {
            OutputSource::Stream(index) => self.read_stream(index),
            OutputSource::Input(index) => {
                self.attached[index].read_input();
                Ok(())
            }
        }
    }

    /// Passes input on and removes clients that have disconnected.
    pub(super) fn settle(&mut self) {
        let terminal = self.streams[0].as_ref().filter(|_| self.terminal);
        for attached in self.attached.iter_mut().filter(|it| it.has_typed()) {
            attached.pass_input(terminal);
        }
        self.attached.retain(|it| !it.is_gone());
    }

    fn read_stream(&mut self, index: usize) -> io::Result<()> {
        let Some(stream) = &mut self.streams[index] else { return Ok(()) };
        let mut buffer = [0; 8 << 10];
        match stream.read(&mut buffer) {
            Ok(0) => self.streams[index] = None,
            // The container has read the data itself.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) if self.terminal => self.hung_up = true,
            Err(error) => return Err(error),
            Ok(count) => {
                // A full disk must not stop the container: output that can't be written is lost.
                let _ = self.log.as_mut().map(|log| log.write(index + 1, &buffer[..count]));
                for attached in &mut self.attached {
                    attached.copy(&buffer[..count]);
                }
            }
        }
        Ok(())
    }

    /// Attaches a client with the descriptors of its request (see [`Attached::new`]).
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

    /// Writes a line of the supervisor itself.
    pub(super) fn note(&mut self, text: &str) {
        let _ = self.log.as_mut().map(|log| log.write(2, format!("{text}\n").as_bytes()));
    }

    /// Writes what is left in buffers.
    pub(super) fn finish(&mut self) {
        let _ = self.log.as_mut().map(LogWriter::finish);
        for attached in &mut self.attached {
            attached.copy(b"");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::pty::openpty;
    use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

    use super::*;

    /// Runs `act` and fails, instead of hanging, if it blocks.
    fn without_blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || done.send(act()));
        result.recv_timeout(Duration::from_secs(10)).expect("it blocks")
    }

    fn log(name: &str) -> (Option<LogWriter>, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("flota-output-{name}-{}", std::process::id()));
        (Some(LogWriter::open(&path, 1 << 20).expect("in a temporary folder")), path)
    }

    #[test]
    fn output_that_the_container_has_read_itself_blocks_no_reader() {
        let (log, path) = log("stolen");
        let ((out, mut writer), (err, _)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let mut output = Output::new(log, Streams::Pipes([out.into(), err.into()])).expect("descriptors");
        // This simulates that poll(2) reported data before the container read it.
        let mut output = without_blocking(move || {
            output.read(OutputSource::Stream(0)).expect("it is not an error");
            output
        });
        assert!(output.is_open());
        writer.write_all(b"later\n").expect("the pipe is open");
        output.read(OutputSource::Stream(0)).expect("it is read");
        output.finish();
        assert!(std::fs::read_to_string(&path).expect("the log").ends_with(" 1 later\n"));
        std::fs::remove_file(path).expect("its own file");
    }

    #[test]
    fn input_waits_for_a_terminal_that_is_not_read_and_arrives_later() {
        let (log, path) = log("typed");
        let pty = openpty(None, None).expect("a terminal");
        let mut modes = tcgetattr(&pty.slave).expect("its modes");
        cfmakeraw(&mut modes);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &modes).expect("its modes");
        let (input, mut typing) = pipe().expect("a pipe");
        let (_shown, show) = pipe().expect("a pipe");
        let mut output = Output::new(log, Streams::Terminal(pty.master)).expect("descriptors");
        output.attach(vec![show.into(), input.into()]).expect("the first");
        // This is more than a terminal buffers.
        let text = vec![b'x'; 60_000];
        typing.write_all(&text).expect("a pipe takes that much");
        let is_polled = |output: &Output| output.polled().any(|(source, ..)| source == OutputSource::Input(0));
        let mut output = without_blocking(move || {
            while is_polled(&output) {
                output.read(OutputSource::Input(0)).expect("it is read");
                output.settle();
            }
            output
        });
        let waits = |(source, _, flags): (OutputSource, BorrowedFd<'_>, PollFlags)| {
            source == OutputSource::Stream(0) && flags.contains(PollFlags::POLLOUT)
        };
        assert!(output.polled().any(waits), "the rest waits for the terminal");
        let mut slave = File::from(pty.slave);
        let mut received = 0;
        while received < text.len() {
            received += slave.read(&mut [0; 4096]).expect("it is there");
            output.settle();
            if is_polled(&output) {
                output.read(OutputSource::Input(0)).expect("it is read");
                output.settle();
            }
        }
        assert_eq!(received, text.len());
        std::fs::remove_file(path).expect("its own file");
    }
}
