//! Which nodes get another certificate, and what the store then knows of them. The CA service asks; nothing here acts.

use std::sync::Arc;
use std::time::Duration;

use flota_api::defaults::RENEWAL_GRACE;
use flota_api::id::NodeId;
use flota_api::model::{Node, NodeCertificate, Role};
use flota_api::version::Timestamp;
use flota_identity::Renewal;
use flota_raft_store::Tables;

/// Why a node gets no other certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RenewalRefusal {
    /// It was removed, or has left.
    #[error(
        "the node {0} is not in the cluster any more; remove what it knows of it with `ctl swarm leave --force`, and join again"
    )]
    NoNode(NodeId),
    /// Its key is not one that the store knows.
    #[error(
        "the key of the certificate is not the one that the cluster knows of this node: it was renewed since, by another \
         copy of its data folder"
    )]
    OtherKey,
    /// Its key is from before its demotion, and it is to be a manager again.
    #[error("the key of the certificate is from before the node's demotion; demote the node, and promote it again")]
    Retired,
    /// The store knows no key of the node, and its certificate alone is not enough once it has expired.
    #[error("the certificate has expired, and the cluster knows no key of this node")]
    UnknownKey,
    /// It was off for too long.
    #[error("the certificate expired at {expired_at}, and can be renewed for {} hours after that", grace.as_secs() / 3_600)]
    TooLate {
        /// When it expired.
        expired_at: Timestamp,
        /// How long it could be renewed.
        grace: Duration,
    },
}

/// Returns the node that may have another certificate. `now` is the wall clock's time.
///
/// # Errors
/// The node may not have one; the error says why.
pub(super) fn judge(view: &Tables, renewal: &Renewal, now: Timestamp) -> Result<Arc<Node>, RenewalRefusal> {
    let no_node = || RenewalRefusal::NoNode(renewal.node.clone());
    let is_revoked = view.cluster().is_some_and(|it| it.revoked.iter().any(|it| it.node_id == renewal.node));
    let node = view.node(&renewal.node).filter(|node| !node.has_left() && !is_revoked).ok_or_else(no_node)?;
    let shown = &renewal.certificate;
    let has_expired = shown.expires_at < now;
    if node.certificates.is_empty() && has_expired {
        return Err(RenewalRefusal::UnknownKey);
    }
    // The node may have a newer key as a manager. A key that was retired must not become that of a manager again.
    if node.role == Role::Manager && view.cluster().is_some_and(|cluster| cluster.is_retired(&shown.key)) {
        return Err(RenewalRefusal::Retired);
    }
    if !node.certificates.is_empty() && !node.certificates.iter().any(|it| it.key == shown.key || it.is_unknown()) {
        return Err(RenewalRefusal::OtherKey);
    }
    let grace = view.cluster().map_or(RENEWAL_GRACE, |cluster| cluster.renewal_grace());
    // A manager has the CA's key on its disk, so a refusal would protect nothing. And if all were off for so long, no owner
    // could make the grace longer.
    if node.role == Role::Worker && shown.expires_at.until(now) > grace {
        return Err(RenewalRefusal::TooLate { expired_at: shown.expires_at, grace });
    }
    Ok(Arc::clone(node))
}

/// Returns the certificates of a node that has shown one and is issued another. The shown one stays, because the answer may
/// be lost; an earlier one does not.
pub(super) fn known_after(shown: NodeCertificate, issued: NodeCertificate) -> Vec<NodeCertificate> {
    if shown.key == issued.key { vec![issued] } else { vec![shown, issued] }
}

/// Validity of a certificate that a manager gives itself because no leader can: enough to elect one.
pub(super) const WITHOUT_LEADER: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, NodeStateReason, Revoked};
    use flota_api::object::StoreObject;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn certificate(key: &str, expires_at: Timestamp) -> NodeCertificate {
        NodeCertificate { key: key.into(), expires_at }
    }

    fn ago(time: Duration) -> Timestamp {
        Timestamp(NOW.0 - u64::try_from(time.as_millis()).expect("it is small"))
    }

    /// Judges a renewal with the key `k` that expires then, of a node that the store knows by these keys.
    fn judged(known: &[&str], expires_at: Timestamp) -> Result<(), RenewalRefusal> {
        let mut view = Tables::default();
        let certificates = known.iter().map(|key| certificate(key, NOW)).collect();
        view.put(Node { id: "n".into(), certificates, ..Node::default() }.into_object());
        judge(&view, &Renewal { node: "n".into(), certificate: certificate("k", expires_at) }, NOW).map(drop)
    }

    #[test]
    fn a_known_key_renews_until_the_grace_is_over() {
        assert_eq!(judged(&["k"], NOW + DAY), Ok(()));
        assert_eq!(judged(&["k"], ago(DAY)), Ok(()));
        assert_eq!(judged(&["k"], ago(RENEWAL_GRACE)), Ok(()));
        let late = ago(RENEWAL_GRACE + DAY);
        let too_late = RenewalRefusal::TooLate { expired_at: late, grace: RENEWAL_GRACE };
        assert!(too_late.to_string().ends_with(", and can be renewed for 8760 hours after that"), "{too_late}");
        assert_eq!(judged(&["k"], late), Err(too_late));
        let mut view = Tables::default();
        let certificates = vec![certificate("k", NOW)];
        view.put(Node { id: "n".into(), certificates, ..Node::default() }.into_object());
        view.put(Cluster { renewal_grace: Some(DAY), ..Cluster::default() }.into_object());
        let at = |expires_at| Renewal { node: "n".into(), certificate: certificate("k", expires_at) };
        assert!(judge(&view, &at(ago(DAY)), NOW).is_ok());
        let too_late = RenewalRefusal::TooLate { expired_at: ago(2 * DAY), grace: DAY };
        assert_eq!(judge(&view, &at(ago(2 * DAY)), NOW).map(drop), Err(too_late));
        let certificates = vec![certificate("k", NOW)];
        view.put(Node { id: "n".into(), role: Role::Manager, certificates, ..Node::default() }.into_object());
        assert_eq!(judge(&view, &at(ago(2 * DAY)), NOW).map(drop), Ok(()), "a manager");
    }

    #[test]
    fn another_key_is_refused_and_one_of_an_older_build_is_taken_while_its_certificate_is_valid() {
        assert_eq!(judged(&["x", "k"], ago(DAY)), Ok(()));
        assert_eq!(judged(&["x"], NOW + DAY), Err(RenewalRefusal::OtherKey));
        // The cluster began anew from tables in which the node had an earlier key.
        assert_eq!((judged(&["", "x"], NOW + DAY), judged(&["", "x"], ago(DAY))), (Ok(()), Ok(())));
        assert_eq!(judged(&[], NOW + DAY), Ok(()));
        assert_eq!(judged(&[], ago(DAY)), Err(RenewalRefusal::UnknownKey));
    }

    #[test]
    fn a_key_from_before_a_demotion_does_not_make_a_manager() {
        for (role, expected) in [(Role::Worker, Ok(())), (Role::Manager, Err(RenewalRefusal::Retired))] {
            let mut view = Tables::default();
            let certificates = ["k", "next"].map(|key| certificate(key, NOW + DAY)).to_vec();
            view.put(Node { id: "n".into(), role, certificates, ..Node::default() }.into_object());
            view.put(Cluster { retired: vec![certificate("k", NOW + DAY)], ..Cluster::default() }.into_object());
            let by = |key: &str| Renewal { node: "n".into(), certificate: certificate(key, NOW + DAY) };
            assert_eq!(judge(&view, &by("k"), NOW).map(drop), expected, "{role}");
            assert_eq!(judge(&view, &by("next"), NOW).map(drop), Ok(()), "{role}");
        }
    }

    #[test]
    fn a_node_that_was_removed_or_has_left_renews_nothing() {
        let renewal = Renewal { node: "n".into(), certificate: certificate("k", NOW + DAY) };
        let node = Node { id: "n".into(), certificates: vec![renewal.certificate.clone()], ..Node::default() };
        let gone = Err(RenewalRefusal::NoNode("n".into()));
        let mut view = Tables::default();
        assert_eq!(judge(&view, &renewal, NOW).map(drop), gone);
        view.put(Node { state_reason: Some(NodeStateReason::Left), ..node.clone() }.into_object());
        assert_eq!(judge(&view, &renewal, NOW).map(drop), gone);
        view.put(node.into_object());
        assert_eq!(judge(&view, &renewal, NOW).map(drop), Ok(()));
        let revoked = vec![Revoked { node_id: "n".into(), until: NOW + DAY }];
        view.put(Cluster { revoked, ..Cluster::default() }.into_object());
        assert_eq!(judge(&view, &renewal, NOW).map(drop), gone);
    }

    #[test]
    fn the_key_that_was_shown_is_known_until_the_new_one_is_used() {
        let [a, b, c] = ["a", "b", "c"].map(|key| certificate(key, NOW));
        // The first answer is lost, and the node asks again with the same key.
        assert_eq!(known_after(a.clone(), b.clone()), [a.clone(), b.clone()]);
        assert_eq!(known_after(a.clone(), c.clone()), [a.clone(), c.clone()]);
        assert_eq!(known_after(c.clone(), b.clone()), [c, b]);
        assert_eq!(known_after(a.clone(), certificate("a", NOW + DAY)), [certificate("a", NOW + DAY)]);
    }
}
