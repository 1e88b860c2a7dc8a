//! Settings that a process applies to itself, and operations on another process by its descriptor.
#![expect(unsafe_code, reason = "raw system calls")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::files::own;

/// Opens a descriptor of a process (pidfd_open(2)). Unlike an id, it can't come to refer to another process.
pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    Ok(own(i32::try_from(fd).expect("descriptors fit")))
}

/// Sends a signal to the process of a descriptor (pidfd_send_signal(2)).
pub(crate) fn signal(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the pointer to additional information is null.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0) };
    Errno::result(result).map(drop)
}

/// Sends a signal by kill(2), with any number, including real-time signals.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes integers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

fn prctl(option: i32, value: u64) -> Result<i32, Errno> {
    // SAFETY: the callers' options take integers and touch no memory.
    Errno::result(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

/// Sets the name of this process in `ps` and `top`; the kernel uses the first 15 bytes.
pub(crate) fn set_name(name: &std::ffi::CStr) -> Result<(), Errno> {
    // SAFETY: `name` lives through the call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

/// Asks the kernel to kill this process when its parent ends.
pub(crate) fn die_with_parent() -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, u64::from(libc::SIGKILL.cast_unsigned())).map(drop)
}

/// Prevents other processes from tracing this process and from inspecting its descriptors, until it executes another
/// program.
pub(crate) fn hide() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

/// Makes orphaned descendants children of this process (PR_SET_CHILD_SUBREAPER(2const)).
pub(crate) fn adopt_orphans() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

/// Sets whether a change of user keeps the permitted capabilities.
pub(crate) fn keep_capabilities(keep: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep)).map(drop)
}

/// Prevents execve(2) from granting new rights from here on.
pub(crate) fn forbid_new_privileges() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Gives this process the session keyring of this name, which is made if there is none, because the container must not see the
/// runtime's (keyctl(2)).
pub(crate) fn join_session_keyring(name: &str) -> Result<(), Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` lives through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, name.as_ptr())
    };
    Errno::result(result).map(drop)
}

/// Sets the execution domain (personality(2)).
pub(crate) fn personality(persona: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the call takes an integer.
    Errno::result(unsafe { libc::personality(persona) }).map(drop)
}

/// Sets the I/O priority of this process (ioprio_set(2)).
pub(crate) fn set_io_priority(class: i32, priority: i32) -> Result<(), Errno> {
    // IOPRIO_WHO_PROCESS is 1, and the class is above 13 bits of data.
    // SAFETY: the call takes integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, (class << 13) | priority) }).map(drop)
}

/// Sets the scheduling policy of this process (sched_setattr(2)).
pub(crate) fn set_scheduler(attributes: &libc::sched_attr) -> Result<(), Errno> {
    // SAFETY: `attributes` lives through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) }).map(drop)
}

/// Sets the memory policy (set_mempolicy(2)), with the nodes as bits.
pub(crate) fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    let bits = nodes.len() as u64 * 64 + 1;
    let pointer = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: `nodes` has as many bits as the call is told, and lives through it.
    let result =
        unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, if nodes.is_empty() { 0 } else { bits }) };
    Errno::result(result).map(drop)
}

/// Sets the NIS domain name (setdomainname(2)).
pub(crate) fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: pointer and length are of one string that lives through the call.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Sets a resource limit of another process (prlimit(2)).
pub(crate) fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives through the call, and the pointer for the old value is null.
    Errno::result(unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) }).map(drop)
}

/// Sets supplementary groups by the raw setgroups(2): the C library's function notifies all threads, and there is only
/// one.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of one list that lives through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets group and user by the raw setresgid(2) and setresuid(2).
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: the calls take integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: the call takes integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Sets the ids of this thread for what it does with files (setfsuid(2), setfsgid(2)). Needs the rights of root.
pub(crate) fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: the calls take integers. They return the ids before, and no errors.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Executes a program from an open file (execveat(2)), with the given arguments and environment.
pub(crate) fn execute_file(
    file: BorrowedFd<'_>,
    argv: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> Errno {
    let pointers = |list: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    // SAFETY: both lists end with a null pointer and live through the call, as does what they point to.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}
