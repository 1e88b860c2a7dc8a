//! Which nodes the leader wants an image on, and when it may go. The nodes are the test's: what is looked at is what they
//! are told.

use flota_api::model::Image;
use flota_api::proto::control::RemoveRequest;
use flota_api::proto::dispatcher::manager_message::Message as FromManager;
use flota_api::proto::dispatcher::worker_message::Message as ToManager;
use flota_api::proto::dispatcher::{ImageReport, Leaving, StatusBatch};
use flota_tests::sim::cluster::SimCluster;
use flota_tests::sim::manual::{ManualNode, no_streams};
use flota_tests::sim::script::{Script, script};

use super::{Seen, manual, seen};

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const REFERENCE: &str = "docker.io/library/app:1";

fn report(node: &ManualNode, reference: &str, gone: bool) {
    let image = ImageReport { digest: DIGEST.into(), reference: reference.into(), size: 1_000, gone };
    // Far from the numbers that the node's own reports have.
    node.send(ToManager::Statuses(StatusBatch { sequence: 1_000, images: vec![image], ..StatusBatch::default() }));
}

/// Three nodes in session; none holds an image.
fn nodes(it: &mut Script) -> [ManualNode; 3] {
    [0, 1, 2].map(|worker| manual(it, worker, no_streams))
}

fn image(cluster: &SimCluster) -> Result<Image, String> {
    let view = cluster.view().ok_or("nobody leads")?;
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
    report(&nodes[0], REFERENCE, false);
    it.wait("a second holder is chosen", 5_000, |cluster| {
        let holders = holders(cluster)?;
        seen(matches!(holders[..], [(0, true), (_, false)]), holders)
    });
    let second = holders(it.cluster()).unwrap()[1].0;
    it.wait("it is told from whom to fetch", 1_000, |_| was_told_to_fetch(&nodes[second]));
    report(&nodes[second], "", false);
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
        report(&nodes[third], "", false);
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
        it.ask(it.leader(), |mut client| async move { client.remove_image(request).await }).unwrap();
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
        let node = manual(it, 0, no_streams);
        report(&node, REFERENCE, false);
        it.wait("the image is known", 5_000, |cluster| image(cluster).map(drop));
        let other = ImageReport {
            digest: DIGEST.replace('1', "2"),
            reference: REFERENCE.into(),
            size: 1_000,
            ..ImageReport::default()
        };
        node.send(ToManager::Statuses(StatusBatch { sequence: 1_001, images: vec![other], ..StatusBatch::default() }));
        it.wait("the old image has gone", 5_000, |cluster| match image(cluster) {
            Ok(image) => Err(format!("{image:?}")),
            Err(_) => Ok(()),
        });
        let view = it.cluster().view().unwrap();
        assert_eq!(view.images().count(), 1, "the new one has its name");
    });
}
