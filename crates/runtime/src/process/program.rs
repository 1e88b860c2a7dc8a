//! The last step of init, inside the container's root: working directory, environment, and the program itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Pid, chdir, execve, faccessat, getcwd};

use super::clone;
use crate::error::{Act, NOT_EXECUTABLE, NOT_FOUND, StepError};
use crate::oci::Process;

/// Largest user table in bytes.
const TABLE_BOUND: u64 = 4 << 20;

/// A program that was found and is ready to run without further allocation.
pub(crate) struct InitProgram {
    path: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

/// Enters the working directory. A directory outside of the root (a leaked descriptor of the runtime, or a link in
/// /proc) is refused (CVE-2024-21626).
pub(crate) fn enter_folder(cwd: &Path) -> Result<(), StepError> {
    chdir(cwd).act(|| format!("enter process.cwd `{}`", cwd.display()))?;
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(StepError::refuse(format!("enter process.cwd `{}`", cwd.display()), "it is outside of the container")),
    }
}

impl InitProgram {
    /// Returns the program of a configuration without a process, which can be created but not started.
    pub(crate) fn none() -> Self {
        Self { path: CString::default(), argv: Vec::new(), environment: Vec::new() }
    }

    /// Finds the program as execvp(3) does, so that a missing one is reported before anything runs.
    pub(crate) fn find(process: &Process) -> Result<Self, StepError> {
        let text = |it: &str| {
            CString::new(it).map_err(|_| StepError::refuse("run the program", "an argument holds a NUL byte"))
        };
        let name = process.args.first().filter(|it| !it.is_empty());
        let name = name.ok_or_else(|| StepError::refuse("read process.args", "there is no program"))?;
        let mut environment = process.env.clone();
        if !environment.iter().any(|it| it.starts_with("HOME=") && it.len() > 5) {
            environment.retain(|it| !it.starts_with("HOME="));
            environment.push(format!("HOME={}", home(process.user.uid)));
        }
        let path = locate(name, &environment)?;
        Ok(Self {
            path: text(&path)?,
            argv: process.args.iter().map(|it| text(it)).collect::<Result<_, _>>()?,
            environment: environment.iter().map(|it| text(it)).collect::<Result<_, _>>()?,
        })
    }

    /// Starts the program as a child in a session of its own, with these standard descriptors.
    ///
    /// # Errors
    /// The process can't be made, or the program can't be executed.
    pub(crate) fn spawn(&self, standard: &[OwnedFd; 3]) -> Result<Pid, Errno> {
        clone::spawn(&self.path, &self.argv, &self.environment, standard.each_ref().map(AsRawFd::as_raw_fd))
    }

    /// Executes the program.
    pub(crate) fn run(&self) -> Result<Infallible, StepError> {
        let error = match execve(&self.path, &self.argv, &self.environment) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let code = if matches!(error, Errno::ENOENT | Errno::ENOTDIR) { NOT_FOUND } else { NOT_EXECUTABLE };
        let failed = Err(error).act(|| format!("run `{}`", self.path.to_string_lossy()));
        failed.map_err(|error| error.with_code(code))
    }
}

fn locate(name: &str, environment: &[String]) -> Result<String, StepError> {
    let check = |path: &str| {
        if Path::new(path).is_dir() {
            return Err(Errno::EACCES);
        }
        // The check uses the rights that the program will have (faccessat(2)).
        faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
    };
    if name.contains('/') {
        return check(name).map(|()| name.to_owned()).map_err(|error| {
            let code = if matches!(error, Errno::EACCES | Errno::EPERM) { NOT_EXECUTABLE } else { NOT_FOUND };
            let failed: Result<(), _> = Err(error).act(|| format!("run `{name}`"));
            failed.expect_err("made just here").with_code(code)
        });
    }
    let path = environment.iter().rev().find_map(|it| it.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for folder in path.split(':') {
        let candidate = if folder.is_empty() { format!("./{name}") } else { format!("{folder}/{name}") };
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => denied |= error == Errno::EACCES && Path::new(&candidate).is_file(),
        }
    }
    Err(if denied {
        let failed: Result<(), _> = Err(Errno::EACCES).act(|| format!("run `{name}`"));
        failed.expect_err("made just here").with_code(NOT_EXECUTABLE)
    } else {
        // This is runc's text, which callers rely on.
        StepError::refuse(format!("run `{name}`"), "executable file not found in $PATH").with_code(NOT_FOUND)
    })
}

/// Returns the user's home from the container's own /etc/passwd.
fn home(uid: u32) -> String {
    let table = std::fs::File::open("/etc/passwd").ok().filter(|it| it.metadata().is_ok_and(|it| it.is_file()));
    let mut text = String::new();
    if let Some(table) = table {
        let _ = table.take(TABLE_BOUND).read_to_string(&mut text);
    }
    let uid = uid.to_string();
    let find = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2] == uid && !fields[5].is_empty()).then(|| fields[5].to_owned())
    };
    text.lines().find_map(find).unwrap_or_else(|| "/".to_owned())
}
