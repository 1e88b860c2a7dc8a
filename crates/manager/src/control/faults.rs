//! The refusals of several steps of one change, so that a user learns all of them at once.

use std::collections::BTreeSet;

use flota_api::Violation;

use super::error::ControlError;

/// Most faults that are told. A user who has mended these learns of the next ones.
const TOLD: usize = 50;

/// What is wrong with a change, each fault with the field that it is about. Nobody may learn from a fault what it does not see:
/// an error that is shown in parts to some callers (`shown` in `limits.rs`) is none of these.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(String, ControlError)>);

impl Faults {
    /// Returns what a step has given. If it was refused, that is noted, as being about this field.
    pub(super) fn note<T>(&mut self, field: impl Into<String>, step: Result<T, ControlError>) -> Option<T> {
        match step {
            Ok(given) => return Some(given),
            Err(error) if self.0.len() < TOLD => self.0.push((field.into(), error)),
            Err(_) => {}
        }
        None
    }

    /// As [`Faults::note`], for a step that may have found again what is noted already.
    pub(super) fn note_new<T>(&mut self, field: impl Into<String>, step: Result<T, ControlError>) -> Option<T> {
        match step {
            Err(error) if self.0.iter().any(|(_, known)| known.to_string() == error.to_string()) => None,
            other => self.note(field, other),
        }
    }

    /// Notes rules that are broken.
    pub(super) fn extend(&mut self, found: Vec<Violation>) {
        if !found.is_empty() {
            self.0.push((String::new(), ControlError::Invalid(found)));
        }
    }

    /// Whether nothing is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails if anything was noted: with the only error as it is, or else with all of them as broken rules.
    pub(super) fn refuse(mut self) -> Result<(), ControlError> {
        if self.0.len() < 2 {
            return self.0.pop().map_or(Ok(()), |(_, error)| Err(error));
        }
        let violations = |(field, error)| match error {
            ControlError::Invalid(found) => found,
            other => vec![Violation { field, why: other.to_string() }],
        };
        let mut seen = BTreeSet::new();
        let all = self.0.into_iter().flat_map(violations).filter(|it| seen.insert(it.to_string()));
        Err(ControlError::Invalid(all.collect()))
    }
}

#[cfg(test)]
mod tests {
    use flota_api::object::Kind;

    use super::*;

    fn none(name: &str) -> Result<(), ControlError> {
        Err(ControlError::NotFound { kind: Kind::Network, reference: name.into() })
    }

    #[test]
    fn one_error_stays_as_it_is_and_several_are_told_together_each_once() {
        assert!(Faults::default().refuse().is_ok());
        let mut faults = Faults::default();
        assert_eq!(faults.note("networks[0]", Ok(1)), Some(1));
        faults.note("networks[1]", none("front"));
        faults.note_new("spec", none("front"));
        assert!(
            matches!(faults.refuse(), Err(ControlError::NotFound { .. })),
            "its exit code is that of a missing one"
        );

        let mut faults = Faults::default();
        faults.extend(vec![]);
        faults.note("networks[1]", none("front"));
        faults.note::<()>("mounts", Err(ControlError::invalid("mounts[0].source", "no")));
        faults.note::<()>("mounts", Err(ControlError::invalid("mounts[0].source", "no")));
        let ControlError::Invalid(found) = faults.refuse().expect_err("two are wrong") else { panic!("another error") };
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["networks[1]: there is no network `front`", "mounts[0].source: no"]);

        let mut many = Faults::default();
        for number in 0..100_000 {
            many.note(format!("networks[{number}]"), none("front"));
        }
        let refused = many.refuse().expect_err("all are wrong").to_string();
        assert!(refused.contains("networks[49]") && !refused.contains("networks[50]"), "{refused}");
    }

    #[test]
    fn a_refusal_fits_into_a_header_and_says_how_much_is_left_out() {
        let long = |number: usize| Violation { field: format!("env[{number}]"), why: "x".repeat(200) };
        let mut faults = Faults::default();
        faults.extend((0..1_000).map(long).collect());
        let refused = faults.refuse().expect_err("all are wrong").to_string();
        assert!(refused.len() < 5 << 10, "{} bytes", refused.len());
        let told = refused.matches("env[").count();
        assert!(told > 10 && refused.ends_with(&format!("; and {} more", 1_000 - told)), "{refused}");
    }
}
