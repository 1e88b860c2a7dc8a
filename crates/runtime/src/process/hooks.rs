//! Programs that run at certain points of a container's life (config.md, "POSIX-platform Hooks").

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

use crate::error::StepError;
use crate::oci::{Hook, State};

/// Timeout of a hook that has none of its own.
const PATIENCE: Duration = Duration::from_secs(600);
/// Number of bytes of a failed hook's output that the error repeats.
const ERRORS_BOUND: usize = 1024;

/// Runs hooks in order until one fails. `kind` is used in errors. As in runc and crun, a hook without variables of its
/// own gets those of `environment` or, without any, the runtime's.
pub(crate) fn run(kind: &str, hooks: &[Hook], state: &State, environment: &[String]) -> Result<(), StepError> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| {
        let name = format!("run hooks.{kind}[{index}] (`{}`)", hook.path.display());
        run_one(hook, state, environment).map_err(|why| StepError::refuse(name, why))
    })
}

fn run_one(hook: &Hook, state: &State, environment: &[String]) -> Result<(), String> {
    let text = |error: std::io::Error| crate::error::kernel_words(&error);
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let environment = if hook.env.is_empty() { environment } else { &hook.env };
    if !environment.is_empty() {
        command.env_clear().envs(environment.iter().filter_map(|it| it.split_once('=')));
    }
    // Files in memory are used instead of pipes: a hook that does not read its state, or prints more than a pipe
    // holds, must block neither the runtime nor itself.
    let mut text_of_state = serde_json::to_vec(state).unwrap_or_default();
    text_of_state.push(b'\n');
    let mut stdin = in_memory().map_err(text)?;
    stdin.write_all(&text_of_state).and_then(|()| stdin.rewind()).map_err(text)?;
    let stderr = in_memory().map_err(text)?;
    command.stdin(stdin).stdout(Stdio::null()).stderr(stderr.try_clone().map_err(text)?);
    // Processes that the hook leaves behind are killed with it.
    command.process_group(0);
    let mut child = command.spawn().map_err(text)?;
    let patience = hook.timeout.and_then(|it| u64::try_from(it).ok()).map_or(PATIENCE, Duration::from_secs);
    wait(&mut child, &stderr, Instant::now() + patience)
}

fn in_memory() -> std::io::Result<File> {
    Ok(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?.into())
}

fn wait(child: &mut Child, stderr: &File, until: Instant) -> Result<(), String> {
    let text = |error: std::io::Error| crate::error::kernel_words(&error);
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    let process = crate::syscall::process::open(pid).map_err(|error| text(error.into()))?;
    if !crate::process::ended(&process, until) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        let _ = child.wait();
        return Err("it did not end in time".to_owned());
    }
    let status = child.wait().map_err(text)?;
    if status.success() {
        return Ok(());
    }
    let mut errors = [0; ERRORS_BOUND];
    let count = stderr.read_at(&mut errors, 0).unwrap_or(0);
    let errors = String::from_utf8_lossy(&errors[..count]).trim().replace('\n', " ");
    Err(if errors.is_empty() { format!("it ended with {status}") } else { format!("it ended with {status}: {errors}") })
}

/// Runs all hooks and passes failures only to `warn`.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], state: &State, mut warn: impl FnMut(StepError)) {
    for (index, hook) in hooks.iter().enumerate() {
        let name = format!("run hooks.{kind}[{index}] (`{}`)", hook.path.display());
        if let Err(why) = run_one(hook, state, &[]) {
            warn(StepError::refuse(name, why));
        }
    }
}

/// Refuses invalid hooks.
pub(crate) fn check(kind: &str, hooks: &[Hook]) -> Result<(), StepError> {
    for (index, hook) in hooks.iter().enumerate() {
        let field = format!("read hooks.{kind}[{index}]");
        if !hook.path.is_absolute() {
            return Err(StepError::refuse(format!("{field}.path"), "it is not absolute"));
        }
        if hook.timeout.is_some_and(|it| it <= 0) {
            return Err(StepError::refuse(format!("{field}.timeout"), "it is not above zero"));
        }
        if let Some(odd) = hook.env.iter().find(|it| !it.contains('=')) {
            return Err(StepError::refuse(format!("{field}.env"), format!("`{odd}` has no `=`")));
        }
    }
    Ok(())
}
