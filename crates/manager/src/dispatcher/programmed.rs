//! Which sessions have yet to be told of changes of their networks, and which have been told and have not confirmed that
//! their nodes have programmed them. A task is stopped only when every session with one of its networks has confirmed
//! that the task gets no more connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use flota_api::id::NodeId;
use flota_api::model::{Node, NodeState, Task};
use flota_api::version::Version;
use flota_raft_store::Tables;
use flota_raft_store::faults::{self, Fault};

use super::networks::{NetworkChange, News, is_encrypted};

/// With the fault `LostNews`, the changes of one in this many versions are lost.
const LOST_ONE_OF: Version = 5;

/// The state of one session.
#[derive(Debug)]
struct Progress {
    /// The session's number.
    number: u64,
    news: News,
    /// Version of the oldest change in `news`; `None` if there is no news.
    news_since: Option<Version>,
    /// What was sent and not confirmed: the version to confirm, and that of the oldest change that was sent with it.
    sent: VecDeque<(Version, Version)>,
}

impl Progress {
    /// The oldest change that is not confirmed.
    fn behind_since(&self) -> Option<Version> {
        self.sent.front().map(|(_, since)| *since).or(self.news_since)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Number of tasks that were told to stop without the confirmation of all nodes.
    unconfirmed_stops: u64,
    /// All changes up to this version are among the news of the sessions; `None` before the first term.
    version: Option<Version>,
    sessions: BTreeMap<NodeId, Progress>,
    /// The sessions that are behind, by their oldest change that is not confirmed.
    behind: BTreeSet<(Version, NodeId)>,
    /// Nodes whose sessions hold back that a task is to stop.
    holders: BTreeSet<NodeId>,
}

impl State {
    /// Changes the progress of a session.
    fn change(&mut self, node: &NodeId, act: impl FnOnce(&mut Progress)) {
        let Some(progress) = self.sessions.get_mut(node) else { return };
        let before = progress.behind_since();
        act(progress);
        let after = progress.behind_since();
        if before != after {
            if let Some(since) = before {
                self.behind.remove(&(since, node.clone()));
            }
            self.behind.extend(after.map(|since| (since, node.clone())));
        }
    }
}

/// Largest number of updates that a node has not confirmed and that are counted one by one.
const SENT: usize = 1_000;

/// Whether a task may be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Withdrawal {
    /// Every session with one of its networks has confirmed that it gets no more connections.
    Confirmed,
    /// These nodes have not confirmed it yet; empty if their sessions have yet to be told.
    Waits(Vec<NodeId>),
}

/// The progress of all sessions. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programmed(Arc<Mutex<State>>);

impl Programmed {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().expect("no holder panics"))
    }

    /// Adds a session, which has to be told everything; an earlier session of the node is forgotten. Does nothing if there is a
    /// later one.
    pub(crate) fn begin(&self, node: &NodeId, number: u64) {
        self.with(|state| {
            if state.sessions.get(node).is_some_and(|it| it.number > number) {
                return;
            }
            state.sessions.entry(node.clone()).or_insert_with(|| Progress {
                number,
                news: News::Only(BTreeSet::new()),
                news_since: None,
                sent: VecDeque::new(),
            });
            state.change(node, |it| {
                // Its node may still have programmed anything.
                let (news, news_since) = (News::Everything, Some(0));
                *it = Progress { number, news, news_since, sent: VecDeque::new() };
            });
        });
    }

    /// Counts tasks that were told to stop although nodes had not confirmed that they send them no more connections.
    pub(super) fn count_unconfirmed_stops(&self, more: u64) {
        if more > 0 {
            self.with(|state| state.unconfirmed_stops += more);
        }
    }

    /// Returns the number of those tasks since this daemon started.
    pub(crate) fn unconfirmed_stops(&self) -> u64 {
        self.with(|state| state.unconfirmed_stops)
    }

    /// Removes a session that has ended. Returns the nodes whose sessions may have waited for it.
    pub(super) fn ended(&self, node: &NodeId, number: u64) -> Vec<NodeId> {
        self.with(|state| {
            if state.sessions.get(node).is_none_or(|it| it.number != number) {
                return Vec::new();
            }
            if let Some(since) = state.sessions.remove(node).and_then(|it| it.behind_since()) {
                state.behind.remove(&(since, node.clone()));
            }
            state.holders.remove(node);
            state.holders.iter().cloned().collect()
        })
    }

    /// Makes every session tell everything: what has changed up to this version is not known.
    pub(crate) fn reset(&self, version: Version) {
        self.with(|state| {
            state.version = Some(version);
            for node in state.sessions.keys().cloned().collect::<Vec<_>>() {
                state.change(&node, |it| {
                    it.news = News::Everything;
                    it.news_since.get_or_insert(version);
                });
            }
        });
    }

    /// Adds the changes up to this version to the news of the sessions that have the networks. Returns the nodes of these
    /// sessions and of those that hold back a stop, which may go on.
    pub(super) fn add(&self, changes: &[NetworkChange], version: Version, view: &Tables) -> BTreeSet<NodeId> {
        let is_lost = faults::is_on(Fault::LostNews) && version.is_multiple_of(LOST_ONE_OF);
        let changes = if is_lost { &[] } else { changes };
        self.with(|state| {
            let mut woken = state.holders.clone();
            for change in changes {
                for node in change.concerned(view) {
                    state.change(node, |it| {
                        it.news_since.get_or_insert(version);
                        if let News::Only(news) = &mut it.news {
                            news.insert(change.clone());
                        }
                    });
                    woken.insert(node.clone());
                }
            }
            state.version = Some(version);
            woken
        })
    }

    /// Takes the news of a session, and the version that its node has programmed once it has carried them out; `None`
    /// before the changes of this term are followed. News that are taken must be sent.
    pub(super) fn take(&self, node: &NodeId) -> Option<(News, Version)> {
        self.with(|state| {
            let version = state.version?;
            if faults::is_on(Fault::NoNews) && !matches!(state.sessions.get(node)?.news, News::Everything) {
                return None;
            }
            let mut taken = None;
            state.change(node, |it| {
                let news = std::mem::replace(&mut it.news, News::Only(BTreeSet::new()));
                it.sent.extend(it.news_since.take().map(|since| (version, since)));
                // For a node that never confirms anything, the newest ones count as one.
                if it.sent.len() > SENT
                    && let Some((newest, _)) = it.sent.pop_back()
                    && let Some((joined, _)) = it.sent.back_mut()
                {
                    *joined = newest;
                }
                taken = Some((news, version));
            });
            taken
        })
    }

    /// Records that the node has programmed everything up to this version. Returns the nodes whose sessions hold back a
    /// stop, which may go on.
    pub(super) fn confirm(&self, node: &NodeId, version: Version) -> Vec<NodeId> {
        self.with(|state| {
            state.change(node, |it| while it.sent.pop_front_if(|(sent, _)| *sent <= version).is_some() {});
            state.holders.iter().cloned().collect()
        })
    }

    /// Returns the version up to which the node has programmed every change that concerns it; `None` if it has no session,
    /// or no term has begun.
    pub(crate) fn version_of(&self, node: &NodeId) -> Option<Version> {
        self.with(|state| {
            let behind_since = state.sessions.get(node)?.behind_since();
            behind_since.map(|since| since.saturating_sub(1)).or(state.version)
        })
    }

    /// Sets whether the node's session holds back that a task is to stop.
    pub(super) fn set_holding(&self, node: &NodeId, is_holding: bool) {
        self.with(|state| {
            if is_holding {
                state.holders.insert(node.clone());
            } else {
                state.holders.remove(node);
            }
        });
    }

    /// Returns whether every node that shares an encrypted network with this one has programmed the keys that it has in
    /// `view`. One that is not in session may have its tasks still, and so may one whose session has just ended; one that is
    /// down has lost them.
    pub(super) fn knows_keys(&self, node: &Node, view: &Tables) -> bool {
        let encrypted = view.networks_of_node(&node.id).filter(|(id, _)| is_encrypted(id, view));
        let peers: BTreeSet<&NodeId> = encrypted.flat_map(|(id, _)| view.nodes_of_network(id)).collect();
        let is_down = |peer: &NodeId| view.node(peer.as_str()).is_none_or(|it| it.state == NodeState::Down);
        let version = node.meta.version;
        self.with(|state| {
            let has_them = |peer: &NodeId| {
                let progress = state.sessions.get(peer);
                progress.is_some_and(|it| it.behind_since().is_none_or(|since| since > version))
            };
            let is_followed = state.version.is_some_and(|followed| followed >= version);
            is_followed && peers.into_iter().all(|peer| *peer == node.id || is_down(peer) || has_them(peer))
        })
    }

    /// Returns whether everyone who may send connections to the task knows what has changed up to this version, in which it
    /// is withdrawn.
    pub(super) fn withdrawal(&self, task: &Task, version: Version, view: &Tables) -> Withdrawal {
        self.with(|state| {
            if state.version.is_none_or(|followed| followed < version) {
                return Withdrawal::Waits(Vec::new());
            }
            let shares = |node: &NodeId| {
                view.networks_of_node(node).any(|(id, _)| task.attachments.iter().any(|it| it.network == *id))
            };
            let behind = state.behind.iter().take_while(|(since, _)| *since <= version);
            let nodes: Vec<NodeId> = behind.map(|(_, node)| node).filter(|node| shares(node)).cloned().collect();
            if nodes.is_empty() { Withdrawal::Confirmed } else { Withdrawal::Waits(nodes) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use flota_api::model::{Attachment, Network, NetworkSpec};
    use flota_api::object::StoreObject;
    use flota_api::version::Meta;

    /// Both nodes have the network `a`, and `c` has another.
    fn view() -> Tables {
        let mut view = Tables::default();
        for (id, network) in [("n", "a"), ("m", "a"), ("c", "b")] {
            view.put(node(id, network).into_object());
        }
        view
    }

    fn node(id: &str, network: &str) -> Node {
        let attachments = vec![Attachment { network: network.into(), addresses: Vec::new() }];
        Node { id: id.into(), attachments, ..Node::default() }
    }

    /// The version since which the task is to stop.
    const STOPPING: Version = 5;

    /// A task in `a`.
    fn task() -> Task {
        let attachments = vec![Attachment { network: "a".into(), addresses: vec![[10, 0, 0, 2].into()] }];
        Task { id: "t".into(), attachments, ..Task::default() }
    }

    fn change() -> [NetworkChange; 1] {
        [NetworkChange::Endpoint("a".into(), "t".into())]
    }

    /// Sessions of all three nodes that have confirmed everything up to version 4.
    fn settled() -> Programmed {
        let programmed = Programmed::default();
        for (number, node) in ["n", "m", "c"].into_iter().enumerate() {
            programmed.begin(&node.into(), number as u64);
        }
        programmed.reset(4);
        for node in ["n", "m", "c"] {
            assert_eq!(programmed.take(&node.into()), Some((News::Everything, 4)));
            programmed.confirm(&node.into(), 4);
        }
        programmed
    }

    #[test]
    fn a_task_stops_when_every_session_with_its_network_has_confirmed_and_no_earlier() {
        let (programmed, view) = (settled(), view());
        assert_eq!(
            programmed.withdrawal(&task(), STOPPING, &view),
            Withdrawal::Waits(vec![]),
            "nobody has followed it yet"
        );
        let woken = programmed.add(&change(), 5, &view);
        assert_eq!(woken, ["m".into(), "n".into()].into(), "`c` has nothing to do with it");
        let waits = |nodes: &[&str]| Withdrawal::Waits(nodes.iter().map(|it| (*it).into()).collect());
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), waits(&["m", "n"]));
        for node in ["m", "n"] {
            assert_eq!(programmed.take(&node.into()), Some((News::Only(change().into()), 5)));
        }
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), waits(&["m", "n"]), "it is sent, not confirmed");
        programmed.confirm(&"m".into(), 5);
        programmed.confirm(&"n".into(), 4);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), waits(&["n"]), "it has confirmed an older version");
        programmed.confirm(&"n".into(), 5);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), Withdrawal::Confirmed);
    }

    #[test]
    fn a_node_is_at_the_version_before_its_oldest_change_that_is_not_programmed() {
        let (programmed, view) = (settled(), view());
        let versions = || ["n", "m", "c"].map(|node| programmed.version_of(&node.into()));
        assert_eq!(versions(), [Some(4); 3]);
        programmed.add(&change(), 7, &view);
        assert_eq!(versions(), [Some(6), Some(6), Some(7)], "`c` has nothing to do with it");
        programmed.take(&"n".into());
        assert_eq!(programmed.version_of(&"n".into()), Some(6), "it is sent, not confirmed");
        programmed.confirm(&"n".into(), 7);
        programmed.ended(&"m".into(), 1);
        assert_eq!(versions(), [Some(7), None, Some(7)]);
    }

    #[test]
    fn keys_are_known_when_every_node_that_shares_an_encrypted_network_has_programmed_them() {
        let (programmed, mut view) = (settled(), view());
        let with_keys = |version| Node { meta: Meta { version, ..Meta::default() }, ..node("n", "a") };
        assert!(!programmed.knows_keys(&with_keys(5), &view), "nobody has followed it yet");
        programmed.add(&change(), 5, &view);
        assert!(programmed.knows_keys(&with_keys(5), &view), "its network is not encrypted");
        let spec = Arc::new(NetworkSpec { encrypted: true, ..NetworkSpec::default() });
        view.put(Network { id: "a".into(), spec, ..Network::default() }.into_object());
        assert!(!programmed.knows_keys(&with_keys(5), &view), "`m` has yet to be told");
        programmed.take(&"m".into());
        assert!(!programmed.knows_keys(&with_keys(5), &view), "`m` has not confirmed it");
        programmed.confirm(&"m".into(), 5);
        assert!(programmed.knows_keys(&with_keys(5), &view), "what the node itself has programmed does not matter");
        programmed.ended(&"m".into(), 1);
        assert!(!programmed.knows_keys(&with_keys(5), &view), "`m` may run on without a session");
        view.put(Node { state: NodeState::Down, ..node("m", "a") }.into_object());
        assert!(programmed.knows_keys(&with_keys(5), &view), "its tasks are replaced");
    }

    #[test]
    fn later_changes_do_not_hold_up_an_earlier_stop() {
        let (programmed, view) = (settled(), view());
        programmed.add(&[], 5, &view);
        programmed.add(&[NetworkChange::Network("a".into())], 6, &view);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), Withdrawal::Confirmed);
    }

    #[test]
    fn a_session_that_was_replaced_while_it_registered_takes_nothing_from_the_newer_one() {
        let programmed = settled();
        programmed.begin(&"m".into(), 8);
        programmed.begin(&"m".into(), 7);
        assert_eq!(programmed.ended(&"m".into(), 7), []);
        assert_eq!(programmed.take(&"m".into()).map(|(news, _)| news), Some(News::Everything));
    }

    #[test]
    fn a_session_that_ends_is_not_waited_for_and_a_new_one_is_until_it_has_everything() {
        let (programmed, view) = (settled(), view());
        programmed.add(&change(), 5, &view);
        programmed.set_holding(&"n".into(), true);
        assert_eq!(programmed.ended(&"m".into(), 7), [], "it is not the newest session of its node");
        assert_eq!(programmed.ended(&"m".into(), 1), ["n".into()]);
        programmed.take(&"n".into());
        programmed.confirm(&"n".into(), 5);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), Withdrawal::Confirmed);
        programmed.begin(&"m".into(), 8);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), Withdrawal::Waits(vec!["m".into()]));
        assert_eq!(programmed.take(&"m".into()), Some((News::Everything, 5)));
        programmed.confirm(&"m".into(), 5);
        assert_eq!(programmed.withdrawal(&task(), STOPPING, &view), Withdrawal::Confirmed);
    }
}
