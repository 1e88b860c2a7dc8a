//! Snapshots that are damaged, or of another format. sled_format/tests.rs reads one of the previous format.

use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::raft::disk::{self, ModelDisk};
use crate::raft::type_config::{LeaderId, LogId};
use flota_api::FEATURE_LEVEL;
use flota_api::clock::Random;
use flota_api::model::{Cluster, Service, ServiceSpec};
use flota_api::object::StoreObject;

const NAME: &str = "snap.00000000000000000009";

fn files(disk: &ModelDisk, key: u8) -> SnapshotFiles {
    SnapshotFiles::new(Arc::new(disk.clone()), Sealer::new(&[key; 32]))
}

/// Writes a snapshot of some 12 KiB, changes its bytes, and returns why it is refused.
fn refusal(change: impl Fn(&mut Vec<u8>)) -> String {
    let disk = ModelDisk::new(Random::seeded(1));
    let id = LogId::new(LeaderId::new(1, 1).to_committed(), 9);
    let meta = SnapshotMeta { last_log_id: Some(id), ..SnapshotMeta::default() };
    let mut tables = Tables::default();
    for name in ["a", "b", "c"] {
        let spec = ServiceSpec { name: name.into(), env: vec!["x".repeat(4_000)], ..ServiceSpec::default() };
        tables.put(Service { id: name.into(), spec: Arc::new(spec), ..Service::default() }.into_object());
    }
    files(&disk, 3).save(&meta, &tables).expect("written");
    assert_eq!(files(&disk, 3).load().expect("whole").map(|it| it.meta), Some(meta));
    let mut bytes = disk::read(disk.open(NAME).expect("there").as_ref()).expect("read");
    change(&mut bytes);
    disk.create(NAME).and_then(|file| file.write_at(0, &bytes)).expect("written");
    match files(&disk, 3).load() {
        Err(OpenError::Damaged { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn format_of_a_newer_build_is_no_damage() {
    for damaged in [0, 0x82] {
        assert_eq!(refusal(|bytes| bytes[0] = damaged), format!("{NAME}: it has the format {damaged}"));
    }
    let disk = ModelDisk::new(Random::seeded(1));
    disk.create(NAME).and_then(|file| file.write_at(0, &[3, 0, 0])).expect("written");
    let error = files(&disk, 3).load().expect_err("it is not known").to_string();
    assert!(error.ends_with("it has the format 3, and this build knows formats up to 2"), "{error}");
}

#[test]
fn snapshot_of_a_newer_feature_level_is_whole_and_refused() {
    let disk = ModelDisk::new(Random::seeded(1));
    let meta = SnapshotMeta::default();
    for (feature_level, is_read) in [(FEATURE_LEVEL, true), (FEATURE_LEVEL + 1, false)] {
        let mut tables = Tables::default();
        tables.put(Cluster { id: "c".into(), feature_level, ..Cluster::default() }.into_object());
        files(&disk, 3).save(&meta, &tables).expect("written");
        match files(&disk, 3).load() {
            Ok(Some(_)) => assert!(is_read),
            Err(OpenError::Newer { .. }) => assert!(!is_read),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn snapshot_that_is_cut_off_is_refused() {
    let length = |bytes: &Vec<u8>| bytes.len();
    for cut in 1..60 {
        refusal(|bytes| bytes.truncate(length(bytes) - cut));
    }
    refusal(Vec::clear);
}

#[test]
fn page_of_zeros_is_refused() {
    for page in [1, 4_096, 8_192] {
        refusal(|bytes| bytes[page..page + 4_096].fill(0));
    }
}

#[test]
fn records_that_changed_places_are_refused() {
    refusal(|bytes| {
        let (mut frames, mut at) = (Vec::new(), 1);
        while let Some(length) = bytes[at..].first_chunk() {
            let end = at + 4 + usize::try_from(u32::from_be_bytes(*length)).expect("it is small");
            frames.push(at..end);
            at = end;
        }
        let same = frames.windows(2).find(|it| it[0].len() > 4_000 && it[0].len() == it[1].len());
        let [one, two] = same.expect("the services have the same size") else { panic!("they are two") };
        let moved = bytes[two.clone()].to_vec();
        bytes.copy_within(one.clone(), two.start);
        bytes[one.clone()].copy_from_slice(&moved);
    });
}

#[test]
fn snapshot_of_another_cluster_is_refused() {
    let disk = ModelDisk::new(Random::seeded(1));
    files(&disk, 4).save(&SnapshotMeta::default(), &Tables::default()).expect("written");
    assert!(matches!(files(&disk, 3).load(), Err(OpenError::Damaged { .. })));
}
