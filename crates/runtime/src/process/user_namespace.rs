//! The mapping of ids of a user namespace to ids outside (user_namespaces(7)).

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

/// Completes a new user namespace without maps: it gets the ids that exist outside, as in crun, or for an unprivileged
/// user only that user.
pub(crate) fn fill_in(spec: &mut Spec) {
    let Some(linux) = &mut spec.linux else { return };
    let is_new = |it: &crate::oci::Namespace| it.kind == NamespaceKind::User && it.is_new();
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

/// Writes maps as an unprivileged user, who may only map itself; newuidmap(1) maps the ids that /etc/subuid grants.
fn map_unprivileged(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), StepError> {
    let own = |maps: &[IdMapping], id: u32| maps.len() == 1 && maps[0].size == 1 && maps[0].host_id == id;
    if own(uids, geteuid().as_raw()) {
        write(pid, "uid_map", &lines(uids))?;
    } else {
        helper("linux.uidMappings", "newuidmap", pid, uids)?;
    }
    if own(gids, nix::unistd::getegid().as_raw()) {
        // Otherwise a user could leave a group that denies access.
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
    let errors = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(StepError::refuse(act(), errors))
}

/// Returns a user namespace that only serves as a map, for the ids of a mount.
pub(crate) fn mapped(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, StepError> {
    in_new_namespaces(libc::CLONE_NEWUSER, uids, gids, |pid| {
        let path = format!("/proc/{pid}/ns/user");
        fs::File::open(&path).map(OwnedFd::from).act(|| format!("open {path}"))
    })
}

/// Makes new namespaces, of which one is a user namespace with these ids that owns the others, and calls `work` with the id of
/// a process that is in them and waits. `work` opens or mounts the namespaces that are to stay.
pub(crate) fn in_new_namespaces<T>(
    flags: i32,
    uids: &[IdMapping],
    gids: &[IdMapping],
    work: impl FnOnce(Pid) -> Result<T, StepError>,
) -> Result<T, StepError> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).act(|| "make a pipe".into())?;
    let flags = u64::try_from(flags).expect("positive flags");
    match clone::fork(flags, clone::Parent::Caller).act(|| "make a user namespace".into())? {
        clone::Side::Child => {
            drop(writer);
            // The process waits until the parent is done or has ended.
            let _ = nix::unistd::read(&reader, &mut [0]);
            clone::exit(0)
        }
        clone::Side::Parent(pid, _) => {
            drop(reader);
            let done = map(pid, uids, gids).and_then(|()| work(pid));
            drop(writer);
            let _ = nix::sys::wait::waitpid(pid, None);
            done
        }
    }
}
