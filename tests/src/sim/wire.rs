//! One direction of a connection. Items arrive in order, each after its delay, and not while the link is blocked.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;

use super::host::Host;
use super::time;

enum Item<T> {
    Data(T),
    /// The sender has closed its end.
    End,
    /// The sender's host has reset the connection.
    Reset,
}

struct Inner<T> {
    from: Host,
    to: Host,
    queue: VecDeque<(u64, Item<T>)>,
    last: u64,
    reader: Option<Waker>,
    /// The receiver was dropped, so sending fails.
    deaf: bool,
    /// The receiver's host has failed, so items are lost.
    lost: bool,
    /// The sender's host has failed, so nothing more is sent.
    mute: bool,
}

impl<T> Inner<T> {
    fn push(&mut self, due: u64, item: Item<T>) {
        // Keep the order, whatever the delays are.
        self.last = self.last.max(due);
        self.queue.push_back((self.last, item));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The network that a wire is part of.
pub(super) trait Medium: Send + Sync {
    /// Draws the delay of the next message from one host to the other, in milliseconds.
    fn delay(&self, from: Host, to: Host) -> u64;
    /// Returns whether the link from one host to the other is blocked.
    fn is_blocked(&self, from: Host, to: Host) -> bool;
    /// Wakes the receiver when links have been healed.
    fn wake_when_healed(&self, waker: Waker);
    /// Cuts this wire when one of its hosts crashes.
    fn keep(&self, wire: Weak<dyn Cut>);
}

/// How a crash affects a wire.
pub(super) trait Cut: Send + Sync {
    /// The host has lost its end of the wire.
    fn lose(&self, host: Host);
    /// The host, which lost its end, resets the connection; the other end learns of it at `due`.
    fn reset(&self, host: Host, due: u64);
}

struct Shared<T>(Mutex<Inner<T>>);

impl<T: Send> Cut for Shared<T> {
    fn lose(&self, host: Host) {
        let mut inner = self.0.lock().expect("no holder panics");
        if inner.from == host {
            inner.mute = true;
        }
        if inner.to == host {
            inner.lost = true;
            inner.queue.clear();
        }
    }

    fn reset(&self, host: Host, due: u64) {
        let mut inner = self.0.lock().expect("no holder panics");
        if inner.from == host && inner.mute && !inner.deaf && !inner.lost {
            inner.push(due, Item::Reset);
        }
    }
}

/// The sending end. Dropping it closes the wire.
pub(super) struct Sender<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    medium: Arc<dyn Medium>,
}

/// The receiving end.
pub(super) struct Receiver<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    medium: Arc<dyn Medium>,
    sleep: Option<(u64, Pin<Box<tokio::time::Sleep>>)>,
    over: bool,
}

/// Creates a wire from one host to another.
pub(super) fn wire<T: Send + 'static>(
    network: &(impl Medium + Clone + 'static),
    from: Host,
    to: Host,
) -> (Sender<T>, Receiver<T>) {
    let medium: Arc<dyn Medium> = Arc::new(network.clone());
    let inner =
        Inner { from, to, queue: VecDeque::new(), last: 0, reader: None, deaf: false, lost: false, mute: false };
    let shared = Arc::new(Shared(Mutex::new(inner)));
    let cut: Arc<dyn Cut> = Arc::<Shared<T>>::clone(&shared);
    medium.keep(Arc::downgrade(&cut));
    let receiver = Receiver { shared: Arc::clone(&shared), medium: Arc::clone(&medium), sleep: None, over: false };
    (Sender { shared, medium }, receiver)
}

impl<T: Send + 'static> Sender<T> {
    /// Sends an item, which arrives after the network's delay.
    ///
    /// # Errors
    /// The other end or this end is closed.
    pub(super) fn send(&self, data: T) -> io::Result<()> {
        self.push(Item::Data(data), 0)
    }

    /// Sends an item, which arrives after the network's delay and `more` milliseconds.
    ///
    /// # Errors
    /// The other end or this end is closed.
    pub(super) fn send_late(&self, data: T, more: u64) -> io::Result<()> {
        self.push(Item::Data(data), more)
    }

    /// Closes this end.
    pub(super) fn close(&self) {
        // It fails only if the other end is closed already.
        let _ = self.push(Item::End, 0);
    }

    fn push(&self, item: Item<T>, more: u64) -> io::Result<()> {
        let (from, to) = {
            let inner = self.shared.0.lock().expect("no holder panics");
            if inner.mute || inner.deaf {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if inner.lost {
                return Ok(());
            }
            (inner.from, inner.to)
        };
        let due = time::now() + self.medium.delay(from, to) + more;
        self.shared.0.lock().expect("no holder panics").push(due, item);
        Ok(())
    }
}

impl<T: Send + 'static> Drop for Sender<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T: Send + 'static> Drop for Receiver<T> {
    fn drop(&mut self) {
        let left = {
            let mut inner = self.shared.0.lock().expect("no holder panics");
            // If the whole host has failed, nothing notifies the sender.
            inner.deaf = !inner.lost;
            std::mem::take(&mut inner.queue)
        };
        // Drop the items outside of the lock, because they may contain wires too.
        drop(left);
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// Returns the next item; `Ok(None)` at the end.
    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<T>>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            let now = time::now();
            let mut inner = self.shared.0.lock().expect("no holder panics");
            inner.reader = Some(cx.waker().clone());
            let (from, to) = (inner.from, inner.to);
            let Some((due, _)) = inner.queue.front() else { return Poll::Pending };
            let due = *due;
            if due <= now {
                if self.medium.is_blocked(from, to) {
                    self.medium.wake_when_healed(cx.waker().clone());
                    return Poll::Pending;
                }
                let (_, item) = inner.queue.pop_front().expect("it was just there");
                return Poll::Ready(match item {
                    Item::Data(data) => Ok(Some(data)),
                    Item::End => {
                        self.over = true;
                        Ok(None)
                    }
                    Item::Reset => {
                        self.over = true;
                        Err(io::ErrorKind::ConnectionReset.into())
                    }
                });
            }
            drop(inner);
            let (_, sleep) = match self.sleep.take() {
                Some((until, sleep)) if until == due => self.sleep.insert((until, sleep)),
                _ => self.sleep.insert((due, time::sleep_until(due))),
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<T: Send + 'static> Stream for Receiver<T> {
    type Item = io::Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<T>>> {
        self.poll_recv(cx).map(Result::transpose)
    }
}
