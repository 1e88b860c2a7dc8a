//! Which nodes the leader wants an image on, who names it, and when it may go. The nodes are the test's: what is looked
//! at is what they are told.

use flota_api::model::Image;
use flota_api::proto::control::{NameImageRequest, RemoveRequest};
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{ImageReport, Leaving, StatusBatch, TaskReport};
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::{ManualNode, no_streams};
use flota_tests::sim::script::{Script, script};
use tonic::{Code, Status};

use super::{Seen, manual, seen};

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const REFERENCE: &str = "docker.io/library/app:1";

/// Reports that the node now holds an image.
fn report(node: &ManualNode, digest: &str) {
    let image = ImageReport { digest: digest.into(), size: 1_000, gone: false };
    // Far from the numbers that the node's own reports have.
    node.send(ToManager::Statuses(StatusBatch { sequence: 1_000, images: vec![image], ..StatusBatch::default() }));
}

/// Gives a name to an image on a worker's node, as `ctl image import` does.
fn name(it: &mut Script, worker: usize, reference: &str, digest: &str) -> Result<(), Status> {
    let request = NameImageRequest {
        request_id: format!("name {worker} {reference} {digest} {}", it.cluster().world.now()),
        reference: reference.into(),
        digest: digest.into(),
        size: 1_000,
        node: it.cluster().workers[worker].node_id.to_string(),
        ..NameImageRequest::default()
    };
    it.request(it.leader(), |mut client| async move { client.name_image(request).await.map(drop) })
}

/// Three nodes in session; none holds an image.
fn nodes(it: &mut Script) -> [ManualNode; 3] {
    [0, 1, 2].map(|worker| manual(it, worker, no_streams))
}

fn image(cluster: &SimCluster) -> Result<Image, String> {
    let view = cluster.view().ok_or("no manager leads")?;
    Ok(view.image_by_digest(DIGEST).ok_or("there is no such image")?.as_ref().clone())
}

/// Numbers of the workers that the leader wants the image on, with those that have confirmed it.
fn holders(cluster: &SimCluster) -> Result<Vec<(usize, bool)>, String> {
    let worker = |id| cluster.workers.iter().position(|worker| worker.node_id == id);
    let mut holders: Vec<_> =
        image(cluster)?.holders.into_iter().filter_map(|it| Some((worker(it.node_id)?, it.confirmed))).collect();
    holders.sort_unstable();
    Ok(holders)
}

/// The node was told to fetch the image from a holder.
fn was_told_to_fetch(node: &ManualNode) -> Seen {
    node.was_sent(|message| match message {
        FromManager::Assignments(it) => it.images.iter().any(|it| it.digest == DIGEST && !it.holders.is_empty()),
        _ => false,
    })
}

/// Two nodes hold the image and have confirmed it; returns the number of the second.
fn two_holders(it: &mut Script, nodes: &[ManualNode; 3]) -> usize {
    name(it, 0, REFERENCE, DIGEST).unwrap();
    it.wait("a second holder is chosen", 5_000, |cluster| {
        let holders = holders(cluster)?;
        seen(matches!(holders[..], [(0, true), (_, false)]), holders)
    });
    let second = holders(it.cluster()).unwrap()[1].0;
    it.wait("it is told from whom to fetch", 1_000, |_| was_told_to_fetch(&nodes[second]));
    report(&nodes[second], DIGEST);
    it.wait("both hold it", 5_000, move |cluster| {
        let holders = holders(cluster)?;
        seen(holders == [(0, true), (second, true)], holders)
    });
    second
}

#[test]
fn image_is_kept_on_two_nodes_and_a_lost_holder_is_replaced() {
    script(3, |it| {
        let nodes = nodes(it);
        let second = two_holders(it, &nodes);
        let third = 3 - second;
        assert!(was_told_to_fetch(&nodes[third]).is_err(), "two are enough");
        nodes[second].send(ToManager::Leaving(Leaving { machine: true }));
        it.wait("the third node is told to fetch it", 5_000, |_| was_told_to_fetch(&nodes[third]));
        report(&nodes[third], DIGEST);
        it.wait("the lost one is remembered, for it may come back", 5_000, move |cluster| {
            let mut expected = vec![(0, true), (second, true), (third, true)];
            expected.sort_unstable();
            let holders = holders(cluster)?;
            seen(holders == expected, holders)
        });
    });
}

#[test]
fn image_that_is_removed_leaves_every_node_that_held_it() {
    script(3, |it| {
        let nodes = nodes(it);
        let second = two_holders(it, &nodes);
        let request = RemoveRequest { request_id: "rm".into(), name: REFERENCE.into(), ..RemoveRequest::default() };
        it.request(it.leader(), |mut client| async move { client.remove_image(request).await }).unwrap();
        let is_told = |message: &FromManager| match message {
            FromManager::Assignments(assignments) => assignments.dropped_images.iter().any(|it| it == DIGEST),
            _ => false,
        };
        for holder in [0, second] {
            it.wait("it is told to drop it", 5_000, |_| nodes[holder].was_sent(is_told));
        }
        assert!(nodes[3 - second].was_sent(is_told).is_err(), "one that never held it is not told");
    });
}

#[test]
fn node_that_comes_back_with_an_image_that_is_gone_is_told_to_drop_it() {
    script(1, |it| {
        let leader = it.leader();
        let node = it.manual(0, leader, &[DIGEST], no_streams);
        it.wait("it is told to drop it", 5_000, |_| {
            node.was_sent(|message| match message {
                FromManager::Assignments(assignments) => assignments.dropped_images.iter().any(|it| it == DIGEST),
                _ => false,
            })
        });
    });
}

#[test]
fn image_whose_name_another_takes_goes_when_no_task_uses_it() {
    script(1, |it| {
        name(it, 0, REFERENCE, DIGEST).unwrap();
        it.wait("the image is known", 5_000, |cluster| image(cluster).map(drop));
        name(it, 0, REFERENCE, &DIGEST.replace('1', "2")).unwrap();
        it.wait("the old image has gone", 5_000, |cluster| match image(cluster) {
            Ok(image) => Err(format!("{image:?}")),
            Err(_) => Ok(()),
        });
        let view = it.cluster().view().unwrap();
        assert_eq!(view.images().count(), 1, "the new one has its name");
    });
}

#[test]
fn image_has_every_name_that_users_give_it_and_loses_them_one_by_one() {
    script(3, |it| {
        let nodes = nodes(it);
        let second = two_holders(it, &nodes);
        name(it, 2, "app:2", DIGEST).unwrap();
        for _ in 0..2 {
            name(it, 0, REFERENCE, DIGEST).unwrap();
        }
        let images = |it: &mut Script| it.cluster().view().unwrap().images().cloned().collect::<Vec<_>>();
        let found = images(it);
        assert_eq!(found.len(), 1, "{found:?}");
        let names = [REFERENCE, "docker.io/library/app:2"].map(str::to_owned);
        assert_eq!(found[0].references, names.clone().into());
        assert!(nodes[0].end().is_err() && nodes[second].end().is_err(), "the sessions continue");
        let remove = |it: &mut Script, name: &str| {
            let request = RemoveRequest { request_id: format!("rm {name}"), name: name.into(), ..Default::default() };
            it.request(it.leader(), |mut client| async move { client.remove_image(request).await.map(drop) }).unwrap();
        };
        remove(it, "app:1");
        assert_eq!(images(it)[0].references, names[1..].iter().cloned().collect());
        remove(it, "app:2");
        assert_eq!(images(it), []);
    });
}

#[test]
fn reference_with_a_digest_names_no_other_image() {
    script(1, |it| {
        let other = DIGEST.replace('1', "2");
        let refused = name(it, 0, &format!("app@{other}"), DIGEST).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        name(it, 0, &format!("app@{DIGEST}"), DIGEST).unwrap();
        let refused = name(it, 0, "app", "sha256:1").unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    });
}

#[test]
fn node_that_reports_unknown_images_changes_none() {
    script(2, |it| {
        let nodes = [0, 1].map(|worker| manual(it, worker, no_streams));
        name(it, 0, REFERENCE, DIGEST).unwrap();
        let before = image(it.cluster()).unwrap().references;
        report(&nodes[1], &DIGEST.replace('1', "2"));
        report(&nodes[1], DIGEST);
        it.wait("it is a holder", 5_000, |cluster| {
            let holders = holders(cluster)?;
            seen(holders == [(0, true), (1, true)], holders)
        });
        assert_eq!(image(it.cluster()).unwrap().references, before);
        assert_eq!(it.cluster().view().unwrap().images().count(), 1);
    });
}

#[test]
fn report_that_can_not_be_taken_blocks_nothing_behind_it() {
    script(2, |it| {
        let node = manual(it, 1, no_streams);
        name(it, 0, REFERENCE, DIGEST).unwrap();
        let held = |digest: &str| ImageReport { digest: digest.into(), ..ImageReport::default() };
        let junk = TaskReport { task_id: "unknown".into(), status: None };
        let images = vec![held(""), held("x\u{1b}"), held(DIGEST)];
        node.send(ToManager::Statuses(StatusBatch {
            sequence: 1_000,
            reports: vec![junk],
            images,
            ..StatusBatch::default()
        }));
        it.wait("the batch is done", 2_000, |_| {
            node.was_sent(|message| matches!(message, FromManager::StatusAck(ack) if ack.sequence == 1_000))
        });
        assert_eq!(holders(it.cluster()).unwrap(), [(0, true), (1, true)]);
        assert!(node.end().is_err(), "the session continues");
    });
}

#[test]
fn holder_that_comes_back_without_its_image_has_to_fetch_it() {
    script(3, |it| {
        let nodes = nodes(it);
        let second = two_holders(it, &nodes);
        let again = manual(it, second, no_streams);
        it.wait("it is told to fetch it", 5_000, |_| was_told_to_fetch(&again));
        assert!(holders(it.cluster()).unwrap().contains(&(second, false)));
    });
}
