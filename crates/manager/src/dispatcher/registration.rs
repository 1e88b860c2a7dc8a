//! The first step of a session: writes the node's description to the store, and answers with the cluster's settings.
//! Later in the session, the description may change.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;
use tokio::sync::watch;

use flota_api::Malformed;
use flota_api::defaults::FIRST_EPOCH;
use flota_api::id::NodeId;
use flota_api::image_ref::is_digest;
use flota_api::model::{Image, Node, NodeCertificate, NodeDescription, NodeState, Role};
use flota_api::naming;
use flota_api::object::StoreObject;
use flota_api::proto::dispatcher::{Register, Registered};
use flota_api::proto::types::NodeDescription as WireDescription;
use flota_api::text::printable_within;
use flota_api::version::Timestamp;
use flota_identity::{CertifiedRole, GrantKey};
use flota_raft_store::{ProposeError, Tables, WriteTx};

use super::image_report::with_holder;
use super::liveness::period;
use super::reports::until_written;
use crate::level;
use crate::replica::Replica;

/// Largest number of images of a node; a session remembers them.
const IMAGES_BOUND: usize = 10_000;
/// Bytes of each text in a description that are kept.
const TEXT_BOUND: usize = 256;

/// Why a node can't be registered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    /// The node was removed or has left. A leader has proved this.
    #[error("the cluster does not know this node")]
    NotMember,
    /// A field of the message breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The registration could not be committed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Registers the node, which makes it ready, with this description, address and images.
///
/// # Errors
/// The node is not a member, its message is invalid, or this manager can't commit.
pub(super) async fn register(
    replica: &Replica,
    node_id: &NodeId,
    certified: Option<CertifiedRole>,
    register: Register,
) -> Result<Registered, RegisterError> {
    let description = check(register.description)?;
    if register.images.len() > IMAGES_BOUND || !register.images.iter().all(|digest| is_digest(digest)) {
        return Err(RegisterError::Invalid(format!(
            "images: more than {IMAGES_BOUND}, or not all of them are digests"
        )));
    }
    let held: HashSet<&str> = register.images.iter().map(String::as_str).collect();
    if !register.listen.is_empty() && register.listen.parse::<SocketAddr>().is_err() {
        return Err(RegisterError::Invalid("listen: it is not an IP:PORT".into()));
    }
    let written = replica.write(|view| {
        let adopted = || adopted(node_id, certified, &view, replica.clock.now()).map(Arc::new);
        let node = view.node(node_id).cloned().or_else(adopted).ok_or(RegisterError::NotMember)?;
        if node.has_left() {
            return Err(RegisterError::NotMember);
        }
        let was_ready = node.state == NodeState::Ready;
        let new = Node {
            description: description.clone(),
            address: if register.listen.is_empty() { node.address.clone() } else { register.listen.clone() },
            state: NodeState::Ready,
            state_reason: None,
            state_since: if was_ready { node.state_since } else { replica.clock.now() },
            ..node.as_ref().clone()
        };
        let mut tx = WriteTx::new(view.clone(), None);
        let new = storable(new, &mut tx);
        let cluster = view.cluster().ok_or(RegisterError::NotMember)?;
        let key = GrantKey::from_der(&cluster.grant_key.0);
        let registered = Registered {
            heartbeat_ms: u64::try_from(period(&view).as_millis()).unwrap_or(u64::MAX),
            grant_public_key: key.map(|key| key.public_key()).unwrap_or_default().into(),
            raft_id: node.raft_id.unwrap_or_default(),
            node_name: description.hostname.clone(),
        };
        // While disconnected, the node may have stored or lost images.
        for image in view.images() {
            let changed = match held.contains(image.digest.as_str()) {
                true => with_holder(image, node_id, &view),
                false => without_confirmation(image, node_id),
            };
            changed.into_iter().for_each(|image| tx.update(image));
        }
        match view.node(node_id) {
            None => tx.create(new),
            Some(known) if **known != new => tx.update(new),
            Some(_) => {}
        }
        Ok((tx.finish(), registered))
    });
    written.await
}

/// Returns a node for a worker that the tables do not know because the cluster began anew from tables that are older than it:
/// its certificate says that it was a member, and its tasks and volumes are worth as much as those of the others. A manager
/// of the former cluster is not taken.
fn adopted(id: &NodeId, certified: Option<CertifiedRole>, view: &Tables, now: Timestamp) -> Option<Node> {
    let cluster = view.cluster()?;
    let has_begun_anew = cluster.epoch > FIRST_EPOCH;
    let is_revoked = cluster.revoked.iter().any(|it| it.node_id == *id);
    let is_worker = certified == Some(CertifiedRole(Role::Worker));
    (has_begun_anew && is_worker && !is_revoked).then(|| Node {
        id: id.clone(),
        state: NodeState::Unknown,
        state_since: now,
        certificates: vec![NodeCertificate::unknown(now + cluster.certificate_life())],
        ..Node::default()
    })
}

/// Writes the newest description of a node each time that it changes, until the sender is dropped. One that can't be taken is
/// skipped: the node keeps the one before, and its session.
pub(super) async fn write_descriptions(
    replica: &Replica,
    node_id: &NodeId,
    mut newest: watch::Receiver<Option<WireDescription>>,
) {
    while newest.changed().await.is_ok() {
        let described = newest.borrow_and_update().clone();
        match check(described) {
            Ok(description) => until_written(node_id, || Box::pin(describe(replica, node_id, &description))).await,
            Err(error) => tracing::warn!(node.id = %node_id, %error, "a node's new description was skipped"),
        }
    }
}

/// Writes the description of a node that has changed since it registered, if the node is still a member.
async fn describe(replica: &Replica, node_id: &NodeId, description: &NodeDescription) -> Result<(), ProposeError> {
    let written = replica.write(|view| {
        let mut tx = WriteTx::new(view.clone(), None);
        if let Some(node) = view.node(node_id) {
            let new = storable(Node { description: description.clone(), ..node.as_ref().clone() }, &mut tx);
            if new.description != node.description {
                tx.update(new);
            }
        }
        Ok((tx.finish(), ()))
    });
    written.await
}

/// Returns the node with what of its description every manager stores. Raises the feature level if all know the one that has all
/// of it: a manager of an older build would leave out the rest, and its tables would differ from then on.
fn storable(node: Node, tx: &mut WriteTx) -> Node {
    let needed = node.description.needed_level();
    let Some(cluster) = tx.view().cluster().filter(|it| it.feature_level < needed).cloned() else { return node };
    // The node itself may be a manager, of a newer build than the tables know.
    let mut next = tx.view().as_ref().clone();
    next.put(node.clone().into_object());
    match level::raised(&next, needed) {
        Ok(level) => {
            level::risen(&cluster, level).into_iter().for_each(|risen| tx.update(risen));
            node
        }
        Err(error) => {
            tracing::info!(node.id = %node.id, %error, "left out of a node's description what not all managers know");
            Node { description: node.description.at_level(cluster.feature_level), ..node }
        }
    }
}

/// Returns the description if it keeps the bounds, with texts that can be shown.
fn check(description: Option<WireDescription>) -> Result<NodeDescription, RegisterError> {
    let size = description.as_ref().map_or(0, Message::encoded_len);
    let most = NodeDescription::BYTES_BOUND;
    if size > most {
        let text = format!("description: it has {size} bytes, and {most} is the most");
        return Err(RegisterError::Invalid(text));
    }
    let invalid = |error: Malformed| RegisterError::Invalid(error.to_string());
    let mut it = NodeDescription::try_from(description).map_err(invalid)?;
    naming::check(&it.hostname).map_err(|error| RegisterError::Invalid(format!("hostname: {error}")))?;
    it.check_offers().map_err(RegisterError::Invalid)?;
    for text in [&mut it.os, &mut it.architecture, &mut it.variant, &mut it.program_version, &mut it.boot_id] {
        *text = printable_within(text, TEXT_BOUND);
    }
    Ok(it)
}

/// Returns the image with the node among the holders that have yet to fetch it; `None` unless the node is a confirmed
/// holder.
fn without_confirmation(image: &Image, node: &NodeId) -> Option<Image> {
    let index = image.holders.iter().position(|it| it.node_id == *node && it.confirmed)?;
    let mut image = image.clone();
    image.holders[index].confirmed = false;
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::LEVEL_OF_FILE_SYSTEMS;
    use flota_api::model::{Cluster, ImageHolder, Revoked};
    use flota_api::proto::types::{Allowance, NodeDescription as Wire, Platform};
    use flota_raft_store::Action;

    fn description() -> Wire {
        Wire { hostname: "n1".into(), ..Wire::default() }
    }

    #[test]
    fn a_description_is_small_and_can_be_shown() {
        let platform = Some(Platform { os: "\u{1b}[2J".into(), ..Platform::default() });
        let shown = check(Some(Wire { platform, boot_id: "x".repeat(1_000), ..description() }));
        let shown = shown.expect("it is small enough");
        assert_eq!((shown.os.as_str(), shown.boot_id.len()), ("\\u001b[2J", TEXT_BOUND));
        let devices = (0..4_000).map(|number| format!("/dev/{number:0100}")).collect();
        let allow = Some(Allowance { devices, ..Allowance::default() });
        let large = check(Some(Wire { allow, ..description() })).expect_err("it is too large");
        assert!(large.to_string().starts_with("description: it has 4"), "{large}");
        assert!(check(Some(Wire { hostname: "\u{1b}".into(), ..description() })).is_err());
        assert!(check(None).is_err(), "a node has a hostname");
    }

    #[test]
    fn a_description_is_stored_as_far_as_every_manager_knows_it() {
        let (old, new) = (LEVEL_OF_FILE_SYSTEMS - 1, LEVEL_OF_FILE_SYSTEMS);
        let described = |entry: &str| {
            let mut it = NodeDescription { feature_level: new, ..NodeDescription::default() };
            it.allow.file_systems = vec![entry.to_owned()];
            it
        };
        // Of m1, the tables have what its build before has said.
        for (id, second, used, expected) in [
            ("w", old, old, (false, None)),
            ("m1", old, old, (false, None)),
            ("m1", new, old, (true, Some(new))),
            ("w", old, new, (true, None)),
        ] {
            let mut view = Tables::default();
            view.put(Cluster { id: "c".into(), feature_level: used, ..Cluster::default() }.into_object());
            for (manager, feature_level) in [("m1", old), ("m2", second)] {
                let description = NodeDescription { feature_level, ..NodeDescription::default() };
                view.put(
                    Node { id: manager.into(), role: Role::Manager, description, ..Node::default() }.into_object(),
                );
            }
            let mut tx = WriteTx::new(Arc::new(view), None);
            let role = if id == "w" { Role::Worker } else { Role::Manager };
            let description = described("nfs:nas:/srv/*");
            let node = storable(Node { id: id.into(), role, description, ..Node::default() }, &mut tx);
            let raised = tx.finish().actions.into_iter().find_map(|action| match action {
                Action::Update(object) => Cluster::from_object(&object).map(|it| it.feature_level),
                _ => None,
            });
            assert_eq!((!node.description.allow.file_systems.is_empty(), raised), expected, "{id} {second} {used}");
        }
    }

    #[test]
    fn a_worker_that_is_younger_than_the_tables_is_taken_in_only_by_a_cluster_that_began_anew() {
        let now = Timestamp(1_000);
        let view = |epoch, revoked: &[&str]| {
            let revoked = revoked.iter().map(|id| Revoked { node_id: (*id).into(), until: Timestamp(2_000) }).collect();
            let mut view = Tables::default();
            view.put(Cluster { id: "c".into(), epoch, revoked, ..Cluster::default() }.into_object());
            view
        };
        let takes = |view: &Tables, role: Option<Role>| adopted(&"n".into(), role.map(CertifiedRole), view, now);
        let anew = view(FIRST_EPOCH + 1, &["m"]);
        let node = takes(&anew, Some(Role::Worker)).expect("it was a member");
        assert_eq!((node.id.as_str(), node.role, node.certificates[0].is_unknown()), ("n", Role::Worker, true));
        assert_eq!(takes(&anew, Some(Role::Manager)), None, "of the former cluster");
        assert_eq!(takes(&anew, None), None);
        assert_eq!(takes(&view(FIRST_EPOCH + 1, &["n"]), Some(Role::Worker)), None, "it was removed");
        assert_eq!(takes(&view(FIRST_EPOCH, &[]), Some(Role::Worker)), None, "it was removed long ago");
    }

    #[test]
    fn a_holder_that_lost_an_image_has_to_fetch_it_again() {
        let holder = |confirmed| ImageHolder { node_id: "n".into(), confirmed };
        let image = |confirmed| Image { holders: vec![holder(confirmed)], ..Image::default() };
        assert_eq!(without_confirmation(&image(true), &"n".into()), Some(image(false)));
        assert_eq!(without_confirmation(&image(false), &"n".into()), None);
        assert_eq!(without_confirmation(&image(true), &"m".into()), None);
    }
}
