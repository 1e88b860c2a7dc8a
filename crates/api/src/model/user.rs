//! Users of the cluster, and the records of what they, and the nodes, have changed.

use std::time::Duration;

use serde::Serialize;

use super::NodeCertificate;
use crate::id::{AuditId, UserId};
use crate::naming::{self, NameError};
use crate::state::states;
use crate::version::Meta;

/// Largest number of prefixes of one user.
pub const PREFIXES_BOUND: usize = 32;
/// Largest number of objects that a record names; the others are counted.
pub const AUDITED_OBJECTS: usize = 16;

states! {
    /// What a user may do. Each role may do what those before it may.
    UserRole {
        /// Sees everything but secrets, join tokens and other keys, and changes nothing.
        Viewer = "viewer",
        /// Changes what runs: services, stacks, tasks, volumes, networks, secrets and configs.
        Operator = "operator",
        /// Changes everything.
        Admin = "admin",
    }
}

/// A person or program that may use the cluster from outside, with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Identifier of the object.
    pub id: UserId,
    /// Times and version.
    pub meta: Meta,
    /// Name; the common name of its certificates.
    pub name: String,
    /// What it may do.
    pub role: UserRole,
    /// It sees and changes only objects whose names begin with one of these. None: it is not limited.
    pub prefixes: Vec<String>,
    /// The certificates that it is known by, the newest last.
    pub certificates: Vec<NodeCertificate>,
    /// How long its certificates are valid at most, unless an admin asks for more.
    pub life: Duration,
    /// Whoever added it, as in [`Audit::actor`].
    pub created_by: String,
}

impl Default for User {
    fn default() -> Self {
        Self {
            id: UserId::default(),
            meta: Meta::default(),
            name: String::new(),
            role: UserRole::Viewer,
            prefixes: Vec::new(),
            certificates: Vec::new(),
            life: Duration::ZERO,
            created_by: String::new(),
        }
    }
}

impl User {
    /// Whether `other` is this user, with the same rights.
    pub fn may_do_the_same(&self, other: &Self) -> bool {
        let rights = |user: &Self| (user.id.clone(), user.name.clone(), user.role, user.prefixes.clone(), user.life);
        rights(self) == rights(other)
    }

    /// Returns the certificate with this key, if the user is known by it.
    pub fn certificate(&self, key: &str) -> Option<&NodeCertificate> {
        self.certificates.iter().find(|it| it.key == key)
    }
}

/// Why a prefix is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// It can't be the begin of a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There are too many.
    #[error("there are {0}, and {PREFIXES_BOUND} is the most")]
    TooMany(usize),
}

/// Checks the prefixes that a user is to be limited to.
///
/// # Errors
/// One of them can't be the begin of a name, or there are too many.
pub fn check_prefixes(prefixes: &[String]) -> Result<(), PrefixError> {
    if prefixes.len() > PREFIXES_BOUND {
        return Err(PrefixError::TooMany(prefixes.len()));
    }
    // A prefix may end with `-`, `_` or `.`, which a name does not.
    let begins_name = |prefix: &String| match prefix.trim_end_matches(['-', '_', '.']) {
        "" => naming::check(prefix),
        begin => naming::check(begin),
    };
    prefixes.iter().try_for_each(begins_name)?;
    Ok(())
}

/// One object that a request has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditedObject {
    /// The word for its kind.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Its name, or nothing.
    pub name: String,
    /// `create`, `update` or `remove`.
    pub change: String,
}

/// The record of one request that has changed something. It never has a value of a secret, nor any part of a spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Identifier of the object. Ids rise with the entries that bring the records.
    pub id: AuditId,
    /// Times and version: those of the change.
    pub meta: Meta,
    /// Who asked: the name of a user, `root@HOSTNAME` for the local socket of a manager, or `node ID`.
    pub actor: String,
    /// The RPC.
    pub request: String,
    /// The first objects that it changed, at most [`AUDITED_OBJECTS`].
    pub objects: Vec<AuditedObject>,
    /// The number of other objects that it changed.
    pub more: u64,
    /// Number of its event within the entry, which has the version in `meta`.
    pub number: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_begin_of_a_name_and_may_end_with_a_separator() {
        let checked = |prefix: &str| check_prefixes(&[prefix.to_owned()]).is_ok();
        for good in ["a", "team-a", "team-a-", "team_", "a.", "A9--"] {
            assert!(checked(good), "{good}");
        }
        for bad in ["", "-", "..", "-a", "a b", "a/", "a\n", "a*", &"a".repeat(64)] {
            assert!(!checked(bad), "{bad}");
        }
        assert!(check_prefixes(&vec!["a".to_owned(); PREFIXES_BOUND]).is_ok());
        assert!(check_prefixes(&vec!["a".to_owned(); PREFIXES_BOUND + 1]).is_err());
    }
}
