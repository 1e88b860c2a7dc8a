//! Follows the machine to another address while the daemon runs: the daemon restarts itself, and its containers run on.

use std::sync::Weak;
use std::time::Duration;

use super::Node;
use crate::address::present_address;

/// The pause between two looks at the machine's addresses. A node moves with the second look that finds the same new address:
/// a machine that renews its lease may be without one for a moment.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks after the address of the node, until it has another one or belongs to no cluster.
pub(super) async fn follow_address(node: Weak<Node>) {
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(node) = node.upgrade() else { return };
        let Some(before) = node.state.read("address") else { return };
        let next = present_address(&node.state, node.config.listen).filter(|next| *next != before);
        if next.is_some() && next == last {
            let to = next.unwrap_or_default();
            tracing::warn!(
                address.from = before,
                address.to = to,
                "this machine has another address; flotad restarts there"
            );
            return node.restarts.cancel();
        }
        last = next;
    }
}
