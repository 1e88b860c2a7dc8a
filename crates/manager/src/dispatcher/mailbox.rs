//! The messages of one session that its worker has not read yet. The connection takes them as the worker reads; the
//! session looks whether it does, and drops them when it does not.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tonic::Status;

use flota_api::proto::dispatcher::ManagerMessage;

use super::sessions::{Outgoing, QUEUE, SessionOutbox};

/// How long a worker may leave its messages unread.
pub(super) const READ_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Unread {
    /// `None` once the messages were dropped.
    messages: Option<mpsc::Receiver<Outgoing>>,
    /// Number of messages that the connection has taken.
    taken: u64,
}

/// The receiving side of an [`SessionOutbox`]. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Mailbox(Arc<Mutex<Unread>>);

impl Mailbox {
    /// Creates a mailbox with the outbox that fills it.
    pub(super) fn new() -> (SessionOutbox, Self) {
        let (outbox, messages) = mpsc::channel(QUEUE);
        (outbox, Self(Arc::new(Mutex::new(Unread { messages: Some(messages), taken: 0 }))))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Unread) -> T) -> T {
        act(&mut self.0.lock().expect("no holder panics"))
    }

    /// Waits until messages have been there for [`READ_WAIT`] without one being taken.
    pub(super) async fn is_neglected(&self) {
        let look = |unread: &mut Unread| (unread.taken, unread.messages.as_ref().is_some_and(|it| !it.is_empty()));
        loop {
            let (before, _) = self.with(look);
            tokio::time::sleep(READ_WAIT).await;
            let (taken, is_waiting) = self.with(look);
            if is_waiting && taken == before {
                return;
            }
        }
    }

    /// Drops all messages.
    pub(super) fn clear(&self) {
        self.with(|unread| unread.messages = None);
    }
}

impl Stream for Mailbox {
    type Item = Result<ManagerMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.with(|unread| {
            let Some(messages) = &mut unread.messages else { return Poll::Ready(None) };
            let next = messages.poll_recv(cx);
            unread.taken += u64::from(next.is_ready());
            next.map(|next| next.map(|message| message.map(|it| *it)))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_worker_that_takes_nothing_of_what_waits_neglects_it() {
        let (outbox, mut mailbox) = Mailbox::new();
        let watched = mailbox.clone();
        let mut neglected = Box::pin(watched.is_neglected());
        assert!(timeout(READ_WAIT * 3, &mut neglected).await.is_err(), "nothing waits");
        for _ in 0..2 {
            outbox.send(Ok(Box::default())).await.expect("there is room");
        }
        mailbox.next().await.expect("a message").expect("no status");
        advance(READ_WAIT / 2).await;
        timeout(READ_WAIT * 3, neglected).await.expect("one is still there");
        mailbox.clear();
        assert!(mailbox.next().await.is_none() && outbox.is_closed());
    }
}
