//! Paths that can't lead out of where they begin (openat2(2)), and descriptors.
#![expect(unsafe_code, reason = "raw system calls")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Links are followed as if the folder were the root of everything.
pub(crate) const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
/// No link at all is followed.
pub(crate) const NO_LINKS: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

pub(crate) fn text(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// openat2(2), with O_CLOEXEC. `mode` is only for a file that is made.
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
            // Something was renamed meanwhile; the kernel can't be sure and asks to try again.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error),
            // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit")) }),
        }
    }
    Err(Errno::EAGAIN)
}

/// Standard input, output and error. Without the buffers that the standard library makes when it is asked for them.
pub(crate) fn standard() -> [BorrowedFd<'static>; 3] {
    // SAFETY: nobody owns these, and nobody closes them; if one is closed all the same, calls on it fail.
    [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Marks every descriptor from `first` up to be closed at exec.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range(2) only changes flags of descriptors here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor from 3 up: whoever called may have let some leak. Only for the very beginning.
pub(crate) fn close_from_3() {
    // SAFETY: nothing here has opened a descriptor yet, so nobody's is closed.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
}

/// Makes reads and writes fail where they would block. This applies to all copies of the descriptor.
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(descriptor, FcntlArg::F_SETFL(flags)).map(drop)
}

/// A copy of a descriptor that another process has (pidfd_getfd(2)).
pub(crate) fn descriptor_of(process: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors fit")) })
}

/// The other side of a terminal, without any path (TIOCGPTPEER, ioctl_tty(2)).
pub(crate) fn terminal_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the call takes an integer.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the other side be opened (TIOCSPTLCK, ioctl_tty(2)).
pub(crate) fn unlock_terminal(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the call reads an integer that lives through it.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }).map(drop)
}

/// Lines and columns of a terminal.
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads a structure that lives through it.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The same of the terminal that this is; `None` where it is none.
pub(crate) fn terminal_size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills a structure that lives through it.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_row, size.ws_col))
}

/// Makes the terminal at descriptor 0 this session's own.
pub(crate) fn own_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// A descriptor that came as a number: over a socket, or by the command line.
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers have just been given the number, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
