//! Ends the replacement of the CA once every node uses the new one. From then on no node trusts the former CA, and what a
//! stolen manager knows beside it is replaced as well: the join tokens, which name it, and the key that signs grants.

use std::sync::Arc;

use flota_api::LEVEL_OF_KEYS;
use flota_api::model::{Cluster, Node};
use flota_api::object::Object;
use flota_identity::new_secret;
use flota_raft_store::faults::{self, Fault};
use flota_raft_store::{Event, Tables};

use crate::control_loop::{ControlLoop, Key};
use crate::plan::{Plan, PlanContext};
use crate::trust;

/// The control loop; its one key is the cluster.
#[derive(Debug, Default)]
pub(crate) struct CaRotations;

impl ControlLoop for CaRotations {
    fn name(&self) -> &'static str {
        "ca-rotation"
    }

    fn all(&self, view: &Tables) -> Vec<Key> {
        view.cluster().map(|it| Key::of(&it.id)).into_iter().collect()
    }

    fn dirtied_by(&self, event: &Event, view: &Tables) -> Vec<Key> {
        let is_news = match event {
            Event::Updated { old: Object::Node(old), new: Object::Node(new) } => {
                old.trusts != new.trusts || old.has_left() != new.has_left()
            }
            Event::Removed(Object::Node(_)) | Event::Created(Object::Cluster(_)) => true,
            Event::Updated { old: Object::Cluster(old), new: Object::Cluster(new) } => {
                old.ca_rotation != new.ca_rotation
            }
            _ => false,
        };
        if is_news && view.cluster().is_some_and(|it| it.ca_rotation.is_some()) { self.all(view) } else { Vec::new() }
    }

    fn plan(&mut self, _: &Key, view: &Tables, cx: &mut PlanContext) -> Plan {
        let mut plan = Plan::default();
        let Some(cluster) = view.cluster().filter(|it| it.ca_rotation.is_some()) else { return plan };
        let late = usize::from(faults::is_on(Fault::EarlyCa));
        if trust::waiting(view, cluster).nth(late).is_some() {
            return plan;
        }
        let mut cluster: Cluster = cluster.as_ref().clone();
        let next = cluster.ca_rotation.take().map(|it| it.next_grant_key).filter(|it| !it.0.is_empty());
        // A worker of an older build would accept no grant any more before its next session.
        let knows_it = |node: &&Arc<Node>| node.description.feature_level >= LEVEL_OF_KEYS || node.has_left();
        if let Some(next) = next.filter(|_| view.nodes().all(|node| knows_it(&node))) {
            cluster.grant_key = next;
        }
        for secret in [&mut cluster.worker_token_secret, &mut cluster.manager_token_secret] {
            *secret = new_secret(secret.as_text(), &mut cx.rng).into();
        }
        plan.put(cluster);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Change;
    use flota_api::model::{CaRotation, NodeDescription, NodeStateReason, Role, Secret};
    use flota_api::object::StoreObject;
    use flota_api::version::Timestamp;
    use flota_identity::JoinToken;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn cluster() -> Cluster {
        let rotation = CaRotation { former_certificate: vec![1], cross_certificate: vec![3], ..CaRotation::default() };
        let secret = || "1-abc".to_owned().into();
        Cluster {
            id: "c".into(),
            ca_certificate: vec![2],
            ca_rotation: Some(rotation),
            worker_token_secret: secret(),
            manager_token_secret: secret(),
            worker_token_expires_at: Some(NOW),
            ..Cluster::default()
        }
    }

    /// Plans for these nodes.
    fn planned(nodes: &[Node]) -> Plan {
        let mut view = Tables::default();
        view.put(cluster().into_object());
        nodes.iter().for_each(|node| view.put(node.clone().into_object()));
        CaRotations.plan(&Key::of("c"), &view, &mut PlanContext::at(NOW))
    }

    fn node(id: &str, trusts: &str) -> Node {
        Node { id: id.into(), trusts: Some(trusts.into()), ..Node::default() }
    }

    #[test]
    fn a_rotation_goes_on_while_one_node_uses_the_former_ca() {
        let done = trust::wanted(&cluster());
        assert_eq!(planned(&[node("a", &done), node("b", "another")]), Plan::default());
        let former = flota_identity::trust_digest(&[vec![1]]);
        assert_eq!(planned(&[node("a", &done), node("b", &former)]), Plan::default());
    }

    #[test]
    fn a_rotation_ends_when_all_use_the_new_ca_and_old_join_tokens_end_with_it() {
        let done = trust::wanted(&cluster());
        let left = Node { state_reason: Some(NodeStateReason::Left), ..node("c", "another") };
        let plan = planned(&[node("a", &done), node("b", &done), left]);
        let [Change::Put(Object::Cluster(after))] = &plan.changes[..] else { panic!("{plan:?}") };
        assert_eq!((&after.ca_rotation, &after.ca_certificate), (&None, &vec![2]));
        for role in [Role::Worker, Role::Manager] {
            let (old, new) = (JoinToken::of(&cluster(), role), JoinToken::of(after, role));
            old.check(&cluster(), Timestamp(1)).expect("it is valid until the end");
            old.check(after, Timestamp(1)).expect_err("it has another secret");
            assert_ne!(old.ca_digest, new.ca_digest);
        }
        assert_eq!(after.worker_token_expires_at, Some(NOW), "the time for which it was made is the same");
    }

    #[test]
    fn the_grant_key_is_replaced_if_every_node_knows_the_next_one() {
        let done = trust::wanted(&cluster());
        let of = |level: u32| {
            let description = NodeDescription { feature_level: level, ..NodeDescription::default() };
            let mut view = Tables::default();
            let rotation =
                CaRotation { next_grant_key: Secret(b"next".to_vec()), ..cluster().ca_rotation.expect("it has one") };
            let grant_key = Secret(b"first".to_vec());
            view.put(Cluster { ca_rotation: Some(rotation), grant_key, ..cluster() }.into_object());
            view.put(Node { description, ..node("a", &done) }.into_object());
            let plan = CaRotations.plan(&Key::of("c"), &view, &mut PlanContext::at(NOW));
            let [Change::Put(Object::Cluster(after))] = &plan.changes[..] else { panic!("{plan:?}") };
            after.grant_key.as_text().to_owned()
        };
        assert_eq!([LEVEL_OF_KEYS - 1, LEVEL_OF_KEYS].map(of), ["first", "next"]);
    }

    #[test]
    fn a_confirmation_and_a_removal_are_looked_at_only_during_a_rotation() {
        let mut view = Tables::default();
        let confirmed = Event::Updated { old: node("a", "").into_object(), new: node("a", "x").into_object() };
        let removed = Event::Removed(node("a", "").into_object());
        let other = Node { raft_id: Some(1), ..node("a", "") };
        let other = Event::Updated { old: node("a", "").into_object(), new: other.into_object() };
        view.put(cluster().into_object());
        let dirtied = |event: &Event, view: &Tables| CaRotations.dirtied_by(event, view).len();
        assert_eq!([&confirmed, &removed, &other].map(|event| dirtied(event, &view)), [1, 1, 0]);
        view.put(Cluster { ca_rotation: None, ..cluster() }.into_object());
        assert_eq!([&confirmed, &removed, &other].map(|event| dirtied(event, &view)), [0, 0, 0]);
    }
}
