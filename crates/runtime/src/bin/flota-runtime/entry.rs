//! The entry point of the program, before the C library. For the verbs that must run from a read-only mount
//! (`protect_binary`), the program executes itself again from here, before the C library initialises itself. That
//! initialisation costs more than everything else in the first run (it executes some forty CPUID instructions, each of
//! which traps to the hypervisor in a virtual machine).
//!
//! Relocations are not applied yet, so a call through the relocation table crashes. This can be a call to any function
//! that the compiler does not inline, including `ptr::read` of the standard library. Therefore this file only uses
//! operators of the language, and system calls written in assembly. Errors here are ignored; `main` tries again and
//! reports them.
#![expect(unsafe_code, reason = "runs before there is a language runtime")]

use std::arch::{asm, naked_asm};

use syscalls::raw::{syscall1, syscall2, syscall3, syscall5};

/// Size of a word on the stack in bytes.
const WORD: usize = size_of::<usize>();
/// `struct mount_attr` (mount_setattr(2)) with `MOUNT_ATTR_RDONLY` set.
static READ_ONLY: [u64; 4] = [1, 0, 0, 0];
const OPEN_TREE_CLONE: usize = 1;
/// The 15 words of the kernel's `struct statfs` (<asm-generic/statfs.h>).
static mut ABOUT: [usize; 15] = [0; 15];
const STATFS_FLAGS: usize = 10;
static OWN: [u8; 15] = *b"/proc/self/exe\0";
static EMPTY: [u8; 1] = [0];
/// The verbs whose process exposes the program to a container.
const CREATE: u64 = u64::from_le_bytes(*b"create\0\0");
const RUN: u64 = u64::from_le_bytes(*b"run\0\0\0\0\0");
const EXEC: u64 = u64::from_le_bytes(*b"exec\0\0\0\0");
static mut PROTECTED: bool = false;

/// Returns whether this process was found to run from a file that can't be written to.
#[cfg_attr(test, expect(dead_code, reason = "tests have a main of their own"))]
pub(crate) fn is_protected() -> bool {
    // SAFETY: `PROTECTED` is only written before `main`.
    unsafe { PROTECTED }
}

/// The address where the kernel starts the program (build.rs sets it in the linker): the stack pointer points at argc,
/// and rdx is an argument of `_start`, where the C library begins (System V ABI for AMD64, 3.4.1).
#[unsafe(naked)]
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn flota_runtime_entry() -> ! {
    naked_asm!(
        "push rdx",
        "lea rdi, [rsp + 8]",
        "sub rsp, 8",
        "call {protect}",
        "add rsp, 8",
        "pop rdx",
        "jmp _start",
        protect = sym protect,
    )
}

/// Executes the program again from a read-only mount. Returns if no verb exposes the program to a container, if it
/// already runs from a read-only mount, or if the mount fails.
unsafe extern "C" fn protect(stack: *const usize) {
    // SAFETY: the kernel places there argc, the arguments, a null pointer, the environment and a null pointer; each
    // argument ends with a zero. What is passed to the kernel lives through its call, the descriptors belong to this
    // function, and there is no other thread.
    unsafe {
        let arguments = stack as usize + WORD;
        let end = arguments + WORD * *stack;
        let environment = end + WORD;
        let mut shows_itself = false;
        let mut argument = arguments + WORD;
        while argument < end {
            let word = word(*(argument as *const usize));
            shows_itself |= word == CREATE || word == RUN || word == EXEC;
            argument += WORD;
        }
        if !shows_itself {
            return;
        }
        let (own, empty) = ((&raw const OWN) as usize, (&raw const EMPTY) as usize);
        let (here, at) = (libc::AT_FDCWD as usize, libc::AT_EMPTY_PATH as usize);
        if syscall2(libc::SYS_statfs as usize, own, (&raw mut ABOUT) as usize) != 0 {
            return;
        }
        if ABOUT[STATFS_FLAGS] & libc::ST_RDONLY as usize != 0 {
            PROTECTED = true;
            return;
        }
        let tree = syscall3(libc::SYS_open_tree as usize, here, own, OPEN_TREE_CLONE | libc::O_CLOEXEC as usize);
        let (change, size) = ((&raw const READ_ONLY) as usize, size_of::<[u64; 4]>());
        if syscall5(libc::SYS_mount_setattr as usize, tree, empty, at, change, size) == 0 {
            syscall5(libc::SYS_execveat as usize, tree, empty, arguments, environment, at);
        }
        syscall1(libc::SYS_close as usize, tree);
    }
}

/// Returns the first bytes of the C string at an address as a number; zero if the string is longer than the number.
unsafe fn word(text: usize) -> u64 {
    let (mut word, mut index) = (0, 0);
    while index < 9 {
        let byte: u64;
        // This is in assembly, because the compiler might otherwise replace the loop by a call to the C library's
        // function.
        // SAFETY: the string is read up to its zero.
        unsafe { asm!("movzx {0:e}, byte ptr [{1}]", out(reg) byte, in(reg) text + index, options(nostack, readonly)) };
        if byte == 0 {
            return word;
        }
        if index < 8 {
            word |= byte << (8 * index);
        }
        index += 1;
    }
    0
}
