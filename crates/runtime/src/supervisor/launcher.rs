//! The process from which supervisors are forked. A daemon keeps one running, so that no start of a container waits
//! for a program to be loaded. It does nothing but fork.
//!
//! ```text
//! daemon ── Supervise(DIR), with one end of a connection ──▶ launcher ── fork ──▶ supervisor of DIR, at that end
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Supervisor;
use super::message::{FromSupervisor, ToLauncher};
use crate::connection::{Connection, Wait};
use crate::error::{Act, RunError, StepError};
use crate::process::clone::{self, Parent};
use crate::state;
use crate::syscall::{files, process as kernel};

/// Forks a supervisor for each folder that arrives at standard input, until that is closed. Each supervisor appends
/// its folder to `title`, the memory of this process's command line.
///
/// # Errors
/// Standard input is not a connection from a daemon.
pub fn launch(title: &mut [u8]) -> Result<(), RunError> {
    files::close_from_3();
    let act = || "listen for containers to be started".to_owned();
    std::env::set_current_dir("/").act(act)?;
    kernel::set_name(c"flota-launcher").act(act)?;
    // No process waits for supervisors.
    clone::ignore_children();
    let requests = Connection::from(files::standard()[0].try_clone_to_owned().act(act)?);
    while let Some(Request { dir, daemon, kept }) = recv(&requests).act(act)? {
        match clone::fork(0, Parent::Caller) {
            Ok(clone::Side::Parent(..)) => {}
            Ok(clone::Side::Child) => {
                // The daemon notices the end of its launcher by the end of this connection, so supervisors must not
                // hold it.
                drop(requests);
                show(title, &dir);
                clone::exit(supervise(&dir, daemon, kept))
            }
            Err(error) => fail(&daemon, RunError::new(format!("failed to start a supervisor: {}", error.desc()))),
        }
    }
    Ok(())
}

/// A supervisor to fork.
struct Request {
    dir: PathBuf,
    /// The supervisor's connection to the daemon.
    daemon: Connection,
    /// The descriptors that it keeps.
    kept: Vec<OwnedFd>,
}

fn recv(requests: &Connection) -> io::Result<Option<Request>> {
    while let Some((ToLauncher::Supervise(dir), descriptors)) = requests.recv(Wait::Block)? {
        let mut descriptors = descriptors.into_iter();
        // Without a connection no daemon waits for the container.
        if let Some(daemon) = descriptors.next() {
            return Ok(Some(Request { dir, daemon: daemon.into(), kept: descriptors.collect() }));
        }
    }
    Ok(None)
}

/// Tells the daemon why a container did not start. A closed connection is ignored.
fn fail(daemon: &Connection, error: RunError) {
    let _ = daemon.send(&FromSupervisor::Failed(error), &[], Wait::Fail);
}

fn show(title: &mut [u8], dir: &Path) {
    let arguments = title.split(|byte| *byte == 0).take(2).collect::<Vec<_>>().join(&b' ');
    let text = [&arguments[..], dir.as_os_str().as_bytes()].join(&b' ');
    title.fill(0);
    for (to, from) in title.iter_mut().zip(text) {
        *to = from;
    }
}

/// Runs a supervisor until its container has ended and returns its exit code.
fn supervise(dir: &Path, daemon: Connection, kept: Vec<OwnedFd>) -> i32 {
    clone::reset_signals();
    if !daemon.is_open() {
        return 1;
    }
    match start(dir, kept) {
        Ok(supervisor) => supervisor.run(daemon),
        Err(error) => {
            fail(&daemon, error);
            1
        }
    }
}

fn start(dir: &Path, kept: Vec<OwnedFd>) -> Result<Supervisor, RunError> {
    let order = state::read(&dir.join("order.json")).act(|| "read the order".into())?;
    Supervisor::start(
        dir,
        order.ok_or_else(|| StepError::refuse("read the order", format!("{} has none", dir.display())))?,
        kept,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_has_the_folder_and_is_cut_where_there_is_no_room() {
        let memory = |room: usize| [&b"/bin/runtime\0supervise\0ROOM="[..], &vec![b' '; room], &[0]].concat();
        for (room, expected) in [(30, "/bin/runtime supervise /run/a/box"), (0, "/bin/runtime supervise /run/a")] {
            let mut memory = memory(room);
            show(&mut memory, Path::new("/run/a/box"));
            let end = memory.iter().position(|byte| *byte == 0).unwrap_or(memory.len());
            assert_eq!(String::from_utf8_lossy(&memory[..end]), expected);
        }
    }
}
