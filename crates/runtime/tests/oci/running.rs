//! Calls of a program: its output while it runs, and its exit code.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::waiting::{DEADLINE, wait_for};

/// The output of a program, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The error's one line, if it failed with this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        let lines: Vec<&str> = self.err.lines().filter(|it| it.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "one line says why: {self:?}");
        lines[0].to_owned()
    }
}

/// A program that runs, with its output in files: what it leaves behind may hold them open.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) out: PathBuf,
    pub(crate) err: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Its standard output so far.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Waits until its output has this text.
    pub(crate) fn wait_for(&self, text: &str) {
        wait_for(&format!("`{text}` in {}", self.out.display()), || self.printed().contains(text).then_some(()));
    }

    #[track_caller]
    pub(crate) fn wait(mut self) -> Ran {
        let (pid, (sender, receiver)) = (self.pid(), mpsc::channel());
        let waiter = std::thread::spawn(move || {
            let status = self.child.wait().unwrap();
            let _ = sender.send(());
            (self, status)
        });
        let in_time = receiver.recv_timeout(DEADLINE).is_ok();
        if !in_time {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let (this, status) = waiter.join().unwrap();
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let ran = Ran { code, out: text(&this.out), err: text(&this.err) };
        assert!(in_time, "it did not end within {DEADLINE:?}: {ran:?}");
        ran
    }
}
