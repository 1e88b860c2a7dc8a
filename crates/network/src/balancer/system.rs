//! bpf(2) itself, and what maps and programs have in common.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// Commands of linux/bpf.h (enum bpf_cmd).
pub(super) const MAP_CREATE: i32 = 0;
pub(super) const MAP_LOOKUP: i32 = 1;
pub(super) const MAP_UPDATE: i32 = 2;
pub(super) const MAP_DELETE: i32 = 3;
pub(super) const MAP_NEXT_KEY: i32 = 4;
pub(super) const PROGRAM_LOAD: i32 = 5;
pub(super) const PROGRAM_ATTACH: i32 = 8;
pub(super) const PROGRAM_DETACH: i32 = 9;
pub(super) const PROGRAM_BY_ID: i32 = 13;
pub(super) const MAP_BY_ID: i32 = 14;
const INFORMATION: i32 = 15;
pub(super) const PROGRAM_QUERY: i32 = 16;
pub(super) const MAP_UPDATE_BATCH: i32 = 26;
pub(super) const MAP_DELETE_BATCH: i32 = 27;

/// Length of a name, which a zero byte ends (BPF_OBJ_NAME_LEN).
pub(super) const NAME: usize = 16;

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Information {
    descriptor: u32,
    length: u32,
    information: u64,
}

/// Asks the kernel about a map or a program. `T` is the structure of that kind, or its beginning.
pub(super) fn inform<T>(object: BorrowedFd<'_>, record: &mut T) -> io::Result<()> {
    let mut information = Information {
        descriptor: number(object.as_raw_fd()),
        length: std::mem::size_of::<T>() as u32,
        information: std::ptr::from_mut(record) as u64,
    };
    bpf(INFORMATION, &mut information).map(drop)
}

/// Opens a map or a program.
pub(super) fn by_id(command: i32, id: u32) -> io::Result<OwnedFd> {
    bpf(command, &mut ById { id, ..ById::default() }).map(own)
}

/// Returns a name in the kernel's form.
pub(super) fn padded(name: &str) -> [u8; NAME] {
    let mut padded = [0; NAME];
    // The last byte stays zero.
    padded.iter_mut().take(NAME - 1).zip(name.bytes()).for_each(|(to, from)| *to = from);
    padded
}

pub(super) fn number(descriptor: RawFd) -> u32 {
    descriptor.cast_unsigned()
}

/// Makes a missing map, program or key `None`.
pub(super) fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        result => result.map(Some),
    }
}

/// Owns the descriptor that [`bpf`] has just returned.
#[expect(unsafe_code, reason = "the kernel's new descriptor is owned")]
pub(super) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what bpf(2) has just returned as a new descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Calls bpf(2).
#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]
pub(super) fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads and writes within the given size, except for the fault of some kernels that
    // `program::Query` has space for. `T` is one of the structures of this module, `map` or `program`: plain numbers
    // without padding. The addresses in them point to buffers that live in the caller until this returns and that are
    // as long as the lengths beside them, or as the keys and values of the map, whose sizes `Map` has made sure of.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), std::mem::size_of::<T>()) };
    let result = nix::errno::Errno::result(result)?;
    i32::try_from(result).map_err(io::Error::other)
}
