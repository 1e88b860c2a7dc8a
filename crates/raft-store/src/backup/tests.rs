//! What a backup keeps, and what is not taken for one.

use super::*;
use crate::store::{Store, WriteTx};
use crate::transaction::Entry;
use flota_api::model::{Cluster, Service, ServiceSpec, Task};

/// Name of the service in the tables.
const NAME: &str = "a name that nobody guesses";

/// Few, because these tests derive many keys.
const FEW: NonZeroU32 = NonZeroU32::new(2).expect("it is not zero");

fn tables(cluster: Option<Cluster>) -> crate::store::View {
    let store = Store::default();
    let mut tx = WriteTx::new(store.view(), Some("a request"));
    if let Some(cluster) = cluster {
        tx.create(cluster);
    }
    let spec = ServiceSpec { name: NAME.into(), ..ServiceSpec::default() };
    tx.create(Service { id: "s".into(), spec: spec.into(), spec_version: 1, ..Service::default() });
    tx.create(Task { id: "t".into(), service_id: "s".into(), spec_version: 1, ..Task::default() });
    let entry = Entry { at: Timestamp(5), transactions: vec![tx.finish()], ..Entry::default() };
    store.apply(7, entry)[0].as_ref().expect("there is nothing to conflict with");
    store.view()
}

fn cluster() -> Option<Cluster> {
    Some(Cluster { id: "c".into(), epoch: 3, ..Cluster::default() })
}

fn backup(tables: &Tables, passphrase: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = write(tables, Timestamp(9), passphrase.map(|it| (it, FEW)), &mut bytes).expect("memory can be written");
    assert_eq!(size, u64::try_from(bytes.len()).expect("it is small"));
    bytes
}

/// Returns the file with a right checksum of what is before it, as somebody would make it who changes a backup on purpose.
fn with_checksum(mut content: Vec<u8>) -> Vec<u8> {
    let checksum = digest::digest(&digest::SHA256, &content);
    content.extend_from_slice(checksum.as_ref());
    content
}

fn refused(bytes: &[u8], passphrase: Option<&str>) -> String {
    read_backup(bytes, passphrase).expect_err("it is refused").to_string()
}

#[test]
fn a_backup_has_the_whole_tables_with_and_without_a_passphrase() {
    let tables = tables(cluster());
    for passphrase in [None, Some("correct horse")] {
        let bytes = backup(&tables, passphrase);
        let read = read_backup(&bytes, passphrase).expect("it is whole");
        assert_eq!(read.tables.records().collect::<Vec<_>>(), tables.records().collect::<Vec<_>>());
        assert_eq!((read.tables.digest(), read.made_at), (tables.digest(), Timestamp(9)));
        assert!(read.tables.answered("a request"), "a request that was carried out before is not carried out again");
    }
}

#[test]
fn a_backup_with_a_passphrase_shows_nothing_of_the_cluster() {
    let tables = tables(cluster());
    let contains = |bytes: &[u8]| bytes.windows(NAME.len()).any(|it| it == NAME.as_bytes());
    assert!(contains(&backup(&tables, None)));
    let (one, other) = (backup(&tables, Some("p")), backup(&tables, Some("p")));
    assert!(!contains(&one));
    assert_ne!(one[18..34], other[18..34], "each backup has a salt of its own");
}

#[test]
fn a_backup_that_is_cut_at_any_length_is_refused() {
    let tables = tables(cluster());
    for passphrase in [None, Some("p")] {
        let bytes = backup(&tables, passphrase);
        for length in 0..bytes.len() {
            let error = read_backup(&bytes[..length], passphrase).expect_err("it is cut");
            let expected = if length == 0 { "not a backup" } else { "incomplete or was changed" };
            assert!(error.to_string().contains(expected), "{length} of {} bytes: {error}", bytes.len());
        }
    }
}

#[test]
fn a_backup_with_one_bit_changed_anywhere_is_refused() {
    let tables = tables(cluster());
    for passphrase in [None, Some("p")] {
        let bytes = backup(&tables, passphrase);
        for position in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[position / 8] ^= 1 << (position % 8);
            let error = read_backup(&bad, passphrase).expect_err("it is changed");
            let is_right = match position / 8 {
                0..13 => matches!(error, BackupError::NotABackup),
                13..17 => matches!(error, BackupError::NewerFormat { .. } | BackupError::Damaged),
                _ => matches!(error, BackupError::Damaged),
            };
            assert!(is_right, "bit {position}: {error}");
        }
    }
}

#[test]
fn a_change_with_a_right_checksum_is_refused_if_the_backup_is_encrypted() {
    let bytes = backup(&tables(cluster()), Some("p"));
    let content = bytes[..bytes.len() - CHECKSUM].to_vec();
    for position in 18..content.len() {
        let mut bad = content.clone();
        bad[position] ^= 1;
        // This many iterations would take too long for a test.
        if (34..37).contains(&position) {
            continue;
        }
        read_backup(&with_checksum(bad), Some("p")).expect_err("it is changed");
    }
    let frame = |at: usize| 4 + usize::try_from(u32::from_be_bytes(*content[at..].first_chunk().unwrap())).unwrap();
    let (first, second) = (38, 38 + frame(38));
    let third = second + frame(second);
    let without_second = [&content[..second], &content[third..]].concat();
    assert!(refused(&with_checksum(without_second), Some("p")).contains("a frame does not open"));
    let exchanged = [&content[..first], &content[second..third], &content[first..second], &content[third..]].concat();
    assert_eq!(refused(&with_checksum(exchanged), Some("p")), "the passphrase is wrong");
}

#[test]
fn a_backup_without_its_last_frames_is_refused() {
    let bytes = backup(&tables(cluster()), None);
    let end = bytes.len() - CHECKSUM - 12;
    assert_eq!(refused(&with_checksum(bytes[..end].to_vec()), None), "the backup was changed: frames are missing");
    let greedy = [&bytes[..end], &[0xff; 4]].concat();
    assert!(matches!(read_backup(&with_checksum(greedy), None), Err(BackupError::Damaged)), "a frame of 4 GiB");
}

#[test]
fn each_reason_to_refuse_has_its_words() {
    let (plain, sealed) = (backup(&tables(cluster()), None), backup(&tables(cluster()), Some("p")));
    let format = |number: u32| {
        let mut content = plain[..plain.len() - CHECKSUM].to_vec();
        content[13..17].copy_from_slice(&number.to_be_bytes());
        with_checksum(content)
    };
    let newer = tables(Some(Cluster { feature_level: FEATURE_LEVEL + 1, ..Cluster::default() }));
    for (bytes, passphrase, expected) in [
        (b"PK\x03\x04".to_vec(), None, "the file is not a backup of Flota"),
        (format(2), None, "the backup has the format 2, and this version of Flota reads formats up to 1"),
        (format(0), None, "the backup is incomplete or was changed: its checksum is wrong"),
        (sealed.clone(), None, "the backup is encrypted, and needs its passphrase"),
        (sealed.clone(), Some("q"), "the passphrase is wrong"),
        (plain.clone(), Some("p"), "the backup is not encrypted, and needs no passphrase"),
        (backup(&tables(None), None), None, "the backup has no cluster in it"),
        (
            backup(&newer, None),
            None,
            concat!(
                "the backup was made by version ",
                env!("CARGO_PKG_VERSION"),
                " of Flota, and this one does not know all that is in it"
            ),
        ),
    ] {
        assert_eq!(refused(&bytes, passphrase), expected);
    }
    let mut endless = sealed[..sealed.len() - CHECKSUM].to_vec();
    endless[34..38].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(refused(&with_checksum(endless), Some("p")).contains("too many or no iterations"));
}

#[test]
fn a_new_backup_is_hard_to_guess() {
    let mut bytes = Vec::new();
    write_backup(&tables(cluster()), Timestamp(9), Some("p"), &mut bytes).expect("memory can be written");
    assert_eq!(bytes[34..38], 600_000_u32.to_be_bytes());
}
