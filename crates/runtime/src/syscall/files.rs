//! File opens that can't leave their starting folder (openat2(2)), and operations on descriptors.
#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Follows links as if the folder were the root directory.
pub(crate) const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
/// Follows links as long as they stay below the folder.
pub(crate) const BENEATH: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
/// Follows no link at all.
pub(crate) const NO_LINKS: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

pub(crate) fn text(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Calls openat2(2) with O_CLOEXEC. `mode` only applies to a created file.
pub(crate) fn open_at(dir: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32, resolve: u64) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let path = text(path)?;
    // SAFETY: `open_how` is plain data for which zero is a legal value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.mode = if flags & libc::O_CREAT == 0 { 0 } else { u64::from(mode) };
    how.resolve = resolve;
    for _ in 0..16 {
        // SAFETY: `path` and `how` live through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match Errno::result(result) {
            // A concurrent rename can make the resolution uncertain, and the kernel then asks for another try.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error),
            // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit")) }),
        }
    }
    Err(Errno::EAGAIN)
}

/// Returns standard input, output and error, without the buffers that the standard library allocates for them.
pub(crate) fn standard() -> [BorrowedFd<'static>; 3] {
    // SAFETY: nothing owns these descriptors or closes them; if one is closed nevertheless, calls on it fail.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Marks every descriptor from `first` up to be closed at exec.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range(2) only changes flags of descriptors here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor from 3 up, except those in `kept` and those of the first `lent` numbers from 3 on that the caller of
/// this program left open for the container. Only for a process that never again uses a value that owns another descriptor.
pub(crate) fn close_all_except<const N: usize>(lent: u32, kept: [Option<BorrowedFd<'_>>; N]) -> Result<(), Errno> {
    let number = |it: BorrowedFd<'_>| u32::try_from(it.as_raw_fd()).expect("a descriptor is not negative");
    let mut kept: Vec<u32> = kept.into_iter().flatten().map(number).collect();
    kept.extend((3..3 + lent).filter(|number| {
        // SAFETY: it only reads the flags of whatever has this number.
        let flags = unsafe { libc::fcntl(RawFd::try_from(*number).unwrap_or(RawFd::MAX), libc::F_GETFD) };
        flags >= 0 && flags & libc::FD_CLOEXEC == 0
    }));
    kept.sort_unstable();
    let mut from = 3;
    for number in kept.into_iter().chain([u32::MAX]) {
        if from < number {
            // SAFETY: whatever owns these descriptors is never used again.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) })?;
        }
        from = number.saturating_add(1).max(from);
    }
    Ok(())
}

/// Closes every descriptor from 3 up, because the caller may have leaked some. Only for the very beginning of the
/// program.
pub(crate) fn close_from_3() {
    // SAFETY: this program has not opened a descriptor yet, so it closes none that is owned.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
}

/// Closes every descriptor from 3 up except this one, which gets the number 3. Only for a process that never uses a
/// value again that owns another.
pub(crate) fn keep_only(descriptor: OwnedFd) -> Result<OwnedFd, Errno> {
    let number = descriptor.into_raw_fd();
    if number != 3 {
        // SAFETY: whatever owns the descriptor 3 is never used again.
        Errno::result(unsafe { libc::dup3(number, 3, libc::O_CLOEXEC) })?;
    }
    // SAFETY: whatever owns these descriptors is never used again.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 4u32, u32::MAX, 0) })?;
    // SAFETY: the number was given to this copy just now, and nothing else that is used again owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(3) })
}

/// Makes reads and writes fail if they would block. This applies to all copies of the descriptor.
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(descriptor, FcntlArg::F_SETFL(flags)).map(drop)
}

/// Makes reads and writes wait again. This applies to all copies of the descriptor.
pub(crate) fn set_blocking(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags) - OFlag::O_NONBLOCK;
    fcntl(descriptor, FcntlArg::F_SETFL(flags)).map(drop)
}

/// Returns a copy of a descriptor of another process (pidfd_getfd(2)).
pub(crate) fn descriptor_of(process: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit")) })
}

/// Opens the other side of a terminal without any path (TIOCGPTPEER, ioctl_tty(2)).
pub(crate) fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the call takes an integer.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Allows the other side to be opened (TIOCSPTLCK, ioctl_tty(2)).
pub(crate) fn unlock_terminal(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the call reads an integer that lives through it.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }).map(drop)
}

/// Sets the lines and columns of a terminal.
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads a structure that lives through it.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Returns the lines and columns of a terminal; `None` if the file is not a terminal.
pub(crate) fn terminal_size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills a structure that lives through it.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_row, size.ws_col))
}

/// Makes the terminal at descriptor 0 the controlling terminal of this session.
pub(crate) fn own_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Takes ownership of a descriptor that was received as a number, over a socket or on the command line.
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers have just received the number, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
