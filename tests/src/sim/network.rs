//! The network between the processes of a simulation: byte streams like TCP's, with delays drawn from the seed.
//!
//! A blocked link holds back all data until it is healed, because TCP retransmits; new connections over it time out.
//! When a process crashes, its connections are reset; when its machine fails, they stay silent until the machine is
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::server::Connected;

use flota_identity::{Connect, Connecting, Peer, Stream};

use super::host::Host;
use super::time;
use super::wire::{Cut, Medium, Receiver, Sender, wire};

/// Range of the delay of a message, in milliseconds. The minimum is longer than the world's quantum, so that no message
/// arrives in the past of a process.
pub const DELAY: RangeInclusive<u64> = 3..=6;
/// Interval between two attempts to connect over a blocked link, in milliseconds.
const CONNECT_AGAIN: u64 = 200;

#[derive(Default)]
struct HostState {
    listener: Option<mpsc::UnboundedSender<io::Result<Incoming>>>,
    /// The machine is down: it does not even refuse connections.
    is_silent: bool,
    /// Increased by each crash: connectors of earlier processes stop working.
    incarnation: u64,
    /// Number of connections that its processes have begun.
    connects: usize,
}

struct State {
    random: StdRng,
    delay: RangeInclusive<u64>,
    hosts: BTreeMap<Host, HostState>,
    blocked: BTreeSet<(Host, Host)>,
    waiting: Vec<Waker>,
    wires: Vec<Weak<dyn Cut>>,
}

/// A handle to the network; cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

impl Network {
    /// Creates a network whose delays are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            delay: DELAY,
            hosts: BTreeMap::new(),
            blocked: BTreeSet::new(),
            waiting: Vec::new(),
            wires: Vec::new(),
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().expect("no holder panics"))
    }

    /// Sets the range of the delay of later messages, in milliseconds.
    ///
    /// # Panics
    /// The minimum is shorter than that of [`DELAY`].
    pub fn set_delay(&self, delay: RangeInclusive<u64>) {
        assert!(delay.start() >= DELAY.start(), "a message would arrive in the past");
        self.with(|state| state.delay = delay);
    }

    /// Draws from the network's random source.
    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        self.with(|state| draw(&mut state.random))
    }

    /// Blocks the link from one host to another.
    pub fn block(&self, from: Host, to: Host) {
        self.with(|state| state.blocked.insert((from, to)));
    }

    /// Heals the link, which also delivers the data that has waited.
    pub fn heal(&self, from: Host, to: Host) {
        self.with(|state| {
            state.blocked.remove(&(from, to));
            state.waiting.drain(..).for_each(Waker::wake);
        });
    }

    /// Heals all links.
    pub fn heal_all(&self) {
        self.with(|state| {
            state.blocked.clear();
            state.waiting.drain(..).for_each(Waker::wake);
        });
    }

    fn wires(&self) -> Vec<Arc<dyn Cut>> {
        self.with(|state| state.wires.iter().filter_map(Weak::upgrade).collect())
    }

    /// Ends the process on `host`: its connections are reset, or stay silent if the machine fails too.
    pub fn crash(&self, host: Host, machine: bool) {
        self.with(|state| {
            let it = state.hosts.entry(host).or_default();
            it.listener = None;
            it.is_silent = machine;
            it.incarnation += 1;
        });
        for wire in self.wires() {
            wire.lose(host);
            if !machine {
                wire.reset(host, time::now() + self.delay(host, host));
            }
        }
    }

    /// Accepts connections to `host` from now on. Connections that were left from a failed machine are reset.
    pub fn listen(&self, host: Host) -> mpsc::UnboundedReceiver<io::Result<Incoming>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let was_silent = self.with(|state| {
            let it = state.hosts.entry(host).or_default();
            it.listener = Some(sender);
            std::mem::take(&mut it.is_silent)
        });
        if was_silent {
            for wire in self.wires() {
                wire.reset(host, time::now() + self.delay(host, host));
            }
        }
        receiver
    }

    /// Number of connections that processes on `host` have begun.
    pub fn connects(&self, host: Host) -> usize {
        self.with(|state| state.hosts.entry(host).or_default().connects)
    }

    /// Returns a connector for the current process on `host`; the other end sees `peer`.
    pub fn connector(&self, host: Host, peer: Peer) -> Arc<dyn Connect> {
        let incarnation = self.with(|state| state.hosts.entry(host).or_default().incarnation);
        Arc::new(Connector { network: self.clone(), host, incarnation, peer })
    }

    /// Number of the current process on `host`.
    pub(super) fn incarnation(&self, host: Host) -> u64 {
        self.with(|state| state.hosts.entry(host).or_default().incarnation)
    }

    async fn connect(self, from: Host, incarnation: u64, to: Host, peer: Peer) -> io::Result<Box<dyn Stream>> {
        if self.incarnation(from) != incarnation {
            return Err(io::ErrorKind::NotConnected.into());
        }
        time::sleep_until(time::now() + self.delay(from, to)).await;
        while self.is_blocked(from, to) || self.is_blocked(to, from) {
            time::sleep_until(time::now() + CONNECT_AGAIN).await;
        }
        let (listener, is_silent) = self.with(|state| {
            let it = state.hosts.entry(to).or_default();
            (it.listener.clone(), it.is_silent)
        });
        if is_silent {
            std::future::pending::<()>().await;
        }
        let (there, arrives) = wire(&self, from, to);
        let (back, answers) = wire(&self, to, from);
        let server = Incoming { end: End::new(back, arrives), peer };
        let accepted = listener.is_some_and(|listener| listener.send(Ok(server)).is_ok());
        time::sleep_until(time::now() + self.delay(to, from)).await;
        if !accepted {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(Box::new(End::new(there, answers)))
    }
}

impl Medium for Network {
    fn delay(&self, _: Host, _: Host) -> u64 {
        self.with(|state| {
            let delay = state.delay.clone();
            state.random.random_range(delay)
        })
    }

    fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.with(|state| state.blocked.contains(&(from, to)))
    }

    fn wake_when_healed(&self, waker: Waker) {
        self.with(|state| state.waiting.push(waker));
    }

    fn keep(&self, wire: Weak<dyn Cut>) {
        self.with(|state| {
            if state.wires.len() % 64 == 63 {
                state.wires.retain(|wire| wire.strong_count() > 0);
            }
            state.wires.push(wire);
        });
    }
}

struct Connector {
    network: Network,
    host: Host,
    incarnation: u64,
    peer: Peer,
}

impl Connect for Connector {
    fn connect(&self, address: &str) -> Connecting {
        match Host::at(address) {
            Some(to) => {
                self.network.with(|state| state.hosts.entry(self.host).or_default().connects += 1);
                Box::pin(self.network.clone().connect(self.host, self.incarnation, to, self.peer.clone()))
            }
            None => Box::pin(std::future::ready(Err(io::ErrorKind::InvalidInput.into()))),
        }
    }
}

/// One end of a connection.
struct End {
    sender: Sender<Vec<u8>>,
    receiver: Receiver<Vec<u8>>,
    /// Bytes that were received and not read yet.
    rest: Vec<u8>,
    read: usize,
}

impl End {
    fn new(sender: Sender<Vec<u8>>, receiver: Receiver<Vec<u8>>) -> Self {
        Self { sender, receiver, rest: Vec::new(), read: 0 }
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read == self.rest.len() {
            match std::task::ready!(self.receiver.poll_recv(cx))? {
                Some(bytes) => (self.rest, self.read) = (bytes, 0),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buf.remaining().min(self.rest.len() - self.read);
        buf.put_slice(&self.rest[self.read..self.read + count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.sender.send(buf.to_vec()).map(|()| buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender.close();
        Poll::Ready(Ok(()))
    }
}

/// A connection that was made to a host, with the identity of the caller.
pub struct Incoming {
    end: End,
    peer: Peer,
}

impl Connected for Incoming {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.end).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}
