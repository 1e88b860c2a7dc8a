//! What becomes of the number of tasks that their load has led to when users change a service.

use std::num::NonZeroU64;

use flota_api::model::{ScaleDecision, ScalePolicy, StackSpec};
use flota_raft_store::WriteTx;

use super::*;

/// A spec with one task, or between two and ten by their load.
fn scaled(name: &str, image: &str) -> ServiceSpec {
    let [least, most] = [2, 10].map(|it| NonZeroU64::new(it).expect("it is not zero"));
    let scale = Some(ScalePolicy { memory_bytes: NonZeroU64::new(1), ..ScalePolicy::between(least, most) });
    ServiceSpec { image: image.into(), scale, ..spec(name) }
}

fn current(control: &Control<Alone>, name: &str) -> Arc<Service> {
    Arc::clone(control.store.view().service_by_name(name).expect("it is there"))
}

/// Lets the load lead to so many tasks.
async fn lead_to(control: &Control<Alone>, name: &str, to: u64) {
    let service = current(control, name);
    let scale = service.scale.decided(ScaleDecision { to, ..ScaleDecision::default() });
    let mut tx = WriteTx::new(control.store.view(), None);
    tx.update(Service { scale, ..service.as_ref().clone() });
    control.member.propose(tx.finish()).await.expect("nobody else has changed it");
}

#[tokio::test]
async fn a_rollback_keeps_the_number_and_that_it_follows_the_load() {
    let control = cluster().await;
    let update = control.update_service(None, "web", None, &scaled("web", "other"), Never, false).await;
    assert_eq!(update.expect("it is valid").changed.replicas(), Some(2));
    lead_to(&control, "web", 8).await;
    let back = control.rollback_service(None, "web", None).await.expect("the spec is kept");
    assert_eq!((back.spec_version, back.spec.image.as_str()), (1, "web"));
    assert_eq!((back.replicas(), back.spec.scale.is_some()), (Some(8), true), "that spec knew no load");
}

#[tokio::test]
async fn a_stack_that_is_deployed_again_keeps_the_number() {
    let control = cluster().await;
    let deploy = async |image: &str| {
        let services = vec![scaled("stack_a", image)];
        let stack = StackSpec { name: "stack".into(), services, ..StackSpec::default() };
        control.deploy_stack(None, &stack, &[], Keep, Never).await.expect("it is valid");
        current(&control, "stack_a").replicas()
    };
    assert_eq!(deploy("web").await, Some(2));
    lead_to(&control, "stack_a", 8).await;
    assert_eq!(deploy("web").await, Some(8));
    assert_eq!(deploy("other").await, Some(8), "another image is no other number");
    let mode = ServiceMode::Replicated { replicas: 5 };
    let five = ServiceSpec { mode, ..scaled("stack_a", "other") };
    control.update_service(None, "stack_a", None, &five, Never, true).await.expect("it is valid");
    assert_eq!(current(&control, "stack_a").replicas(), Some(5));
    lead_to(&control, "stack_a", 9).await;
    assert_eq!(deploy("web").await, Some(9), "the file has another number than the user has set");
}

#[tokio::test]
async fn a_number_that_a_user_sets_holds_within_the_bounds_also_if_it_is_that_of_the_spec() {
    let control = cluster().await;
    let with = |replicas| ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..scaled("web", "web") };
    let set = async |replicas, sets_replicas| {
        let updated = control.update_service(None, "web", None, &with(replicas), Never, sets_replicas).await;
        updated.map(|it| it.changed.replicas()).map_err(|error| error.to_string())
    };
    assert_eq!(set(3, true).await, Ok(Some(3)));
    lead_to(&control, "web", 8).await;
    assert_eq!(set(3, false).await, Ok(Some(8)), "another setting is changed");
    assert_eq!(set(3, true).await, Ok(Some(3)));
    let outside = "replicas: 11 is outside of the bounds of autoscaling, 2 to 10".to_owned();
    assert_eq!((set(11, true).await, set(11, false).await), (Err(outside.clone()), Err(outside)));
    lead_to(&control, "web", 2).await;
    let least = control.remove_task(None, "web.1", true).await.map_err(|error| error.to_string());
    assert_eq!(least, Err("service `web` keeps at least 2 tasks: see `--scale-min`".into()));
    lead_to(&control, "web", 4).await;
    control.remove_task(None, "web.1", true).await.expect("there are enough");
    assert_eq!(current(&control, "web").replicas(), Some(3));
    let alone = ServiceSpec { scale: None, ..with(3) };
    control.update_service(None, "web", None, &alone, Never, false).await.expect("it is valid");
    assert_eq!(current(&control, "web").replicas(), Some(3));
    assert_eq!(current(&control, "web").scale.decisions.len(), 3, "what was decided can still be read");
}
