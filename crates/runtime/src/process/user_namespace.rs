//! Which ids of a user namespace are which outside (user_namespaces(7)).

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::unistd::{Pid, geteuid};

use super::clone;
use crate::error::{Act, StepError};
use crate::oci::{IdMapping, NamespaceKind, Spec};

fn lines(mappings: &[IdMapping]) -> String {
    let line = |it: &IdMapping| format!("{} {} {}\n", it.container_id, it.host_id, it.size);
    mappings.iter().map(line).collect()
}

/// Writes the maps of a process's new user namespace.
pub(crate) fn map(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), StepError> {
    if !geteuid().is_root() {
        return map_unprivileged(pid, uids, gids);
    }
    write(pid, "uid_map", &lines(uids))?;
    write(pid, "gid_map", &lines(gids))
}

/// A new user namespace without maps is one with the ids that are outside, as crun has it; for a user without rights
/// itself alone.
pub(crate) fn fill_in(spec: &mut Spec) {
    let Some(linux) = &mut spec.linux else { return };
    let is_new = |it: &crate::oci::Namespace| it.kind == NamespaceKind::User && it.path.as_os_str().is_empty();
    if !linux.namespaces.iter().any(is_new) {
        return;
    }
    let own = |id: u32| {
        if geteuid().is_root() {
            IdMapping { container_id: 0, host_id: 0, size: u32::MAX }
        } else {
            IdMapping { container_id: 0, host_id: id, size: 1 }
        }
    };
    if linux.uid_mappings.is_empty() {
        linux.uid_mappings.push(own(geteuid().as_raw()));
    }
    if linux.gid_mappings.is_empty() {
        linux.gid_mappings.push(own(nix::unistd::getegid().as_raw()));
    }
}

fn write(pid: Pid, file: &str, text: &str) -> Result<(), StepError> {
    fs::write(format!("/proc/{pid}/{file}"), text)
        .act(|| format!("write `{}` to its {file}", text.trim().replace('\n', ", ")))
}

/// Alone a user may map just itself; newuidmap(1) maps what /etc/subuid gives it.
fn map_unprivileged(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), StepError> {
    let own = |maps: &[IdMapping], id: u32| maps.len() == 1 && maps[0].size == 1 && maps[0].host_id == id;
    if own(uids, geteuid().as_raw()) {
        write(pid, "uid_map", &lines(uids))?;
    } else {
        helper("linux.uidMappings", "newuidmap", pid, uids)?;
    }
    if own(gids, nix::unistd::getegid().as_raw()) {
        // Else a user could leave a group that denies it something.
        write(pid, "setgroups", "deny")?;
        write(pid, "gid_map", &lines(gids))
    } else {
        helper("linux.gidMappings", "newgidmap", pid, gids)
    }
}

fn helper(field: &str, program: &str, pid: Pid, mappings: &[IdMapping]) -> Result<(), StepError> {
    let act = || format!("map {field} with {program}");
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for it in mappings {
        command.args([it.container_id, it.host_id, it.size].map(|it| it.to_string()));
    }
    let output = command.output().act(act)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(StepError::refuse(act(), said))
}

/// A user namespace that stands for a map alone: for the ids of a mount.
pub(crate) fn mapped(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, StepError> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into())?;
    let flags = u64::try_from(libc::CLONE_NEWUSER).expect("a positive constant");
    match clone::fork(flags, clone::Parent::Caller).act(|| "make a user namespace".into())? {
        clone::Side::Child => {
            drop(writer);
            // Until the parent has what it wants, or is gone.
            let _ = nix::unistd::read(&reader, &mut [0]);
            clone::exit(0)
        }
        clone::Side::Parent(pid, _) => {
            drop(reader);
            let opened = map(pid, uids, gids).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                fs::File::open(&path).map(OwnedFd::from).act(|| format!("open {path}"))
            });
            drop(writer);
            let _ = nix::sys::wait::waitpid(pid, None);
            opened
        }
    }
}
