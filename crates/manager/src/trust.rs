//! Which CAs nodes trust, by the cluster object, and how far the nodes are while the CA is replaced. Nothing here acts.
//!
//! From the beginning of a rotation the new CA signs. Every node trusts the former CA until the end, and the new CA presents
//! a certificate that the former one has signed, so any two nodes accept each other at each moment, in whatever order they
//! renew. A further rotation replaces only the new CA: the former one stays, which every node trusts.

use std::sync::Arc;

use flota_api::model::{CaRotation, Cluster, Node, Secret};
use flota_api::version::Timestamp;
use flota_identity::{GivenCaError, RootCa, trust_digest};
use flota_raft_store::Tables;

/// Returns the certificates of the CAs that nodes are to trust; the first signs.
pub fn trusted(cluster: &Cluster) -> Vec<Vec<u8>> {
    let former = cluster.ca_rotation.as_ref().map(|it| it.former_certificate.clone());
    [cluster.ca_certificate.clone()].into_iter().chain(former).collect()
}

/// Returns the certificates by which nodes that trust only the former CA accept what the new one has signed.
pub fn intermediates(cluster: &Cluster) -> Vec<Vec<u8>> {
    cluster.ca_rotation.iter().map(|it| it.cross_certificate.clone()).collect()
}

/// Returns the keys of which nodes are to accept grants; the first signs. The next one signs only when every node knows it.
pub(crate) fn grant_keys(cluster: &Cluster) -> Vec<Secret> {
    let next = cluster.ca_rotation.as_ref().map(|it| it.next_grant_key.clone()).filter(|it| !it.0.is_empty());
    [cluster.grant_key.clone()].into_iter().chain(next).collect()
}

/// Returns the digest of the CAs that nodes are to trust.
pub(crate) fn wanted(cluster: &Cluster) -> String {
    trust_digest(&trusted(cluster))
}

/// Returns the digest of which the node is to be told, unless it has confirmed it. Nodes of builds that confirm nothing are
/// told only while the CA is replaced.
pub(crate) fn news(cluster: &Cluster, node: &Node) -> Option<String> {
    if cluster.ca_rotation.is_none() && node.trusts.is_none() {
        return None;
    }
    Some(wanted(cluster)).filter(|wanted| node.trusts.as_ref() != Some(wanted))
}

/// Returns the nodes that have not confirmed yet what they are to trust, apart from those that have left.
pub(crate) fn waiting<'a>(view: &'a Tables, cluster: &Cluster) -> impl Iterator<Item = &'a Arc<Node>> {
    let wanted = Some(wanted(cluster));
    view.nodes().filter(move |node| !node.has_left() && node.trusts != wanted)
}

/// Why a rotation can't begin.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error("this CA signs the cluster's certificates already")]
    SignsAlready,
    #[error("this CA is being replaced: the rotation has to end first")]
    IsReplaced,
    #[error("failed to sign the new CA's certificate with the present CA: {0}")]
    Cross(#[from] GivenCaError),
}

/// What takes the place of the cluster's keys.
pub(crate) struct NextKeys<'a> {
    /// The CA.
    pub(crate) ca: &'a RootCa,
    /// The key that signs grants; empty if it stays.
    pub(crate) grant_key: &'a Secret,
}

/// Returns the cluster with the next CA. If its CA is being replaced, that takes the place of the new one.
pub(crate) fn begin(cluster: &Cluster, keys: NextKeys<'_>, now: Timestamp) -> Result<Cluster, RotationError> {
    let next = keys.ca;
    if next.certificate() == cluster.ca_certificate {
        return Err(RotationError::SignsAlready);
    }
    let (certificate, key) = match &cluster.ca_rotation {
        Some(rotation) => (&rotation.former_certificate, &rotation.former_key),
        None => (&cluster.ca_certificate, &cluster.ca_key),
    };
    if next.certificate() == certificate {
        return Err(RotationError::IsReplaced);
    }
    let former = RootCa::from_der(certificate.clone(), key.0.clone());
    let rotation = CaRotation {
        begun_at: now,
        former_certificate: certificate.clone(),
        former_key: key.clone(),
        cross_certificate: former.cross_sign(next, now.to_system())?,
        next_grant_key: keys.grant_key.clone(),
    };
    let (ca_certificate, ca_key) = (next.certificate().to_vec(), Secret(next.key().to_vec()));
    Ok(Cluster { ca_certificate, ca_key, ca_rotation: Some(rotation), ..cluster.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::NodeStateReason;
    use flota_api::object::StoreObject;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn new_ca() -> RootCa {
        RootCa::generate(&"c".into(), NOW.to_system()).expect("made")
    }

    const GRANT_KEY: &Secret = &Secret(Vec::new());

    fn with(ca: &RootCa) -> NextKeys<'_> {
        NextKeys { ca, grant_key: GRANT_KEY }
    }

    fn cluster(ca: &RootCa) -> Cluster {
        let (ca_certificate, ca_key) = (ca.certificate().to_vec(), Secret(ca.key().to_vec()));
        Cluster { id: "c".into(), ca_certificate, ca_key, ..Cluster::default() }
    }

    fn digest(cas: &[&RootCa]) -> String {
        trust_digest(&cas.iter().map(|it| it.certificate().to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn the_new_ca_signs_at_once_and_a_second_rotation_replaces_it_and_not_the_first() {
        let [first, second, third] = [(); 3].map(|()| new_ca());
        let before = cluster(&first);
        assert_eq!((trusted(&before).len(), intermediates(&before).len(), wanted(&before)), (1, 0, first.digest()));
        let one = begin(&before, with(&second), NOW).expect("it begins");
        assert_eq!((one.ca_certificate.as_slice(), wanted(&one)), (second.certificate(), digest(&[&second, &first])));
        let two = begin(&one, with(&third), NOW).expect("it wins");
        assert_eq!((two.ca_key.0.as_slice(), wanted(&two)), (third.key(), digest(&[&third, &first])));
        assert_ne!(intermediates(&one), intermediates(&two));
    }

    #[test]
    fn the_next_grant_key_is_accepted_from_the_beginning_and_does_not_sign() {
        let [first, second] = [(); 2].map(|()| new_ca());
        let [old, new] = [b"old", b"new"].map(|key| Secret(key.to_vec()));
        let before = Cluster { grant_key: old.clone(), ..cluster(&first) };
        assert_eq!(grant_keys(&before), std::slice::from_ref(&old));
        let during = begin(&before, NextKeys { ca: &second, grant_key: &new }, NOW).expect("it begins");
        assert_eq!(grant_keys(&during), [old.clone(), new]);
        assert_eq!(
            grant_keys(&begin(&before, with(&second), NOW).expect("it begins")),
            [old],
            "an old build does not know it"
        );
    }

    #[test]
    fn a_ca_does_not_replace_itself() {
        let [first, second] = [(); 2].map(|()| new_ca());
        let before = cluster(&first);
        assert!(matches!(begin(&before, with(&first), NOW), Err(RotationError::SignsAlready)));
        let one = begin(&before, with(&second), NOW).expect("it begins");
        assert!(matches!(begin(&one, with(&second), NOW), Err(RotationError::SignsAlready)));
        assert!(matches!(begin(&one, with(&first), NOW), Err(RotationError::IsReplaced)));
    }

    #[test]
    fn a_node_is_told_until_it_has_confirmed_and_one_of_an_older_build_only_during_a_rotation() {
        let [first, second] = [(); 2].map(|()| new_ca());
        let before = cluster(&first);
        let during = begin(&before, with(&second), NOW).expect("it begins");
        let after = cluster(&second);
        let node = |trusts: Option<&str>| Node { trusts: trusts.map(str::to_owned), ..Node::default() };
        let [old, new, end] = [&before, &during, &after].map(wanted);
        for (cluster, trusts, told) in [
            (&before, None, None),
            (&before, Some(old.as_str()), None),
            (&during, None, Some(&new)),
            (&during, Some(old.as_str()), Some(&new)),
            (&during, Some(new.as_str()), None),
            (&after, Some(new.as_str()), Some(&end)),
            (&after, Some(end.as_str()), None),
        ] {
            assert_eq!(news(cluster, &node(trusts)).as_ref(), told, "{trusts:?}");
        }
    }

    #[test]
    fn nodes_that_have_left_are_not_waited_for() {
        let [first, second] = [(); 2].map(|()| new_ca());
        let cluster = begin(&cluster(&first), with(&second), NOW).expect("it begins");
        let mut view = Tables::default();
        let node = |id: &str, trusts: Option<String>| Node { id: id.into(), trusts, ..Node::default() };
        view.put(node("old", Some(first.digest())).into_object());
        view.put(node("new", Some(wanted(&cluster))).into_object());
        view.put(node("silent", None).into_object());
        view.put(Node { state_reason: Some(NodeStateReason::Left), ..node("left", None) }.into_object());
        let names: Vec<_> = waiting(&view, &cluster).map(|it| it.id.as_str()).collect();
        assert_eq!(names, ["old", "silent"]);
    }
}
