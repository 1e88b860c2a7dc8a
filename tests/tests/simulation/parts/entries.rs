//! Entries that leaders have sent.

use flota_raft_store::raft::SentEntry;
use flota_tests::sim::entries::Entries;
use flota_tests::sim::host::Host;

#[test]
fn entries_of_one_index_and_term_must_be_the_same() {
    let mut entries = Entries::default();
    let entry = SentEntry { index: 7, term: 2, content: 1 };
    entries.add(Host(1), entry);
    entries.add(Host(1), entry);
    entries.add(Host(2), SentEntry { term: 3, content: 2, ..entry });
    entries.add(Host(2), SentEntry { index: 8, content: 2, ..entry });
    assert_eq!(entries.conflict(), None);
    entries.add(Host(1), SentEntry { content: 2, ..entry });
    assert!(entries.conflict().unwrap().ends_with("have sent different entries 7 of term 2"));
}
