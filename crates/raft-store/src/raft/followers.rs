//! Which of the other managers follow this leader, and the choice of the one that leads next.
//!
//! A follower counts only with an answer to a message that was sent after the question, so a manager that has just died
//! never counts.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::Instant as _;
use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::node::RaftNode;
use super::type_config::TypeConfig;

/// How long voters have to answer. A healthy one takes a round trip and a sync.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// A voter that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    id: u64,
    /// Index of the last entry that it is known to have.
    matched: u64,
}

/// Returns the other voters that answered a message sent after `since`.
fn answers(metrics: &RaftMetrics<TypeConfig>, since: Instant) -> Vec<Answer> {
    let (Some(answered_at), Some(matched)) = (&metrics.heartbeat, &metrics.replication) else { return Vec::new() };
    let answered = |id: &u64| {
        // The library counts an answer from when its request was sent.
        let sent = answered_at.get(id).copied().flatten()?;
        (sent.elapsed() <= since.elapsed())
            .then(|| Answer { id: *id, matched: matched.get(id).copied().flatten().map_or(0, |last| last.index) })
    };
    let voters = metrics.membership_config.membership().voter_ids().filter(|id| *id != metrics.id);
    voters.filter_map(|id| answered(&id)).collect()
}

/// Returns the voter that is furthest, by its Raft id if several are.
fn most_advanced(answers: &[Answer], may_lead: impl Fn(u64) -> bool) -> Option<u64> {
    let candidates = answers.iter().filter(|answer| may_lead(answer.id));
    candidates.max_by_key(|answer| (answer.matched, std::cmp::Reverse(answer.id))).map(|answer| answer.id)
}

impl RaftNode {
    /// Returns the Raft ids of the voters that answer and have every entry that this leader's log has now; with its own.
    /// Waits for silent ones for 1 s. Empty if this manager does not lead.
    pub async fn caught_up_voters(&self) -> BTreeSet<u64> {
        if !self.leadership().borrow().is_self {
            return BTreeSet::new();
        }
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or_default();
        let caught_up = |answers: Vec<Answer>| answers.into_iter().filter(|it| it.matched >= last).count();
        let answers = self.collect_answers(|metrics, since| {
            let voters = metrics.membership_config.membership().voter_ids().filter(|id| *id != metrics.id).count();
            caught_up(answers(metrics, since)) == voters
        });
        let caught_up = answers.await.into_iter().filter(|it| it.matched >= last).map(|it| it.id);
        caught_up.chain([self.id()]).collect()
    }

    /// Asks the most advanced of the voters that answer to take over leadership, and returns its Raft id. It may be any
    /// for which `may_lead` is true. Returns before it leads; `None` if none of them answers.
    pub async fn hand_over(&self, may_lead: impl Fn(u64) -> bool + Send + Sync) -> Option<u64> {
        let last = self.raft().metrics().borrow_watched().last_log_index.unwrap_or_default();
        let answers = self.collect_answers(|metrics, since| {
            answers(metrics, since).iter().any(|it| it.matched >= last && may_lead(it.id))
        });
        let to = most_advanced(&answers.await, may_lead)?;
        // It fails only if the core has stopped, and then this manager does not lead.
        let _ = self.raft().trigger().transfer_leader(to).await;
        Some(to)
    }

    /// Sends heartbeats and returns the answers as soon as they are `enough`, or those of [`ANSWER_WAIT`].
    async fn collect_answers(
        &self,
        enough: impl Fn(&RaftMetrics<TypeConfig>, Instant) -> bool + Send + Sync,
    ) -> Vec<Answer> {
        let since = Instant::now();
        // It fails only if the core has stopped, and then no answers come.
        let _ = self.raft().trigger().heartbeat().await;
        let wait = self.raft().wait(Some(ANSWER_WAIT));
        // After a timeout, the answers until then count.
        let _ = wait.metrics(|metrics| enough(metrics, since), "voters answer").await;
        answers(&self.raft().metrics().borrow_watched(), since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_advanced_voter_that_may_lead_is_chosen() {
        let answers = [(1, 7), (2, 9), (3, 9), (4, 8)].map(|(id, matched)| Answer { id, matched });
        assert_eq!(most_advanced(&answers, |_| true), Some(2));
        assert_eq!(most_advanced(&answers, |id| id != 2), Some(3));
        assert_eq!(most_advanced(&answers, |id| id == 1), Some(1), "one that is behind is better than none");
        assert_eq!(most_advanced(&answers, |_| false), None);
    }
}
