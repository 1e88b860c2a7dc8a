//! The namespaces of a container with ids of its own that have to exist before it: a user namespace, and a network namespace
//! that belongs to it, so that the container's root may do in its network what root does in a network.
//!
//! Each is kept by a file, as network namespaces are (network_namespaces(7)). A process with several threads can't make them:
//! a daemon lets the program do it ([`Program::make_namespaces`]), which calls [`make`].

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Act, RunError, StepError};
use crate::ids::IdRange;
use crate::process::user_namespace::in_new_namespaces;
use crate::process::wait_readable;
use crate::program::Program;
use crate::supervisor::{RootSource, try_ids};
use crate::syscall::process as kernel;

/// The word with which the program is called for what is in this file.
pub const VERB: &str = "namespaces";
/// Longest time that the program may take.
const PATIENCE: Duration = Duration::from_secs(55);
/// Exit code of the program if the machine can't give containers ids of their own.
pub const CAN_NOT: u8 = 3;

impl Program {
    /// Makes a user namespace with these ids, kept by the file `user`, and a network namespace that belongs to it, kept by the
    /// file `network`. The folders of the files must exist. Replaces what a crash has left there.
    ///
    /// # Errors
    /// The kernel refuses, or a file can't be made.
    pub fn make_namespaces(&self, ids: IdRange, user: &Path, network: &Path) -> Result<(), RunError> {
        let [first, count] = [ids.first, ids.count].map(|it| it.to_string());
        let words = [OsStr::new("make"), first.as_ref(), count.as_ref(), user.as_ref(), network.as_ref()];
        self.ask(&words).and_then(|(code, text)| if code == 0 { Ok(()) } else { Err(RunError::new(text)) })
    }

    /// Finds out whether containers with ids of their own can have their files in this folder. `overlay` says whether their
    /// root is an overlay. Returns why not, or `None` if they can.
    ///
    /// # Errors
    /// It could not be tried, as on a full disk.
    pub fn try_ids(&self, folder: &Path, overlay: bool) -> Result<Option<String>, RunError> {
        let kind = if overlay { "overlay" } else { "folder" };
        let (code, text) = self.ask(&[OsStr::new("try"), kind.as_ref(), folder.as_ref()])?;
        match code {
            0 => Ok(None),
            code if code == i32::from(CAN_NOT) => Ok(Some(text)),
            _ => Err(RunError::new(text)),
        }
    }

    /// Runs the program, and returns its exit code and what it says of an error. One that hangs is killed.
    fn ask(&self, words: &[&OsStr]) -> Result<(i32, String), RunError> {
        let act = || format!("make or try namespaces with {}", self.path().display());
        let mut command = self.command();
        command.env_clear().args([VERB, "--"]).args(words).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().act(act)?;
        let pid = i32::try_from(child.id()).expect("process ids fit");
        // What it says of an error fits into the pipe, so that it ends without a reader.
        let ended =
            kernel::open(pid).act(act).map_err(RunError::from).and_then(|process| wait_readable(&process, PATIENCE));
        if !matches!(ended, Ok(true)) {
            let _ = child.kill();
        }
        let output = child.wait_with_output().act(act)?;
        if !ended? {
            return Err(StepError::refuse(act(), format!("it did not end within {PATIENCE:?}")).into());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        Ok((output.status.code().unwrap_or(1), text))
    }
}

/// Does what [`Program::make_namespaces`] says, in a process with one thread.
///
/// # Errors
/// An earlier file can't be removed, the kernel refuses to make a namespace, or its file can't be created or mounted.
pub fn make(ids: IdRange, user: &Path, network: &Path) -> Result<(), StepError> {
    for path in [user, network] {
        remove(path)?;
    }
    let map = [ids.mapping()];
    in_new_namespaces(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, &map, &map, |pid| {
        for (path, kind) in [(user, "user"), (network, "net")] {
            let act = || format!("keep a namespace at {}", path.display());
            fs::File::create(path).act(act)?;
            let source = format!("/proc/{pid}/ns/{kind}");
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).act(act)?;
        }
        Ok(())
    })
}

/// Removes the file of a namespace, which ends when nothing else is in it or belongs to it. Does nothing if there is none.
///
/// # Errors
/// The file is in use for another reason.
pub fn remove(path: &Path) -> Result<(), StepError> {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => {
            Err(error).act(|| format!("remove the namespace at {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Does what [`Program::try_ids`] says, in a process with one thread, whose mounts are its own afterwards. What is made for it in
/// the folder is to be removed by the caller once the process has ended.
///
/// # Errors
/// A file can't be made, or the kernel refuses to show it with these ids; the error says which step failed.
pub fn try_in(probe: &Path, overlay: bool) -> Result<(), StepError> {
    let path = |name: &str| probe.join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir_all(path(name)).act(|| format!("make {}", path(name).display()))?;
    }
    let root = if overlay {
        RootSource::Overlay { lower: vec![path("lower")], upper: path("upper"), work: path("work") }
    } else {
        RootSource::Folder(path("lower"))
    };
    try_ids(probe, &root, IdRange { first: 1 << 30, count: 1 << 16 })
}

/// Returns whether the error says that the machine lacks something, and not that it is short of something.
pub fn is_lack(error: &StepError) -> bool {
    const LACKS: [Errno; 5] = [Errno::EINVAL, Errno::EPERM, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::ENODEV];
    error.raw_os_error().is_some_and(|number| LACKS.contains(&Errno::from_raw(number)))
}
