//! Join tokens: `FLOTA-<w|m>-<SHA-256 of the CA>-<generation>-<secret>`. A node that joins trusts only the CA in the
//! token, and the managers accept a node that knows the secret. Each rotation raises the generation, so that an old token
//! can be distinguished from a wrong one.

use std::fmt;
use std::str::FromStr;

use rand::Rng;

use flota_api::id::random;
use flota_api::model::{Cluster, Role};
use flota_api::version::Timestamp;

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// The text is not a join token.
    #[error("this is not a join token: a token has the form FLOTA-(w|m)-<64 digits>-<number>-<secret>")]
    Malformed,
    /// The token was valid before its secret was rotated.
    #[error("this join token is old: it was rotated; `ctl swarm join-token {0}` prints the new one")]
    Old(Role),
    /// The time for which the token was made is over.
    #[error("this join token has expired; `ctl swarm join-token --rotate {0}` makes a new one")]
    Expired(Role),
    /// The secret was never valid in this cluster.
    #[error("this join token is wrong: its secret is not this cluster's")]
    Wrong,
}

/// The token with which a machine joins a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The role that the new node gets.
    pub role: Role,
    /// SHA-256 of the CA's certificate, in hexadecimal digits.
    pub ca_digest: String,
    secret: String,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, [redacted])", self.role)
    }
}

/// Returns the secret of the next token (generation and random characters), one generation after `previous`, which is
/// empty for the first token.
pub fn new_secret(previous: &str, rng: &mut impl Rng) -> String {
    format!("{}-{}", generation(previous) + 1, random(rng))
}

/// Returns how many secrets there were up to this one.
pub(crate) fn generation(secret: &str) -> u64 {
    secret.split_once('-').and_then(|(generation, _)| generation.parse().ok()).unwrap_or(0)
}

impl JoinToken {
    /// Returns this cluster's current token for a role. While the CA is replaced, it names the former one, because each
    /// manager presents that one until the end.
    pub fn of(cluster: &Cluster, role: Role) -> Self {
        let secret = expected(cluster, role).0.to_owned();
        let former = cluster.ca_rotation.as_ref().map(|it| &it.former_certificate);
        Self { role, ca_digest: crate::sha256_hex(former.unwrap_or(&cluster.ca_certificate)), secret }
    }

    /// Checks the secret against the cluster's, at the time `now`.
    ///
    /// # Errors
    /// [`JoinTokenError::Old`], [`JoinTokenError::Expired`] or [`JoinTokenError::Wrong`].
    pub fn check(&self, cluster: &Cluster, now: Timestamp) -> Result<(), JoinTokenError> {
        let (expected, expires_at) = expected(cluster, self.role);
        // Constant time: the delay of the answer must not reveal how much of the secret was right.
        let same = expected.len() == self.secret.len()
            && expected.bytes().zip(self.secret.bytes()).fold(0, |acc, (left, right)| acc | (left ^ right)) == 0;
        match same {
            true if expires_at.is_some_and(|at| at <= now) => Err(JoinTokenError::Expired(self.role)),
            true => Ok(()),
            false if generation(&self.secret) < generation(expected) => Err(JoinTokenError::Old(self.role)),
            false => Err(JoinTokenError::Wrong),
        }
    }
}

/// Returns the secret of the token for this role, and when it expires.
fn expected(cluster: &Cluster, role: Role) -> (&str, Option<Timestamp>) {
    match role {
        Role::Worker => (cluster.worker_token_secret.as_text(), cluster.worker_token_expires_at),
        Role::Manager => (cluster.manager_token_secret.as_text(), cluster.manager_token_expires_at),
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.role == Role::Manager { "m" } else { "w" };
        write!(f, "FLOTA-{role}-{}-{}", self.ca_digest, self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let mut parts = text.trim().splitn(4, '-');
        let (prefix, role, digest, secret) = (parts.next(), parts.next(), parts.next(), parts.next());
        let role = match role {
            Some("w") => Role::Worker,
            Some("m") => Role::Manager,
            _ => return Err(JoinTokenError::Malformed),
        };
        let digest = digest.filter(|it| it.len() == 64 && it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let whole = |it: &&str| {
            it.split_once('-').is_some_and(|(number, rest)| number.parse::<u64>().is_ok() && !rest.is_empty())
        };
        match (prefix, digest, secret.filter(whole)) {
            (Some("FLOTA"), Some(digest), Some(secret)) if text.len() < 200 => {
                Ok(Self { role, ca_digest: digest.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(JoinTokenError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_token_parses_back_and_an_old_one_differs_from_a_wrong_one() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut cluster = Cluster { ca_certificate: vec![1, 2, 3], ..Cluster::default() };
        cluster.worker_token_secret = new_secret("", &mut rng).into();
        let token = JoinToken::of(&cluster, Role::Worker);
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        let now = Timestamp(1_000);
        assert_eq!(token.check(&cluster, now), Ok(()));
        let mistyped = token.to_string().replace(&token.secret, &format!("1-{}", random(&mut rng)));
        assert_eq!(
            mistyped.parse::<JoinToken>().expect("well formed").check(&cluster, now),
            Err(JoinTokenError::Wrong)
        );
        cluster.worker_token_secret = new_secret(cluster.worker_token_secret.as_text(), &mut rng).into();
        assert_eq!(token.check(&cluster, now), Err(JoinTokenError::Old(Role::Worker)));
        for bad in ["", "FLOTA", "FLOTA-w-12-1-a", &token.to_string().replace("-w-", "-x-"), "SWMTKN-1-a-b"] {
            assert_eq!(bad.parse::<JoinToken>(), Err(JoinTokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn a_token_expires_and_that_for_the_other_role_does_not() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let cluster = Cluster {
            worker_token_secret: new_secret("", &mut rng).into(),
            manager_token_secret: new_secret("", &mut rng).into(),
            worker_token_expires_at: Some(Timestamp(1_000)),
            ..Cluster::default()
        };
        let checked = |role, now| JoinToken::of(&cluster, role).check(&cluster, Timestamp(now));
        assert_eq!(checked(Role::Worker, 999), Ok(()));
        assert_eq!(checked(Role::Worker, 1_000), Err(JoinTokenError::Expired(Role::Worker)));
        assert_eq!(checked(Role::Manager, 1_000_000), Ok(()));
    }
}
