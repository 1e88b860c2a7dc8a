//! The rules for legal names and paths, and the names of tasks.

use crate::id::TaskId;

/// Longest legal name.
pub const NAME_BOUND: usize = 63;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("a name is needed")]
    Empty,
    /// The name is too long.
    #[error("`{0}` has {1} characters, and {NAME_BOUND} is the most")]
    TooLong(String, usize),
    /// The name contains an illegal character.
    #[error("`{0}`: a name has letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit")]
    Character(String),
}

/// Checks the name of a service, stack or other object: it must be usable as a host name and in a path.
///
/// # Errors
/// A rule is broken; the error names it.
pub fn check(name: &str) -> Result<(), NameError> {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.len() > NAME_BOUND {
        return Err(NameError::TooLong(name.chars().take(NAME_BOUND).collect(), bytes.len()));
    }
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if !bytes.iter().all(legal) || !ends(bytes.first()) || !ends(bytes.last()) {
        return Err(NameError::Character(name.escape_debug().to_string()));
    }
    Ok(())
}

/// Longest accepted path in bytes, well below the kernel's limit.
const PATH_BOUND: usize = 1_024;

/// Why a path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is not absolute.
    #[error("`{0}` is not an absolute path")]
    Relative(String),
    /// The path contains `.`, `..` or an empty part.
    #[error("`{0}`: a path has neither `.` nor `..` nor empty parts")]
    Detour(String),
    /// The path is too long.
    #[error("a path has at most {PATH_BOUND} bytes")]
    TooLong,
}

/// Checks the path of a file on a node: it must be absolute and in its only canonical form, so that paths can be
/// compared.
///
/// # Errors
/// A rule is broken; the error names it.
pub fn check_path(path: &str) -> Result<(), PathError> {
    if path.len() > PATH_BOUND {
        return Err(PathError::TooLong);
    }
    let shown = || path.escape_debug().to_string();
    let parts = path.strip_prefix('/').ok_or_else(|| PathError::Relative(shown()))?;
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if parts.split('/').all(plain) { Ok(()) } else { Err(PathError::Detour(shown())) }
}

/// Returns the name by which users know a task of `service`, such as `web.2`.
pub fn task_name(service: &str, slot: u64) -> String {
    format!("{service}.{slot}")
}

/// Returns the unique name of a task, `web.2.<id>`.
pub fn task_full_name(service: &str, slot: u64, id: &TaskId) -> String {
    format!("{service}.{slot}.{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_break_a_host_name_or_a_path_are_refused() {
        for good in ["web", "a", "my-stack_web.2", "0a"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "..", "a/b", "a b", "ä", "a\0b", &"x".repeat(64)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_than_they_look_are_refused() {
        for good in ["/dev/null", "/x", "/dev/a..b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let long = format!("/{}", "x".repeat(PATH_BOUND));
        for bad in ["", "/", "dev", "./x", "/dev/", "//dev", "/dev/./x", "/dev/../x", "/dev/..", "/a\0", &long] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }
}
