use super::*;
use crate::model::{
    CaRotation, FileSystem, NodeCertificate, NodeSpec, Platform, Revision, UpdateStatus, VolumeAt, VolumePlace,
    VolumeSpec,
};
use crate::object::Kind;

#[test]
fn every_kind_survives_the_way_to_the_wire_and_back() {
    let gpu = crate::model::DeviceId { kind: "gpu".into(), id: "nvidia0".into() };
    let sample = |kind| match kind {
        Kind::Cluster => {
            let (id, ca_key) = ("c".into(), Secret(vec![1, 255]));
            let certificate_life = Some(Duration::from_secs(3_600));
            let retired = vec![NodeCertificate { key: "k".into(), expires_at: Timestamp(9) }];
            let dead_manager_after = Some(Duration::from_secs(60));
            let ca_rotation = Some(CaRotation {
                begun_at: Timestamp(4),
                former_certificate: vec![1],
                former_key: Secret(vec![2]),
                cross_certificate: vec![3],
                next_grant_key: Secret(vec![4]),
            });
            let task_history_limit = NonZeroU64::new(7);
            let renewal_grace = Some(Duration::from_secs(7_200));
            let kept = Cluster {
                certificate_life,
                renewal_grace,
                retired,
                dead_manager_after,
                ca_rotation,
                ..Cluster::default()
            };
            let kept = Cluster { task_history_limit, ..kept };
            let kept = Cluster { unlock_secret: "1-a".to_owned().into(), autolock: true, ..kept };
            Cluster { id, epoch: 3, ca_key, no_new_privileges: true, ..kept }.into_object()
        }
        Kind::Node => {
            let certificates = vec![NodeCertificate { key: "k".into(), expires_at: Timestamp(9) }];
            let spec = NodeSpec { manager_candidate: true, ..NodeSpec::default() };
            Node { id: "n".into(), spec, raft_id: Some(7), certificates, trusts: Some("t".into()), ..Node::default() }
                .into_object()
        }
        Kind::Service => {
            Service { id: "s".into(), spec_version: 2, job_run: NonZeroU64::new(3), ..Service::default() }.into_object()
        }
        Kind::Task => Task { id: "t".into(), slot: 9, device_ids: vec![gpu.clone()], ..Task::default() }.into_object(),
        Kind::Image => Image { id: "i".into(), size: 5, ..Image::default() }.into_object(),
        Kind::Stack => Stack { id: "k".into(), ..Stack::default() }.into_object(),
        Kind::Registry => {
            Registry { id: "r".into(), password: "p".to_owned().into(), ..Registry::default() }.into_object()
        }
        Kind::Network => Network { id: "w".into(), vni: Some(4_096), ..Network::default() }.into_object(),
        Kind::StoredSecret => StoredSecret { id: "x".into(), ..StoredSecret::default() }.into_object(),
        Kind::StoredConfig => StoredConfig { id: "y".into(), ..StoredConfig::default() }.into_object(),
        Kind::ValueData => {
            ValueData { id: "z".into(), of: "x".into(), bytes: vec![1, 255].into(), ..ValueData::default() }
                .into_object()
        }
        Kind::User => User { id: "u".into(), name: "ada".into(), ..User::default() }.into_object(),
        Kind::Audit => Audit { id: "a".into(), actor: "ada".into(), more: 2, ..Audit::default() }.into_object(),
        Kind::Volume => {
            let file_system = Some(FileSystem::of("nfs", "nas:/a", "ro").expect("a good one"));
            let labels = [("a".into(), "b".into())].into();
            let spec = VolumeSpec { name: "db".into(), labels, per_slot: true, file_system };
            let places = vec![VolumePlace { slot: Some(2), node_id: "n".into() }];
            let (id, stack_id) = ("v".into(), Some("k".into()));
            Volume { id, spec, places, stack_id, is_removed: true, ..Volume::default() }.into_object()
        }
    };
    for object in Kind::ALL.map(sample) {
        assert_eq!(Object::try_from(po::Object::from(&object)), Ok(object));
    }
}

#[test]
fn what_an_older_build_wrote_has_the_same_bytes_in_this_one() {
    use prost::Message;
    for update_paused in [None, Some("web.1: no such image".to_owned())] {
        let spec = po::Service::from(&Service::default()).spec.expect("it has one");
        assert!(spec.update.is_none() && spec.rollback.is_none() && spec.log.is_none());
        let old =
            po::Service { id: "s".into(), spec: Some(spec), spec_version: 3, update_paused, ..po::Service::default() };
        let meta = po::Service::from(&Service::default()).meta;
        let old = po::Service { meta, ..old };
        let read = Service::try_from(old.clone()).expect("it is good");
        assert_eq!(po::Service::from(&read).encode_to_vec(), old.encode_to_vec());
    }
}

/// A platform with all its parts.
fn platform(architecture: &str) -> Platform {
    Platform { os: "linux".into(), architecture: architecture.into(), variant: Some("v7".into()) }
}

/// An image that tasks mount.
fn mounted(reference: &str) -> crate::model::PinnedImage {
    let platforms = vec![platform("amd64")];
    crate::model::PinnedImage { reference: reference.into(), digest: "sha256:1".into(), platforms }
}

#[test]
fn absent_and_chosen_values_survive_the_way_to_the_wire_and_back() {
    let update = UpdateStatus { failed_slots: [1, 3].into(), ..UpdateStatus::begun(2).paused("no such image".into()) };
    let revisions = vec![Revision {
        version: 2,
        image_digest: Some("d".into()),
        image_platforms: vec![platform("arm64")],
        values: vec![crate::model::PinnedValue { value: "v".into(), version: 2, data: "d".into() }],
        mounted_images: vec![mounted("data:1")],
        set_at: Some(Timestamp(5)),
    }];
    let objects = [
        Task { node_id: Some("n".into()), image_digest: Some("sha256:1".into()), ..Task::default() }.into_object(),
        Task { prepared_at: Some(Timestamp(3)), served_at: Some(Timestamp(4)), ..Task::default() }.into_object(),
        Task { mounted_images: vec![mounted("data:1"), mounted("data:2")], ..Task::default() }.into_object(),
        Task { pinned_to: Some("n".into()), ..Task::default() }.into_object(),
        Task { preempted_by: Some("web.3".into()), ..Task::default() }.into_object(),
        Service {
            stack_id: Some("k".into()),
            spec_set_at: Some(Timestamp(7)),
            revisions,
            update,
            image_digest: Some("d".into()),
            image_platforms: vec![platform("amd64"), platform("arm64")],
            mounted_images: vec![mounted("data:2")],
            ..Service::default()
        }
        .into_object(),
        Image { platforms: vec![platform("arm")], ..Image::default() }.into_object(),
    ];
    for object in objects {
        assert_eq!(Object::try_from(po::Object::from(&object)), Ok(object));
    }
    for reason in NodeStateReason::ALL {
        let node = Node { state_reason: Some(*reason), ..Node::default() };
        assert_eq!(Node::try_from(po::Node::from(&node)), Ok(node));
    }
}

#[test]
fn a_node_that_left_before_reasons_had_a_type_has_left_still() {
    let node = po::Node { old_state_reason: "left".into(), ..po::Node::from(&Node::default()) };
    assert!(Node::try_from(node).expect("it is well-formed").has_left());
    let node = po::Node { old_state_reason: "restarting".into(), ..po::Node::from(&Node::default()) };
    assert_eq!(Node::try_from(node).expect("it is well-formed").state_reason, Some(NodeStateReason::Restarting));
}

#[test]
fn every_reason_to_wait_for_a_node_survives_the_way_to_the_wire_and_back() {
    let counts: BTreeMap<_, _> = Filter::ALL.iter().map(|filter| (*filter, *filter as u64 + 1)).collect();
    let at = VolumeAt { volume: "data".into(), node: "w1".into(), is_gone: true };
    let reasons = [
        PendingReason::NoNode,
        PendingReason::NoNodeFits(counts.clone()),
        PendingReason::VolumesElsewhere { volumes: vec![at], refused: counts.clone(), needs_room: true },
        PendingReason::NeedsRoom(counts.clone()),
        PendingReason::OtherPlatforms { image: vec![platform("arm64")], refused: counts.clone(), needs_room: true },
        PendingReason::AwaitsRoom { node_id: "n".into(), node: "w1".into(), refused: counts },
        PendingReason::NoAddress("back".into()),
    ];
    // A reason that is missing in the list does not compile here.
    let place = |reason: &PendingReason| match reason {
        PendingReason::NoNode => 0,
        PendingReason::NoNodeFits(_) => 1,
        PendingReason::VolumesElsewhere { .. } => 2,
        PendingReason::NeedsRoom(_) => 3,
        PendingReason::OtherPlatforms { .. } => 4,
        PendingReason::AwaitsRoom { .. } => 5,
        PendingReason::NoAddress(_) => 6,
    };
    assert!(reasons.iter().map(place).eq(0..7), "each reason once, in this order");
    for reason in reasons {
        assert_eq!(PendingReason::try_from(po::PendingReason::from(&reason)), Ok(reason));
    }
}

#[test]
fn an_unknown_number_is_an_error_that_names_the_field() {
    let task = po::Task { desired_state: 77, status: Some(Default::default()), ..Default::default() };
    let error = Task::try_from(task).expect_err("77 is not a state");
    assert_eq!(error.to_string(), "the field `desired_state` has an unknown value");
}
