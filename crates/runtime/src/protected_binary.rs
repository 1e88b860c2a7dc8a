//! Protects the runtime's own program from containers.
//!
//! A process of the runtime that has entered a container exposes the runtime's file as /proc/PID/exe, and an image can
//! make that file its program: a container's root could open and overwrite it (CVE-2019-5736). Therefore the runtime
//! first executes itself again from a read-only mount outside of the file system tree or, if it may not mount, from a
//! sealed copy in memory.

use std::ffi::CString;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Act, StepError};
use crate::syscall::{mounts, process};

const SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// Returns once this process runs from a file that can't be written to; otherwise executes this program again from
/// such a file.
///
/// # Errors
/// Neither a mount nor a copy could be created.
pub fn protect() -> Result<(), StepError> {
    let own = File::open("/proc/self/exe").act(|| "open the runtime's own program".into())?;
    if is_protected(&own) {
        return Ok(());
    }
    let copy = read_only_mount(&own).or_else(|_| sealed_copy(&own))?;
    let argv: Vec<CString> = std::env::args_os().filter_map(|it| CString::new(it.as_bytes()).ok()).collect();
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    let environment: Vec<CString> = std::env::vars_os().filter_map(variable).collect();
    Err(process::execute_file(copy.as_fd(), &argv, &environment)).act(|| "run the runtime's protected program".into())
}

fn is_protected(own: &File) -> bool {
    let read_only = fstatvfs(own).is_ok_and(|it| it.flags().contains(FsFlags::ST_RDONLY));
    let seals = fcntl(own, FcntlArg::F_GET_SEALS);
    read_only || seals.is_ok_and(|it| SealFlag::from_bits_truncate(it).contains(SEALS))
}

/// Returns the file on a read-only mount of its own.
pub(crate) fn read_only_mount(own: &File) -> Result<OwnedFd, StepError> {
    let act = || "mount the runtime's program read-only".to_owned();
    let tree = mounts::open_tree(own.as_fd(), Path::new(""), false).act(act)?;
    let change = mounts::Change { set: mounts::RDONLY, ..mounts::Change::default() };
    mounts::set_attributes(tree.as_fd(), change, false, None).act(act)?;
    Ok(tree)
}

fn sealed_copy(own: &File) -> Result<OwnedFd, StepError> {
    let act = || "copy the runtime's program".to_owned();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"flota-runtime", flags).act(act)?);
    let mut own = own.try_clone().act(act)?;
    own.rewind().act(act)?;
    std::io::copy(&mut own, &mut copy).act(act)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).act(act)?;
    Ok(copy.into())
}
