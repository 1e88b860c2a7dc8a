//! A client that follows a container's output and may send input to its terminal.
//!
//! Nothing here waits for the client: one that is too slow loses some output and is told how much.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Act, StepError};
use crate::syscall::files::set_nonblocking;

pub(super) struct Attached {
    output: File,
    input: Option<File>,
    /// Input from the client that the terminal has not accepted yet.
    typed: Vec<u8>,
    /// Number of lost bytes that were not reported to the client yet.
    dropped: u64,
    gone: bool,
}

impl Attached {
    /// Creates it from the descriptors of an attach request: the output and, optionally, the input.
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Result<Self, StepError> {
        for descriptor in &descriptors {
            set_nonblocking(descriptor.as_fd()).act(|| "attach".into())?;
        }
        let mut descriptors = descriptors.into_iter().map(File::from);
        let output = descriptors.next().ok_or_else(|| StepError::refuse("attach", "no descriptor came along"))?;
        Ok(Self { output, input: descriptors.next(), typed: Vec::new(), dropped: 0, gone: false })
    }

    /// Returns the descriptor of the input, or `None` while the terminal has not accepted all earlier input.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| self.typed.is_empty()).map(AsFd::as_fd)
    }

    /// Returns whether there is input for the terminal.
    pub(super) fn has_typed(&self) -> bool {
        !self.typed.is_empty()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Copies output to the client.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        if self.dropped > 0 {
            let notice = format!("\n[{} bytes were dropped]\n", self.dropped);
            match self.output.write(notice.as_bytes()) {
                Ok(_) => self.dropped = 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
        }
        let written = match self.output.write(if self.dropped > 0 { b"" } else { bytes }) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.gone = true;
                return;
            }
        };
        self.dropped += (bytes.len() - written) as u64;
    }

    /// Reads input from the client. The end of the input does not end the attachment.
    pub(super) fn read_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut buffer = [0; 1024];
        match input.read(&mut buffer) {
            Ok(count) if count > 0 => self.typed.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.input = None,
        }
    }

    /// Passes input to the terminal, as much as it accepts. Without a terminal the input is dropped.
    pub(super) fn pass_input(&mut self, terminal: Option<&File>) {
        let Some(mut terminal) = terminal else { return self.typed.clear() };
        match terminal.write(&self.typed) {
            Ok(count) => drop(self.typed.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // No process has the terminal open any more.
            Err(_) => self.typed.clear(),
        }
    }
}
