//! Keeps one session with the leader: finds the leader, registers, sends heartbeats and statuses, and passes the
//! leader's messages on. `session.rs` does the wire conversion, and `managers.rs` chooses the manager to try next.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use flota_api::clock::{Clock, Random};
use flota_api::clock_offset::ClockOffset;
use flota_api::defaults::{HEARTBEAT, NEW_EPOCH_GRACE};
use flota_api::id::VolumeId;
use flota_api::model::{CdiName, NodeDescription, Role};
use flota_api::version::Timestamp;
use flota_identity::Dialer;

use crate::assignments::{Newest, Parts};
use crate::contact::ContactSender;
use crate::describe::registration;
use crate::managers::{KnownManagers, Search};
use crate::messages::{AssignmentSet, Departure, FromLeader, Part, Registered, Registration, ToLeader, UsageReport};
use crate::networks::{NetworkFacts, NodeNetworks, UpdateParts};
use crate::offers::NodeOffers;
use crate::reporter::Reporter;
use crate::services::NodeServices;
use crate::session::{Session, SessionError};
use crate::spawned::Spawned;
use crate::task_pool::TaskPool;

/// Number of heartbeat periods after which a silent leader is given up; a leader answers each heartbeat. A packet that is
/// lost on a slow link, and comes after a few round trips, must not end the session. A worker must find the next leader
/// well within that leader's detection time.
const LATE: f64 = 2.2;
/// Time that the leader has to accept each of the last messages of a worker.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The state and the dependencies of the agent.
pub(crate) struct Agent {
    pub(crate) node_id: String,
    /// `host:port` where other nodes reach this one.
    pub(crate) address: String,
    /// Description of the machine.
    pub(crate) description: NodeDescription,
    /// The runtimes, devices and rights that this node offers to tasks.
    pub(crate) offers: Arc<NodeOffers>,
    /// The CDI devices of this node.
    pub(crate) cdi_devices: watch::Receiver<Vec<CdiName>>,
    pub(crate) dialer: Dialer,
    pub(crate) managers: KnownManagers,
    pub(crate) pool: TaskPool,
    pub(crate) reporter: Reporter,
    pub(crate) services: Arc<dyn NodeServices>,
    pub(crate) networks: Arc<dyn NodeNetworks>,
    pub(crate) spawned: Spawned,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) contact: ContactSender,
    /// Set when the daemon or the machine stops.
    pub(crate) departure: watch::Receiver<Option<Departure>>,
    /// Set when the cluster has removed this node.
    pub(crate) removed: watch::Sender<bool>,
    /// The role that the leader said last; `None` if none has said it since the start.
    pub(crate) role: watch::Sender<Option<Role>>,
    /// The digest of the CAs that the node is to trust, as the leader has told it last.
    pub(crate) trusts: watch::Sender<Option<String>>,
    /// How far the leader's clock is off.
    pub(crate) clock_offset: ClockOffset,
    /// Volumes that are being dropped.
    pub(crate) dropping: Arc<Mutex<BTreeSet<VolumeId>>>,
    /// What the measured tasks use, and the node.
    pub(crate) usage: watch::Receiver<UsageReport>,
    pub(crate) newest: Newest,
    pub(crate) parts: Parts,
    pub(crate) network_parts: UpdateParts,
}

/// Why a session ended.
enum End {
    /// The manager does not lead; the address of the leader, if the manager knows it.
    Redirect(Option<String>),
    Broken(String),
    /// The node leaves or was removed, so no further session is opened.
    Over,
}

impl From<SessionError> for End {
    fn from(error: SessionError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// The parts of a node's description that change while the daemon runs.
struct NodeFacts {
    network: watch::Receiver<NetworkFacts>,
    cdi_devices: watch::Receiver<Vec<CdiName>>,
}

impl NodeFacts {
    /// Resolves when a fact has changed since the last description. Dropping the future loses no change.
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.network.changed() => {}
            Ok(()) = self.cdi_devices.changed() => {}
            // Both senders are gone, so nothing will change any more.
            else => std::future::pending().await,
        }
    }
}

/// The state of a session while it lasts.
struct Link<'a> {
    /// Address of the manager.
    address: &'a str,
    channel: Channel,
    period: Duration,
    beat: Interval,
    /// When the last message of the manager arrived.
    last_message: Instant,
    /// When the session was established, if it was.
    established: Option<Instant>,
}

impl Link<'_> {
    /// Returns whether the session was established and lasted for a period. Without this check, a session that breaks
    /// at once would make this node register repeatedly without a pause.
    fn held(&self) -> bool {
        self.established.is_some_and(|since| since.elapsed() >= self.period)
    }
}

impl Agent {
    /// Returns when the node stops, leaves, or is removed.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        self.networks.set_managers(self.managers.addresses());
        let mut search = Search::default();
        let mut named: Option<String> = None;
        loop {
            let managers = self.managers.get();
            let address = named.take().or_else(|| search.manager(&managers).cloned()).unwrap_or_default();
            let end = tokio::select! {
                end = self.session(&address, &mut search) => end,
                () = shutdown.cancelled() => return,
            };
            if !matches!(end, End::Over) {
                self.contact.lost();
            }
            match end {
                End::Over => return,
                End::Redirect(Some(leader)) if leader != address && search.follows_redirect(managers.len()) => {
                    named = Some(leader);
                    continue;
                }
                End::Redirect(_) => {}
                End::Broken(why) if search.is_told(managers.len()) => {
                    tracing::info!(manager = address, why, "the session ended");
                }
                End::Broken(_) => {}
            }
            // The pause is random, because after a change of leader every worker reconnects at the same time.
            let most = search.failed(managers.len());
            let pause = most.mul_f64(self.random.draw(|rng| rng.random_range(0.5..1.0)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Runs one session with a manager, from its opening to its end.
    async fn session(&mut self, address: &str, search: &mut Search) -> End {
        let channel = self.dialer.manager(address);
        let mut facts = NodeFacts { network: self.networks.facts(), cdi_devices: self.cdi_devices.clone() };
        let description = self.described(&mut facts);
        let mut session = match Session::open(channel.clone(), self.registration(description).await).await {
            Ok(session) => session,
            Err(error) => return error.into(),
        };
        self.reporter.begin();
        self.parts = Parts::default();
        self.network_parts = UpdateParts::default();
        let mut link = Link {
            address,
            channel,
            period: HEARTBEAT,
            beat: tokio::time::interval(HEARTBEAT),
            last_message: Instant::now(),
            established: None,
        };
        let end = self.serve(&mut session, &mut link, facts).await;
        if link.held() {
            search.succeeded();
        }
        match end {
            Ok(departure) => {
                self.leave(session, departure).await;
                End::Over
            }
            Err(end) => end,
        }
    }

    /// Returns the description of this node by the current facts.
    fn described(&self, facts: &mut NodeFacts) -> NodeDescription {
        let (network, cdi_devices) = (facts.network.borrow_and_update(), facts.cdi_devices.borrow_and_update());
        registration(&self.description, &self.offers, &network, &cdi_devices)
    }

    async fn registration(&self, description: NodeDescription) -> Registration {
        Registration {
            node_id: self.node_id.clone(),
            description,
            address: self.address.clone(),
            newest: self.newest.get(),
            images: self.services.images().await,
        }
    }

    /// Sends and receives until this node leaves, or the session ends.
    async fn serve(
        &mut self,
        session: &mut Session,
        link: &mut Link<'_>,
        mut facts: NodeFacts,
    ) -> Result<Departure, End> {
        let reporter = self.reporter.clone();
        let mut departure = self.departure.clone();
        let mut programmed = self.networks.programmed();
        programmed.mark_unchanged();
        let mut usage = self.usage.clone();
        loop {
            let silent_at = link.last_message + link.period.mul_f64(LATE);
            let message = tokio::select! {
                message = session.recv() => {
                    link.last_message = Instant::now();
                    self.handle(message?, link)?;
                    continue;
                }
                () = tokio::time::sleep_until(silent_at) => return Err(End::Broken("the manager is silent".into())),
                _ = link.beat.tick() => ToLeader::Heartbeat(self.clock.now()),
                batch = reporter.next() => ToLeader::Statuses(batch),
                () = facts.changed() => ToLeader::Description(Box::new(self.described(&mut facts))),
                Ok(()) = programmed.changed() => ToLeader::Programmed(*programmed.borrow_and_update()),
                Ok(()) = usage.changed() => ToLeader::Usage(usage.borrow_and_update().clone()),
                Some(departure) = departs(&mut departure) => return Ok(departure),
            };
            if let Err(closed) = session.send(message).await {
                let held = link.held();
                let end = self.hear_out(session, link).await.unwrap_or_else(|| closed.into());
                if !held {
                    link.established = None;
                }
                return Err(end);
            }
        }
    }

    /// Handles what the manager sent before it closed the session, such as who leads. Returns its reason; `None` if the session
    /// does not end soon.
    async fn hear_out(&mut self, session: &mut Session, link: &mut Link<'_>) -> Option<End> {
        let last = async {
            loop {
                let message = match session.recv().await {
                    Ok(message) => message,
                    Err(error) => return error.into(),
                };
                if let Err(end) = self.handle(message, link) {
                    return end;
                }
            }
        };
        tokio::time::timeout(LAST_WAIT, last).await.ok()
    }

    /// Tells the leader that this node leaves. If the machine goes down, the last statuses are sent first, because its
    /// tasks have ended.
    async fn leave(&self, mut session: Session, departure: Departure) {
        // The wait for the leader is bounded: a leader that does not answer notices the end of the session by itself.
        if departure == Departure::Machine {
            let _ = tokio::time::timeout(LAST_WAIT, self.send_last_statuses(&mut session)).await;
        }
        let _ = tokio::time::timeout(LAST_WAIT, async {
            let _ = session.send(ToLeader::Leaving(departure)).await;
            session.close().await;
        })
        .await;
    }

    /// Sends what is pending and waits for its acknowledgement.
    async fn send_last_statuses(&self, session: &mut Session) -> Result<(), SessionError> {
        loop {
            tokio::select! {
                () = self.reporter.drained() => return Ok(()),
                batch = self.reporter.next() => session.send(ToLeader::Statuses(batch)).await?,
                message = session.recv() => if let FromLeader::StatusAck(sequence) = message? {
                    self.reporter.acknowledged(sequence);
                },
            }
        }
    }

    /// Handles one message; an error ends the session.
    fn handle(&mut self, message: FromLeader, link: &mut Link<'_>) -> Result<(), End> {
        match message {
            FromLeader::Registered(registered) => self.established(registered, link),
            FromLeader::NotLeader(leader) => return Err(End::Redirect(leader)),
            FromLeader::Assignments(part) => self.assign(part)?,
            FromLeader::Networks(part) => {
                if let Some(update) = self.network_parts.join(part) {
                    self.networks.update(update);
                }
            }
            FromLeader::KeyKnown(public) => self.networks.key_known(public),
            FromLeader::GrantKeys(keys) => self.services.set_grant_keys(keys),
            FromLeader::Trusts(digest) => drop(self.trusts.send_replace(Some(digest))),
            FromLeader::StatusAck(sequence) => self.reporter.acknowledged(sequence),
            FromLeader::OpenStream(open) => {
                self.spawned.spawn(self.services.open_stream(link.channel.clone(), open));
            }
            FromLeader::Managers(managers, role) => {
                self.managers.set(managers, link.address);
                self.networks.set_managers(self.managers.addresses());
                if role.is_some() {
                    self.role.send_replace(role);
                }
            }
            FromLeader::Heartbeat(now) => self.compare_clocks(now),
            FromLeader::Removed => {
                tracing::warn!("the cluster has removed this node");
                self.removed.send_replace(true);
                return Err(End::Over);
            }
        }
        Ok(())
    }

    /// Logs how far the leader's clock is off, when that has changed.
    fn compare_clocks(&mut self, leader: Option<Timestamp>) {
        let Some(leader) = leader else { return };
        let offset = self.clock_offset.observe(self.clock.now(), leader);
        if offset == self.clock_offset {
            return;
        }
        self.clock_offset = offset;
        if offset.is_zero() {
            tracing::info!("the clocks of this node and of the leader agree again");
        } else {
            tracing::warn!(leader.clock = %offset, "the clocks of this node and of the leader differ");
        }
    }

    fn established(&mut self, registered: Registered, link: &mut Link<'_>) {
        link.period = registered.heartbeat;
        link.beat = tokio::time::interval(link.period);
        link.established = Some(Instant::now());
        self.services.set_grant_keys(vec![registered.grant_key]);
        self.contact.found();
        tracing::info!(manager = link.address, "in session with the leader");
    }

    fn assign(&mut self, part: Part) -> Result<(), End> {
        let joined = self.parts.join(part, self.clock.now()).map_err(|error| End::Broken(error.to_string()))?;
        let Some(set) = joined else { return Ok(()) };
        let (offered, newest) = (set.version, self.newest.get());
        if offered < newest {
            return Err(End::Broken(format!(
                "the manager's assignments {offered:?} are older than the ones that are here, {newest:?}"
            )));
        }
        self.newest.set(offered);
        let grace = if set.is_full { self.begin_grace(offered.epoch) } else { Duration::ZERO };
        self.keep_images(&set);
        let dropped = set.dropped_volumes.clone();
        // The tasks of the set come first: what they use is not dropped.
        self.pool.assign(set, grace);
        self.drop_volumes(&dropped);
        Ok(())
    }

    /// Returns how long the tasks that the first full set of an epoch does not name are kept: a cluster that was restored
    /// from a backup may not yet know which tasks run here. A daemon that restarts meanwhile begins the grace anew.
    fn begin_grace(&mut self, epoch: u64) -> Duration {
        let Some(settle) = self.newest.begin(epoch) else { return Duration::ZERO };
        self.spawned.spawn(async move {
            tokio::time::sleep(NEW_EPOCH_GRACE).await;
            settle();
        });
        NEW_EPOCH_GRACE
    }

    /// Drops volumes, and reports each one that is gone. The leader repeats them until it has the report.
    fn drop_volumes(&self, volumes: &[VolumeId]) {
        for volume in volumes {
            if !self.dropping.lock().expect("no holder panics").insert(volume.clone()) {
                continue;
            }
            let (dropped, volume) = (self.services.drop_volume(volume.clone()), volume.clone());
            let (dropping, reporter) = (Arc::clone(&self.dropping), self.reporter.clone());
            self.spawned.spawn(async move {
                dropped.await;
                dropping.lock().expect("no holder panics").remove(&volume);
                reporter.report_dropped(volume);
            });
        }
    }

    fn keep_images(&self, set: &AssignmentSet) {
        if !set.images.is_empty() {
            self.spawned.spawn(self.services.keep_images(set.images.clone()));
        }
        if !set.dropped_images.is_empty() {
            self.spawned.spawn(self.services.drop_images(set.dropped_images.clone()));
        }
    }
}

/// Waits until this node leaves. Returns `None` if the sender is gone, so that no departure can be announced.
async fn departs(departure: &mut watch::Receiver<Option<Departure>>) -> Option<Departure> {
    departure.wait_for(Option::is_some).await.ok().and_then(|it| *it)
}

#[cfg(test)]
mod tests;
