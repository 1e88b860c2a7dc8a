//! Records how far the clock of each node is off, for people to see. Heartbeats bring the time of the node; nothing is
//! decided by it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use flota_api::id::NodeId;
use flota_api::model::Node;
use flota_api::version::Timestamp;
use flota_raft_store::{Tables, WriteTx};

use crate::replica::Replica;

/// Shortest time between two writes for one session.
const PAUSE: Duration = Duration::from_secs(1);

/// The reports of one session.
#[derive(Debug, Default)]
pub(super) struct ClockReports {
    /// When the last write began, and the task that does it.
    written: Option<(Instant, JoinHandle<()>)>,
}

impl ClockReports {
    /// Compares the clock of a node with this leader's, and writes the difference to the store if it has changed. Does not
    /// wait for the write.
    pub(super) fn compare(&mut self, replica: &Replica, node_id: &NodeId, now: Option<u64>) {
        let Some(theirs) = now.map(Timestamp) else { return };
        let own = replica.clock.now();
        // A node that says another time at each heartbeat must not have a write for each.
        let is_early = self.written.as_ref().is_some_and(|(at, task)| at.elapsed() < PAUSE || !task.is_finished());
        if is_early || changed(&replica.store.view(), node_id, own, theirs).is_none() {
            return;
        }
        self.written = Some((Instant::now(), write(replica.clone(), node_id.clone(), (own, theirs))));
    }
}

fn write(replica: Replica, node_id: NodeId, (own, theirs): (Timestamp, Timestamp)) -> JoinHandle<()> {
    tokio::spawn(async move {
        let written = replica.write_if_needed(|view| {
            let node = changed(&view, &node_id, own, theirs)?;
            let mut tx = WriteTx::new(view, None);
            tx.update(node.clone());
            Some((tx.finish(), node))
        });
        match written.await {
            Ok(Some(node)) if node.clock_offset.is_zero() => {
                tracing::info!(node.id = %node.id, "the clocks of a node and of the leader agree again");
            }
            Ok(Some(node)) => {
                tracing::warn!(node.id = %node.id, node.clock = %node.clock_offset, "the clocks of a node and of the leader differ");
            }
            Ok(None) => {}
            // The next heartbeat tries it again.
            Err(error) => tracing::debug!(node.id = %node_id, %error, "the clock of a node could not be recorded"),
        }
    })
}

/// Returns the node with its new offset, if that has changed.
fn changed(view: &Tables, node_id: &NodeId, own: Timestamp, theirs: Timestamp) -> Option<Node> {
    let node = view.node(node_id).filter(|node| !node.has_left())?;
    let clock_offset = node.clock_offset.observe(own, theirs);
    (clock_offset != node.clock_offset).then(|| Node { clock_offset, ..node.as_ref().clone() })
}
