//! Users of a simulated cluster: several clients that create, scale, update, remove and read services through the
//! Control API, and record what they observe. They also create and remove networks. Like `ctl`, they retry with the
//! next manager and the same request id after any loss. What a service of theirs is like is in `user/specs.rs`. Users
//! with services of their own, whose history is not recorded, are in `user/chain.rs`, `user/jobs.rs`,
//! `user/rollouts.rs`, `user/runs.rs`, `user/scaled.rs`, `user/vault.rs` and `user/yard.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{CreateServiceRequest, ListRequest, RemoveRequest, UpdateServiceRequest};
use flota_api::proto::objects::Service;
use flota_api::proto::specs::UpdateOrder;
use flota_api::reason::Reason;
use flota_identity::{Dialer, Peer};
use flota_manager::forward::STALE;

use super::host::USER;
use super::linearizability::{Operation, Violation, check};
use super::network::Network;
use super::services::{Answer, Op, Services, read};
use super::time;

pub(super) mod chain;
mod deploy;
pub(super) mod jobs;
mod networks;
mod prober;
pub(super) mod rollouts;
pub(super) mod runs;
pub(super) mod scaled;
mod specs;
pub(super) mod vault;
pub(super) mod yard;

pub(super) use jobs::JOBS;
pub(super) use rollouts::ROLLED_OUT;
pub(super) use runs::{OVERLAPPING, RUN};
pub(super) use scaled::SCALED;
pub(super) use specs::{CRON, KEPT, TAG, VOLUMES, priority};
pub use specs::{NAMES, Wishes};
use specs::{RUNS_ANYWAY, STARTED_FIRST};
pub(super) use vault::VAULT;
pub(super) use yard::STEADY;

/// Time limit of one try at one manager.
const TRY: Duration = Duration::from_secs(5);
/// Time after which a client gives up a request, in milliseconds.
const PATIENCE: u64 = 30_000;

/// The operations that users have recorded. Clones share it.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    operations: Vec<Operation<Services>>,
    /// Number of pending operations.
    open: usize,
    next_tag: u64,
    stop: bool,
    /// When the last write of the prober was answered.
    written: u64,
}

impl History {
    fn with<T>(&self, act: impl FnOnce(&mut Recorded) -> T) -> T {
        act(&mut self.0.lock().expect("no holder panics"))
    }

    /// Checks whether the operations are linearizable, and stale answers no older than they state. `changed`: tags of
    /// services that the cluster may have changed. That changes the version, so it can cause a conflict of versions.
    ///
    /// # Errors
    /// The first service whose history is not.
    pub fn check(&self, changed: &BTreeSet<u64>) -> Result<(), Violation> {
        let is_explained = |it: &Operation<Services>| match (&it.op, &it.answer) {
            (Op::Update { from: Some(tag), .. }, Some(Answer::Changed)) => changed.contains(tag),
            _ => false,
        };
        self.with(|it| {
            it.operations.retain(|operation| !is_explained(operation));
            check(&it.operations)
        })
    }

    /// Number of operations, and how many of them are pending.
    pub fn count(&self) -> (usize, usize) {
        self.with(|it| (it.operations.len(), it.open))
    }

    /// Counts the users as a pending operation until all clients have ended.
    pub fn start(&self) {
        self.with(|it| it.open += 1);
    }

    /// Makes the users start no further operations.
    pub fn stop(&self) {
        self.with(|it| it.stop = true);
    }

    /// Whether [`History::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.with(|it| it.stop)
    }

    /// When the last write of the user was answered who writes all the time.
    pub fn written(&self) -> u64 {
        self.with(|it| it.written)
    }

    fn note_write(&self) {
        let now = time::now();
        self.with(|it| it.written = now);
    }

    fn begin(&self, client: u64, name: &str, op: Op) -> usize {
        let called = time::now();
        self.with(|it| {
            it.open += 1;
            it.operations.push(Operation { key: name.to_owned(), client, op, answer: None, called, returned: 0 });
            it.operations.len() - 1
        })
    }

    fn end(&self, number: usize, answer: Option<Answer>) {
        let returned = time::now();
        self.with(|it| {
            it.open -= 1;
            let Operation { key, client, op, called, .. } = &it.operations[number];
            tracing::info!(client, key, called, ?op, ?answer, "a user's request has ended");
            (it.operations[number].answer, it.operations[number].returned) = (answer, returned);
        });
    }

    fn tag(&self) -> u64 {
        self.with(|it| {
            it.next_tag += 1;
            it.next_tag
        })
    }
}

/// The process of the users.
pub struct Users {
    /// Number of clients.
    pub clients: u64,
    /// Longest pause between two requests of a client, in milliseconds.
    pub pause: u64,
    /// Parameters of the services that they create.
    pub wishes: Wishes,
    /// A channel to each manager.
    pub channels: Vec<Channel>,
    /// Where they record their operations.
    pub history: History,
}

impl Users {
    /// Runs all clients until the history is stopped.
    pub async fn run(self, seed: u64) {
        let mut clients = tokio::task::JoinSet::new();
        let client = |number: u64| Client {
            number,
            wishes: self.wishes,
            channels: self.channels.clone(),
            at: usize::try_from(number).expect("they are few") % self.channels.len(),
            rng: StdRng::seed_from_u64(seed.wrapping_add(number)),
            history: self.history.clone(),
            known: BTreeMap::new(),
        };
        if self.wishes.networks {
            client(self.clients).create_shared_network().await;
        }
        if self.wishes.probes {
            clients.spawn(client(self.clients + 1).probe());
        }
        if self.wishes.chain {
            clients.spawn(client(self.clients + 2).change_chain());
        }
        if self.wishes.rollouts {
            clients.spawn(client(self.clients + 3).roll_out());
        }
        if self.wishes.jobs {
            clients.spawn(client(self.clients + 4).change_jobs());
        }
        if let Some(name) = self.wishes.scaled {
            clients.spawn(client(self.clients + 5).change_scaled(name));
        }
        if self.wishes.vault {
            clients.spawn(client(self.clients + 6).change_vault());
        }
        if self.wishes.yard {
            clients.spawn(client(self.clients + 7).deploy_yard());
        }
        if self.wishes.runs {
            clients.spawn(client(self.clients + 8).begin_runs());
        }
        for number in 0..self.clients {
            clients.spawn(client(number).run(self.pause));
        }
        while clients.join_next().await.is_some() {}
        self.history.with(|it| it.open -= 1);
    }
}

/// Opens channels from the users' machine to these managers of a simulation.
pub fn channels(network: &Network, managers: &[String]) -> Vec<Channel> {
    let dialer = Dialer::through(network.connector(USER, Peer::Local));
    managers.iter().map(|manager| dialer.manager(manager)).collect()
}

struct Client {
    number: u64,
    wishes: Wishes,
    channels: Vec<Channel>,
    /// Number of the manager to try first.
    at: usize,
    rng: StdRng,
    history: History,
    /// Version and tag of each service, as last read.
    known: BTreeMap<String, (u64, u64)>,
}

fn tag_of(service: &Service) -> u64 {
    let tag = service.spec.as_ref().and_then(|spec| spec.labels.get(TAG)).and_then(|tag| tag.parse().ok());
    tag.unwrap_or_default()
}

impl Client {
    async fn run(mut self, pause: u64) {
        while !self.history.is_stopped() {
            self.act().await;
            let pause = self.rng.random_range(1..=pause);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        // Record the state that the other clients have left.
        self.read().await;
    }

    async fn act(&mut self) {
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        let name = self.wishes.only.unwrap_or(name);
        // Where users want no tasks, the cluster changes no service, and every conflict must be explained by users alone.
        if self.wishes.replicas == 0 && RUNS_ANYWAY.contains(&name) {
            return;
        }
        match self.rng.random_range(0..11) {
            0..=1 => self.create(name).await,
            2..=4 => self.update(name).await,
            5 => self.remove(name).await,
            6..=7 => self.read().await,
            8 if self.wishes.networks => self.change_networks().await,
            _ => self.read_stale().await,
        }
    }

    async fn create(&mut self, name: &'static str) {
        let tag = self.history.tag();
        let request = CreateServiceRequest {
            request_id: self.request_id(tag),
            spec: Some(self.spec(name, tag)),
            ..CreateServiceRequest::default()
        };
        self.write(name, Op::Create { tag }, move |mut client| {
            let request = request.clone();
            async move { client.create_service(request).await.map(drop) }
        })
        .await;
    }

    async fn update(&mut self, name: &'static str) {
        let tag = self.history.tag();
        let known = self.known.get(name).copied().filter(|_| self.rng.random_bool(0.7));
        let request = UpdateServiceRequest {
            request_id: self.request_id(tag),
            service: name.to_owned(),
            version: known.map_or(0, |(version, _)| version),
            spec: Some(self.spec(name, tag)),
            ..UpdateServiceRequest::default()
        };
        self.write(name, Op::Update { from: known.map(|(_, tag)| tag), tag }, move |mut client| {
            let request = request.clone();
            async move { client.update_service(request).await.map(drop) }
        })
        .await;
    }

    async fn remove(&mut self, name: &'static str) {
        let tag = self.history.tag();
        let request = RemoveRequest { request_id: self.request_id(tag), name: name.to_owned(), ..Default::default() };
        self.write(name, Op::Remove, move |mut client| {
            let request = request.clone();
            async move { client.remove_service(request).await.map(drop) }
        })
        .await;
    }

    fn request_id(&self, tag: u64) -> String {
        format!("request {tag} of {}", self.number)
    }

    async fn write<F>(&mut self, name: &str, op: Op, call: impl Fn(ControlClient<Channel>) -> F)
    where
        F: Future<Output = Result<(), Status>>,
    {
        let number = self.history.begin(self.number, name, op);
        let answer = match self.request(call).await {
            Some(Ok(())) => Some(Answer::Done),
            Some(Err(status)) => {
                tracing::info!(client = self.number, message = status.message(), "refused");
                answer_of(&status)
            }
            None => None,
        };
        self.history.end(number, answer);
    }

    async fn read(&mut self) {
        let called = time::now();
        let listed = self.request(|client| list(client, false)).await;
        if let Some(Ok((_, services))) = listed {
            let returned = time::now();
            self.record(&services, (called, returned), &Op::Read { age: 0, manager: None });
            for service in &services {
                let version = service.meta.as_ref().map_or(0, |meta| meta.version);
                let name = service.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
                self.known.insert(name, (version, tag_of(service)));
            }
        }
    }

    /// Reads one manager's own state, of any age.
    async fn read_stale(&mut self) {
        let called = time::now();
        let manager = self.rng.random_range(0..self.channels.len());
        let client = ControlClient::new(self.channels[manager].clone());
        // A manager that was not complete since it started says so, and its answer makes no promise.
        if let Ok(Ok((Some(age), services))) = tokio::time::timeout(TRY, list(client, true)).await {
            self.record(&services, (called, time::now()), &Op::Read { age, manager: Some(manager) });
        }
    }

    fn record(&self, services: &[Service], times: (u64, u64), op: &Op) {
        let named = |name| services.iter().find(|it| it.spec.as_ref().is_some_and(|spec| spec.name == name));
        let reads = NAMES.map(|name| read(self.number, name, times, op.clone(), named(name).map(tag_of)));
        self.history.with(|it| it.operations.extend(reads));
    }

    /// Tries one manager after the other until one gives a final answer; `None` if none does in time.
    async fn request<T, F>(&mut self, call: impl Fn(ControlClient<Channel>) -> F) -> Option<Result<T, Status>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let until = time::now() + PATIENCE;
        while time::now() < until {
            let client = ControlClient::new(self.channels[self.at].clone());
            match tokio::time::timeout(TRY, call(client)).await {
                Ok(Ok(value)) => return Some(Ok(value)),
                Ok(Err(status)) if !is_lost(&status) => return Some(Err(status)),
                _ => self.at = (self.at + 1) % self.channels.len(),
            }
            let pause = self.rng.random_range(20..100);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        None
    }
}

/// Whether the service may replace its tasks in this order: the new one of a slot is started first.
pub(super) fn starts_first(service: &str) -> bool {
    let is_start_first = |order| order == UpdateOrder::StartFirst;
    let mut rolled_out = ROLLED_OUT.iter().filter(|it| is_start_first(it.order) || is_start_first(it.rollback_order));
    STARTED_FIRST.contains(&service) || STEADY.contains(&service) || rolled_out.any(|it| it.name == service)
}

/// Whether another manager may answer although this one did not.
pub fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    )
}

/// Returns the answer for the checker; `None` if it does not tell what was done.
fn answer_of(status: &Status) -> Option<Answer> {
    match Reason::of(status) {
        // The answer to a retry whose object has been removed since.
        Some(Reason::RemovedMeanwhile) => Some(Answer::Done),
        Some(Reason::NotFound) => Some(Answer::Missing),
        Some(Reason::AlreadyExists) => Some(Answer::Exists),
        Some(Reason::ChangedMeanwhile) => Some(Answer::Changed),
        Some(Reason::RefusedBefore) => Some(Answer::Refused),
        _ => {
            tracing::error!(%status, "a user got an answer that no manager gives");
            None
        }
    }
}

async fn list(mut client: ControlClient<Channel>, stale: bool) -> Result<(Option<u64>, Vec<Service>), Status> {
    let mut request = Request::new(ListRequest { stale, ..ListRequest::default() });
    if stale {
        request.metadata_mut().insert(STALE, tonic::metadata::MetadataValue::from_static("1"));
    }
    let mut pages = client.list_services(request).await?.into_inner();
    let (mut age, mut services) = (None, Vec::new());
    while let Some(page) = pages.message().await? {
        age = page.header.and_then(|header| header.age_ms).or(age);
        services.extend(page.services.into_iter().filter_map(|row| row.service));
    }
    Ok((age, services))
}
