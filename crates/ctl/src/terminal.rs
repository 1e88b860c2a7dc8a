//! The user's terminal: its size, its raw mode while a remote program uses it, and input that is not shown.

use std::io::IsTerminal;

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Keeps the terminal in raw mode until dropped.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Enters raw mode. Returns `None` if standard input is not a terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Keeps the terminal from showing what is typed, until dropped.
pub(crate) struct NoEcho(Termios);

impl NoEcho {
    /// Stops the echo. Returns `None` if standard input is not a terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
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
