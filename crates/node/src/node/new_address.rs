//! Follows the machine to another address while the daemon runs: worker and manager are started again there, as after a
//! restart of the daemon, and the containers run on.

use std::sync::Weak;
use std::time::Duration;

use flota_api::id::NodeId;

use super::Node;
use crate::address::present_address;

/// The pause between two looks at the machine's addresses. A node moves with the second look that finds the same new address:
/// a machine that renews its lease may be without one for a moment.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks after the address of the membership of this node id, until it has moved or ended.
pub(super) async fn follow_address(node: Weak<Node>, id: NodeId) {
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(node) = node.upgrade() else { return };
        let Some(before) = node.state.read("address") else { return };
        let next = present_address(&node.state, node.config.listen).filter(|next| *next != before);
        if next.is_none() || next != last {
            last = next;
            continue;
        }
        let mut current = node.membership.lock().await;
        if current.as_ref().is_none_or(|it| it.identity.node_id != id) {
            return;
        }
        tracing::warn!(
            address.from = before,
            address.to = next,
            "this machine has another address, and the node follows"
        );
        if let Some(membership) = current.take() {
            membership.stop().await;
        }
        if let Err(error) = node.resume(&mut current).await {
            tracing::error!(error = format!("{error:#}"), "failed to start again at the new address");
            node.fatal.cancel();
        }
        return;
    }
}
