use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::WriteTx;
use crate::raft::disk::ModelDisk;
use crate::raft::transport::{FakeTransport, pack, unpack};
use crate::raft::type_config::{LeaderId, StoredMembership};
use crate::store::Store;
use crate::transaction::Entry;
use flota_api::clock::Random;
use flota_api::model::{Service, ServiceSpec};

fn tables() -> View {
    let store = Store::default();
    for index in 1..40 {
        let mut tx = WriteTx::new(store.view(), Some(&format!("request {index}")));
        let spec = ServiceSpec { name: format!("s{index}"), env: vec!["x".repeat(90 << 10)], ..ServiceSpec::default() };
        let id = format!("s{index}").as_str().into();
        tx.create(Service { id, spec: Arc::new(spec), spec_version: 1, ..Service::default() });
        store.apply(index, Entry { transactions: vec![tx.finish()], ..Entry::default() });
    }
    store.view()
}

fn piece(index: u64, offset: u64, bytes: Vec<u8>, is_last: bool) -> Piece {
    let id = LogId::new(LeaderId::new(1, 1).to_committed(), index);
    let meta = SnapshotMeta { last_log_id: Some(id), last_membership: StoredMembership::default() };
    let vote = Vote { leader_id: LeaderId::new(1, 1), committed: true };
    Piece { vote, meta, offset, bytes: EntryBytes(bytes.into()), is_last }
}

fn receiving() -> Receiving {
    Receiving::new(Arc::new(ModelDisk::new(Random::seeded(1))), Sealer::new(&[1; 32]))
}

#[test]
fn a_transfer_that_is_cut_goes_on_where_it_stopped() {
    let view = tables();
    let mut receiving = receiving();
    let mut pieces = Pieces::new(&view);
    let mut next = receiving.take(&piece(39, 0, Vec::new(), false)).expect("asked");
    for _ in 0..2 {
        let (bytes, is_last, rest) = pieces.read_from(next, 1 << 20);
        assert!(!is_last && bytes.len() == 1 << 20, "pieces are bounded");
        pieces = rest;
        next = receiving.take(&piece(39, next, bytes, false)).expect("taken");
    }
    // A new connection, perhaps from another leader, begins with an empty piece.
    let mut pieces = Pieces::new(&view);
    assert_eq!(receiving.take(&piece(39, 0, Vec::new(), false)).expect("asked"), next, "nothing is sent twice");
    loop {
        let (bytes, is_last, rest) = pieces.read_from(next, 700_000);
        pieces = rest;
        // Send the same piece twice, as a retry does.
        let sent = piece(39, next, bytes, is_last);
        let end = receiving.take(&sent).expect("taken");
        assert_eq!(receiving.take(&sent).expect("ignored"), end);
        next = end;
        if is_last {
            break;
        }
    }
    let received = receiving.finish().expect("whole");
    assert_eq!(received.records().collect::<Vec<_>>(), view.records().collect::<Vec<_>>());
    assert_eq!(received.digest(), view.digest());
}

#[test]
fn another_snapshot_begins_anew_and_a_cut_one_is_refused() {
    let view = tables();
    let mut receiving = receiving();
    let (bytes, _, _) = Pieces::new(&view).read_from(0, 1 << 20);
    let half = u64::try_from(bytes.len()).expect("it is small");
    assert_eq!(receiving.take(&piece(39, 0, bytes, false)).expect("taken"), half);
    assert_eq!(receiving.take(&piece(40, half, vec![1], false)).expect("another one"), 0);
    assert_eq!(receiving.take(&piece(40, 0, vec![0, 0, 0, 9, 1], true)).expect("taken"), 5);
    assert!(receiving.finish().is_err(), "a record is cut off");
    assert!(receiving.finish().is_err(), "and the transfer is over");
}

/// Sends a snapshot over a link of so many bytes in a second, and returns whether it arrives whole.
async fn arrives(speed: u64) -> Result<bool, Status> {
    let receiving = Arc::new(Mutex::new(receiving()));
    let receiver = Arc::clone(&receiving);
    let transport = FakeTransport::new(move |method, message| {
        assert_eq!(method, Method::Snapshot);
        let receiver = Arc::clone(&receiver);
        Box::pin(async move {
            let length = u64::try_from(message.body.len()).expect("it is in memory");
            tokio::time::sleep(Duration::from_micros(length * 1_000_000 / speed)).await;
            let piece: Piece = unpack(&message)?;
            let next = receiver.lock().expect("no holder panics").take(&piece).expect("written");
            let is_done = piece.is_last && next == piece.end();
            let done = PieceAnswer::Done(SnapshotResponse { vote: piece.vote });
            pack(2, 1, &if is_done { done } else { PieceAnswer::Next(next) })
        })
    });
    let peers = Peers::new(1, Arc::new(transport), Threads::Current);
    let Piece { vote, meta, .. } = piece(39, 0, Vec::new(), false);
    let view = tables();
    send(&peers, 2, Threads::Current, vote, Snapshot { meta, snapshot: Arc::clone(&view) }).await?;
    let received = receiving.lock().expect("no holder panics").finish().expect("whole");
    Ok(received.digest() == view.digest())
}

#[tokio::test(start_paused = true)]
async fn snapshot_arrives_however_slow_the_link_is() {
    for speed in [4_000, 100_000, 100_000_000] {
        assert!(arrives(speed).await.expect("it makes progress"), "{speed} bytes in a second");
    }
}

#[tokio::test(start_paused = true)]
async fn transfer_without_progress_ends() {
    let begun = tokio::time::Instant::now();
    let ended = arrives(1_000).await.expect_err("no piece arrives in time");
    assert_eq!(ended.code(), tonic::Code::DeadlineExceeded);
    assert!(begun.elapsed() < 2 * PIECE_WAIT, "{:?}", begun.elapsed());
}

/// Sends a snapshot whose receiver takes it at once, and then answers the questions about its installation like this.
async fn installation(
    answer: impl Fn(usize, Vote) -> BoxFuture<'static, PieceAnswer> + Send + Sync + 'static,
) -> Result<SnapshotResponse<TypeConfig>, Status> {
    let receiving = Mutex::new(receiving());
    let asked = AtomicUsize::new(0);
    let transport = FakeTransport::new(move |_, message| {
        let piece: Piece = unpack(&message).expect("a piece");
        let mut receiving = receiving.lock().expect("no holder panics");
        let is_asked = asked.load(Ordering::Relaxed) > 0;
        let next = if is_asked { piece.end() } else { receiving.take(&piece).expect("written") };
        let is_complete = is_asked || piece.is_last && next == piece.end();
        if !is_complete {
            return Box::pin(async move { pack(2, 1, &PieceAnswer::Next(next)) });
        }
        let answer = answer(asked.fetch_add(1, Ordering::Relaxed), piece.vote);
        Box::pin(async move { pack(2, 1, &answer.await) })
    });
    let peers = Peers::new(1, Arc::new(transport), Threads::Current);
    let Piece { vote, meta, .. } = piece(39, 0, Vec::new(), false);
    send(&peers, 2, Threads::Current, vote, Snapshot { meta, snapshot: tables() }).await
}

#[tokio::test(start_paused = true)]
async fn installation_may_take_any_time_as_long_as_the_receiver_answers() {
    let installed = installation(|asked, vote| {
        Box::pin(async move {
            tokio::time::sleep(INSTALL_WAIT).await;
            if asked < 1_000 { PieceAnswer::Installing } else { PieceAnswer::Done(SnapshotResponse { vote }) }
        })
    });
    assert!(installed.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn response_to_the_last_piece_is_not_waited_for_longer_than_to_others() {
    let begun = tokio::time::Instant::now();
    let lost = installation(|_, _| Box::pin(std::future::pending())).await.expect_err("no answer");
    assert_eq!(lost.code(), tonic::Code::DeadlineExceeded);
    assert!(begun.elapsed() < 2 * PIECE_WAIT, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn receiver_answers_while_it_installs_and_says_when_it_has() {
    let mut receiving = receiving();
    let (last, other) = (piece(39, 0, vec![1], true), piece(40, 0, vec![1], true));
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let vote = last.vote;
    receiving.install(&last, async move {
        drop(end.await);
        Ok(SnapshotResponse { vote })
    });
    assert!(receiving.is_installing(&last) && !receiving.is_installing(&other));
    assert!(matches!(receiving.installed().await, Ok(PieceAnswer::Installing)));
    ended.send(()).expect("it is waited for");
    assert!(matches!(receiving.installed().await, Ok(PieceAnswer::Done(_))));
    assert!(!receiving.is_installing(&last));
}
