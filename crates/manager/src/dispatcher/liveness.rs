//! Tracks which nodes are alive. The leader keeps this in memory, by a monotonic clock; only the state of a node is
//! written to the store. The sessions report messages and their end; [`judge_nodes`] writes the resulting states.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use flota_api::defaults::{HEARTBEAT, HEARTBEATS_MISSED, HEARTBEATS_PER_SECOND, RESTARTING_GRACE};
use flota_api::id::NodeId;
use flota_api::model::{Node, NodeState, NodeStateReason};
use flota_api::version::Timestamp;
use flota_raft_store::{Tables, WriteTx};

use super::sessions::Sessions;
use crate::replica::Replica;

/// The state of a node's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// The session is open; its last message arrived at this time.
    Open(Instant),
    /// The session broke at this time.
    Broken(Instant),
    /// The daemon announced a restart at this time.
    Restarting(Instant),
    /// The machine announced that it shuts down.
    Gone,
}

/// The leader's knowledge of each node. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Liveness(Arc<Mutex<BTreeMap<NodeId, Link>>>);

/// Returns the interval of a worker's heartbeats: longer in a large cluster, to bound the leader's load.
pub(super) fn period(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let least = Duration::from_secs(1) * nodes / u32::try_from(HEARTBEATS_PER_SECOND).expect("it is small");
    least.max(HEARTBEAT)
}

/// Returns the node state for a link, and the reason.
fn judge(link: Link, period: Duration, now: Instant) -> (NodeState, Option<NodeStateReason>) {
    use NodeStateReason as Reason;
    // The tolerance of half a period allows for heartbeats that are slightly late.
    let late = |since: Instant, periods: u32| now.duration_since(since) > period * periods + period / 2;
    match link {
        Link::Open(heard) if late(heard, HEARTBEATS_MISSED) => (NodeState::Down, Some(Reason::HeartbeatsStopped)),
        Link::Open(heard) if late(heard, 1) => (NodeState::Unknown, Some(Reason::MissedHeartbeat)),
        Link::Open(_) => (NodeState::Ready, None),
        Link::Broken(at) if now.duration_since(at) > period * HEARTBEATS_MISSED => {
            (NodeState::Down, Some(Reason::SessionBroke))
        }
        Link::Broken(_) => (NodeState::Unknown, Some(Reason::SessionBroke)),
        Link::Restarting(at) if now.duration_since(at) > RESTARTING_GRACE => {
            (NodeState::Down, Some(Reason::DidNotReturn))
        }
        Link::Restarting(_) => (NodeState::Unknown, Some(Reason::Restarting)),
        Link::Gone => (NodeState::Down, Some(Reason::ShutDown)),
    }
}

impl Liveness {
    fn set(&self, node: &NodeId, link: Link) {
        self.0.lock().expect("no holder panics").insert(node.clone(), link);
    }

    /// Begins a term. A new leader has no information, so it gives every ready node one full detection time. It has no
    /// sessions of the other nodes.
    pub(super) fn begin(&self, view: &Tables) {
        let mut links = self.0.lock().expect("no holder panics");
        let now = Instant::now();
        *links = view
            .nodes()
            .filter_map(|node| match node.state {
                NodeState::Ready => Some((node.id.clone(), Link::Open(now))),
                _ if node.state_reason == Some(NodeStateReason::Restarting) => {
                    Some((node.id.clone(), Link::Restarting(now)))
                }
                _ => None,
            })
            .collect();
    }

    /// Records a message from the node.
    pub(super) fn heard(&self, node: &NodeId) {
        self.set(node, Link::Open(Instant::now()));
    }

    /// Records that the node's session ended unannounced.
    pub(super) fn broke(&self, node: &NodeId) {
        let mut links = self.0.lock().expect("no holder panics");
        if let Some(Link::Open(_)) | None = links.get(node) {
            links.insert(node.clone(), Link::Broken(Instant::now()));
        }
    }

    /// Records that the node's daemon announced its restart.
    pub(super) fn restarts(&self, node: &NodeId) {
        self.set(node, Link::Restarting(Instant::now()));
    }

    /// Records that the node's machine announced its shutdown.
    pub(super) fn shuts_down(&self, node: &NodeId) {
        self.set(node, Link::Gone);
    }

    /// Returns the nodes whose state must change, with the new state as of `since`.
    fn judge(&self, view: &Tables, period: Duration, since: Timestamp) -> Vec<Node> {
        let now = Instant::now();
        let mut links = self.0.lock().expect("no holder panics");
        links.retain(|id, _| view.node(id.as_str()).is_some());
        // A node that joined and never registers becomes down like a node that disconnected.
        for node in view.nodes().filter(|node| node.state != NodeState::Down) {
            links.entry(node.id.clone()).or_insert(Link::Broken(now));
        }
        let changed = links.iter().filter_map(|(id, link)| {
            let node = view.node(id.as_str())?;
            let (state, reason) = judge(*link, period, now);
            (node.state != state && !node.has_left()).then(|| Node {
                state,
                state_reason: reason,
                state_since: since,
                ..node.as_ref().clone()
            })
        });
        changed.collect()
    }
}

/// Writes the state of the nodes to the store, whenever liveness differs from it. Runs until leadership ends.
pub(super) async fn judge_nodes(replica: &Replica, sessions: &Sessions, liveness: &Liveness, scope: CancellationToken) {
    loop {
        let view = replica.store.view();
        let period = period(view.nodes().count());
        let judged = |view: &Tables| liveness.judge(view, period, replica.clock.now());
        // Check first, because a write without any change costs a read round.
        if !judged(&view).is_empty() {
            write(replica, judged).await;
        }
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            () = sessions.changed() => {}
            () = tokio::time::sleep(period / 10) => {}
        }
    }
}

async fn write(replica: &Replica, judged: impl Fn(&Tables) -> Vec<Node>) {
    let result = replica.write_if_needed(|view| {
        let changed = judged(&view);
        let mut tx = WriteTx::new(view, "");
        changed.iter().cloned().for_each(|node| tx.update(node));
        (!changed.is_empty()).then(|| (tx.finish(), changed))
    });
    match result.await {
        Ok(changed) => changed.iter().flatten().for_each(report),
        Err(error) => tracing::warn!(%error, "the state of nodes could not be written"),
    }
}

fn report(node: &Node) {
    let hostname = &node.description.hostname;
    let reason = node.state_reason.map(NodeStateReason::as_str);
    tracing::info!(node.id = %node.id, hostname, state = %node.state, reason, "node state changed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_unknown_after_one_beat_and_down_after_three() {
        let period = Duration::from_secs(1);
        let start = Instant::now();
        let after = |link, millis| judge(link, period, start + Duration::from_millis(millis)).0;
        for (millis, state) in [
            (0, NodeState::Ready),
            (1400, NodeState::Ready),
            (1600, NodeState::Unknown),
            (3400, NodeState::Unknown),
            (3600, NodeState::Down),
        ] {
            assert_eq!(after(Link::Open(start), millis), state, "after {millis} ms");
        }
        assert_eq!(after(Link::Broken(start), 0), NodeState::Unknown, "a broken session is known at once");
        assert_eq!(after(Link::Broken(start), 3100), NodeState::Down);
        assert_eq!(after(Link::Restarting(start), 59_000), NodeState::Unknown);
        assert_eq!(after(Link::Restarting(start), 61_000), NodeState::Down);
        assert_eq!(after(Link::Gone, 0), NodeState::Down);
    }

    #[test]
    fn the_period_grows_with_the_cluster() {
        assert_eq!(super::period(5), Duration::from_secs(1));
        assert_eq!(super::period(10_000), Duration::from_secs(5));
    }
}
