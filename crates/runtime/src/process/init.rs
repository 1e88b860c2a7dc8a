//! The container's init, from its first breath to exec. An ordered list of steps; each has its reason to stand
//! where it stands.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{execve, read, sethostname, setsid};

use super::clone;
use super::user::{self, User};
use crate::error::{Act, StepError};
use crate::rootfs;
use crate::security;
use crate::spec::ContainerSpec;

/// The namespaces of a container; its cgroup namespace comes later, when it is in its cgroup.
pub(crate) const NAMESPACES: i32 =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET;

/// Becomes the container's program, or says why not and ends. `go` is readable when the process is in its cgroups.
pub(crate) fn run(spec: &ContainerSpec, filter: &security::Filter, go: &OwnedFd, report: OwnedFd) -> ! {
    let error = match become_program(spec, filter, go) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = fs::File::from(report).write_all(error.to_string().as_bytes());
    clone::exit(127)
}

enum Never {}

fn become_program(spec: &ContainerSpec, filter: &security::Filter, go: &OwnedFd) -> Result<Never, StepError> {
    clone::die_with_parent().act(|| "tie the container to its supervisor".into())?;
    if read(go, &mut [0]).act(|| "wait for the supervisor".into())? == 0 {
        return Err(StepError::refuse("start", "the supervisor has gone"));
    }
    // In its cgroup now: what the namespace shows as the root is the container's own group.
    unshare(CloneFlags::CLONE_NEWCGROUP).act(|| "make a cgroup namespace".into())?;
    setsid().act(|| "begin a session".into())?;
    sethostname(&spec.hostname).act(|| format!("set the host name `{}`", spec.hostname))?;
    clone::loopback_up().act(|| "take the loopback interface up".into())?;
    rootfs::enter(&spec.root, &spec.hostname)?;
    // From here on every path is the container's own.
    let user = user::find(&spec.user)?;
    let environment = environment(&spec.env, &user, &spec.hostname);
    // The machine's /dev/null came along as standard input: its mode and owner must not be the container's to change.
    let null = fs::File::open("/dev/null").act(|| "open /dev/null".into())?;
    nix::unistd::dup2_stdin(&null).act(|| "set standard input".into())?;
    // First the folder: a relative command is looked for there.
    enter_folder(&spec.cwd)?;
    let program = find_program(&spec.argv, &environment)?;
    let guarded = crate::cgroup::limits::guards_devices(&spec.cgroups);
    drop_rights(&user, guarded, filter)?;
    execute(&program, &spec.argv, &environment)
}

/// Identity, capabilities, no new privileges, seccomp: in this order, since each takes away what the one before needs.
pub(super) fn drop_rights(user: &User, guarded_devices: bool, filter: &security::Filter) -> Result<(), StepError> {
    clone::close_on_exec_from_3().act(|| "close descriptors".into())?;
    security::limit_capabilities(guarded_devices)?;
    nix::unistd::setgroups(&user.groups).act(|| "set the groups".into())?;
    nix::unistd::setresgid(user.gid, user.gid, user.gid).act(|| format!("become group {}", user.gid))?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid).act(|| format!("become user {}", user.uid))?;
    // A change of user forgets it (PR_SET_PDEATHSIG(2const)).
    clone::die_with_parent().act(|| "tie the container to its supervisor".into())?;
    security::keep_capabilities(user.uid.is_root(), guarded_devices)?;
    security::forbid_new_privileges()?;
    filter.install()
}

/// Looks the program up as execvp(3) does, so that a missing one is named before anything runs.
pub(super) fn find_program(argv: &[String], environment: &[String]) -> Result<String, StepError> {
    let name = argv.first().filter(|it| !it.is_empty());
    let name = name.ok_or_else(|| StepError::refuse("start", "neither image nor service says which command"))?;
    let executable =
        |path: &str| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && !Path::new(path).is_dir();
    if name.contains('/') {
        let why = if Path::new(name).exists() { "it is not executable" } else { "there is no such file in the image" };
        return if executable(name) { Ok(name.clone()) } else { Err(StepError::refuse(format!("run `{name}`"), why)) };
    }
    let path = environment.iter().find_map(|it| it.strip_prefix("PATH=")).unwrap_or_default();
    let found = path.split(':').map(|folder| format!("{folder}/{name}")).find(|it| executable(it));
    found.ok_or_else(|| StepError::refuse(format!("run `{name}`"), format!("there is no such command in {path}")))
}

/// The variables as given, the last of a name winning, and the ones that every program expects.
pub(super) fn environment(given: &[String], user: &User, hostname: &str) -> Vec<String> {
    let defaults = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!("HOSTNAME={hostname}"),
        format!("HOME={}", user.home),
    ];
    let mut result: Vec<String> = Vec::new();
    for variable in defaults.iter().chain(given) {
        let name = variable.split('=').next().unwrap_or_default();
        result.retain(|it| it.split('=').next() != Some(name));
        result.push(variable.clone());
    }
    result
}

pub(super) fn enter_folder(cwd: &str) -> Result<(), StepError> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    fs::create_dir_all(cwd).act(|| format!("make the working directory `{cwd}`"))?;
    nix::unistd::chdir(cwd).act(|| format!("enter the working directory `{cwd}`"))
}

pub(super) fn execute_program(program: &str, argv: &[String], environment: &[String]) -> StepError {
    match execute(program, argv, environment) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn execute(program: &str, argv: &[String], environment: &[String]) -> Result<Never, StepError> {
    let text = |it: &String| {
        CString::new(it.as_str()).map_err(|_| StepError::refuse("run the program", "an argument holds a NUL byte"))
    };
    let argv = argv.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let environment = environment.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let path = text(&program.to_owned())?;
    match execve(&path, &argv, &environment) {
        Ok(never) => match never {},
        Err(error) => Err(error).act(|| format!("run `{program}`")),
    }
}
