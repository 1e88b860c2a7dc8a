//! The inside of a spawner: a process that waits in a container, with the rights of the container's program, and starts
//! programs there, one at a time. What costs most at the start of a further process (two forks, namespaces, control
//! groups, the filter of system calls) was done once, when the spawner was made.
//!
//! It never executes another program itself, so it stays hidden from the container's processes
//! (`PR_SET_DUMPABLE`, CVE-2016-9962), and it holds no descriptor but its connection and /dev/null.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::program::InitProgram;
use super::{clone, exit_code};
use crate::connection::{Connection, Wait};
use crate::error::{RunError, StepError};
use crate::oci::Process;
use crate::syscall::{files, process as kernel};

/// Name of the process, as `ps` shows it in the container.
const NAME: &std::ffi::CStr = c"flota-check";

/// A request to a spawner.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSpawner {
    /// Run this program with these arguments. Its standard descriptors are attached. Answered with `Started`, `Failed` or
    /// `Unable`; after `Started`, `Ended` follows.
    Run(Vec<String>),
}

/// An answer of a spawner.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromSpawner {
    /// The program runs.
    Started,
    /// The program can't be run, for this reason.
    Failed(RunError),
    /// The spawner could not start it, perhaps because of a limit or a filter. It may be possible in another way.
    Unable,
    /// The program has ended with this exit code.
    Ended(i32),
}

/// Serves requests until the connection ends. Only for a process that has assumed the rights of the program.
pub(crate) fn serve(process: &Process, connection: OwnedFd) -> ! {
    // The supervisor from which this process was forked has memory and descriptors that are not the container's.
    let kept = kernel::hide().and_then(|()| files::keep_only(connection));
    let Ok(connection) = kept.map(Connection::from) else { clone::exit(1) };
    let _ = kernel::set_name(NAME);
    while let Ok(Some((ToSpawner::Run(args), descriptors))) = connection.recv(Wait::Block) {
        let answer = match spawn(&Process { args, ..process.clone() }, descriptors) {
            Ok(child) => {
                let _ = connection.send(&FromSpawner::Started, &[], Wait::Block);
                FromSpawner::Ended(wait(child))
            }
            Err(Some(error)) => FromSpawner::Failed(error.into()),
            Err(None) => FromSpawner::Unable,
        };
        if connection.send(&answer, &[], Wait::Block).is_err() {
            break;
        }
    }
    clone::exit(0)
}

/// Starts the program. The error is `None` if it may not be the program's own.
fn spawn(process: &Process, descriptors: Vec<OwnedFd>) -> Result<Pid, Option<StepError>> {
    let program = InitProgram::find(process)?;
    let standard = <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| None)?;
    program.spawn(&standard).map_err(|_| None)
}

fn wait(child: Pid) -> i32 {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            status => return status.ok().and_then(exit_code).unwrap_or(255),
        }
    }
}
