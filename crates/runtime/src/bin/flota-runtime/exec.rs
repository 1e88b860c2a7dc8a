//! `exec`: builds a process from flags or a file and runs it in a container.

use std::path::Path;

use flota_runtime::Execution;
use flota_runtime::oci::{Capabilities, Process, Spec, read_json};
use flota_runtime::process::{connect_console, receive_terminal};
use flota_runtime::security::capabilities;
use flota_runtime::{Container, RunError};

use crate::arguments::Exec;
use crate::foreground::{self, Foreground};
use crate::lifecycle::{kept, pair};

fn refuse(text: String) -> RunError {
    RunError { text: format!("failed to exec: {text}"), code: None }
}

pub(crate) fn exec(root: &Path, it: &Exec) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    let spec = container.spec()?;
    let mut execution = Execution::new(process(it, &spec)?);
    let own_terminal = execution.process.terminal && it.console_socket.is_none();
    if own_terminal && it.detach {
        return Err(refuse("a terminal of a detached process needs --console-socket".into()));
    }
    let (ours, theirs) = if own_terminal { pair()? } else { (None, None) };
    execution.console = match &it.console_socket {
        Some(path) => Some(connect_console(path)?),
        None => theirs,
    };
    execution.pid_file.clone_from(&it.pid_file);
    execution.keep_descriptors = kept(it.preserve_fds);
    execution.ignore_paused = it.ignore_paused;
    execution.subgroups.clone_from(&it.cgroup);
    if !it.detach {
        foreground::watch()?;
    }
    let mut foreground = None;
    let pid = execution.start(&container, &spec, || {
        let master = ours.map(|socket| receive_terminal(&socket)).transpose()?;
        foreground = Some(Foreground::new(master));
        Ok(())
    })?;
    if it.detach {
        return Ok(0);
    }
    let code = foreground.map_or(Ok(0), |it| it.wait(pid))?;
    // The process exits now, which frees everything at once.
    std::mem::forget((container, spec, execution));
    Ok(code)
}

fn process(it: &Exec, spec: &Spec) -> Result<Process, RunError> {
    let mut process = match &it.process {
        Some(path) => {
            let process: Process = read_json(path)?;
            let process = with_rights_of(process, spec.process.clone().unwrap_or_default());
            flota_runtime::check_process(&process)?;
            return Ok(Process { terminal: process.terminal || it.tty, ..process });
        }
        None => spec.process.clone().unwrap_or_default(),
    };
    if it.command.is_empty() {
        return Err(refuse("no program is given".into()));
    }
    process.args.clone_from(&it.command);
    process.terminal = it.tty;
    process.console_size = None;
    if let Some(cwd) = &it.cwd {
        process.cwd.clone_from(cwd);
    }
    it.env.iter().for_each(|variable| process.set_variable(variable));
    if let Some(user) = &it.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| text.parse().map_err(|_| refuse(format!("--user `{user}` is not a UID[:GID]")));
        process.user.uid = number(uid)?;
        if let Some(gid) = gid {
            process.user.gid = number(gid)?;
        }
    }
    process.user.additional_gids.extend(&it.additional_gids);
    if let Some(label) = &it.process_label {
        process.selinux_label.clone_from(label);
    }
    if let Some(profile) = &it.apparmor {
        process.apparmor_profile.clone_from(profile);
    }
    process.no_new_privileges |= it.no_new_privs;
    // Unknown capabilities of a configuration are ignored, but one on the command line is a mistake.
    if let Some(unknown) = it.cap.iter().find(|it| !capabilities::is_known(it)) {
        return Err(refuse(format!("--cap `{unknown}` is not known")));
    }
    if !it.cap.is_empty() {
        add_capabilities(process.capabilities.get_or_insert_default(), &it.cap);
    }
    flota_runtime::check_process(&process)?;
    Ok(process)
}

/// Adds capabilities to those of a process, but never to the inheritable ones, which would outlast a change of the user
/// (CVE-2022-29162).
fn add_capabilities(capabilities: &mut Capabilities, more: &[String]) {
    for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
        set.extend(more.iter().cloned());
    }
}

/// Returns the process of a file with what the file leaves out of its rights and limits taken from the container, as with runc.
fn with_rights_of(process: Process, own: Process) -> Process {
    let text = |given: String, own: String| if given.is_empty() { own } else { given };
    Process {
        capabilities: process.capabilities.or(own.capabilities),
        rlimits: if process.rlimits.is_empty() { own.rlimits } else { process.rlimits },
        apparmor_profile: text(process.apparmor_profile, own.apparmor_profile),
        selinux_label: text(process.selinux_label, own.selinux_label),
        ..process
    }
}
