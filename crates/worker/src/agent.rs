//! Keeps one session alive with the leader: finds it, registers, beats, takes assignments, sends statuses.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use flota_api::clock::{Clock, Random};
use flota_api::defaults::{MESSAGE_BOUND, NEW_EPOCH_GRACE, SESSION_FORMAT};
use flota_api::model::NodeDescription;
use flota_api::proto::dispatcher::dispatcher_client::DispatcherClient;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{Assignments, Heartbeat, Leaving, ManagerMessage, Register, WorkerMessage};
use flota_identity::Dialer;

use crate::assignments::{self, Newest};
use crate::describe::registration;
use crate::managers::KnownManagers;
use crate::offers::NodeOffers;
use crate::order::Contact;
use crate::reporter::Reporter;
use crate::services::NodeServices;
use crate::spawned::Spawned;
use crate::task_pool::TaskPool;

/// A leader answers each heartbeat: silent for so much of a period more than one, it is not one any more. A worker must
/// find the next leader well within that one's detection time.
const LATE: f64 = 1.6;
const CONNECT_WAIT: Duration = Duration::from_secs(1);
const MOST_BACKOFF: Duration = Duration::from_secs(2);

/// What the agent needs.
pub(crate) struct Agent {
    pub(crate) node_id: String,
    pub(crate) listen: String,
    /// What the machine is.
    pub(crate) description: NodeDescription,
    /// What this node gives to tasks.
    pub(crate) offers: Arc<NodeOffers>,
    pub(crate) dialer: Dialer,
    pub(crate) managers: KnownManagers,
    pub(crate) pool: TaskPool,
    pub(crate) reporter: Reporter,
    pub(crate) services: Arc<dyn NodeServices>,
    pub(crate) spawned: Spawned,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) contact: watch::Sender<Contact>,
    /// Says to the leader that the daemon (false) or the machine (true) stops.
    pub(crate) leaving: watch::Receiver<Option<bool>>,
    /// Set when the cluster has removed this node.
    pub(crate) removed: watch::Sender<bool>,
    pub(crate) newest: Newest,
    /// Parts of a set that is not here whole.
    pub(crate) parts: Option<Assignments>,
}

/// Why a session ended.
enum End {
    /// Try that one: it leads.
    Redirect(String),
    /// Try any.
    Broken(String),
    /// The node leaves, or was removed: no more sessions.
    Over,
}

impl Agent {
    /// Until the node stops, leaves, or is removed.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut next: Option<String> = None;
        let mut failures = 0u32;
        loop {
            let address = next.take().unwrap_or_else(|| self.manager(failures));
            let begun = Instant::now();
            let end = tokio::select! {
                end = self.session(&address) => end,
                () = shutdown.cancelled() => return,
            };
            self.contact.send_if_modified(|contact| {
                let newly = contact.lost.is_none();
                contact.lost.get_or_insert_with(Instant::now);
                newly
            });
            match end {
                End::Over => return,
                End::Redirect(leader) if !leader.is_empty() && leader != address => {
                    next = Some(leader);
                    continue;
                }
                End::Redirect(_) => {}
                End::Broken(why) => tracing::info!(manager = address, why, "the session ended"),
            }
            // Not the one again that has just gone silent, if there is another.
            failures = if begun.elapsed() > MOST_BACKOFF { 1 } else { failures + 1 };
            // Spread at random: after a change of leader every worker comes at once.
            let most = (Duration::from_millis(50) * 2u32.pow(failures.min(6))).min(MOST_BACKOFF);
            let pause = most.mul_f64(self.random.draw(|rng| rng.random_range(0.5..1.0)));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// First the one that led last, then the others in turn.
    fn manager(&self, failures: u32) -> String {
        let managers = self.managers.get();
        managers
            .iter()
            .cycle()
            .nth(usize::try_from(failures).unwrap_or(0) % managers.len().max(1))
            .cloned()
            .unwrap_or_default()
    }

    async fn session(&mut self, address: &str) -> End {
        let broken = |why: &dyn std::fmt::Display| End::Broken(why.to_string());
        let channel = self.dialer.manager(address);
        let (outbox, messages) = mpsc::channel::<WorkerMessage>(64);
        let send = |message| WorkerMessage { message: Some(message) };
        let register = Register {
            node_id: self.node_id.clone(),
            description: Some((&registration(&self.description, &self.offers)).into()),
            listen: self.listen.clone(),
            epoch: self.newest.get().0,
            version: self.newest.get().1,
            format: SESSION_FORMAT,
            images: self.services.images(),
        };
        if outbox.send(send(ToManager::Register(register))).await.is_err() {
            return broken(&"it could not be begun");
        }
        let mut client = DispatcherClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BOUND);
        let answers = tokio::time::timeout(CONNECT_WAIT, client.session(ReceiverStream::new(messages))).await;
        let mut inbox = match answers {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return broken(&status.message()),
            Err(_) => return broken(&"no answer in time"),
        };
        let mut period = flota_api::defaults::HEARTBEAT;
        let mut beat = tokio::time::interval(period);
        let mut heard = Instant::now();
        self.reporter.begin();
        self.parts = None;
        let reporter = self.reporter.clone();
        let mut leaving = self.leaving.clone();
        loop {
            let message = tokio::select! {
                message = inbox.message() => match message {
                    Ok(Some(ManagerMessage { message: Some(message) })) => {
                        heard = Instant::now();
                        match self.take(message, address, &channel, &mut beat, &mut period).await {
                            None => continue,
                            Some(end) => return end,
                        }
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) => return broken(&"the manager closed it"),
                    Err(status) => return broken(&status.message()),
                },
                () = tokio::time::sleep_until(heard + period.mul_f64(LATE)) => return broken(&"the manager is silent"),
                _ = beat.tick() => ToManager::Heartbeat(Heartbeat {}),
                batch = reporter.next() => ToManager::Statuses(batch),
                Ok(machine) = async { leaving.wait_for(Option::is_some).await.map(|it| *it) } => {
                    let machine = machine.unwrap_or(false);
                    if machine {
                        // The last statuses first: the tasks have ended.
                        let _ = tokio::time::timeout(Duration::from_secs(1), self.last_words(&outbox, &mut inbox)).await;
                    }
                    let _ = outbox.send(send(ToManager::Leaving(Leaving { machine }))).await;
                    drop(outbox);
                    // The manager closes the session when it has taken it.
                    let _ = tokio::time::timeout(Duration::from_secs(1), async { while let Ok(Some(_)) = inbox.message().await {} }).await;
                    return End::Over;
                }
            };
            if outbox.send(send(message)).await.is_err() {
                return broken(&"the manager closed it");
            }
        }
    }

    /// Sends what is pending and waits for its acknowledgement.
    async fn last_words(&self, outbox: &mpsc::Sender<WorkerMessage>, inbox: &mut tonic::Streaming<ManagerMessage>) {
        let reporter = self.reporter.clone();
        loop {
            tokio::select! {
                () = reporter.drained() => return,
                batch = reporter.next() => {
                    let message = WorkerMessage { message: Some(ToManager::Statuses(batch)) };
                    if outbox.send(message).await.is_err() { return }
                }
                message = inbox.message() => match message {
                    Ok(Some(ManagerMessage { message: Some(FromManager::StatusAck(ack)) })) => reporter.acknowledged(ack.sequence),
                    Ok(Some(_)) => {}
                    _ => return,
                },
            }
        }
    }

    /// Acts on one message; `Some`: the session ends.
    async fn take(
        &mut self,
        message: FromManager,
        leader: &str,
        channel: &Channel,
        beat: &mut tokio::time::Interval,
        period: &mut Duration,
    ) -> Option<End> {
        match message {
            FromManager::Registered(registered) => {
                *period = Duration::from_millis(registered.heartbeat_ms.max(100));
                *beat = tokio::time::interval(*period);
                self.services.set_grant_key(registered.grant_public_key.into());
                self.contact.send_replace(Contact { lost: None });
                tracing::info!("in session with the leader");
            }
            FromManager::NotLeader(not_leader) => return Some(End::Redirect(not_leader.address)),
            FromManager::Assignments(assignments) => return self.assign(assignments),
            FromManager::StatusAck(ack) => self.reporter.acknowledged(ack.sequence),
            FromManager::OpenStream(open) => {
                self.spawned.spawn(self.services.open_stream(channel.clone(), open));
            }
            FromManager::Managers(managers) => {
                self.managers.set(managers.managers.into_iter().map(|manager| manager.address).collect(), leader);
            }
            FromManager::Heartbeat(_) => {}
            FromManager::Removed(_) => {
                tracing::warn!("the cluster has removed this node");
                self.removed.send_replace(true);
                return Some(End::Over);
            }
        }
        None
    }

    fn assign(&mut self, part: Assignments) -> Option<End> {
        let (assignments, more) = match assignments::join(self.parts.take(), part, self.clock.now()) {
            Ok(joined) => joined,
            Err(error) => return Some(End::Broken(error.to_string())),
        };
        if more {
            self.parts = Some(assignments);
            return None;
        }
        let (offered, newest) = ((assignments.epoch, assignments.version), self.newest.get());
        if offered < newest {
            let text =
                format!("the manager's assignments {offered:?} are older than the ones that are here, {newest:?}");
            return Some(End::Broken(text));
        }
        // A cluster that was brought back from a backup may not know yet what runs here.
        let grace = if newest.0 > 0 && offered.0 > newest.0 { NEW_EPOCH_GRACE } else { Duration::ZERO };
        self.newest.set(offered);
        if !assignments.images.is_empty() {
            self.spawned.spawn(self.services.keep_images(assignments.images.clone()));
        }
        if !assignments.dropped_images.is_empty() {
            let pool = self.pool.clone();
            let used = Box::new(move || pool.images_used());
            self.spawned.spawn(self.services.drop_images(assignments.dropped_images.clone(), used));
        }
        self.pool.assign(assignments, grace);
        None
    }
}

#[cfg(test)]
mod tests;
