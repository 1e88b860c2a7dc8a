//! Tracks which nodes are alive. The leader keeps this in memory, by a monotonic clock; only the state of a node is
//! written to the store. The sessions report messages and their end; [`judge_nodes`] writes the resulting states.
//!
//! The clock stands still while this process is stalled: heartbeats that were not served then do not count as missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use flota_api::defaults::{HEARTBEAT, HEARTBEATS_MISSED, HEARTBEATS_PER_SECOND, RESTARTING_GRACE};
use flota_api::id::NodeId;
use flota_api::model::{Node, NodeState, NodeStateReason};
use flota_api::object::Kind;
use flota_api::version::Timestamp;
use flota_raft_store::{Proposer, Tables, Transaction, View, WriteTx};

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
pub(super) struct Liveness(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    links: BTreeMap<NodeId, Link>,
    /// The intervals that nodes were told when they registered. The cluster may have become smaller since.
    told: BTreeMap<NodeId, Duration>,
    /// Nodes whose links have changed otherwise than by the passing of time since they were last judged.
    changed: BTreeSet<NodeId>,
    /// When somebody last asked for the time in this term.
    asked: Option<Instant>,
    /// Time for which this process was stalled.
    stalled: Duration,
}

impl Known {
    /// The present, without the time for which this process was stalled: somebody asks every [`PULSE`], so a longer gap
    /// is a stall. The first caller after it notices it, which need not be the pulse.
    fn now(&mut self) -> Instant {
        let now = Instant::now();
        let gap = self.asked.replace(now).map_or(Duration::ZERO, |asked| now - asked);
        if gap > 2 * PULSE {
            self.stalled += gap - PULSE;
        }
        now - self.stalled
    }

    /// How the loss of this node is found, given how that of nodes that register now is.
    fn detection(&self, node: &NodeId, now: Detection) -> Detection {
        Detection { period: self.told.get(node).map_or(now.period, |told| now.period.max(*told)), ..now }
    }

    fn change(&mut self, node: &NodeId, link: Link) {
        let before = self.links.insert(node.clone(), link);
        if !matches!((before, link), (Some(Link::Open(_)), Link::Open(_))) {
            self.changed.insert(node.clone());
        }
    }
}

/// Interval at which the process notices that it is not stalled.
const PULSE: Duration = Duration::from_millis(100);
/// How long a worker that looks for the leader spends with a manager that does not answer: its patience and its pause.
const SEARCH: Duration = Duration::from_millis(1_700);
/// Most managers that do not answer for which a new leader waits.
const MOST_SILENT: usize = 5;
/// Most nodes whose states are written in one entry, and most bytes of them.
const ENTRY: usize = 1_000;
const ENTRY_BYTES: usize = 1 << 20;

/// Returns the interval of a worker's heartbeats: longer in a large cluster, to bound the leader's load.
pub(super) fn period(view: &Tables) -> Duration {
    period_of(view.count(Kind::Node), view.cluster().and_then(|cluster| cluster.heartbeat))
}

fn period_of(nodes: usize, wanted: Option<Duration>) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let least = Duration::from_secs(1) * nodes / u32::try_from(HEARTBEATS_PER_SECOND).expect("it is small");
    least.max(wanted.unwrap_or(HEARTBEAT))
}

impl Detection {
    fn of(view: &Tables) -> Self {
        let missed = view.cluster().and_then(|cluster| cluster.heartbeats_missed);
        let missed = missed.and_then(|it| u32::try_from(it.get()).ok()).unwrap_or(HEARTBEATS_MISSED);
        Self { period: period(view), missed }
    }
}

/// How a lost node is found.
#[derive(Clone, Copy, Debug)]
struct Detection {
    /// The interval of heartbeats.
    period: Duration,
    /// Number of missed ones after which a node is down.
    missed: u32,
}

/// Returns the node state for a link, and the reason.
fn judge(link: Link, Detection { period, missed }: Detection, now: Instant) -> (NodeState, Option<NodeStateReason>) {
    use NodeStateReason as Reason;
    // The tolerance of half a period allows for heartbeats that are slightly late.
    let late = |since: Instant, periods: u32| now.duration_since(since) > period * periods + period / 2;
    match link {
        Link::Open(heard) if late(heard, missed) => (NodeState::Down, Some(Reason::HeartbeatsStopped)),
        Link::Open(heard) if late(heard, 1) => (NodeState::Unknown, Some(Reason::MissedHeartbeat)),
        Link::Open(_) => (NodeState::Ready, None),
        Link::Broken(at) if now.duration_since(at) > period * missed => (NodeState::Down, Some(Reason::SessionBroke)),
        Link::Broken(_) => (NodeState::Unknown, Some(Reason::SessionBroke)),
        Link::Restarting(at) if now.duration_since(at) > RESTARTING_GRACE => {
            (NodeState::Down, Some(Reason::DidNotReturn))
        }
        Link::Restarting(_) => (NodeState::Unknown, Some(Reason::Restarting)),
        Link::Gone => (NodeState::Down, Some(Reason::ShutDown)),
    }
}

/// Returns the node with its new state as of `since`, if that differs.
fn judged(node: &Node, link: Link, detection: Detection, (now, since): (Instant, Timestamp)) -> Option<Node> {
    let (state, state_reason) = judge(link, detection, now);
    if node.state == state || node.has_left() {
        return None;
    }
    let mut changed = Node { state, state_reason, state_since: since, ..node.clone() };
    // A machine that was shut down in order is not lost.
    if state == NodeState::Down && state_reason != Some(NodeStateReason::ShutDown) {
        changed.record_loss(since);
    }
    Some(changed)
}

impl Liveness {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no holder panics")
    }

    /// Begins a term. A new leader has no information, so it gives every ready node one full detection time, and what it takes
    /// to find this leader among managers that do not answer. It has no sessions of the other nodes.
    pub(super) fn begin(&self, view: &Tables) {
        let mut known = self.known();
        known.asked = None;
        let now = known.now();
        // A node that has left may have been a manager until just now.
        let is_silent = |node: &&Arc<Node>| node.raft_id.is_some() && node.state != NodeState::Ready;
        let silent = u32::try_from(view.nodes().filter(is_silent).take(MOST_SILENT).count()).unwrap_or_default();
        let links = view.nodes().filter_map(|node| match node.state {
            NodeState::Ready => Some((node.id.clone(), Link::Open(now + SEARCH * silent))),
            _ if node.state_reason == Some(NodeStateReason::Restarting) => {
                Some((node.id.clone(), Link::Restarting(now)))
            }
            _ => None,
        });
        known.links = links.collect();
    }

    /// Records that the node has registered, and was told this interval.
    pub(super) fn begins(&self, node: &NodeId, period: Duration) {
        self.known().told.insert(node.clone(), period);
        self.record_message(node);
    }

    /// Records a message from the node.
    pub(super) fn record_message(&self, node: &NodeId) {
        let mut known = self.known();
        let now = known.now();
        known.change(node, Link::Open(now));
    }

    /// Records that the node's session ended unannounced.
    pub(super) fn broke(&self, node: &NodeId) {
        let mut known = self.known();
        let now = known.now();
        if let Some(Link::Open(_)) | None = known.links.get(node) {
            known.change(node, Link::Broken(now));
        }
    }

    /// Records that the node's daemon announced its restart.
    pub(super) fn restarts(&self, node: &NodeId) {
        let mut known = self.known();
        let now = known.now();
        known.change(node, Link::Restarting(now));
    }

    /// Records that the node's machine announced its shutdown.
    pub(super) fn shuts_down(&self, node: &NodeId) {
        self.known().change(node, Link::Gone);
    }

    /// Returns the nodes whose state must change, with the new state as of `since`.
    fn judge(&self, view: &Tables, detection: Detection, since: Timestamp) -> Vec<Node> {
        let mut known = self.known();
        let now = known.now();
        known.changed.clear();
        let mut links = BTreeMap::new();
        let mut changed = Vec::new();
        let mut before = std::mem::take(&mut known.links).into_iter().peekable();
        // Nodes and links have the same order, so this is one pass; links of removed nodes are dropped.
        for node in view.nodes() {
            while before.next_if(|(id, _)| *id < node.id).is_some() {}
            let link = before.next_if(|(id, _)| *id == node.id).map(|(_, link)| link);
            // A node that joined and never registers becomes down like a node that disconnected.
            let new = (node.state != NodeState::Down).then_some(Link::Broken(now));
            let Some(link) = link.or(new) else { continue };
            links.insert(node.id.clone(), link);
            changed.extend(judged(node, link, known.detection(&node.id, detection), (now, since)));
        }
        known.told.retain(|id, _| links.contains_key(id));
        known.links = links;
        changed
    }

    /// Returns the changed states of the nodes whose links have changed by themselves, for example because a session
    /// broke: the time of all others passes too, and they can wait.
    fn judge_changed(&self, view: &Tables, detection: Detection, since: Timestamp) -> Vec<Node> {
        let mut known = self.known();
        let now = known.now();
        let changed = std::mem::take(&mut known.changed);
        let nodes = changed.iter().filter_map(|id| Some((view.node(id)?, *known.links.get(id)?)));
        let judged =
            |(node, link): (&Arc<Node>, Link)| judged(node, link, known.detection(&node.id, detection), (now, since));
        nodes.filter_map(judged).collect()
    }

    /// Asks for the time every [`PULSE`]. It never ends.
    async fn pulse(&self) {
        loop {
            tokio::time::sleep(PULSE).await;
            self.known().now();
        }
    }
}

/// Writes the state of the nodes to the store, whenever liveness differs from it. Runs until leadership ends.
pub(super) async fn judge_nodes(replica: &Replica, sessions: &Sessions, liveness: &Liveness, scope: CancellationToken) {
    let proposer = replica.proposer();
    let judge = async {
        let mut due = Instant::now();
        loop {
            let (view, since) = (replica.store.view(), replica.clock.now());
            let detection = Detection::of(&view);
            // A look at all nodes finds those that time makes late; a change of sessions costs a look at their nodes.
            let changed = if Instant::now() >= due {
                due = Instant::now() + detection.period / 10;
                liveness.judge(&view, detection, since)
            } else {
                liveness.judge_changed(&view, detection, since)
            };
            for entry in entries(changed, &view) {
                write(proposer.as_ref(), entry).await;
            }
            tokio::select! {
                biased;
                () = sessions.changed() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = scope.cancelled() => {}
        () = liveness.pulse() => {}
        () = judge => {}
    }
}

/// The new state of some nodes, as one entry: a transaction for each, so that a node that registers meanwhile is left as
/// it is, and no other.
type StatesEntry = Vec<(Node, Transaction)>;

/// Divides nodes into entries. Descriptions of nodes can be large.
fn entries(nodes: Vec<Node>, view: &View) -> Vec<StatesEntry> {
    let mut entries: Vec<StatesEntry> = Vec::new();
    let mut bytes = 0;
    for node in nodes {
        let mut tx = WriteTx::new(view.clone(), None);
        tx.update(node.clone());
        let tx = tx.finish();
        let size = tx.size();
        match entries.last_mut().filter(|entry| entry.len() < ENTRY && bytes + size <= ENTRY_BYTES) {
            Some(entry) => entry.push((node, tx)),
            None => {
                bytes = 0;
                entries.push(vec![(node, tx)]);
            }
        }
        bytes += size;
    }
    entries
}

async fn write(proposer: &dyn Proposer, entry: StatesEntry) {
    let (nodes, transactions): (Vec<Node>, Vec<Transaction>) = entry.into_iter().unzip();
    match proposer.propose_entry(transactions).await {
        Ok(outcomes) => {
            let written = nodes.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
            written.for_each(|(node, _)| report(node));
        }
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
    use flota_raft_store::{Entry, LocalProposer, Store};

    /// How nodes are found lost in a small cluster.
    const SECOND: Detection = Detection { period: Duration::from_secs(1), missed: HEARTBEATS_MISSED };

    #[test]
    fn a_silent_node_is_unknown_after_one_beat_and_down_after_three() {
        let start = Instant::now();
        let after = |link, millis| judge(link, SECOND, start + Duration::from_millis(millis)).0;
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

    fn ready(ids: &[&str]) -> Store {
        let store = Store::default();
        let mut tx = WriteTx::new(store.view(), None);
        for id in ids {
            tx.create(Node { id: (*id).into(), state: NodeState::Ready, ..Node::default() });
        }
        store.apply(1, Entry { transactions: vec![tx.finish()], ..Entry::default() });
        store
    }

    #[tokio::test(start_paused = true)]
    async fn a_judge_that_was_stalled_counts_no_heartbeat_as_missed() {
        let (liveness, view) = (Liveness::default(), ready(&["n"]).view());
        liveness.begin(&view);
        let judged = || liveness.judge(&view, SECOND, Timestamp(9));
        let pulse = liveness.pulse();
        tokio::pin!(pulse);
        let mut run = async |time| drop(tokio::time::timeout(time, pulse.as_mut()).await);
        run(Duration::from_millis(1_050)).await;
        // Nothing is polled for a minute, and then the judge comes first.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(judged(), [], "a second of silence");
        run(Duration::from_secs(3)).await;
        assert_eq!(judged()[0].state, NodeState::Down, "four seconds of silence");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_waits_for_nodes_that_look_for_it_among_managers_that_are_gone() {
        for (gone, down_after) in [(0_u32, 3_500), (2, 6_900)] {
            let store = ready(&["n"]);
            let mut tx = WriteTx::new(store.view(), None);
            for number in 0..gone {
                let left = Node { state: NodeState::Down, raft_id: Some(7), ..Node::default() };
                tx.create(Node { id: format!("m{number}").as_str().into(), ..left });
            }
            store.apply(2, Entry { transactions: vec![tx.finish()], ..Entry::default() });
            let (liveness, view) = (Liveness::default(), store.view());
            liveness.begin(&view);
            let state_at = |at: Duration| {
                let now = liveness.known().now() + at;
                judge(liveness.known().links[&"n".into()], SECOND, now).0
            };
            let (before, after) = (Duration::from_millis(down_after), Duration::from_millis(down_after + 1));
            assert_eq!((state_at(before), state_at(after)), (NodeState::Unknown, NodeState::Down), "{gone}");
        }
    }

    #[tokio::test]
    async fn a_node_that_registers_meanwhile_does_not_hold_up_the_judgement_of_others() {
        let store = ready(&["a", "b"]);
        let view = store.view();
        let down = |id| Node { state: NodeState::Down, ..view.node(id).expect("it is there").as_ref().clone() };
        let entry = entries(vec![down("a"), down("b")], &view).remove(0);
        let proposer = LocalProposer::new(store.clone());
        let mut tx = WriteTx::new(view.clone(), None);
        tx.update(Node { address: "a:1".into(), ..view.node("a").expect("it is there").as_ref().clone() });
        store.apply(2, Entry { transactions: vec![tx.finish()], ..Entry::default() });
        write(&proposer, entry).await;
        let state = |id| store.view().node(id).map(|node| node.state);
        assert_eq!((state("a"), state("b")), (Some(NodeState::Ready), Some(NodeState::Down)));
    }

    #[test]
    fn nodes_with_large_descriptions_are_lost_in_several_entries_each_of_which_fits() {
        let view = ready(&[]).view();
        let mut node = Node::default();
        node.description.os = "x".repeat(60 << 10);
        let nodes = (0..200).map(|number| Node { id: number.to_string().as_str().into(), ..node.clone() });
        let divided = entries(nodes.collect(), &view);
        assert_eq!(divided.iter().map(Vec::len).sum::<usize>(), 200);
        for entry in divided {
            let transactions = entry.into_iter().map(|(_, tx)| tx).collect();
            let bytes = Entry { transactions, ..Entry::default() }.encode().len();
            assert!(bytes <= flota_raft_store::raft::ENTRY_BOUND, "{bytes}");
        }
        let small = (0..=ENTRY).map(|number| Node { id: number.to_string().as_str().into(), ..Node::default() });
        assert_eq!(entries(small.collect(), &view).iter().map(Vec::len).collect::<Vec<_>>(), [ENTRY, 1]);
    }

    #[test]
    fn a_change_of_sessions_costs_a_look_at_their_nodes() {
        let (liveness, view) = (Liveness::default(), ready(&["a", "b", "c"]).view());
        liveness.begin(&view);
        liveness.record_message(&"c".into());
        liveness.broke(&"b".into());
        assert_eq!(Vec::from_iter(liveness.known().changed.clone()), ["b".into()]);
        let judged = || liveness.judge_changed(&view, SECOND, Timestamp(9));
        assert_eq!(
            judged().iter().map(|node| (node.id.as_str(), node.state)).collect::<Vec<_>>(),
            [("b", NodeState::Unknown)]
        );
        assert_eq!(judged(), [], "once");
        liveness.record_message(&"b".into());
        assert_eq!(liveness.known().changed.len(), 1, "it has a session again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_judged_by_the_period_that_it_was_told_also_when_the_cluster_has_become_smaller() {
        let (liveness, view) = (Liveness::default(), ready(&["a", "b"]).view());
        liveness.begin(&view);
        liveness.begins(&"a".into(), Duration::from_secs(4));
        let beats = async {
            for _ in 0..35 {
                tokio::time::sleep(PULSE).await;
                liveness.known().now();
            }
            // One more than three of the periods that nodes are told now.
            let judged = liveness.judge(&view, SECOND, Timestamp(9));
            judged.into_iter().map(|node| node.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(beats.await, ["b"], "the other one is not even late");
    }

    #[test]
    fn the_period_grows_with_the_cluster() {
        assert_eq!(period_of(5, None), Duration::from_secs(1));
        assert_eq!(period_of(10_000, None), Duration::from_secs(5));
        let wanted = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(period_of(5, wanted(3)), Duration::from_secs(3));
        assert_eq!(period_of(10_000, wanted(3)), Duration::from_secs(5), "a short one would load the leader");
    }
}
