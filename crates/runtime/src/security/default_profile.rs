//! The profile of a container that has none: Docker's default (moby/profiles, seccomp/default_linux.go).
//!
//! Calls that are not named fail with EPERM, and newer ones with ENOSYS ([`super::seccomp`]). Calls that require a
//! capability in the kernel anyway are allowed with it. The profile's condition for ptrace, kernel 4.8 or newer, always
//! holds where Flota runs.

use crate::oci::{Argument, Seccomp, SyscallRule};

/// Calls that are always allowed.
const ALLOWED: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer \
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
    newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 \
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir \
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Calls that are allowed since the kernel checks seccomp after ptrace, too.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// Calls that are allowed with a capability in the bounding set.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        ADMINISTRATION,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

const ADMINISTRATION: &str = "CAP_SYS_ADMIN";

/// Architectures of a machine, by Rust's name for it, and additional calls that are allowed on it.
const MACHINES: [(&str, &[&str], &str); 7] = [
    ("x86_64", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "arch_prctl modify_ldt"),
    ("x86", &[], "modify_ldt"),
    ("aarch64", &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"], ARM),
    ("arm", &[], ARM),
    ("riscv64", &["SCMP_ARCH_RISCV64"], "riscv_flush_icache"),
    ("s390x", &["SCMP_ARCH_S390X"], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    ("powerpc64", &[], "sync_file_range2 swapcontext"),
];

const ARM: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Flags of clone that create namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Personalities that only change addresses or the reported version (personality(2)).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Returns the default profile for a process with these capabilities (`CAP_…`) in its bounding set.
pub fn default_profile(capabilities: &[String]) -> Seccomp {
    profile_for(std::env::consts::ARCH, capabilities)
}

pub(super) fn profile_for(machine: &str, capabilities: &[String]) -> Seccomp {
    let has = |name: &str| capabilities.iter().any(|it| it == name);
    let (architectures, own) = MACHINES.iter().find(|it| it.0 == machine).map_or((&[][..], ""), |it| (it.1, it.2));
    let mut rules = vec![allow(ALLOWED), allow(TRACING)];
    // All address families are allowed except these two, between whose numbers lies one other: AF_ALG gives access to
    // much kernel code, and AF_VSOCK reaches outside of a virtual machine.
    let (alg, vsock) = (family(libc::AF_ALG), family(libc::AF_VSOCK));
    let families = [("SCMP_CMP_LT", alg), ("SCMP_CMP_EQ", alg + 1), ("SCMP_CMP_GT", vsock)];
    rules.extend(families.map(|(op, value)| allow_if("socket", 0, op, value)));
    rules.extend(PERSONALITIES.map(|it| allow_if("personality", 0, "SCMP_CMP_EQ", it)));
    if !own.is_empty() {
        rules.push(allow(own));
    }
    rules.extend(WITH_CAPABILITY.iter().filter(|it| has(it.0)).map(|it| allow(it.1)));
    if !has(ADMINISTRATION) {
        // On IBM Z the first two arguments are swapped (clone(2)).
        let flags = u32::from(machine == "s390x");
        rules.push(allow_if("clone", flags, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES));
        // The flags of clone3 are in memory, which a filter can't read. After ENOSYS, C libraries fall back to clone.
        let absent = Some(libc::ENOSYS.unsigned_abs());
        rules.push(SyscallRule { action: "SCMP_ACT_ERRNO".into(), errno_ret: absent, ..allow("clone3") });
    }
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(libc::EPERM.unsigned_abs()),
        architectures: architectures.iter().map(|&it| it.into()).collect(),
        syscalls: rules,
        ..Seccomp::default()
    }
}

fn family(number: libc::c_int) -> u64 {
    u64::from(number.unsigned_abs())
}

fn allow(names: &str) -> SyscallRule {
    let names = names.split_whitespace().map(str::to_owned).collect();
    SyscallRule { names, action: "SCMP_ACT_ALLOW".into(), ..SyscallRule::default() }
}

fn allow_if(name: &str, index: u32, op: &str, value: u64) -> SyscallRule {
    SyscallRule { args: vec![Argument { index, value, value_two: 0, op: op.into() }], ..allow(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(machine: &str, capabilities: &[&str]) -> Vec<SyscallRule> {
        let capabilities: Vec<_> = capabilities.iter().map(|&it| it.to_owned()).collect();
        profile_for(machine, &capabilities).syscalls
    }

    /// Returns the actions of a call's rules with their conditions.
    fn of<'a>(rules: &'a [SyscallRule], name: &str) -> Vec<(&'a str, Option<u32>, usize)> {
        let named = rules.iter().filter(|it| it.names.iter().any(|it| it == name));
        named.map(|it| (it.action.as_str(), it.errno_ret, it.args.len())).collect()
    }

    const ALWAYS: (&str, Option<u32>, usize) = ("SCMP_ACT_ALLOW", None, 0);
    const JUDGED: (&str, Option<u32>, usize) = ("SCMP_ACT_ALLOW", None, 1);

    #[test]
    fn profile_is_that_of_moby() {
        // The number was counted in moby/profiles at cd3bed8061c7 (June 2026), seccomp/default.json.
        let mut names: Vec<_> = ALLOWED.split_whitespace().collect();
        assert_eq!(names.len(), 361);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 361, "a name is there twice");
        let with_capability: usize = WITH_CAPABILITY.iter().map(|it| it.1.split_whitespace().count()).sum();
        assert_eq!(with_capability, 53);
        let x86 = rules("x86_64", &[]);
        assert_eq!(x86.len(), 13);
        for name in
            ["read", "statmount", "mseal", "uretprobe", "ptrace", "modify_ldt", "socketcall", "name_to_handle_at"]
        {
            assert_eq!(of(&x86, name), [ALWAYS], "{name}");
        }
        for name in ["io_uring_setup", "keyctl", "userfaultfd", "mount", "bpf", "open_by_handle_at", "set_tls", "vm86"]
        {
            assert_eq!(of(&x86, name), [], "{name}");
        }
        assert_eq!(of(&x86, "socket"), [JUDGED; 3]);
        assert_eq!(of(&x86, "personality"), [JUDGED; 5]);
        assert_eq!(of(&x86, "clone"), [JUDGED]);
        assert_eq!(of(&x86, "clone3"), [("SCMP_ACT_ERRNO", Some(38), 0)]);
    }

    #[test]
    fn capabilities_allow_what_they_guard() {
        let rules = rules("x86_64", &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_TIME"]);
        for name in ["clone", "clone3", "mount", "chroot", "clock_settime64"] {
            assert_eq!(of(&rules, name), [ALWAYS], "{name}");
        }
        assert_eq!(of(&rules, "reboot"), []);
    }

    #[test]
    fn machines_have_their_own_calls() {
        for (machine, name) in
            [("aarch64", "set_tls"), ("s390x", "s390_runtime_instr"), ("riscv64", "riscv_flush_icache")]
        {
            assert_eq!(of(&rules(machine, &[]), name), [ALWAYS], "{name}");
        }
        let clone = |machine| rules(machine, &[]).into_iter().find(|it| it.names == ["clone"]);
        assert_eq!(clone("s390x").map(|it| it.args[0].index), Some(1));
        assert_eq!(clone("aarch64").map(|it| it.args[0].index), Some(0));
    }
}
