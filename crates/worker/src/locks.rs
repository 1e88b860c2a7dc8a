//! One lock for each key that is in use, so that an image is fetched once at a time, and a task's files are not
//! written and removed at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

/// A set of locks by key. Clones share the locks.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyedLocks(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

impl KeyedLocks {
    /// Waits until the key's lock is free and takes it. The guard may move to another thread.
    pub(crate) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().expect("no holder panics");
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_key_waits_for_itself_and_for_no_other() {
        let locks = KeyedLocks::default();
        let held = locks.lock("one").await;
        assert!(locks.lock("two").now_or_never().is_some());
        assert!(locks.lock("one").now_or_never().is_none());
        drop(held);
        assert!(locks.lock("one").now_or_never().is_some());
    }
}
