//! The futures that one worker has spawned. They end together: when the worker stops, is dropped or is killed, none of
//! them continues to act on containers or to report. In a simulator the runtime outlives the daemon.

use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use tracing::{Instrument, Span};

/// A set of spawned futures. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Spawned {
    /// The running futures; `None` after the worker has ended.
    set: Arc<Mutex<Option<JoinSet<()>>>>,
    /// The span in which the worker was started; one process may run several workers.
    span: Span,
}

impl Spawned {
    pub(crate) fn new() -> Self {
        Self { set: Arc::new(Mutex::new(Some(JoinSet::new()))), span: Span::current() }
    }

    /// Runs the future until it or the worker ends. Does nothing if the worker has ended.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(set) = self.set.lock().expect("no holder panics").as_mut() {
            // The set keeps ended futures until they are joined.
            while set.try_join_next().is_some() {}
            set.spawn(future.instrument(self.span.clone()));
        }
    }

    /// Ends all of them at once; none is polled again.
    pub(crate) fn kill(&self) {
        drop(self.take());
    }

    /// Ends all of them and waits until they are dropped with everything that they hold.
    pub(crate) async fn end(&self) {
        if let Some(mut set) = self.take() {
            set.shutdown().await;
        }
    }

    fn take(&self) -> Option<JoinSet<()>> {
        self.set.lock().expect("no holder panics").take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_killed_does_not_go_on_and_nothing_new_is_begun() {
        let spawned = Spawned::new();
        let held = Arc::new(());
        for _ in 0..3 {
            let held = Arc::clone(&held);
            spawned.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        spawned.kill();
        let other = Arc::clone(&held);
        spawned.spawn(async move { drop(other) });
        assert_eq!(Arc::strong_count(&held), 4, "the later one is dropped at once");
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn the_end_is_waited_for() {
        let spawned = Spawned::new();
        let held = Arc::new(());
        let other = Arc::clone(&held);
        spawned.spawn(async move {
            std::future::pending::<()>().await;
            drop(other);
        });
        spawned.end().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
