//! A further process in a running container: through the container's namespaces by a descriptor of its init, then
//! once more forked, since a process never changes its own PID namespace (setns(2)).

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::{clone, exit_code, init, user};
use crate::error::{Act, RunError, StepError};
use crate::security::Filter;
use crate::spec::{ContainerSpec, ExecSpec};

/// A process that has not begun by then is given up: the supervisor answers nobody meanwhile.
const REPORT_WAIT: Duration = Duration::from_secs(10);

/// What a supervisor knows of the container.
pub(crate) struct Container<'a> {
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) init: &'a OwnedFd,
    pub(crate) filter: &'a Filter,
}

/// Starts the process with these descriptors as its standard ones. Gives the id of a child that ends with the
/// process's exit code.
pub(crate) fn start(container: &Container<'_>, exec: &ExecSpec, stdio: [OwnedFd; 3]) -> Result<Pid, RunError> {
    let failed = |error: nix::Error| RunError(format!("failed to start a process: {}", error.desc()));
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed)?;
    match clone::fork(0).map_err(failed)? {
        clone::Side::Child => {
            drop(reader);
            helper(container, exec, stdio, writer)
        }
        clone::Side::Parent(pid, _) => {
            drop((writer, stdio));
            let report = super::read_report_within(reader, REPORT_WAIT);
            if report.is_err() {
                // It has said its last word, or says nothing: the container's root may have stopped it.
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
            report.map(|()| pid)
        }
    }
}

/// Joins the container and forks the process; ends with its exit code.
fn helper(container: &Container<'_>, exec: &ExecSpec, stdio: [OwnedFd; 3], report: OwnedFd) -> ! {
    let error = match join(container).and_then(|()| clone::fork(0).act(|| "start a process".into())) {
        Ok(clone::Side::Child) => become_program(container, exec, stdio),
        Ok(clone::Side::Parent(pid, _)) => {
            // The supervisor waits for the end of the report: from here on the process alone holds it open.
            drop((stdio, report));
            clone::exit(waitpid(pid, None).ok().and_then(exit_code).unwrap_or(126))
        }
        Err(error) => error,
    };
    let _ = fs::File::from(report).write_all(error.to_string().as_bytes());
    clone::exit(126)
}

fn join(container: &Container<'_>) -> Result<(), StepError> {
    clone::die_with_parent().act(|| "tie the process to its supervisor".into())?;
    // Until exec nobody in the container may look into it, or trace it (CVE-2016-9962).
    clone::hide().act(|| "hide the process".into())?;
    // First the cgroups: their paths are the host's.
    crate::cgroup::join(&container.spec.cgroups, i32::try_from(std::process::id()).expect("process ids fit"))?;
    let all = init::NAMESPACES | libc::CLONE_NEWCGROUP;
    setns(container.init, CloneFlags::from_bits_retain(all)).act(|| "enter the container's namespaces".into())
}

fn become_program(container: &Container<'_>, exec: &ExecSpec, stdio: [OwnedFd; 3]) -> StepError {
    let run = || -> Result<StepError, StepError> {
        clone::die_with_parent().act(|| "tie the process to its supervisor".into())?;
        setsid().act(|| "begin a session".into())?;
        let [stdin, stdout, stderr] = &stdio;
        dup2_stdin(stdin.as_fd()).act(|| "set standard input".into())?;
        dup2_stdout(stdout.as_fd()).act(|| "set standard output".into())?;
        dup2_stderr(stderr.as_fd()).act(|| "set standard error".into())?;
        if exec.tty {
            clone::own_terminal().act(|| "own the terminal".into())?;
        }
        let spec = container.spec;
        let user = user::find(if exec.user.is_empty() { &spec.user } else { &exec.user })?;
        let given: Vec<String> = spec.env.iter().chain(&exec.env).cloned().collect();
        let environment = init::environment(&given, &user, &spec.hostname);
        // First the folder: a relative command is looked for there.
        init::enter_folder(if exec.cwd.is_empty() { &spec.cwd } else { &exec.cwd })?;
        let program = init::find_program(&exec.argv, &environment)?;
        init::drop_rights(&user, crate::cgroup::limits::guards_devices(&spec.cgroups), container.filter)?;
        Ok(init::execute_program(&program, &exec.argv, &environment))
    };
    run().unwrap_or_else(|error| error)
}
