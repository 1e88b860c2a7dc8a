//! The only place that makes processes without exec: clone3, in a process that has one thread.
#![expect(unsafe_code, reason = "clone3 has no safe wrapper")]

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// Which side of the fork this is.
pub(crate) enum Side {
    /// In the new process.
    Child,
    /// In the old one: the child's id, and a descriptor of it.
    Parent(Pid, OwnedFd),
}

/// Forks, with the namespaces of `flags` (`CLONE_NEW…`) new for the child.
pub(crate) fn fork(flags: u64) -> Result<Side, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is plain data for which zero is a legal value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::try_from(libc::CLONE_PIDFD).expect("a positive constant");
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = u64::try_from(libc::SIGCHLD).expect("a positive constant");
    // SAFETY: without CLONE_VM the child has a copy of everything, like fork(2); the callers are single-threaded
    // programs, so no lock can be held by a thread that is not there any more. `args` lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match Errno::result(result)? {
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor there, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent(Pid::from_raw(i32::try_from(pid).expect("process ids fit")), pidfd))
        }
    }
}

/// Ends this process without running anything that the parent registered.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Asks the kernel to kill this process when its parent ends.
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    Errno::result(result).map(drop)
}

/// Keeps others from tracing this process and from looking at its descriptors, until it becomes another program.
pub(crate) fn hide() -> Result<(), Errno> {
    // SAFETY: PR_SET_DUMPABLE takes a number and touches no memory.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Closes every descriptor from 3 up: whoever called may have let some leak.
pub(crate) fn close_from_3() {
    // SAFETY: nothing here has opened a descriptor yet, so nobody's is closed.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
}

/// Makes the terminal at descriptor 0 this session's own.
pub(crate) fn own_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Marks every descriptor from 3 up to be closed at exec: nothing of the supervisor's leaks into a container.
pub(crate) fn close_on_exec_from_3() -> Result<(), Errno> {
    // SAFETY: close_range(2) only changes flags of descriptors here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Takes the loopback interface of this network namespace up (netdevice(7)).
pub(crate) fn loopback_up() -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let kind = (nix::sys::socket::AddressFamily::Inet, nix::sys::socket::SockType::Datagram);
    let socket = nix::sys::socket::socket(kind.0, kind.1, nix::sys::socket::SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data for which zero is a legal value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::try_from(*from).expect("ASCII");
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("small flags");
    // SAFETY: `request` is a whole ifreq that lives through the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}
