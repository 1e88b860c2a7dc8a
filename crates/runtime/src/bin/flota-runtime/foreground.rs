//! A container or process that the caller waits for: it gets the caller's signals, and its terminal is connected to
//! the caller's.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use flota_runtime::RunError;

/// Blocks all signals, so that none is lost before [`Foreground::wait`] handles them.
pub(crate) fn watch() -> Result<(), RunError> {
    SigSet::all().thread_block().map_err(failed)
}

fn failed(error: impl Into<std::io::Error>) -> RunError {
    RunError { text: format!("failed to wait for the process: {}", error.into()), code: None }
}

pub(crate) struct Foreground {
    /// Neither reads nor writes of it block.
    master: Option<File>,
    /// Input that the terminal has not accepted yet, as it does while nobody reads its output.
    typed: Vec<u8>,
}

/// Keeps the caller's terminal in raw mode until dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // Line ends are translated by this terminal and not by the container's.
        raw.output_flags.insert(OutputFlags::OPOST);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

impl Foreground {
    /// Sets the terminal up. Must be called before the process runs, so that the process finds the terminal in its
    /// final state.
    pub(crate) fn new(master: Option<OwnedFd>) -> Self {
        let master = master.map(File::from);
        if let Some(master) = &master
            && let Ok(mut attributes) = tcgetattr(master)
        {
            // Otherwise a caller that is not a terminal gets a carriage return with each line.
            attributes.output_flags.remove(OutputFlags::ONLCR);
            let _ = tcsetattr(master, SetArg::TCSANOW, &attributes);
        }
        if let Some(master) = &master {
            let _ = fcntl(master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        }
        let foreground = Self { master, typed: Vec::new() };
        foreground.resize();
        foreground
    }

    /// Waits until the process ends and returns its exit code.
    pub(crate) fn wait(mut self, pid: i32) -> Result<i32, RunError> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&SigSet::all(), flags).map_err(failed)?;
        let _raw = self.master.is_some().then(RawMode::enter).flatten();
        let mut input = self.master.is_some();
        loop {
            let stdin = std::io::stdin();
            let mut polled = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if let Some(master) = &self.master {
                let out = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
                polled.push(PollFd::new(master.as_fd(), PollFlags::POLLIN | out));
                if input && self.typed.is_empty() {
                    polled.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                }
            }
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(failed)?,
            };
            let ready: Vec<bool> = polled.iter().map(|it| it.any() == Some(true)).collect();
            drop(polled);
            if ready.get(1) == Some(&true) {
                self.copy_output();
                self.pass_input();
            }
            if ready.get(2) == Some(&true) {
                input = self.read_input();
            }
            if ready[0]
                && let Some(code) = self.take_signals(&signals, pid)?
            {
                while self.master.is_some() && self.has_output() {
                    self.copy_output();
                }
                return Ok(code);
            }
        }
    }

    fn has_output(&self) -> bool {
        let Some(master) = &self.master else { return false };
        let mut polled = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    fn copy_output(&mut self) {
        let mut buffer = [0; 8192];
        let Some(master) = &mut self.master else { return };
        match master.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let mut stdout = std::io::stdout();
                let _ = stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The other end is closed (EIO).
            _ => self.master = None,
        }
    }

    /// Reads input for the terminal; returns false at its end.
    fn read_input(&mut self) -> bool {
        let mut buffer = [0; 8192];
        match std::io::stdin().read(&mut buffer) {
            Ok(count) if count > 0 => {
                self.typed.extend_from_slice(&buffer[..count]);
                self.pass_input();
                true
            }
            _ => false,
        }
    }

    /// Passes input to the terminal, as much as it accepts.
    fn pass_input(&mut self) {
        let Some(master) = &mut self.master else { return };
        match master.write(&self.typed) {
            Ok(count) => drop(self.typed.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.typed.clear(),
        }
    }

    fn resize(&self) {
        if let Some(master) = &self.master {
            flota_runtime::process::copy_terminal_size(std::io::stdin().as_fd(), master.as_fd());
        }
    }

    fn take_signals(&mut self, signals: &SignalFd, pid: i32) -> Result<Option<i32>, RunError> {
        while let Some(signal) = signals.read_signal().map_err(failed)? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => {
                    if let Some(code) = reap(pid)? {
                        return Ok(Some(code));
                    }
                }
                Ok(Signal::SIGWINCH) => self.resize(),
                // The kernel sends these for actions of this process, so they are not forwarded to the container.
                Ok(Signal::SIGPIPE | Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGURG) => {}
                _ => flota_runtime::process::signal_number(pid, number),
            }
        }
        Ok(None)
    }
}

/// Reaps ended children; returns the exit code if one of them was this process.
fn reap(pid: i32) -> Result<Option<i32>, RunError> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(None),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(failed(error)),
            Ok(status) if status.pid() == Some(Pid::from_raw(pid)) => {
                if let Some(code) = flota_runtime::process::exit_code(status) {
                    return Ok(Some(code));
                }
            }
            Ok(_) => {}
        }
    }
}
