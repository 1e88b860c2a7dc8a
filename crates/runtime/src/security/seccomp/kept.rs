//! A cache of compiled filters: a daemon has few profiles and needs one at each start of a container.

use std::sync::{Arc, Mutex, PoisonError};

use super::Filter;
use crate::error::StepError;
use crate::oci::Seccomp;

/// Largest number of cached profiles; the oldest one is evicted.
const BOUND: usize = 16;

/// Compiled filters by their profile.
#[derive(Debug, Default)]
pub(crate) struct KeptFilters(Mutex<Vec<(Seccomp, Arc<[u8]>)>>);

impl KeptFilters {
    /// Returns the compiled filter of a profile as bytes.
    ///
    /// # Errors
    /// The same as for [`Filter::compile`].
    pub(crate) fn of(&self, profile: &Seccomp) -> Result<Arc<[u8]>, StepError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(it, _)| it == profile) {
            return Ok(Arc::clone(bytes));
        }
        let bytes: Arc<[u8]> = Filter::compile(profile)?.to_bytes().into();
        if kept.len() == BOUND {
            kept.remove(0);
        }
        kept.push((profile.clone(), Arc::clone(&bytes)));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_compiled_once_and_only_so_many_are_kept() {
        let kept = KeptFilters::default();
        let profile = |number: u32| Seccomp {
            default_action: "SCMP_ACT_ERRNO".into(),
            default_errno_ret: Some(number),
            ..Seccomp::default()
        };
        let first = kept.of(&profile(1)).expect("compiled");
        assert!(Arc::ptr_eq(&first, &kept.of(&profile(1)).expect("kept")));
        for number in 2..=16 {
            assert_ne!(kept.of(&profile(number)).expect("compiled"), first, "profile {number}");
        }
        assert!(Arc::ptr_eq(&first, &kept.of(&profile(1)).expect("still kept")));
        kept.of(&profile(17)).expect("compiled");
        assert!(!Arc::ptr_eq(&first, &kept.of(&profile(1)).expect("compiled again")));
        assert!(kept.of(&Seccomp::default()).is_err(), "a profile without an action");
    }
}
