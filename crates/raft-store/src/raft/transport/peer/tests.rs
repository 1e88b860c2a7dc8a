//! What a leader does with a follower whose log went back.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::raft::threads::Threads;
use crate::raft::transport::FakeTransport;
use crate::raft::type_config::{LeaderId, LogId, SnapshotMeta};

type Answer = StreamAppendResult<TypeConfig>;

fn id(index: u64) -> LogId {
    LogId::new(LeaderId::new(1, 1).to_committed(), index)
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId::new(term, 1), committed: true }
}

fn request(vote: Vote) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest { vote, prev_log_id: Some(id(7)), entries: Vec::new(), leader_commit: None }
}

/// A peer that gives these answers to AppendEntries, and panics if it is sent anything else.
fn peer(answers: impl IntoIterator<Item = Answer>) -> Peer {
    let answers = Mutex::new(VecDeque::from_iter(answers));
    let transport = FakeTransport::new(move |method, _| {
        assert_eq!(method, Method::AppendOne);
        let answer = answers.lock().expect("no holder panics").pop_front().expect("there is an answer");
        Box::pin(std::future::ready(pack(2, 1, &answer)))
    });
    Peer { peers: Peers::new(1, Arc::new(transport), Threads::Current), target: 2 }
}

/// Sends as many requests in one stream, and returns the answers that the library sees.
async fn send(peer: &mut Peer, leader: Vote, count: usize) -> Vec<Rpc<Answer>> {
    let option = RPCOption::new(Duration::from_secs(1));
    let requests = futures::stream::iter(vec![request(leader); count]);
    peer.stream_append(requests, option).await.expect("opened").collect().await
}

async fn send_snapshot(peer: &mut Peer, leader: Vote) -> Result<(), StreamingError<TypeConfig>> {
    let meta = SnapshotMeta { last_log_id: Some(id(9)), ..SnapshotMeta::default() };
    let snapshot = Snapshot { meta, snapshot: View::default() };
    let option = RPCOption::new(Duration::from_secs(1));
    peer.full_snapshot(leader, snapshot, std::future::pending(), option).await.map(drop)
}

#[tokio::test]
async fn follower_whose_log_went_back_gets_nothing_more_in_this_term() {
    for requests in [1, 2] {
        let conflict = || Err(StreamAppendError::Conflict(id(5)));
        let mut peer = peer([Ok(Some(id(7)))].into_iter().chain((0..requests).map(|_| conflict())));
        let matched = send(&mut peer, vote(1), 1).await;
        assert!(matches!(matched[..], [Ok(Ok(_))]), "{matched:?}");
        let lost = send(&mut peer, vote(1), requests).await;
        assert!(lost.iter().all(|answer| matches!(answer, Err(RPCError::Unreachable(_)))), "{lost:?}");
        let refused = send_snapshot(&mut peer, vote(1)).await;
        assert!(matches!(refused, Err(StreamingError::Unreachable(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn follower_that_contradicts_what_it_told_an_earlier_leader_is_caught_up() {
    let mut peer = peer([Ok(Some(id(7))), Err(StreamAppendError::Conflict(id(5)))]);
    send(&mut peer, vote(1), 1).await;
    let conflict = send(&mut peer, vote(2), 1).await;
    assert!(matches!(conflict[..], [Ok(Err(StreamAppendError::Conflict(_)))]), "{conflict:?}");
}
