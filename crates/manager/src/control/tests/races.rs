//! Changes that were planned on one view, and changes within one request that meet each other: what was judged holds for what
//! is committed.

use std::collections::BTreeMap;

use flota_api::model::{Dependency, DependencyCondition, PinnedImage, SubnetSpec};
use flota_api::object::Kind;
use flota_raft_store::Conflict;

use super::*;
use crate::control::{dependencies, pins};
use crate::pin::{Pin, SpecImages};

/// A subnet with this prefix.
pub(super) fn subnet(prefix: &str) -> SubnetSpec {
    let prefix = prefix.parse().expect("a prefix");
    SubnetSpec { prefix, gateway: None, range: None, auxiliary: BTreeMap::new() }
}

async fn commit(control: &Control<Alone>, tx: WriteTx) -> Result<(), ProposeError> {
    control.member.propose(tx.finish()).await
}

#[tokio::test]
async fn networks_of_one_stack_have_no_address_in_common() {
    let control = cluster().await;
    let network = |name: &str, prefix: &str| NetworkSpec {
        name: name.into(),
        subnets: vec![subnet(prefix)],
        ..NetworkSpec::default()
    };
    let deploy = async |second: &str| {
        let networks = vec![network("shop_a", "10.9.0.0/16"), network("shop_b", second)];
        let stack = StackSpec { name: "shop".into(), networks, ..StackSpec::default() };
        control.deploy_stack(None, &stack, &[], Keep, Never).await.map(drop)
    };
    let error = deploy("10.9.7.0/24").await.expect_err("they overlap").to_string();
    assert!(error.contains("networks.shop_b.subnets[0].prefix: 10.9.7.0/24 overlaps"), "{error}");
    assert_eq!(control.store.view().networks().count(), 0);
    deploy("10.10.0.0/16").await.expect("they do not overlap");
}

#[tokio::test]
async fn two_services_that_are_created_at_once_do_not_wait_for_each_other() {
    let control = cluster().await;
    let view = control.store.view();
    let create = |name: &str, on: &str| {
        let depends_on =
            vec![Dependency { service: on.into(), condition: DependencyCondition::Started, required: true }];
        let spec = ServiceSpec { depends_on, ..spec(name) };
        let mut tx = WriteTx::new(view.clone(), None);
        dependencies::claim(&mut tx, &spec, &|_| true).expect("the other is not there");
        tx.create(Service { spec: Arc::new(spec), ..service(name, name) });
        tx
    };
    let (first, second) = (create("one", "other"), create("other", "one"));
    commit(&control, first).await.expect("it is the first");
    let error = commit(&control, second).await.expect_err("it is judged again");
    assert!(matches!(error, ProposeError::Conflict(Conflict::Changed { .. })), "{error}");
}

#[tokio::test]
async fn an_image_is_not_removed_while_the_first_service_gets_it() {
    let control = cluster().await;
    control.put(Image { id: "i7".into(), digest: "sha256:77".into(), ..Image::default() }).await;
    let pin = || Pin::of_digest("sha256:77".into());
    for (number, images) in [
        SpecImages { own: Some(pin()), mounted: Vec::new() },
        SpecImages { own: None, mounted: vec![PinnedImage { digest: pin().digest, ..PinnedImage::default() }] },
    ]
    .into_iter()
    .enumerate()
    {
        let view = control.store.view();
        let mut removal = WriteTx::new(view.clone(), None);
        removal.remove(Kind::Image, "i7");
        let mut creation = WriteTx::new(view, None);
        pins::claim(&mut creation, &images);
        let name = format!("new-{number}");
        creation.create(images.put_on(service(&name, &name)));
        commit(&control, creation).await.expect("it is the first");
        commit(&control, removal).await.expect_err("a service uses it meanwhile");
        control.remove_service(None, &name).await.expect("it is there");
    }
}

#[tokio::test]
async fn a_removal_of_a_manager_that_was_refused_does_not_come_about_by_an_earlier_try() {
    let control = cluster().await;
    let key = Some("remove m2");
    assert_eq!(refusal(control.remove_node(key, "m2", false).await), Some(Reason::NodeIsManager));
    // By now nothing is in its way.
    control.change_role(None, "m2", Role::Worker).await.expect("the leader goes on alone");
    let mut node = control.store.view().node("n2").expect("it is there").as_ref().clone();
    node.state = NodeState::Down;
    control.replace(node).await;
    assert_eq!(refusal(control.remove_node(key, "m2", false).await), Some(Reason::RefusedBefore));
    assert!(control.store.view().node("n2").is_some());
    control.remove_node(None, "m2", false).await.expect("another request may");
}
