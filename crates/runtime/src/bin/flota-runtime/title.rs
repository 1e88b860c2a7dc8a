//! Where `ps` finds a process's command line: the kernel shows the memory of the arguments, and goes on into that of the
//! environment, which stands behind it, where the arguments' last byte is not zero (`get_mm_cmdline` in fs/proc/base.c).
#![expect(unsafe_code, reason = "the arguments as the kernel left them")]

use std::ffi::{CStr, c_char};

/// All of that memory. The environment is empty from here on.
///
/// # Safety
/// `arguments` is what `main` was given; there is one thread; nobody looks at the arguments from here on.
pub(crate) unsafe fn room(arguments: *const *mut c_char) -> &'static mut [u8] {
    // SAFETY: pointers to strings, a null pointer, pointers to strings, a null pointer (System V ABI, 3.4.1); the strings
    // stand one behind the other.
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
