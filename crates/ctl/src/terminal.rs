//! The user's terminal: its size, its raw mode while a remote program uses it, and input that is not shown.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The settings to which the terminal returns, while they are changed.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the settings of the terminal changed until dropped.
pub(crate) struct Changed(());

impl Changed {
    /// Passes every key on to a remote program. Returns `None` if standard input is not a terminal.
    pub(crate) fn raw() -> Option<Self> {
        Self::with(SetArg::TCSANOW, cfmakeraw)
    }

    /// Stops showing what is typed. Returns `None` if standard input is not a terminal.
    pub(crate) fn without_echo() -> Option<Self> {
        Self::with(SetArg::TCSAFLUSH, |settings| settings.local_flags.remove(LocalFlags::ECHO))
    }

    fn with(when: SetArg, change: impl FnOnce(&mut Termios)) -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut settings = before.clone();
        change(&mut settings);
        tcsetattr(std::io::stdin(), when, &settings).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        Some(Self(()))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes what [`Changed`] did, for an exit that drops nothing.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// Returns the size as rows and columns.
#[expect(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper")]
pub(crate) fn size() -> (u32, u32) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a whole winsize that lives through the call (ioctl_tty(2)).
    let result = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) };
    if result == 0 && size.ws_row > 0 { (size.ws_row.into(), size.ws_col.into()) } else { (24, 80) }
}

/// Returns whether standard input is a terminal.
pub(crate) fn is_there() -> bool {
    std::io::stdin().is_terminal()
}
