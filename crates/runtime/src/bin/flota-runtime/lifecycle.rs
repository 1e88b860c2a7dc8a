//! The verbs of a container's life, from `create` to `delete`.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use flota_runtime::Creation;
use flota_runtime::process::{connect_console, interruptible, receive_terminal};
use flota_runtime::{Container, GroupChoice, RunError, remove_remains};

use crate::arguments::{Arguments, CgroupManager, Create, Delete, Id, Kill, Run};
use crate::foreground::{self, Foreground};
use crate::report::Report;

fn creation(arguments: &Arguments, it: &Create) -> Result<Creation, RunError> {
    let mut creation = Creation::new(&arguments.root(), &it.id, &it.bundle);
    creation.groups = match arguments.cgroup_manager {
        CgroupManager::Disabled => GroupChoice::None,
        CgroupManager::Cgroupfs if !arguments.systemd_cgroup => GroupChoice::Configured,
        CgroupManager::Cgroupfs | CgroupManager::Systemd => GroupChoice::Systemd,
    };
    creation.config.clone_from(&it.config);
    creation.console = it.console_socket.as_deref().map(connect_console).transpose()?;
    creation.pid_file.clone_from(&it.pid_file);
    creation.keep_descriptors = kept(it.preserve_fds);
    if let Some(count) = listening() {
        creation.environment = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
    }
    creation.no_pivot = it.no_pivot;
    creation.no_new_keyring = it.no_new_keyring;
    Ok(creation)
}

/// Returns the number of sockets that systemd, or a program that acts like it, has passed (sd_listen_fds(3)).
fn listening() -> Option<u32> {
    std::env::var("LISTEN_FDS").ok()?.parse().ok().filter(|it| *it > 0)
}

/// Returns the number of descriptors that the program inherits. The runtime's own are closed at exec, whatever their
/// numbers.
pub(crate) fn kept(count: u32) -> u32 {
    count.max(listening().unwrap_or(0))
}

fn prepare() -> Result<(), RunError> {
    interruptible().map_err(|error| RunError { text: format!("failed to watch for signals: {error}"), code: None })
}

pub(crate) fn create(arguments: &Arguments, it: &Create, report: &Report) -> Result<i32, RunError> {
    prepare()?;
    let creation = creation(arguments, it)?;
    creation.create(&creation.load()?, |text| report.warn(&text))?;
    Ok(0)
}

pub(crate) fn run(arguments: &Arguments, it: &Run, report: &Report) -> Result<i32, RunError> {
    prepare()?;
    if !it.detach {
        foreground::watch()?;
    }
    let mut creation = creation(arguments, &it.create)?;
    let spec = creation.load()?;
    let terminal = !it.detach && creation.console.is_none() && spec.process.as_ref().is_some_and(|it| it.terminal);
    let (ours, theirs) = if terminal { pair()? } else { (None, None) };
    if theirs.is_some() {
        creation.console = theirs;
    }
    let mut foreground = None;
    let container = creation.run(
        &spec,
        |text| report.warn(&text),
        |_| {
            let master = ours.map(|socket| receive_terminal(&socket)).transpose()?;
            foreground = Some(Foreground::new(master));
            Ok(())
        },
    )?;
    if it.detach {
        return Ok(0);
    }
    let result = foreground.map_or(Ok(0), |it| it.wait(container.pid));
    if !it.keep {
        let deleted = container.delete(true, |error| report.warn(&error.to_string()));
        if let (Ok(_), Err(error)) = (&result, deleted) {
            report.warn(&error.to_string());
        }
    }
    result
}

pub(crate) fn pair() -> Result<(Option<OwnedFd>, Option<OwnedFd>), RunError> {
    let pair = UnixStream::pair();
    let (ours, theirs) =
        pair.map_err(|error| RunError { text: format!("failed to make a socket: {error}"), code: None })?;
    Ok((Some(ours.into()), Some(theirs.into())))
}

pub(crate) fn start(root: &Path, it: &Id) -> Result<i32, RunError> {
    Container::load(root, &it.id)?.start()?;
    Ok(0)
}

pub(crate) fn kill(root: &Path, it: &Kill) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    let signal = parse_signal(&it.signal)?;
    if it.all {
        container.kill_all(signal)?;
    } else {
        container.kill(signal)?;
    }
    Ok(0)
}

fn parse_signal(text: &str) -> Result<i32, RunError> {
    let upper = text.to_ascii_uppercase();
    let whole = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let named = whole.parse::<nix::sys::signal::Signal>().ok().map(|it| it as i32);
    let real_time = || {
        let offset: i32 = whole.strip_prefix("SIGRTMIN")?.trim_start_matches('+').parse().unwrap_or(0);
        Some(34 + offset)
    };
    let number = text.parse().ok().or(named).or_else(real_time).filter(|it| (0..=64).contains(it));
    number.ok_or_else(|| RunError { text: format!("failed to send a signal: unknown signal `{text}`"), code: None })
}

pub(crate) fn delete(root: &Path, it: &Delete, report: &Report) -> Result<i32, RunError> {
    let warn = |error: flota_runtime::StepError| report.warn(&error.to_string());
    match Container::load(root, &it.id) {
        Ok(container) => container.delete(it.force, warn)?,
        Err(_) if it.force => remove_remains(root, &it.id)?,
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

pub(crate) fn pause(root: &Path, it: &Id) -> Result<i32, RunError> {
    Container::load(root, &it.id)?.pause()?;
    Ok(0)
}

pub(crate) fn resume(root: &Path, it: &Id) -> Result<i32, RunError> {
    Container::load(root, &it.id)?.resume()?;
    Ok(0)
}
