//! bpf(2), as far as a device program of a v2 group needs it: loads, attaches, finds and detaches programs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::filter::EbpfInstruction;

// Commands and constants of linux/bpf.h.
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// A group below may have a program too; an access needs the permission of all of them.
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Largest number of programs that the kernel allows in one group (BPF_CGROUP_MAX_PROGS).
const MOST: usize = 64;

/// The verifier gives up when a signal arrives (since Linux 4.20), so loading is tried several times.
const TRIES: usize = 5;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    group: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// All fields are present, because Linux 6.17 to 7.1 write `revision` regardless of the given size.
#[repr(C)]
#[derive(Default)]
struct Query {
    group: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Makes this the only device program of a group. A `fresh` group has none yet.
pub(super) fn replace(group: &Path, program: &[EbpfInstruction], fresh: bool) -> io::Result<()> {
    let group = File::open(group)?;
    let old = if fresh { Vec::new() } else { attached(&group)? };
    let program = load_with_memory(program)?;
    let attach = |flags, replaced: RawFd| {
        let mut attach = Attach { flags, ..named(&group, program.as_raw_fd()) };
        attach.replaced = number(replaced);
        bpf(PROG_ATTACH, &mut attach).map(drop)
    };
    // Replaces the program in one step if the kernel supports it (since Linux 5.6), so that there is no moment with
    // both.
    if let [old] = old.as_slice()
        && attach(ALLOW_MULTI | REPLACE, old.as_raw_fd()).is_ok()
    {
        return Ok(());
    }
    attach(ALLOW_MULTI, 0)?;
    for old in &old {
        bpf(PROG_DETACH, &mut named(&group, old.as_raw_fd()))?;
    }
    Ok(())
}

fn number(descriptor: RawFd) -> u32 {
    u32::try_from(descriptor).unwrap_or(0)
}

fn named(group: &File, program: RawFd) -> Attach {
    Attach { group: number(group.as_raw_fd()), program: number(program), kind: CGROUP_DEVICE, ..Attach::default() }
}

/// Loads a program. Kernels before 5.11 count programs against the limit of locked memory and fail with EPERM, so it
/// is raised then.
fn load_with_memory(program: &[EbpfInstruction]) -> io::Result<OwnedFd> {
    let first = load(program);
    if !first.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
        return first;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY)?;
    let second = load(program);
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    second
}

fn load(program: &[EbpfInstruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    let mut tries = 0;
    loop {
        match bpf(PROG_LOAD, &mut load) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => tries += 1,
            result => return result.map(own),
        }
    }
}

/// Returns the device programs of the group itself. A program that this process may not open stays (a security module
/// guards systemd's); it can only deny more.
fn attached(group: &File) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MOST];
    let mut query = Query {
        group: number(group.as_raw_fd()),
        kind: CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    let mut found = Vec::new();
    for id in ids.iter().take(query.count as usize) {
        match bpf(PROG_GET_FD_BY_ID, &mut ById { id: *id, ..ById::default() }) {
            Ok(descriptor) => found.push(own(descriptor)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[expect(unsafe_code, reason = "the kernel's new descriptor is owned")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what bpf(2) has just returned as a new descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads and writes within the given size, except for the fault of some kernels that [`Query`]
    // has space for. `T` is one of the structures above: plain numbers without padding. The addresses in them point to
    // buffers that live in the caller until this returns, with their lengths beside them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), std::mem::size_of::<T>()) };
    let result = nix::errno::Errno::result(result)?;
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
pub(in crate::cgroup) fn count(group: &Path) -> io::Result<usize> {
    Ok(attached(&File::open(group)?)?.len())
}
