//! Renewal of this node's certificate: at a random point of its life a manager issues the next one, which is on disk before
//! it is used. What fails is tried again with growing pauses. A node whose certificate has expired meanwhile renews in the
//! same way, because its key shows who it is. While the cluster's CA is replaced, the
//! leader says which CAs the node is to trust; the node then renews at once, and confirms when it uses the answer.

use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use flota_api::clock::Random;
use flota_api::defaults::CLOCK_SKEW;
use flota_api::model::Role;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{ConfirmTrustRequest, RenewCertificateRequest, RenewCertificateResponse};
use flota_api::reason::Reason;
use flota_api::version::Timestamp;
use flota_identity::{
    CertificateError, Credentials, Dialer, FileError, Identity, KeyPair, Settings, Validity, extension_request,
    renewal_request,
};
use flota_manager::Manager;

use crate::join::why;
use crate::rpc::ManagerState;
use crate::state_dir::Keys;

/// The part of its life after which a certificate is renewed is chosen between these, so that nodes that joined together do
/// not all renew at once.
const EARLIEST: f64 = 0.5;
const LATEST: f64 = 0.8;
/// Pause after a first failure.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after failures.
const MOST_PAUSE: Duration = Duration::from_secs(600);
/// Longest wait without a look at the clock, which may step, and stands still while the machine is suspended.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Nodes that are told to renew do so within this time, and not all at once.
const TOLD_SPREAD: Duration = Duration::from_secs(2);
/// 2026-01-01. A clock that shows an earlier time was not set, because no cluster is that old.
const SOONEST: Timestamp = Timestamp(1_767_225_600_000);
/// How long one manager is given to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("no manager is known")]
    NoManager,
    #[error("no manager answers: {0}")]
    Unanswered(String),
    #[error("the cluster refuses: {0}")]
    Refused(String),
    #[error("the manager's answer is for {0}, and not for this node")]
    OtherNode(String),
    #[error(
        "the certificate that the manager sent was issued at {0}, more than a day ahead of this node's clock: one of the two clocks is wrong"
    )]
    NotValidYet(Timestamp),
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("the manager's answer does not belong to the new key: {0}")]
    Mismatch(#[from] rustls::Error),
    #[error("{}", flota_api::text::with_causes(.0))]
    File(#[from] FileError),
    #[error("failed to replace the keys of the data on this disk: {0:#}")]
    Keys(anyhow::Error),
}

/// When the next renewal is due. It reads no clock.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Schedule {
    /// The life of the certificate by this node's clock: it begins when the node got it, as the clock of the leader that has
    /// issued it may be off.
    begins: Timestamp,
    life: Duration,
    /// The part of the life after which the certificate is renewed.
    point: f64,
    /// Number of failures in a row.
    failures: u32,
    /// Not before this time, because of a failure.
    pause_until: Option<Timestamp>,
    /// Not later than this time, because the leader has told the node to renew.
    told_for: Option<Timestamp>,
    /// When the certificate was issued, by the clock of the leader.
    issued_at: Timestamp,
}

impl Schedule {
    /// Schedules the renewal of a certificate that this node got at `begins`.
    fn new(validity: Validity, begins: Timestamp, rng: &mut impl Rng) -> Self {
        let point = rng.random_range(EARLIEST..=LATEST);
        let Validity { issued_at, .. } = validity;
        Self { begins, life: validity.life(), point, failures: 0, pause_until: None, told_for: None, issued_at }
    }

    /// Returns the time until the renewal is due; zero if it is.
    fn wait(&self, now: Timestamp) -> Duration {
        // A clock was far ahead when it was issued. Others refuse it until then. If this node's own clock was not set yet, as
        // after a start without a battery, the certificate is kept: a manager that is alone would sign one that has expired
        // as soon as the clock is right.
        if now >= SOONEST && is_ahead(self.issued_at, now) {
            return self.pause(now);
        }
        let due = self.begins + self.life.mul_f64(self.point);
        let told = self.told_for.map(|at| now.until(at).min(TOLD_SPREAD));
        told.map_or(now.until(due), |told| told.min(now.until(due))).max(self.pause(now))
    }

    /// Returns the time for which a failure still holds up the next try.
    fn pause(&self, now: Timestamp) -> Duration {
        self.pause_until.map_or(Duration::ZERO, |until| now.until(until).min(MOST_PAUSE))
    }

    /// Makes the renewal due soon, because the leader has told the node to renew.
    fn told(&mut self, now: Timestamp, rng: &mut impl Rng) {
        self.told_for = Some(now + TOLD_SPREAD.mul_f64(rng.random_range(0.0..=1.0)));
    }

    /// Returns whether the certificate has expired, by this node's clock.
    fn has_expired(&self, now: Timestamp) -> bool {
        self.begins + self.life <= now
    }

    /// Records a failure: pauses double, with a random part, and are short beside the life of the certificate.
    fn failed(&mut self, now: Timestamp, rng: &mut impl Rng) {
        let longest = (self.life / 50).clamp(LEAST_PAUSE, MOST_PAUSE);
        let pause = LEAST_PAUSE.saturating_mul(1 << self.failures.min(20)).min(longest);
        self.failures += 1;
        self.pause_until = Some(now + pause.mul_f64(rng.random_range(0.5..=1.0)));
    }
}

/// Whether a certificate that was issued then is not valid yet.
fn is_ahead(issued_at: Timestamp, now: Timestamp) -> bool {
    now.until(issued_at) > CLOCK_SKEW
}

/// Where a node asks for its next certificate.
#[derive(Debug)]
pub(crate) struct Renewals {
    pub(crate) credentials: Credentials,
    /// Where the identity is written.
    pub(crate) keys: Keys,
    /// The file with the addresses of the managers, which the worker writes.
    pub(crate) managers: PathBuf,
    /// This node's own manager.
    pub(crate) manager: watch::Receiver<ManagerState>,
    /// The role that the cluster gives this node; `None` as long as it is not known.
    pub(crate) wanted: watch::Receiver<Option<Role>>,
    /// Told the role in each certificate that is in use.
    pub(crate) certified: watch::Sender<Role>,
    /// The digest of the CAs that the node is to trust, each time that a leader tells it.
    pub(crate) told: watch::Receiver<Option<String>>,
    pub(crate) random: Random,
}

impl Renewals {
    /// Returns whether the cluster gives this node another role than its certificate does.
    fn has_other_role(&self) -> bool {
        self.wanted.borrow().is_some_and(|wanted| wanted != self.credentials.identity().role)
    }

    /// Returns this node's own manager, if it runs.
    fn own_manager(&self) -> Option<Manager> {
        self.manager.borrow().clone().running().ok()
    }

    /// Renews the certificate each time that it is due, or the node has another role, until `shutdown` is cancelled.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.renew_when_due(&shutdown), self.confirm_when_told(&shutdown));
    }

    /// Confirms what the node trusts, each time that the leader asks for just that.
    async fn confirm_when_told(&self, shutdown: &CancellationToken) {
        let (mut told, mut used) = (self.told.clone(), self.credentials.changes());
        let mut pause = LEAST_PAUSE;
        loop {
            let (wanted, own) = (told.borrow_and_update().clone(), used.borrow_and_update().identity().trusts());
            let confirmed = if wanted.as_ref() == Some(&own) { self.confirm(own).await } else { Ok(()) };
            let wait = match &confirmed {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::debug!(%error, "failed to confirm the CAs that the node trusts; retrying");
                    self.random.draw(|rng| pause.mul_f64(rng.random_range(0.5..=1.0)))
                }
            };
            pause = if confirmed.is_ok() { LEAST_PAUSE } else { (pause * 2).min(LOOK_EVERY) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = told.changed() => {}
                Ok(()) = used.changed() => {}
                () = tokio::time::sleep(wait.min(MOST_PAUSE)), if confirmed.is_err() => {}
            }
        }
    }

    /// Tells a manager what the node trusts, over a connection with the certificate that it uses now.
    async fn confirm(&self, trusts: String) -> Result<(), RenewError> {
        let node_id = self.credentials.identity().node_id.to_string();
        let request = ConfirmTrustRequest { node_id, trusts };
        let (dialer, mut last) = (Dialer::new(self.credentials.clone()), RenewError::NoManager);
        for address in self.managers(Own::Included) {
            let mut client = NodeCaClient::new(dialer.manager(&address));
            match tokio::time::timeout(ANSWER_WAIT, client.confirm_trust(request.clone())).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => last = RenewError::Unanswered(format!("{address}: {}", why(&status))),
                Err(_) => last = RenewError::Unanswered(format!("{address}: it does not answer in {ANSWER_WAIT:?}")),
            }
        }
        Err(last)
    }

    /// Renews the certificate when it is due.
    async fn renew_when_due(&self, shutdown: &CancellationToken) {
        let mut told = self.told.clone();
        let mut wanted = self.wanted.clone();
        let clock = self.credentials.clock().clone();
        let draw = |validity: Validity, begins| self.random.draw(|rng| Schedule::new(validity, begins, rng));
        let validity = self.credentials.identity().validity;
        let mut schedule = draw(validity, validity.issued_at);
        // Each further failure of the same kind would say the same.
        let mut logged = None;
        loop {
            let wait = |schedule: &Schedule| match self.has_other_role() {
                true => schedule.pause(clock.now()),
                false => schedule.wait(clock.now()),
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = wanted.changed() => {}
                Ok(()) = told.changed() => {
                    let trusted = told.borrow_and_update().clone();
                    if trusted.is_some_and(|it| it != self.credentials.identity().trusts()) {
                        self.random.draw(|rng| schedule.told(clock.now(), rng));
                    }
                }
                () = tokio::time::sleep(wait(&schedule).min(LOOK_EVERY)) => {}
            }
            if !wait(&schedule).is_zero() {
                continue;
            }
            let has_expired = schedule.has_expired(clock.now());
            let renewed = tokio::select! {
                () = shutdown.cancelled() => return,
                renewed = self.renew(has_expired) => renewed,
            };
            match renewed {
                Ok(settings) => {
                    let validity = settings.identity().validity;
                    self.credentials.install(settings);
                    schedule = draw(validity, clock.now());
                    logged = None;
                    let role = self.credentials.identity().role;
                    tracing::info!(%role, expires_at = %validity.expires_at, "the node's certificate was renewed");
                    self.certified.send_if_modified(|known| mem::replace(known, role) != role);
                    if self.has_other_role() {
                        // What the leader said last is not the newest: its next message is waited for.
                        self.random.draw(|rng| schedule.failed(clock.now(), rng));
                    }
                }
                Err(error) => {
                    let expires_at = self.credentials.identity().validity.expires_at;
                    let kind = Some((has_expired, mem::discriminant(&error)));
                    if mem::replace(&mut logged, kind) == kind {
                        tracing::debug!(%error, "failed to renew the node's certificate again");
                    } else if has_expired {
                        tracing::error!(%error, %expires_at, "the node's certificate has expired and could not be renewed; retrying");
                    } else {
                        tracing::warn!(%error, %expires_at, "failed to renew the node's certificate; retrying");
                    }
                    self.random.draw(|rng| schedule.failed(clock.now(), rng));
                }
            }
        }
    }

    /// Gets the next certificate and writes it to disk. Returns it, ready to be used.
    async fn renew(&self, has_expired: bool) -> Result<Settings, RenewError> {
        let present = self.credentials.identity();
        let key = KeyPair::generate()?;
        let asked = self.ask(&renewal_request(&present, &key)?).await;
        let (answer, key) = match (asked, &self.own_manager()) {
            (Err(RenewError::Unanswered(why)), Some(manager)) if has_expired => {
                // Perhaps all managers were off for longer than their certificates lived, so none can answer another. The
                // key stays, since no leader can take note of another one.
                let answer = manager.renew_without_leader(&extension_request(&present)?);
                let answer = answer.map_err(|_| RenewError::Unanswered(why))?;
                tracing::warn!(
                    "no leader can renew this manager's certificate: it has signed one for an hour by itself"
                );
                (answer, KeyPair::from_der(&present.key_der())?)
            }
            (asked, _) => (asked?, key),
        };
        let replace_data_keys = answer.replace_data_keys;
        let [trusted, chain] = [answer.ca_der, answer.chain_der].map(|it| it.into_iter().map(Into::into).collect());
        let next = Identity::new(answer.certificate_der.into(), key.to_der(), trusted)?.with_intermediates(chain);
        if (&next.node_id, &next.cluster_id) != (&present.node_id, &present.cluster_id) {
            return Err(RenewError::OtherNode(format!("{next:?}")));
        }
        // It would take the place of one that the others accept.
        if is_ahead(next.validity.issued_at, self.credentials.clock().now()) {
            return Err(RenewError::NotValidYet(next.validity.issued_at));
        }
        let has_other_cas = next.trusts() != present.trusts();
        // Only a certificate that can be used is written.
        let settings = self.credentials.prepare(next.clone())?;
        let keys = self.keys.clone();
        let saved = tokio::task::spawn_blocking(move || {
            // The keys come first: a daemon that is killed in between, or whose disk is full, replaces them once more. With
            // the new identity it would take them for replaced.
            if replace_data_keys && has_other_cas {
                keys.rotate().map_err(RenewError::Keys)?;
            }
            Ok::<_, RenewError>(keys.save_identity(&next)?)
        });
        saved.await.expect("it does not panic, and nothing cancels it")?;
        Ok(settings)
    }

    /// Sends the request to one manager after the other, until one answers or refuses.
    async fn ask(&self, request: &RenewCertificateRequest) -> Result<RenewCertificateResponse, RenewError> {
        let mut last = RenewError::NoManager;
        // The manager of a node that is demoted may know no leader any more.
        if let Some(manager) = self.own_manager().filter(|_| !self.has_other_role()) {
            // The leader serves itself. A follower forwards it, if its own certificate still lets it.
            let mut own = NodeCaClient::new(manager.ca());
            match tokio::time::timeout(ANSWER_WAIT, own.renew_certificate(request.clone())).await {
                Ok(answer) => match outcome(answer) {
                    Err(error @ RenewError::Unanswered(_)) => last = error,
                    judged => return judged,
                },
                Err(_) => last = RenewError::Unanswered("this manager knows no leader".into()),
            }
        }
        let dialer = Dialer::without_certificate(self.credentials.clone());
        for address in self.managers(Own::Excluded) {
            let mut client = NodeCaClient::new(dialer.manager(&address));
            match tokio::time::timeout(ANSWER_WAIT, client.renew_certificate(request.clone())).await {
                Ok(answer) => match outcome(answer) {
                    Err(RenewError::Unanswered(why)) => last = RenewError::Unanswered(format!("{address}: {why}")),
                    judged => return judged,
                },
                Err(_) => last = RenewError::Unanswered(format!("{address}: it does not answer in {ANSWER_WAIT:?}")),
            }
        }
        Err(last)
    }

    /// Returns the addresses of the managers.
    fn managers(&self, include: Own) -> Vec<String> {
        let Some(manager) = self.own_manager() else {
            let text = std::fs::read_to_string(&self.managers).unwrap_or_default();
            return text.lines().map(str::to_owned).collect();
        };
        let own = manager.raft().id();
        let members = manager.raft().members().into_iter();
        members.filter(|it| include == Own::Included || it.id != own).map(|it| it.address).collect()
    }
}

/// Whether this node's own manager is among those that are asked over the network.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Included,
    Excluded,
}

/// Tells a refusal, which every manager would repeat, from an answer that another manager or a later time may give.
fn outcome(
    answer: Result<tonic::Response<RenewCertificateResponse>, tonic::Status>,
) -> Result<RenewCertificateResponse, RenewError> {
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) if Reason::of(&status).is_some_and(Reason::is_judgement) => {
            Err(RenewError::Refused(status.message().to_owned()))
        }
        Err(status) => Err(RenewError::Unanswered(why(&status))),
    }
}

#[cfg(test)]
mod tests;
