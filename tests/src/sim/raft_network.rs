//! Raft's messages between simulated managers: they are delayed, lost, duplicated and reordered as a whole.
//!
//! Each call has a wire of its own, so calls overtake each other. AppendEntries are sent over a stream in order, as
//! over gRPC. Losing one ends the stream, as a broken connection does. A duplicate arrives late and by itself, like a
//! request from an earlier connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use rand::Rng;
use tokio::sync::mpsc;
use tonic::Status;

use flota_api::proto::raft::RaftMessage;
use flota_raft_store::raft::{AppendAnswers, Method, Transport, TransportService, sent_entries};

use super::entries::Entries;
use super::host::Host;
use super::network::Network;
use super::time;
use super::wire::{Medium, Receiver, Sender, wire};

type Answer = Result<RaftMessage, Status>;

/// Probabilities of faults of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mishaps {
    /// The message is lost.
    pub loss: f64,
    /// The message arrives a second time.
    pub doubling: f64,
}

/// Longest delay of a duplicate, in milliseconds.
const LATE: u64 = 3_000;

enum Arrival {
    Call { method: Method, request: Receiver<RaftMessage>, answer: Sender<Answer> },
    Append { requests: Receiver<RaftMessage>, answers: Sender<Answer> },
}

#[derive(Default)]
struct Ports {
    open: BTreeMap<Host, mpsc::UnboundedSender<Arrival>>,
    mishaps: Mishaps,
    entries: Entries,
}

/// Delivers Raft's messages to the managers. Clones share it.
#[derive(Clone)]
pub struct RaftNetwork {
    network: Network,
    ports: Arc<Mutex<Ports>>,
}

impl RaftNetwork {
    /// Creates Raft's network over this network.
    pub fn new(network: Network) -> Self {
        Self { network, ports: Arc::default() }
    }

    /// Sets the probabilities for later messages.
    pub fn set_mishaps(&self, mishaps: Mishaps) {
        self.ports.lock().expect("no holder panics").mishaps = mishaps;
    }

    /// Stops delivering to this host, whose process has ended.
    pub fn close(&self, host: Host) {
        self.ports.lock().expect("no holder panics").open.remove(&host);
    }

    /// Receives messages for the manager on this host until its process ends.
    pub async fn serve(self, host: Host, service: TransportService) {
        let (sender, mut arrivals) = mpsc::unbounded_channel();
        self.ports.lock().expect("no holder panics").open.insert(host, sender);
        while let Some(arrival) = arrivals.recv().await {
            tokio::spawn(answer(service.clone(), arrival));
        }
    }

    /// Returns a transport that sends as the current process on this host.
    pub fn transport(&self, host: Host) -> MemoryTransport {
        let incarnation = self.network.incarnation(host);
        MemoryTransport { to: self.clone(), host, incarnation, peers: Arc::default() }
    }

    /// The first two entries of the same index and term that differ, if any were sent.
    pub fn conflict(&self) -> Option<String> {
        self.ports.lock().expect("no holder panics").entries.conflict()
    }

    fn see_entries(&self, from: Host, message: &RaftMessage) {
        let mut ports = self.ports.lock().expect("no holder panics");
        sent_entries(message).into_iter().for_each(|entry| ports.entries.add(from, entry));
    }

    /// Draws whether this fault happens to the next message.
    fn happens(&self, what: impl Fn(&Mishaps) -> f64) -> bool {
        let chance = what(&self.ports.lock().expect("no holder panics").mishaps);
        chance > 0.0 && self.network.draw(|rng| rng.random_bool(chance))
    }

    fn send(&self, to: Host, arrival: Arrival) -> Result<(), Status> {
        let open = self.ports.lock().expect("no holder panics").open.get(&to).cloned();
        let sent = open.is_some_and(|open| open.send(arrival).is_ok());
        if sent { Ok(()) } else { Err(Status::unavailable("no process listens there")) }
    }

    /// Delivers a message whose answer is discarded.
    fn deliver(&self, from: Host, to: Host, method: Option<Method>, message: RaftMessage) {
        let (there, request) = wire(&self.network, from, to);
        let (answer, _) = wire(&self.network, to, from);
        let arrival = match method {
            Some(method) => Arrival::Call { method, request, answer },
            None => Arrival::Append { requests: request, answers: answer },
        };
        let late = self.network.draw(|rng| rng.random_range(0..LATE));
        // It fails only if no process receives messages there, and then the duplicate is lost.
        if self.send(to, arrival).is_ok() {
            let _ = there.send_late(message, late);
        }
    }
}

async fn answer(service: TransportService, arrival: Arrival) {
    match arrival {
        Arrival::Call { method, mut request, answer } => {
            if let Some(Ok(message)) = request.next().await {
                // It fails only if the caller has given up.
                let _ = answer.send(service.call(method, message).await);
            }
        }
        Arrival::Append { requests, answers } => {
            let requests = requests.take_while(|it| std::future::ready(it.is_ok()));
            let requests = requests.filter_map(|it| std::future::ready(it.ok())).boxed();
            let mut made = service.append(requests);
            while let Some(answer) = made.next().await {
                if answers.send(answer).is_err() {
                    return;
                }
            }
        }
    }
}

/// Sends messages of one manager to the others.
#[derive(Clone)]
pub struct MemoryTransport {
    to: RaftNetwork,
    host: Host,
    incarnation: u64,
    peers: Arc<Mutex<BTreeMap<u64, Host>>>,
}

impl MemoryTransport {
    fn peer(&self, peer: u64) -> Result<Host, Status> {
        if self.to.network.incarnation(self.host) != self.incarnation {
            return Err(Status::unavailable("this process has died"));
        }
        let host = self.peers.lock().expect("no holder panics").get(&peer).copied();
        host.ok_or_else(|| Status::unavailable("its address is not known"))
    }

    async fn call_peer(self, peer: u64, method: Method, message: RaftMessage) -> Answer {
        let (host, to, network) = (self.host, self.peer(peer)?, self.to.network.clone());
        if method == Method::AppendOne {
            self.to.see_entries(host, &message);
        }
        if self.to.happens(|it| it.doubling) {
            self.to.deliver(host, to, Some(method), message.clone());
        }
        if self.to.happens(|it| it.loss) {
            // The caller limits the time.
            std::future::pending::<()>().await;
        }
        let (there, request) = wire(&network, host, to);
        let (answer, mut answers) = wire(&network, to, host);
        if let Err(refused) = self.to.send(to, Arrival::Call { method, request, answer }) {
            time::sleep_until(time::now() + network.delay(host, to) * 2).await;
            return Err(refused);
        }
        let broken = |error: std::io::Error| Status::unavailable(error.to_string());
        there.send(message).map_err(broken)?;
        match answers.next().await {
            Some(answer) => answer.map_err(broken)?,
            None => Err(Status::unavailable("the connection was closed")),
        }
    }

    async fn open_append(self, peer: u64, requests: BoxStream<'static, RaftMessage>) -> Result<AppendAnswers, Status> {
        let (host, to, network) = (self.host, self.peer(peer)?, self.to.network.clone());
        while network.is_blocked(host, to) || network.is_blocked(to, host) {
            time::sleep_until(time::now() + LATE / 10).await;
        }
        let (there, arriving) = wire(&network, host, to);
        let (back, answers) = wire(&network, to, host);
        let sent = self.to.send(to, Arrival::Append { requests: arriving, answers: back });
        time::sleep_until(time::now() + network.delay(host, to) * 2).await;
        sent?;
        tokio::spawn(self.pump(to, requests, there));
        let broken = |error: std::io::Error| Status::unavailable(error.to_string());
        Ok(answers.map(move |answer| answer.map_err(broken)?).boxed())
    }

    async fn pump(self, to: Host, mut requests: BoxStream<'static, RaftMessage>, there: Sender<RaftMessage>) {
        while let Some(message) = requests.next().await {
            self.to.see_entries(self.host, &message);
            if self.to.happens(|it| it.doubling) {
                self.to.deliver(self.host, to, None, message.clone());
            }
            if self.to.happens(|it| it.loss) || there.send(message).is_err() {
                return;
            }
        }
    }
}

impl Transport for MemoryTransport {
    fn set_address(&self, peer: u64, address: &str) {
        if let Some(host) = Host::at(address) {
            self.peers.lock().expect("no holder panics").insert(peer, host);
        }
    }

    fn call_at(&self, address: &str, _: Method, _: RaftMessage) -> BoxFuture<'static, Answer> {
        let why = format!("nobody asks at {address}: machines of a simulation keep their addresses");
        Box::pin(async { Err(Status::unavailable(why)) })
    }

    fn redirect(&self, peer: u64, _: &str, address: &str) {
        self.set_address(peer, address);
    }

    fn call(&self, peer: u64, method: Method, message: RaftMessage) -> BoxFuture<'static, Answer> {
        Box::pin(self.clone().call_peer(peer, method, message))
    }

    fn append(
        &self,
        peer: u64,
        requests: BoxStream<'static, RaftMessage>,
    ) -> BoxFuture<'static, Result<AppendAnswers, Status>> {
        Box::pin(self.clone().open_append(peer, requests))
    }
}
