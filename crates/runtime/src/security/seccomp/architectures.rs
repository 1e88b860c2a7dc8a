//! The architectures that a filter can tell apart (linux/audit.h, seccomp(2)).
//!
//! Each has a column in the table of calls. A machine only runs programs of its own architecture and of its smaller
//! variants, but a profile may name any with the same byte order, as with libseccomp.

/// An architecture as the kernel reports it with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 32-bit pointers on 64-bit x86: has the same audit number and is identified by a bit in the call's number.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM, EABI.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit IBM Z.
    S390x,
    /// 64-bit POWER, little-endian.
    Ppc64le,
}

use Architecture::{Aarch64, Arm, Ppc64le, Riscv64, S390x, X32, X86, X86_64};

/// All architectures, in the order of the table's columns.
pub(super) const ALL: [Architecture; 8] = [X86_64, X86, X32, Aarch64, Arm, Riscv64, S390x, Ppc64le];

/// The bit of x32 calls, __X32_SYSCALL_BIT (asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// First of the calls that only 32-bit ARM has, __ARM_NR_BASE (asm/unistd.h).
const ARM_BASE: u32 = 0xf_0000;

/// Number of `socketcall`, which multiplexes the older socket calls; the same on every architecture that has it.
pub(super) const SOCKETCALL: u32 = 102;
/// Number of `ipc`, which multiplexes the calls for System V semaphores, messages and shared memory.
pub(super) const IPC: u32 = 117;

/// The architecture of this program.
pub(super) const NATIVE: Architecture = native();

const fn native() -> Architecture {
    if cfg!(target_arch = "x86_64") {
        X86_64
    } else if cfg!(target_arch = "x86") {
        X86
    } else if cfg!(target_arch = "aarch64") {
        Aarch64
    } else if cfg!(target_arch = "arm") {
        Arm
    } else if cfg!(target_arch = "riscv64") {
        Riscv64
    } else if cfg!(target_arch = "s390x") {
        S390x
    } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
        Ppc64le
    } else {
        panic!("seccomp filters are not known for this architecture")
    }
}

impl Architecture {
    /// Returns its name in a profile.
    pub(super) const fn name(self) -> &'static str {
        match self {
            X86_64 => "SCMP_ARCH_X86_64",
            X86 => "SCMP_ARCH_X86",
            X32 => "SCMP_ARCH_X32",
            Aarch64 => "SCMP_ARCH_AARCH64",
            Arm => "SCMP_ARCH_ARM",
            Riscv64 => "SCMP_ARCH_RISCV64",
            S390x => "SCMP_ARCH_S390X",
            Ppc64le => "SCMP_ARCH_PPC64LE",
        }
    }

    /// Returns the kernel's number for it, AUDIT_ARCH_….
    pub(super) const fn audit(self) -> u32 {
        match self {
            X86_64 | X32 => 0xc000_003e,
            X86 => 0x4000_0003,
            Aarch64 => 0xc000_00b7,
            Arm => 0x4000_0028,
            Riscv64 => 0xc000_00f3,
            S390x => 0x8000_0016,
            Ppc64le => 0xc000_0015,
        }
    }

    /// Returns whether arguments have 64 bits. On other architectures the upper half is ignored, as the kernel ignores
    /// it too.
    pub(super) const fn is_wide(self) -> bool {
        !matches!(self, X86 | X32 | Arm)
    }

    /// Returns whether the upper half of an argument comes first.
    pub(super) const fn is_big_endian(self) -> bool {
        matches!(self, S390x)
    }

    /// Returns the end of the numbers in which new calls appear. Beyond it are those of another architecture, or calls
    /// that only this one has.
    pub(super) const fn end(self) -> u32 {
        match self {
            X86_64 => X32_BIT,
            Arm => ARM_BASE,
            _ => u32::MAX,
        }
    }

    /// Returns whether socket calls and System V calls are also available through one multiplexing call each.
    pub(super) const fn multiplexes(self) -> bool {
        matches!(self, X86 | S390x | Ppc64le)
    }
}
