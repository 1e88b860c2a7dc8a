//! A further process in the container, for whoever asked at the socket.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::order::{ExecSpec, Order};
use super::runtime::{self, Started};
use super::{prepare, user};
use crate::error::{Act, RunError, StepError};
use crate::oci::Process;
use crate::process::clone::{self, Parent};
use crate::process::{exit_code, wait_readable};
use crate::rootfs::RootDir;
use crate::syscall::process as kernel;
use crate::validate::check_process;

/// A process that has not begun by then is given up: the supervisor answers nobody meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the process with these descriptors: its standard ones, or a socket for its terminal. Gives the id of a child
/// that ends with the process's exit code.
pub(super) fn start(
    dir: &Path,
    order: &Order,
    init: Pid,
    spec: &ExecSpec,
    descriptors: Vec<OwnedFd>,
) -> Result<Pid, RunError> {
    if descriptors.len() != if spec.tty { 1 } else { 3 } {
        return Err(RunError::new("failed to exec: the wrong number of descriptors came along"));
    }
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into())?;
    match clone::fork(0, Parent::Caller).act(|| "start a process".into())? {
        clone::Side::Child => {
            drop(reader);
            clone::reset_signals();
            let code = match run(dir, order, init, spec, descriptors) {
                Ok(Started::Child(pid)) => {
                    let _ = File::from(writer).write_all(format!("+{pid}").as_bytes());
                    0
                }
                Ok(Started::Through(mut child, file)) => {
                    let _ = File::from(writer).write_all(format!("+{}", std::process::id()).as_bytes());
                    // This process stands for it: with it the process ends, too.
                    let code = child.wait().map_or(255, code_of);
                    let _ = std::fs::remove_file(file);
                    code
                }
                Err(error) => {
                    let _ = File::from(writer).write_all(format!("-{}", error.text).as_bytes());
                    1
                }
            };
            clone::exit(code)
        }
        clone::Side::Parent(helper, _) => {
            drop((writer, descriptors));
            let heard = hear(reader);
            let stands = heard.as_ref().is_ok_and(|pid| *pid == helper);
            if !stands {
                if heard.is_err() {
                    // It has said its last word, or says nothing: the container's root may have stopped it.
                    let _ = kernel::kill(helper.as_raw(), libc::SIGKILL);
                }
                let _ = waitpid(helper, None);
            }
            heard
        }
    }
}

fn code_of(status: std::process::ExitStatus) -> i32 {
    let status =
        nix::sys::wait::WaitStatus::from_raw(Pid::this(), std::os::unix::process::ExitStatusExt::into_raw(status));
    status.ok().and_then(exit_code).unwrap_or(255)
}

fn hear(reader: OwnedFd) -> Result<Pid, RunError> {
    if !wait_readable(&reader, PATIENCE)? {
        return Err(RunError::new(format!("failed to start a process: it did not begin within {PATIENCE:?}")));
    }
    // One word: the process itself may hold the other end open, so no end comes.
    let mut word = [0; 4096];
    let count = nix::unistd::read(&reader, &mut word).act(|| "hear from the process".into())?;
    let text = String::from_utf8_lossy(&word[..count]);
    match text.split_at_checked(1) {
        Some(("+", pid)) => pid.parse().map(Pid::from_raw).map_err(|error| RunError::new(format!("{error}"))),
        Some((_, error)) => Err(RunError::new(error)),
        None => Err(RunError::new("failed to start a process: it ended without a word")),
    }
}

fn run(
    dir: &Path,
    order: &Order,
    init: Pid,
    exec: &ExecSpec,
    mut descriptors: Vec<OwnedFd>,
) -> Result<Started, RunError> {
    let process = process(dir, order, init, exec)?;
    if exec.tty {
        return runtime::of(dir, order).exec(process, descriptors.pop());
    }
    let [stdin, stdout, stderr] = descriptors.as_slice() else { unreachable!("counted before") };
    nix::unistd::dup2_stdin(stdin).act(|| "set standard input".into())?;
    nix::unistd::dup2_stdout(stdout).act(|| "set standard output".into())?;
    nix::unistd::dup2_stderr(stderr).act(|| "set standard error".into())?;
    runtime::of(dir, order).exec(process, None)
}

fn process(dir: &Path, order: &Order, init: Pid, exec: &ExecSpec) -> Result<Process, StepError> {
    let mut process = runtime::of(dir, order).spec()?.process.unwrap_or_default();
    process.args.clone_from(&exec.argv);
    process.terminal = exec.tty;
    process.console_size = None;
    exec.env.iter().for_each(|variable| process.set_variable(variable));
    if !exec.cwd.is_empty() {
        process.cwd = exec.cwd.clone().into();
    }
    let root = RootDir::open(Path::new(&format!("/proc/{init}/root")))?;
    // Where it can't be made, entering it says why.
    let _ = root.make_folder(&process.cwd);
    if !exec.user.is_empty() && exec.user != order.user {
        process.env.retain(|it| !it.starts_with("HOME=") || exec.env.contains(it));
        prepare::take_user(&mut process, &user::find(&root, &exec.user)?);
    }
    check_process(&process)?;
    Ok(process)
}
