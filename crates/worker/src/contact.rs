//! Whether this node is in contact with a manager, and since when it is not. The time is kept on disk: a daemon that restarts
//! while its node is cut off has been without contact for as long as the one before.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use flota_api::clock::Clock;
use flota_api::version::Timestamp;

use crate::worker_state::{LOST, NEWEST, WorkerState};

/// The contact with a manager as the tasks see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Since when there is none.
    pub(crate) lost: Option<Instant>,
}

/// Tells the tasks of each change.
#[derive(Debug)]
pub(crate) struct ContactSender {
    sender: watch::Sender<Contact>,
    state: Arc<dyn WorkerState>,
    clock: Clock,
}

impl ContactSender {
    /// Begins without contact.
    pub(crate) fn load(state: Arc<dyn WorkerState>, clock: Clock) -> Self {
        let noted = state.read(LOST).unwrap_or_default();
        let (at, newest) = noted.split_once('\n').unwrap_or_default();
        // If there was a session since, it was that of a build that does not know the note.
        let is_last = newest.trim() == known(&*state).trim();
        let lost: Option<Timestamp> = at.parse().ok().filter(|_| is_last).map(Timestamp);
        // Only the wall clock tells how long there was no daemon.
        let age = lost.map_or(Duration::ZERO, |lost| lost.until(clock.now()));
        let now = Instant::now();
        let contact = Contact { lost: Some(now.checked_sub(age).unwrap_or(now)) };
        let made = Self { sender: watch::channel(contact).0, state, clock };
        if lost.is_none() {
            made.note_loss();
        }
        made
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Contact> {
        self.sender.subscribe()
    }

    /// A session is established.
    pub(crate) fn found(&self) {
        self.sender.send_replace(Contact { lost: None });
        self.state.write(LOST, String::new());
    }

    /// A session has ended, or none came about.
    pub(crate) fn lost(&self) {
        let is_new = self.sender.send_if_modified(|contact| {
            let is_new = contact.lost.is_none();
            contact.lost.get_or_insert_with(Instant::now);
            is_new
        });
        if is_new {
            self.note_loss();
        }
    }

    fn note_loss(&self) {
        self.state.write(LOST, format!("{}\n{}", self.clock.now().0, known(&*self.state)));
    }
}

/// Returns the newest assignments that are here, as they are written.
fn known(state: &dyn WorkerState) -> String {
    state.read(NEWEST).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::worker_state::MemoryState;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_restarts_has_been_without_contact_as_long_as_the_one_before() {
        let time = Arc::new(AtomicU64::new(1_000_000));
        let (now, state) = (Arc::clone(&time), MemoryState::default());
        let load = || {
            let now = Arc::clone(&now);
            ContactSender::load(Arc::new(state.clone()), Clock::new(move || Timestamp(now.load(Ordering::SeqCst))))
        };
        // Far from the beginning of the monotonic clock.
        tokio::time::advance(Duration::from_secs(1_000)).await;
        let age = |contact: &ContactSender| contact.subscribe().borrow().lost.map(|since| since.elapsed());
        let first = load();
        assert_eq!(age(&first), Some(Duration::ZERO));
        time.fetch_add(5_000, Ordering::SeqCst);
        assert_eq!(age(&load()), Some(Duration::from_secs(5)), "it never had contact");
        first.found();
        assert_eq!(age(&first), None);
        time.fetch_add(5_000, Ordering::SeqCst);
        assert_eq!(age(&load()), Some(Duration::ZERO), "the daemon was killed while it had contact");
        first.lost();
        time.fetch_add(5_000, Ordering::SeqCst);
        first.lost();
        assert_eq!(age(&load()), Some(Duration::from_secs(5)));
        state.write(NEWEST, "1 7\n".into());
        assert_eq!(age(&load()), Some(Duration::ZERO), "an older build had a session");
        time.fetch_sub(60_000, Ordering::SeqCst);
        assert_eq!(age(&load()), Some(Duration::ZERO), "the clock was set back");
    }
}
