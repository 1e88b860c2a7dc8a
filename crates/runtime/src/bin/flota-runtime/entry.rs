//! The first instructions of the program: where it is to run itself again from a read-only mount (`protect_binary`), it
//! does so before the C library has set itself up, which costs more than all the rest of that (it asks the processor
//! some forty questions, each of which ends up with the hypervisor in a virtual machine).
//!
//! Nothing is relocated yet, so no function can be called that the compiler doesn't inline: without optimisation the
//! program crashes here (the workspace's `profile.dev`). Only own code, own words on the stack, and system calls are used.
//! What fails here fails in silence; `main` tries again, and reports.
#![expect(unsafe_code, reason = "runs before there is a language runtime")]

use std::arch::naked_asm;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use syscalls::raw::{syscall1, syscall2, syscall3, syscall5};

/// `struct mount_attr` (mount_setattr(2)) with `MOUNT_ATTR_RDONLY` set.
static READ_ONLY: [u64; 4] = [1, 0, 0, 0];
const OPEN_TREE_CLONE: usize = 1;
static PROTECTED: AtomicBool = AtomicBool::new(false);
/// Of the 15 words of the kernel's `struct statfs` (<asm-generic/statfs.h>).
const STATFS_FLAGS: usize = 10;

/// Whether it was seen that this process runs from a file that nobody can write to.
#[cfg_attr(test, expect(dead_code, reason = "tests have a main of their own"))]
pub(crate) fn is_protected() -> bool {
    PROTECTED.load(Ordering::Relaxed)
}

/// Where the kernel begins (build.rs tells the linker so): the stack pointer is at argc, rdx is for `_start`, where the C
/// library begins (System V ABI for AMD64, 3.4.1).
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

/// Returns where this is not a verb that shows the program to a container, where it runs from a read-only mount already,
/// or where it could not get there.
unsafe extern "C" fn protect(stack: *const usize) {
    // SAFETY: the kernel puts there argc, the arguments, a null pointer, the environment, a null pointer; each argument
    // ends with a zero. What is passed to the kernel lives through its call, and the descriptors are this function's.
    unsafe {
        let count = stack.read();
        let arguments = stack.add(1);
        let environment = arguments.add(count + 1);
        let mut shows_itself = false;
        for index in 1..count {
            let word = word(arguments.add(index).read() as *const u8);
            shows_itself |=
                word == name(b"create\0\0") || word == name(b"run\0\0\0\0\0") || word == name(b"exec\0\0\0\0");
        }
        if !shows_itself {
            return;
        }
        let (own, empty) = (c"/proc/self/exe".as_ptr() as usize, c"".as_ptr() as usize);
        let (here, at) = (libc::AT_FDCWD as usize, libc::AT_EMPTY_PATH as usize);
        let mut about = MaybeUninit::<[usize; 15]>::uninit();
        if syscall2(libc::SYS_statfs as usize, own, about.as_mut_ptr() as usize) != 0 {
            return;
        }
        if about.as_ptr().cast::<usize>().add(STATFS_FLAGS).read() & libc::ST_RDONLY as usize != 0 {
            return PROTECTED.store(true, Ordering::Relaxed);
        }
        let tree = syscall3(libc::SYS_open_tree as usize, here, own, OPEN_TREE_CLONE | libc::O_CLOEXEC as usize);
        let (change, size) = ((&raw const READ_ONLY) as usize, size_of_val(&READ_ONLY));
        if syscall5(libc::SYS_mount_setattr as usize, tree, empty, at, change, size) == 0 {
            let (arguments, environment) = (arguments as usize, environment as usize);
            syscall5(libc::SYS_execveat as usize, tree, empty, arguments, environment, at);
        }
        syscall1(libc::SYS_close as usize, tree);
    }
}

/// The first bytes of a C string as a number; zero if it is longer than fits.
unsafe fn word(text: *const u8) -> u64 {
    let mut word = 0;
    for index in 0..9 {
        // Volatile: or the compiler might see that this is a C function, and call it.
        // SAFETY: it is read up to its zero.
        match u64::from(unsafe { text.add(index).read_volatile() }) {
            0 => return word,
            _ if index == 8 => break,
            byte => word |= byte << (8 * index),
        }
    }
    0
}

const fn name(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}
