//! Autolock: keeps the keys of this manager sealed as the cluster wants it.

use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use flota_api::object::Kind;
use flota_identity::UnlockKey;
use flota_manager::Manager;
use flota_raft_store::Tables;

use crate::backups::is_newest;
use crate::state_dir::Keys;

/// Pause before another look, when the keys could not be sealed, or no majority confirms what the cluster wants.
const PAUSE: Duration = Duration::from_secs(1);

/// Seals the keys with the cluster's unlock key, or writes them in clear, each time that the cluster wants something else.
pub(crate) async fn follow(manager: Manager, keys: Keys, ends: CancellationToken) {
    loop {
        let mut changes = manager.store().watch_kinds(&[Kind::Cluster]);
        let protected = tokio::select! {
            () = ends.cancelled() => return,
            protected = protect(&manager, &keys, &ends) => protected,
        };
        let is_done = match protected {
            Ok(is_done) => is_done,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "failed to write this manager's keys as the cluster wants them; retrying"
                );
                false
            }
        };
        tokio::select! {
            () = ends.cancelled() => return,
            () = changes.next() => {}
            () = tokio::time::sleep(PAUSE), if !is_done => {}
        }
    }
}

/// Returns the key that opens the keys of managers; `None` if they are not locked.
fn wanted(view: &Tables) -> Option<UnlockKey> {
    view.cluster().filter(|it| it.autolock).map(|it| UnlockKey::new(it.unlock_secret.as_text()))
}

/// Makes the keys as the cluster wants them. Returns `false` if it is not certain yet what it wants.
async fn protect(manager: &Manager, keys: &Keys, ends: &CancellationToken) -> anyhow::Result<bool> {
    if keys.are_as_wanted(wanted(&manager.store().view()).as_ref()) {
        return Ok(true);
    }
    // A manager that lags behind may see an unlock key that has been replaced since, which nobody has any more.
    if !is_newest(manager).await {
        return Ok(false);
    }
    let (wanted, keys, ends) = (wanted(&manager.store().view()), keys.clone(), ends.clone());
    let protected = tokio::task::spawn_blocking(move || keys.protect(wanted.as_ref(), || !ends.is_cancelled()));
    if protected.await.context("failed to seal the keys")?? {
        tracing::info!("the keys of this manager were written as the cluster's setting of autolock wants them");
    }
    Ok(true)
}
