//! Names of devices by the Container Device Interface (CDI): a vendor's files on a node say what a container gets with such
//! a device. Managers know only the names; `flota-worker` reads the files.
//!
//! The rules are those of <https://github.com/cncf-tags/container-device-interface>, its specification and `pkg/parser`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Longest vendor and longest name of a device, in bytes.
const LONG_PART: usize = 253;
/// Longest class, in bytes.
const CLASS_BOUND: usize = 63;

/// The fully qualified name of a device, `vendor.com/class=name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CdiName(String);

/// Why the name of a CDI device, or its kind, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiNameError {
    /// The text does not have the form of a name.
    #[error("`{0}`: a CDI device has the form VENDOR/CLASS=NAME")]
    Form(String),
    /// The vendor or the class is illegal.
    #[error(
        "`{0}`: the vendor and the class of a CDI device have letters, digits, `-`, `_` and `.`, begin with a letter, and end with a letter or digit"
    )]
    Kind(String),
    /// The name within the class is illegal.
    #[error(
        "`{0}`: the name of a CDI device has letters, digits, `-`, `_`, `.` and `:`, and begins and ends with a letter or digit"
    )]
    Name(String),
    /// A part is too long.
    #[error(
        "`{0}`: of a CDI device, the vendor and the name have at most {LONG_PART} bytes, and the class has {CLASS_BOUND}"
    )]
    TooLong(String),
}

impl CdiName {
    /// Returns the name of the device `name` of a kind, `vendor.com/class`.
    ///
    /// # Errors
    /// A rule is broken; the error names it.
    pub fn new(kind: &str, name: &str) -> Result<Self, CdiNameError> {
        format!("{kind}={name}").parse()
    }

    /// Returns the whole name.
    pub fn text(&self) -> &String {
        &self.0
    }

    /// Checks a kind, `vendor.com/class`.
    ///
    /// # Errors
    /// A rule is broken; the error names it.
    pub fn check_kind(kind: &str) -> Result<(), CdiNameError> {
        let shown = || kind.escape_debug().to_string();
        let (vendor, class) = kind.split_once('/').ok_or_else(|| CdiNameError::Form(shown()))?;
        if vendor.len() > LONG_PART || class.len() > CLASS_BOUND {
            return Err(CdiNameError::TooLong(kind.chars().take(CLASS_BOUND).collect()));
        }
        let is_legal =
            |part: &str| part.starts_with(|it: char| it.is_ascii_alphabetic()) && has_legal_form(part, "-_.");
        if is_legal(vendor) && is_legal(class) { Ok(()) } else { Err(CdiNameError::Kind(shown())) }
    }
}

/// Returns whether a part has letters, digits and `other` characters, and begins and ends with a letter or digit.
fn has_legal_form(part: &str, other: &str) -> bool {
    let is_end = |it: char| it.is_ascii_alphanumeric();
    part.starts_with(is_end) && part.ends_with(is_end) && part.chars().all(|it| is_end(it) || other.contains(it))
}

impl FromStr for CdiName {
    type Err = CdiNameError;

    fn from_str(text: &str) -> Result<Self, CdiNameError> {
        let shown = || text.escape_debug().to_string();
        let (kind, name) = text.split_once('=').ok_or_else(|| CdiNameError::Form(shown()))?;
        Self::check_kind(kind)?;
        if name.len() > LONG_PART {
            return Err(CdiNameError::TooLong(text.chars().take(CLASS_BOUND).collect()));
        }
        if has_legal_form(name, "-_.:") { Ok(Self(text.to_owned())) } else { Err(CdiNameError::Name(shown())) }
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CdiName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_parts_that_the_interface_allows() {
        for good in [
            "vendor.com/class=name",
            "v/c=n",
            "nvidia.com/gpu=all",
            "nvidia.com/gpu=0",
            "Vendor-1.x/foo-bar_1.B=GPU-1:2.3_x",
        ] {
            assert_eq!(good.parse::<CdiName>().map(|it| it.to_string()), Ok(good.to_owned()));
        }
        let long = |count| "x".repeat(count);
        assert!(format!("{}/{}={}", long(253), long(63), long(253)).parse::<CdiName>().is_ok());
        for (bad, expected) in [
            ("", "has the form"),
            ("vendor.com/class", "has the form"),
            ("name=x", "has the form"),
            ("/class=x", "the vendor and the class"),
            ("vendor.com/=x", "the vendor and the class"),
            ("1vendor.com/class=x", "begin with a letter"),
            ("vendor.com/1class=x", "begin with a letter"),
            ("vendor.com-/class=x", "end with a letter or digit"),
            ("vendor.com/a/b=x", "the vendor and the class"),
            ("vendor com/class=x", "the vendor and the class"),
            ("vendor.com/class=", "the name of a CDI device"),
            ("vendor.com/class=-x", "the name of a CDI device"),
            ("vendor.com/class=x:", "the name of a CDI device"),
            ("vendor.com/class=a=b", "the name of a CDI device"),
            ("vendor.com/class=*", "the name of a CDI device"),
            ("vendor.com/class=ä", "the name of a CDI device"),
            (&format!("{}/c=n", long(254)), "at most 253 bytes"),
            (&format!("v/{}=n", long(64)), "at most 253 bytes"),
            (&format!("v/c={}", long(254)), "at most 253 bytes"),
        ] {
            let error = bad.parse::<CdiName>().expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }
}
