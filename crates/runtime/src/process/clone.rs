//! The only place that creates processes without the standard library: clone3 and clone in a single-threaded process.
#![expect(unsafe_code, reason = "they have no safe wrappers")]

use std::ffi::{CStr, CString};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// The side of the fork.
pub(crate) enum Side {
    /// The new process.
    Child,
    /// The old process, with the child's id and a descriptor of it.
    Parent(Pid, OwnedFd),
}

/// The parent of a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// The caller.
    Caller,
    /// The parent of the caller (`CLONE_PARENT`).
    CallersParent,
}

/// Forks a process with the new namespaces of `flags` (`CLONE_NEW…`).
pub(crate) fn fork(flags: u64, parent: Parent) -> Result<Side, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is plain data for which zero is a legal value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::try_from(libc::CLONE_PIDFD).expect("a positive constant");
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    match parent {
        Parent::Caller => args.exit_signal = u64::try_from(libc::SIGCHLD).expect("a positive constant"),
        // A sibling ends with the caller's own exit signal, so none may be given (clone3(2)).
        Parent::CallersParent => args.flags |= u64::try_from(libc::CLONE_PARENT).expect("a positive constant"),
    }
    // SAFETY: without CLONE_VM the child has a copy of everything, like fork(2). The callers are single-threaded
    // programs, so no lock can be held by a thread that no longer exists. `args` lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match Errno::result(result)? {
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel has just stored a new descriptor there, and nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent(Pid::from_raw(i32::try_from(pid).expect("process ids fit")), pidfd))
        }
    }
}

/// Bytes of stack for a child that only executes a program.
const STACK: usize = 16 << 10;

/// Executes a program in a child, in a session of its own, with these standard descriptors, none of which is below 3. Until
/// then the child has this process's memory, and this process waits, as with vfork(2): nothing is copied, and nothing may be
/// allocated. posix_spawn(3) would leave two signals ignored.
pub(crate) fn spawn(
    path: &CStr,
    argv: &[CString],
    environment: &[CString],
    [stdin, stdout, stderr]: [RawFd; 3],
) -> Result<Pid, Errno> {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    let (mut stack, mut failure) = (vec![0; STACK], None);
    let child = Box::new(|| {
        // SAFETY: system calls on integers and on memory that lives through the call.
        unsafe {
            let ready = libc::setsid() != -1
                && libc::dup2(stdin, 0) != -1
                && libc::dup2(stdout, 1) != -1
                && libc::dup2(stderr, 2) != -1;
            if ready {
                libc::execve(path.as_ptr(), argv.as_ptr(), environment.as_ptr());
            }
        }
        failure = Some(Errno::last());
        127
    });
    // SAFETY: the caller has one thread, which waits until the child has executed the program or ended, so they never use
    // the memory at the same time. The child has a stack of its own and ends when its function returns.
    let started = unsafe {
        nix::sched::clone(child, &mut stack, CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK, Some(libc::SIGCHLD))
    };
    let pid = started?;
    match failure {
        None => Ok(pid),
        Some(error) => {
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(error)
        }
    }
}

/// Ends this process without running the exit handlers that the parent registered.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Makes a program start with this signal mask.
pub(crate) fn with_mask(command: &mut std::process::Command, mask: nix::sys::signal::SigSet) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only pthread_sigmask(3) is called, which is async-signal-safe.
    unsafe { command.pre_exec(move || Ok(mask.thread_set_mask()?)) };
}

/// Makes a program end with this process.
pub(crate) fn with_parents_life(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only prctl(2) is called.
    unsafe { command.pre_exec(|| Ok(crate::syscall::process::die_with_parent()?)) };
}

/// Ignores SIGPIPE, so that it becomes an error of the call.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN runs no handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Ignores SIGCHLD: ended children leave no zombies and can't be waited for (sigaction(2)).
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN runs no handler of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Resets signals to the state that a new program expects: none is blocked, and each has its default action, which
/// Rust changes for SIGPIPE.
pub(crate) fn reset_signals() {
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
    // An all-zero `struct sigaction` of the kernel is the default. The C library's call skips two signals of its own,
    // which a caller may have left ignored.
    let default = [0u64; 4];
    for signal in 1..65 {
        // SAFETY: the default disposition runs no handler of ours; the structure lives through the call.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8) };
    }
}

/// Brings up the loopback interface of this network namespace (netdevice(7)).
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
