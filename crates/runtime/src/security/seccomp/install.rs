//! Installs a filter for the process (seccomp(2), SECCOMP_SET_MODE_FILTER).

#![expect(unsafe_code, reason = "libc has no safe call for it")]

use super::actions::{NEW_LISTENER, TSYNC, TSYNC_ESRCH};
use super::assembler::Instruction;
use super::{Filter, MAX_INSTRUCTIONS};
use crate::error::{Act, StepError};

// The kernel reads our instructions in place.
const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<Instruction>() >= align_of::<libc::sock_filter>());

impl Filter {
    /// Installs the filter for this process and its descendants. Returns the descriptor that receives notified calls,
    /// if a rule uses that. Can be called between clone and exec, because it only allocates on failure.
    ///
    /// # Errors
    /// The kernel refuses the filter. It requires no_new_privs, or CAP_SYS_ADMIN in the user namespace.
    pub(crate) fn install(&self) -> Result<Option<i32>, StepError> {
        let mut flags = self.flags;
        if self.uses_notify() {
            flags |= NEW_LISTENER;
            // Without this flag, a thread's id and a descriptor could not be distinguished.
            if flags & TSYNC != 0 {
                flags |= TSYNC_ESRCH;
            }
        }
        debug_assert!(self.program.len() <= MAX_INSTRUCTIONS, "checked where a filter is made");
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        // SAFETY: the kernel only reads `program` and the `len` instructions behind it, which have the layout of
        // sock_filter and outlive the call.
        let done =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        let done = nix::errno::Errno::result(done).act(|| "install the seccomp filter".into())?;
        if self.uses_notify() {
            return Ok(i32::try_from(done).ok());
        }
        if done == 0 {
            return Ok(None);
        }
        Err(StepError::refuse("install the seccomp filter", format!("thread {done} can't be synchronised")))
    }
}
