//! Writes a node's report that it holds an image, or no longer holds it, to the store.
//!
//! A node is believed about itself alone: that it holds a digest. It gives no names, because a name decides which program
//! runs on every other node. Users give names ([`crate::control`]). An image that a node has pulled has none; the cluster
//! keeps it as long as tasks use it.
//!
//! A few known holders of an image are enough: each further one would change the image for every node that uses it, which
//! costs the square of their number when all nodes get an image at once.

use flota_api::defaults::KNOWN_HOLDERS;
use flota_api::id::{ImageId, NodeId};
use flota_api::model::{Image, ImageHolder, NodeState};
use flota_api::proto::dispatcher::ImageReport;
use flota_raft_store::{ProposeError, Tables, WriteTx};

use crate::replica::Replica;

/// Returns the reports of a batch that may change something. The others cost the leader no round to its followers.
pub(super) fn of_use<'a>(view: &Tables, node_id: &NodeId, reports: &'a [ImageReport]) -> Vec<&'a ImageReport> {
    let is_of_use = |report: &&ImageReport| match view.image_by_digest(&report.digest) {
        Some(image) if report.gone => without_holder(image, node_id).is_some(),
        Some(image) => with_holder(image, node_id, view).is_some(),
        None => !report.gone && is_used(view, &report.digest),
    };
    reports.iter().filter(is_of_use).collect()
}

/// Records that a node holds an image, or no longer holds it. Ignores digests that the cluster has no use for.
///
/// # Errors
/// This manager can't commit it.
pub(super) async fn write(replica: &Replica, node_id: &NodeId, report: &ImageReport) -> Result<(), ProposeError> {
    // Nodes that fetch the same image at once make one object of it.
    let new_id = ImageId::derived(report.digest.rsplit(':').next().unwrap_or_default());
    let written = replica.write_if_needed(|view| {
        let mut tx = WriteTx::new(view.clone(), None);
        match after(&view, node_id, report, &new_id)? {
            ImageChange::Create(image) => tx.create(image),
            ImageChange::Update(image) => tx.update(image),
        }
        Some((tx.finish(), ()))
    });
    written.await.map(drop)
}

/// How a report changes the tables.
#[derive(Debug, PartialEq)]
enum ImageChange {
    Create(Image),
    Update(Image),
}

/// Returns the change that the report makes, if it makes one.
fn after(view: &Tables, node_id: &NodeId, report: &ImageReport, new_id: &ImageId) -> Option<ImageChange> {
    match view.image_by_digest(&report.digest) {
        Some(image) if report.gone => without_holder(image, node_id).map(ImageChange::Update),
        Some(image) => with_holder(image, node_id, view).map(ImageChange::Update),
        None if report.gone || !is_used(view, &report.digest) => None,
        None => Some(ImageChange::Create(Image {
            id: new_id.clone(),
            digest: report.digest.clone(),
            size: report.size,
            holders: vec![ImageHolder { node_id: node_id.clone(), confirmed: true }],
            ..Image::default()
        })),
    }
}

/// Whether a task needs the image with this digest.
fn is_used(view: &Tables, digest: &str) -> bool {
    view.users_of_image(digest).next().is_some()
}

/// Returns the image with the node added to its confirmed holders; `None` if the node is one already, or if enough others
/// are and the node was not asked to hold the image.
pub(super) fn with_holder(image: &Image, node: &NodeId, view: &Tables) -> Option<Image> {
    let was_asked = image.holders.iter().any(|holder| holder.node_id == *node);
    if image.confirmed().any(|id| id == node) || (!was_asked && has_enough(image, node, view)) {
        return None;
    }
    let mut image = image.clone();
    image.holders.retain(|holder| holder.node_id != *node);
    image.holders.push(ImageHolder { node_id: node.clone(), confirmed: true });
    Some(image)
}

/// Whether further nodes like this one need not be known as holders of the image.
fn has_enough(image: &Image, node: &NodeId, view: &Tables) -> bool {
    let architecture = |id: &NodeId| view.node(id).map(|node| &node.description.architecture);
    let own = architecture(node);
    let is_up = |id: &&NodeId| view.node(*id).is_some_and(|it| it.state != NodeState::Down);
    image.confirmed().filter(is_up).filter(|id| architecture(id) == own).count() >= KNOWN_HOLDERS
}

/// Returns the image without the node among its holders; `None` if it is not among them.
fn without_holder(image: &Image, node: &NodeId) -> Option<Image> {
    let mut image = image.clone();
    let before = image.holders.len();
    image.holders.retain(|it| it.node_id != *node);
    (image.holders.len() < before).then_some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, Task};
    use flota_api::object::StoreObject;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn held(digest: String) -> ImageReport {
        ImageReport { digest, size: 7, ..ImageReport::default() }
    }

    #[test]
    fn a_node_adds_itself_to_the_holders_of_a_known_image_and_changes_nothing_else() {
        let image = Image {
            id: "i".into(),
            references: ["a".into(), "b".into()].into(),
            digest: digest('1'),
            ..Image::default()
        };
        let mut view = Tables::default();
        view.put(image.clone().into_object());
        let Some(ImageChange::Update(new)) = after(&view, &"n".into(), &held(digest('1')), &"x".into()) else {
            panic!("it is a new holder")
        };
        assert_eq!(Image { holders: Vec::new(), ..new.clone() }, image);
        view.put(new.into_object());
        assert_eq!(after(&view, &"n".into(), &held(digest('1')), &"x".into()), None, "it says so twice");
        let reports = [held(digest('1')), held(digest('2'))];
        assert_eq!(of_use(&view, &"n".into(), &reports), Vec::<&ImageReport>::new());
        assert_eq!(of_use(&view, &"m".into(), &reports), [&reports[0]]);
        let gone = ImageReport { gone: true, ..held(digest('1')) };
        assert_eq!(after(&view, &"n".into(), &gone, &"x".into()), Some(ImageChange::Update(image)));
        assert_eq!(after(&view, &"m".into(), &gone, &"x".into()), None);
    }

    #[test]
    fn enough_holders_of_each_architecture_are_known_and_no_more() {
        let mut view = Tables::default();
        let mut put = |id: String, architecture: &str, state| {
            let mut node = Node { id: id.as_str().into(), state, ..Node::default() };
            node.description.architecture = architecture.into();
            view.put(node.into_object());
        };
        for number in 0..KNOWN_HOLDERS {
            put(format!("n{number}"), "amd64", NodeState::Ready);
        }
        put("next".into(), "amd64", NodeState::Ready);
        put("other".into(), "arm64", NodeState::Ready);
        let holder = |number: usize| ImageHolder { node_id: format!("n{number}").into(), confirmed: true };
        let image =
            Image { digest: digest('1'), holders: (0..KNOWN_HOLDERS).map(holder).collect(), ..Image::default() };
        assert_eq!(with_holder(&image, &"next".into(), &view), None);
        assert!(with_holder(&image, &"other".into(), &view).is_some(), "it has other layers");
        let mut asked = image.clone();
        asked.holders.push(ImageHolder { node_id: "next".into(), confirmed: false });
        assert!(with_holder(&asked, &"next".into(), &view).is_some());
        let mut down = view.node("n0").expect("it is there").as_ref().clone();
        down.state = NodeState::Down;
        view.put(down.into_object());
        assert!(
            with_holder(&image, &"next".into(), &view).is_some(),
            "nothing can be fetched from a node that is down"
        );
    }

    #[test]
    fn an_unknown_digest_is_kept_without_a_name_if_a_task_uses_it() {
        let mut view = Tables::default();
        view.put(Task { id: "t".into(), image_digest: Some(digest('1')), ..Task::default() }.into_object());
        let Some(ImageChange::Create(image)) = after(&view, &"n".into(), &held(digest('1')), &"x".into()) else {
            panic!("the task needs it")
        };
        assert_eq!((image.references, image.digest), ([].into(), digest('1')));
        assert_eq!(of_use(&view, &"n".into(), &[held(digest('1')), held(digest('2'))]).len(), 1);
        for other in [digest('2'), String::new(), "sha256:1".into()] {
            assert_eq!(after(&view, &"n".into(), &held(other), &"x".into()), None);
        }
    }
}
