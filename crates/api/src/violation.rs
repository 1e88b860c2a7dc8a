//! A value of a spec that breaks a rule.

use crate::Malformed;

/// A value that breaks a rule: `field: why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field as users know it, such as `services.web.env[0]`.
    pub field: String,
    /// What is wrong with it, or what is allowed.
    pub why: String,
}

impl Violation {
    /// Returns the same violation of the field `outer`, or of one within it if this has a field already.
    pub fn within(self, outer: impl std::fmt::Display) -> Self {
        let field = if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        Self { field, ..self }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl From<Malformed> for Violation {
    fn from(error: Malformed) -> Self {
        Self { field: error.field.into_owned(), why: format!("it {}", error.what) }
    }
}
