//! Variables of a program that nobody may see in a log.

use std::fmt;

/// Variables as `NAME=value`, which `Debug` does not print.
#[derive(Clone, Default, PartialEq)]
pub struct SecretVariables(pub Vec<String>);

impl fmt::Debug for SecretVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
