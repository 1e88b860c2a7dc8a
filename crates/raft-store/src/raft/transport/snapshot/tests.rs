use std::sync::Arc;

use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::WriteTx;
use crate::raft::disk::ModelDisk;
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
        let (bytes, is_last, rest) = pieces.read_from(next);
        assert!(!is_last && bytes.len() < 2 * PIECE, "pieces are bounded");
        pieces = rest;
        next = receiving.take(&piece(39, next, bytes, false)).expect("taken");
    }
    // A new connection, perhaps from another leader, begins with an empty piece.
    let mut pieces = Pieces::new(&view);
    assert_eq!(receiving.take(&piece(39, 0, Vec::new(), false)).expect("asked"), next, "nothing is sent twice");
    loop {
        let (bytes, is_last, rest) = pieces.read_from(next);
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
    let (bytes, _, _) = Pieces::new(&view).read_from(0);
    let half = u64::try_from(bytes.len()).expect("it is small");
    assert_eq!(receiving.take(&piece(39, 0, bytes, false)).expect("taken"), half);
    assert_eq!(receiving.take(&piece(40, half, vec![1], false)).expect("another one"), 0);
    assert_eq!(receiving.take(&piece(40, 0, vec![0, 0, 0, 9, 1], true)).expect("taken"), 5);
    assert!(receiving.finish().is_err(), "a record is cut off");
    assert!(receiving.finish().is_err(), "and the transfer is over");
}
