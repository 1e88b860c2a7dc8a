//! Users: who may use the cluster from outside, each with a certificate that the leader signs. The key never leaves the
//! user's machine. What a user may do is in the store and looked up for each request (`admission.rs`).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use flota_api::LEVEL_OF_USERS;
use flota_api::Violation;
use flota_api::id::{ClusterId, UserId};
use flota_api::model::{Cluster, NodeCertificate, User, UserRole, check_prefixes};
use flota_api::naming;
use flota_api::object::Kind;
use flota_api::version::Timestamp;
use flota_identity::{RootCa, USER_LIFE, known_certificate};
use flota_raft_store::{Tables, WriteTx};

use super::error::ControlError;
use super::filter::{self, Field, Filter};
use super::{Control, Freshness, Listing, Member};
use crate::level;
use crate::trust;

/// Largest number of users.
const USERS_BOUND: usize = 1_000;
/// Validity that the certificate of a user may have.
const LIVES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(10 * 365 * 86_400);

/// Shortest time between two renewals by a user itself. Each leaves a record, and old records give way to new ones.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// What an admin says of a new user.
#[derive(Clone, Debug)]
pub(crate) struct NewUser {
    pub(crate) name: String,
    pub(crate) role: UserRole,
    pub(crate) prefixes: Vec<String>,
}

/// A user with a new certificate, and what the user needs besides.
#[derive(Clone, Debug)]
pub(crate) struct UserGrant {
    pub(crate) user: Arc<User>,
    /// In DER.
    pub(crate) certificate: Vec<u8>,
    /// The CAs to trust, in DER; the first has signed the certificate.
    pub(crate) trusted: Vec<Vec<u8>>,
    /// Certificates that lead from that CA to others, in DER.
    pub(crate) intermediates: Vec<Vec<u8>>,
    /// `host:port` of each manager.
    pub(crate) managers: Vec<String>,
    pub(crate) cluster_id: ClusterId,
}

const FIELDS: &[Field<Arc<User>>] = &[
    ("id", |user| Some(user.id.to_string())),
    ("name", |user| Some(user.name.clone())),
    ("role", |user| Some(user.role.to_string())),
    ("createdBy", |user| Some(user.created_by.clone())),
];

fn check(new: &NewUser) -> Result<(), ControlError> {
    let mut found = Vec::new();
    let mut violation = |field: &str, why: String| found.push(Violation { field: field.into(), why });
    if let Err(error) = naming::check(&new.name) {
        violation("name", error.to_string());
    }
    if let Err(error) = check_prefixes(&new.prefixes) {
        violation("prefixes", error.to_string());
    }
    if new.role == UserRole::Admin && !new.prefixes.is_empty() {
        violation("prefixes", "an admin changes everything, and can't be limited".into());
    }
    if found.is_empty() { Ok(()) } else { Err(ControlError::Invalid(found)) }
}

fn check_life(life: Option<Duration>) -> Result<Duration, ControlError> {
    let life = life.unwrap_or(USER_LIFE);
    let why = || format!("it is from {:?} to {} days", LIVES.start(), LIVES.end().as_secs() / 86_400);
    if LIVES.contains(&life) { Ok(life) } else { Err(ControlError::invalid("expiry", why())) }
}

fn cluster(view: &Tables) -> Result<&Arc<Cluster>, ControlError> {
    view.cluster().ok_or(ControlError::NoClusterYet)
}

/// Signs a certificate for the user.
fn sign(cluster: &Cluster, name: &str, csr: &[u8], now: Timestamp, until: Timestamp) -> Result<Vec<u8>, ControlError> {
    let ca = RootCa::from_der(cluster.ca_certificate.clone(), cluster.ca_key.0.clone());
    let signed = ca.sign_user(csr, name, &cluster.id, now.to_system(), until.to_system());
    signed.map_err(|error| ControlError::invalid("csr", error))
}

fn known(certificate: &[u8]) -> Result<NodeCertificate, ControlError> {
    known_certificate(certificate).map_err(|error| ControlError::invalid("csr", error))
}

impl<M: Member> Control<M> {
    /// Adds a user, and signs its first certificate.
    pub(crate) async fn create_user(
        &self,
        request_id: Option<&str>,
        new: NewUser,
        csr: &[u8],
        life: Option<Duration>,
    ) -> Result<UserGrant, ControlError> {
        check(&new)?;
        let (life, now, id) = (check_life(life)?, self.clock.wall().now(), self.random.draw(UserId::random));
        let created = self.write_once(request_id, |view| {
            let level = level::raised(&view, LEVEL_OF_USERS)?;
            let cluster = Arc::clone(cluster(&view)?);
            if view.user_by_name(&new.name).is_some() {
                return Err(ControlError::AlreadyExists { kind: Kind::User, name: new.name.clone() });
            }
            if view.count(Kind::User) >= USERS_BOUND {
                return Err(ControlError::WrongState(format!("there are {USERS_BOUND} users, and that is the most")));
            }
            let certificate = sign(&cluster, &new.name, csr, now, now + life)?;
            let mut tx = WriteTx::new(view, request_id);
            level::risen(&cluster, level).into_iter().for_each(|risen| tx.update(risen));
            tx.create(User {
                id: id.clone(),
                name: new.name.clone(),
                role: new.role,
                prefixes: new.prefixes.clone(),
                certificates: vec![known(&certificate)?],
                life,
                created_by: self.caller.actor(),
                ..User::default()
            });
            Ok((tx.finish(), ()))
        });
        created.await?;
        self.grant(&new.name, csr).await
    }

    /// Signs another certificate. A user that renews its own keeps the one that it has shown until that expires, so it can
    /// try again if the new one gets lost; if an admin asks for another user, the new one is the only one.
    pub(crate) async fn renew_user(
        &self,
        request_id: Option<&str>,
        name: &str,
        csr: &[u8],
        life: Option<Duration>,
    ) -> Result<UserGrant, ControlError> {
        let own = self.caller.user().map(|user| user.name.clone());
        let name = if name.is_empty() { own.clone().unwrap_or_default() } else { name.to_owned() };
        let is_own = own.as_ref() == Some(&name);
        if !is_own && !self.caller.is(UserRole::Admin) {
            // A user who is no admin learns nothing of others.
            return Err(ControlError::NotFound { kind: Kind::User, reference: name });
        }
        let (asked, now) = (life.map(|life| check_life(Some(life))).transpose()?, self.clock.wall().now());
        let is_free = self.caller.is(UserRole::Admin);
        let renewed = self.write_once(request_id, |view| {
            let cluster = Arc::clone(cluster(&view)?);
            let user = view.user_by_name(&name).cloned();
            let user = user.ok_or_else(|| ControlError::NotFound { kind: Kind::User, reference: name.clone() })?;
            let life = asked.unwrap_or(user.life);
            if !is_free && life > user.life {
                let why = format!("an admin has set {:?}, and only an admin extends it", user.life);
                return Err(ControlError::invalid("expiry", why));
            }
            if !is_free && user.certificates.len() > 1 && user.meta.updated_at.until(self.clock.now()) < RENEWAL_PAUSE {
                return Err(ControlError::WrongState("it was renewed less than a minute ago; try again later".into()));
            }
            let new = known(&sign(&cluster, &name, csr, now, now + life)?)?;
            let shown = self.caller.key().filter(|_| is_own).and_then(|key| user.certificate(key));
            let kept = shown.filter(|it| it.key != new.key && it.expires_at > now);
            let certificates = kept.cloned().into_iter().chain([new]).collect();
            let life = if is_free { life } else { user.life };
            let mut tx = WriteTx::new(view, request_id);
            tx.update(User { certificates, life, ..user.as_ref().clone() });
            Ok((tx.finish(), ()))
        });
        renewed.await?;
        self.grant(&name, csr).await
    }

    /// Returns the user with its newest certificate, if that is for the key of this request. It is signed anew: a retry, whose
    /// first answer was lost, gets an equal one.
    async fn grant(&self, name: &str, csr: &[u8]) -> Result<UserGrant, ControlError> {
        let view = self.proven_whole_view().await?;
        let removed = || ControlError::RemovedMeanwhile { kind: Kind::User, reference: name.to_owned() };
        let (user, cluster) = (view.user_by_name(name).ok_or_else(removed)?, cluster(&view)?);
        let newest = user.certificates.last().ok_or_else(removed)?;
        let certificate = sign(cluster, name, csr, self.clock.wall().now(), newest.expires_at)?;
        if known(&certificate)?.key != newest.key {
            return Err(ControlError::ChangedMeanwhile { kind: Kind::User, name: name.to_owned() });
        }
        Ok(UserGrant {
            user: Arc::clone(user),
            certificate,
            trusted: trust::trusted(cluster),
            intermediates: trust::intermediates(cluster),
            managers: view.managers().map(|node| node.address.clone()).collect(),
            cluster_id: cluster.id.clone(),
        })
    }

    /// Removes a user. What the user has open ends within a moment, and every further request is refused.
    pub(crate) async fn remove_user(&self, request_id: Option<&str>, name: &str) -> Result<(), ControlError> {
        let removed = self.write_once(request_id, |view| {
            let user = view.user_by_name(name).or_else(|| view.user(name));
            let not_found = || ControlError::NotFound { kind: Kind::User, reference: name.to_owned() };
            let id = user.ok_or_else(not_found)?.id.clone();
            let mut tx = WriteTx::new(view, request_id);
            tx.remove(Kind::User, &id);
            Ok((tx.finish(), ()))
        });
        removed.await.map(drop)
    }

    /// Returns the users that pass every filter.
    pub(crate) async fn list_users(
        &self,
        freshness: Freshness,
        filters: &[Filter],
    ) -> Result<Listing<Arc<User>>, ControlError> {
        let (view, age) = self.view(freshness).await?;
        Ok(Listing { rows: filter::keep(view.users().cloned(), filters, FIELDS)?, age })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, role: UserRole, prefixes: &[&str]) -> Result<(), String> {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        check(&NewUser { name: name.into(), role, prefixes }).map_err(|error| error.to_string())
    }

    #[test]
    fn names_prefixes_and_lives_have_bounds_and_an_admin_is_not_limited() {
        assert_eq!(new("ada", UserRole::Admin, &[]), Ok(()));
        assert_eq!(new("ada.l", UserRole::Operator, &["team-a-"]), Ok(()));
        for (name, role, prefixes, why) in [
            ("", UserRole::Viewer, &[][..], "name: a name is needed"),
            ("a\nb", UserRole::Viewer, &[], "name: `a\\nb`"),
            ("a/b", UserRole::Viewer, &[], "name: `a/b`"),
            ("ada", UserRole::Operator, &[""], "prefixes: a name is needed"),
            ("ada", UserRole::Admin, &["a"], "prefixes: an admin"),
        ] {
            let refused = new(name, role, prefixes).expect_err(why);
            assert!(refused.starts_with(why), "{refused}");
        }
        assert_eq!(check_life(None).expect("the default"), Duration::from_secs(365 * 86_400));
        for seconds in [0, 59, 10 * 365 * 86_400 + 1] {
            let refused = check_life(Some(Duration::from_secs(seconds))).expect_err("it is out of bounds");
            assert_eq!(refused.to_string(), "expiry: it is from 60s to 3650 days");
        }
    }
}
