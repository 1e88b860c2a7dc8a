//! One who watches a container's output as it comes. One who does not keep up loses some, is told how much, and never
//! makes the container wait.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Act, StepError};

pub(super) struct Attached {
    output: File,
    input: Option<File>,
    /// Bytes that it lost and has not been told of.
    dropped: u64,
    gone: bool,
}

impl Attached {
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Result<Self, StepError> {
        let mut descriptors = descriptors.into_iter();
        let output = descriptors.next().ok_or_else(|| StepError::refuse("attach", "no descriptor came along"))?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).act(|| "attach".into())?;
        Ok(Self { output: output.into(), input: descriptors.next().map(File::from), dropped: 0, gone: false })
    }

    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn copy(&mut self, bytes: &[u8]) {
        if self.dropped > 0 {
            let notice = format!("\n[{} bytes were dropped]\n", self.dropped);
            match self.output.write(notice.as_bytes()) {
                Ok(_) => self.dropped = 0,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
        }
        let written = match self.output.write(if self.dropped > 0 { b"" } else { bytes }) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.gone = true;
                return;
            }
        };
        self.dropped += (bytes.len() - written) as u64;
    }

    /// What is typed, to the terminal.
    pub(super) fn pass_input(&mut self, terminal: Option<&File>) {
        let Some(input) = &mut self.input else { return };
        let mut buffer = [0; 1024];
        match input.read(&mut buffer) {
            Ok(count) if count > 0 => {
                if let Some(mut terminal) = terminal {
                    let _ = terminal.write_all(&buffer[..count]);
                }
            }
            _ => self.input = None,
        }
    }
}
