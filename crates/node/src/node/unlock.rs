//! `ctl swarm unlock`: opens the keys of a manager that is locked since its daemon has started.

use std::sync::Arc;

use anyhow::Context;

use flota_identity::UnlockKey;

use super::Node;

impl Node {
    /// `ctl swarm unlock`.
    ///
    /// # Errors
    /// The node is not locked, or not with this key; or it can't take up its work, and then the daemon stops.
    pub(crate) async fn unlock(self: &Arc<Self>, key: &UnlockKey) -> anyhow::Result<()> {
        let mut current = self.membership.lock().await;
        self.state.keys().unlock(key)?;
        let resumed = self.resume(&mut current).await;
        if resumed.is_err() {
            // As after a failure at start: the next start of the daemon begins anew, with locked keys.
            self.fatal.cancel();
        }
        resumed.context("the key is right, but the manager failed to start")
    }
}
