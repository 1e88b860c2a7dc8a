//! A console socket at a path, for a runtime that requires a path. The terminal that arrives there is passed on.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Act, StepError};
use crate::process::{receive_terminal, send_terminal};

/// Longest wait for a runtime's terminal in ms. A runtime sends it as soon as it runs.
const PATIENCE_MS: u16 = 10_000;

pub(super) struct Relay {
    path: PathBuf,
    listener: UnixListener,
    to: OwnedFd,
}

impl Relay {
    pub(super) fn listen(dir: &Path, to: OwnedFd) -> Result<Self, StepError> {
        let path = dir.join(format!("console-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).act(|| format!("listen at {}", path.display()))?;
        Ok(Self { path, listener, to })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn pass_on(self) -> Result<(), StepError> {
        let act = || "take the terminal from the runtime".to_owned();
        let mut polled = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(PATIENCE_MS)).act(act)? == 0 {
            return Err(StepError::refuse(act(), "it sent none"));
        }
        let (stream, _) = self.listener.accept().act(act)?;
        let master = receive_terminal(&OwnedFd::from(stream))?;
        send_terminal(&self.to, &master)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
