//! The memory where `ps` finds a process's command line: the kernel shows the memory of the arguments and, if its last
//! byte is not zero, continues into that of the environment, which lies behind it (`get_mm_cmdline` in
//! fs/proc/base.c).
#![expect(unsafe_code, reason = "the arguments as the kernel left them")]

use std::ffi::{CStr, c_char};

/// Returns all of that memory. The environment is empty afterwards.
///
/// # Safety
/// `arguments` is the parameter of `main`, there is only one thread, and nothing reads the arguments afterwards.
pub(crate) unsafe fn room(arguments: *const *mut c_char) -> &'static mut [u8] {
    // SAFETY: `arguments` points to pointers to strings, a null pointer, pointers to strings, and a null pointer
    // (System V ABI, 3.4.1); the strings lie one behind the other.
    unsafe {
        let first = arguments.read();
        let (mut end, mut at) = (first, arguments);
        for _ in ["arguments", "environment"] {
            while let Some(text) = std::ptr::NonNull::new(at.read()) {
                if text.as_ptr() == end {
                    end = end.add(CStr::from_ptr(end).count_bytes() + 1);
                }
                at = at.add(1);
            }
            at = at.add(1);
        }
        libc::clearenv();
        std::slice::from_raw_parts_mut(first.cast(), end.offset_from_unsigned(first))
    }
}
