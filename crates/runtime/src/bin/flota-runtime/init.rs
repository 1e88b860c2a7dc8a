//! `--init`: PID 1 of a container whose program is not an init. It starts the program, forwards signals to it, and
//! reaps orphans.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Runs the program and returns its exit code.
pub(crate) fn run(program: &[OsString]) -> u8 {
    let Some((name, arguments)) = program.split_first() else {
        eprintln!("init: no program is given");
        return 127;
    };
    // Signals are blocked before the program is started, so that a signal that arrives in between stays pending.
    let all = SigSet::all();
    let Ok(before) = all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK) else {
        return 126;
    };
    let mut command = Command::new(name);
    command.args(arguments);
    // The program gets its own group in the foreground of the terminal, so that Ctrl-C reaches it and not its init.
    command.process_group(0);
    let started = flota_runtime::process::spawn_with_mask(&mut command, before);
    let child = match started {
        Ok(pid) => Pid::from_raw(pid),
        Err(error) => {
            eprintln!("init: failed to run {}: {error}", name.display());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return if missing { 127 } else { 126 };
        }
    };
    let _ = nix::unistd::tcsetpgrp(std::io::stdin(), child);
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return u8::try_from(code).unwrap_or(255);
                }
            }
            Ok(Signal::SIGTTIN | Signal::SIGTTOU) => {}
            Ok(signal) => flota_runtime::process::signal_number(child.as_raw(), signal as i32),
            Err(_) => {}
        }
    }
}

fn reap(child: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return None,
            Err(_) => {}
            Ok(status) if status.pid() == Some(child) => {
                if let Some(code) = flota_runtime::process::exit_code(status) {
                    return Some(code);
                }
            }
            Ok(_) => {}
        }
    }
}
