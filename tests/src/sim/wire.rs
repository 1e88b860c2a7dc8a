//! One direction of a connection: what is sent arrives in order, each item at its time, and not while the link is
//! blocked.

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
    /// The sender's host has forgotten the connection.
    Reset,
}

struct Inner<T> {
    from: Host,
    to: Host,
    queue: VecDeque<(u64, Item<T>)>,
    last: u64,
    reader: Option<Waker>,
    /// The receiver was dropped: the sender is told so.
    deaf: bool,
    /// The receiver's host has gone: what is sent gets lost.
    lost: bool,
    /// The sender's host has gone: nothing is sent any more.
    mute: bool,
}

impl<T> Inner<T> {
    fn push(&mut self, due: u64, item: Item<T>) {
        // In order, whatever the delays are.
        self.last = self.last.max(due);
        self.queue.push_back((self.last, item));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// What a wire needs to know from the network that it is part of.
pub(super) trait Medium: Send + Sync {
    /// Draws how many milliseconds the next message from one host to the other is under way.
    fn delay(&self, from: Host, to: Host) -> u64;
    /// Returns whether nothing flows from one host to the other.
    fn is_blocked(&self, from: Host, to: Host) -> bool;
    /// Wakes the receiver when links have been healed.
    fn wake_when_healed(&self, waker: Waker);
    /// Cuts this wire when one of its hosts crashes.
    fn keep(&self, wire: Weak<dyn Cut>);
}

/// What a crash does to a wire.
pub(super) trait Cut: Send + Sync {
    /// The host has lost its end.
    fn lose(&self, host: Host);
    /// The host, which lost its end, says so at `due` to the other one.
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

/// The end that sends. Dropped, it closes the wire.
pub(super) struct Sender<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    medium: Arc<dyn Medium>,
}

/// The end that receives.
pub(super) struct Receiver<T: Send + 'static> {
    shared: Arc<Shared<T>>,
    medium: Arc<dyn Medium>,
    sleep: Option<(u64, Pin<Box<tokio::time::Sleep>>)>,
    over: bool,
}

/// A wire from one host to another.
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
    /// Sends an item; it is on its way for as long as the network says.
    ///
    /// # Errors
    /// The other end has gone, or this host's has.
    pub(super) fn send(&self, data: T) -> io::Result<()> {
        self.push(Item::Data(data), 0)
    }

    /// As [`Sender::send`]; the item is under way for so many milliseconds more.
    ///
    /// # Errors
    /// The other end has gone, or this host's has.
    pub(super) fn send_late(&self, data: T, more: u64) -> io::Result<()> {
        self.push(Item::Data(data), more)
    }

    /// Closes this end.
    pub(super) fn close(&self) {
        // It may be closed from the other end already.
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
            // Where the whole host is gone, nobody is left to tell the sender.
            inner.deaf = !inner.lost;
            std::mem::take(&mut inner.queue)
        };
        // Outside of the lock: what is in it may be a wire, too.
        drop(left);
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// The next item; `Ok(None)` at the end.
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
