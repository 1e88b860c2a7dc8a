//! Tests of the operations on secrets and configs, and of how services and stacks use them.

use flota_api::model::{Cluster, ValueUse};
use flota_api::reason::{Detail, Reason};
use tonic::Status;

use super::*;
use crate::control::pins::ResolveImage::Never;
use crate::control::stacks::Absent::Keep;
use crate::control::tests::alone::Alone;
use ValueKind::{Config, Secret};

async fn cluster() -> Control<Alone> {
    let control = Control::alone();
    control.put(Cluster { id: "c".into(), ..Cluster::default() }).await;
    control
}

fn spec(name: &str) -> ValueSpec {
    ValueSpec { name: name.into(), ..ValueSpec::default() }
}

fn bytes(text: &str) -> ValueBytes {
    text.as_bytes().to_vec().into()
}

async fn secret(control: &Control<Alone>, name: &str) {
    control.create_value(None, Secret, spec(name), bytes("one")).await.expect("a secret");
}

fn service(name: &str, secrets: Vec<ValueUse>) -> ServiceSpec {
    ServiceSpec { name: name.into(), image: "web".into(), secrets, ..ServiceSpec::default() }
}

async fn create(control: &Control<Alone>, name: &str, secrets: Vec<ValueUse>) {
    control.create_service(None, service(name, secrets), Never).await.expect("a service");
}

/// The number of the service's spec, and its versions of secrets.
fn state(control: &Control<Alone>, name: &str) -> (u64, Vec<u64>) {
    let service = control.store.view().service_by_name(name).cloned().expect("it is there");
    (service.spec_version, service.values.iter().map(|it| it.version).collect())
}

fn refused<T: std::fmt::Debug>(result: Result<T, ControlError>) -> (Option<Reason>, String) {
    let error = result.expect_err("it is refused");
    let text = error.to_string();
    (Detail::of(&Status::from(error)).map(|it| it.reason), text)
}

#[tokio::test]
async fn only_a_config_says_what_it_holds() {
    let control = cluster().await;
    secret(&control, "db").await;
    control.create_value(None, Config, spec("db"), bytes("a: 1")).await.expect("a config may have the same name");
    assert_eq!(control.get_value(Secret, "db").await.expect("it is there").bytes, None);
    assert_eq!(control.get_value(Config, "db").await.expect("it is there").bytes, Some(bytes("a: 1")));
    let listed = control.list_values(Config, Freshness::Linearizable, &[]).await.expect("a list");
    assert!(listed.rows.iter().all(|row| row.bytes.is_none()));
}

#[tokio::test]
async fn bad_names_and_sizes_are_refused() {
    let control = cluster().await;
    secret(&control, "db").await;
    let create = |name: &str, size: usize| control.create_value(None, Secret, spec(name), vec![1; size].into());
    for (name, size, expected) in [
        ("a\nb", 1, "name: "),
        ("", 1, "name: a name is needed"),
        ("x", 0, "value: it is empty"),
        ("x", VALUE_BOUND + 1, "value: 512001 bytes are over the bound of 512000"),
    ] {
        let (reason, text) = refused(create(name, size).await);
        assert_eq!(reason, Some(Reason::Invalid));
        assert!(text.starts_with(expected), "{text}");
    }
    assert_eq!(refused(create("db", 1).await).0, Some(Reason::AlreadyExists));
    create("x", VALUE_BOUND).await.expect("the largest that there can be");
}

#[tokio::test]
async fn a_service_needs_its_secrets_and_they_stay_while_it_uses_them() {
    let control = cluster().await;
    let missing = control.create_service(None, service("web", vec![ValueUse::of("db")]), Never).await;
    assert_eq!(refused(missing), (Some(Reason::NotFound), "there is no secret `db`".into()));
    secret(&control, "db").await;
    create(&control, "web", vec![ValueUse::of("db")]).await;
    let (reason, text) = refused(control.remove_value(None, Secret, "db").await);
    assert_eq!((reason, text.as_str()), (Some(Reason::InUse), "secret `db` is used by web"));
    control.update_service(None, "web", None, &service("web", Vec::new()), Never, false).await.expect("without it");
    control.remove_value(None, Secret, "db").await.expect("nothing uses it");
    assert_eq!(control.store.view().count(Kind::ValueData), 0, "its bytes are gone too");
    let (_, text) = refused(control.rollback_service(None, "web", None).await);
    assert!(text.contains("version 1 of `db`, which that spec uses, has been removed"), "{text}");
}

#[tokio::test]
async fn an_update_rolls_the_services_that_follow_it_and_a_rollback_restores_the_version() {
    let control = cluster().await;
    secret(&control, "db").await;
    let at_one = ValueUse { version: std::num::NonZeroU64::new(1), ..ValueUse::of("db") };
    create(&control, "web", vec![ValueUse::of("db")]).await;
    create(&control, "pinned", vec![at_one]).await;
    create(&control, "signalled", vec![ValueUse { signal: Some("HUP".into()), ..ValueUse::of("db") }]).await;
    let update = |text: &str, no_roll| control.update_value(None, Secret, "db", bytes(text), no_roll);
    let (updated, mut rolled) = update("two", false).await.expect("a version");
    rolled.sort();
    assert_eq!(rolled, ["signalled", "web"]);
    assert_eq!(updated.value.newest().map(|it| it.number), Some(2));
    assert_eq!(state(&control, "web"), (2, vec![2]), "another revision");
    assert_eq!(state(&control, "pinned"), (1, vec![1]));
    assert_eq!(state(&control, "signalled"), (1, vec![2]), "its tasks stay");
    assert_eq!(update("two", false).await.expect("nothing to do").1, [] as [String; 0]);
    control.rollback_service(None, "web", None).await.expect("it goes back");
    assert_eq!(state(&control, "web"), (1, vec![1]));
}

#[tokio::test]
async fn no_roll_keeps_services_until_they_are_forced_and_versions_that_nothing_has_go() {
    let control = cluster().await;
    secret(&control, "db").await;
    create(&control, "web", vec![ValueUse::of("db")]).await;
    for text in ["two", "three"] {
        let update = control.update_value(None, Secret, "db", bytes(text), true);
        assert_eq!(update.await.expect("a version").1, [] as [String; 0]);
    }
    assert_eq!(state(&control, "web"), (1, vec![1]));
    let value = control.get_value(Secret, "db").await.expect("it is there").value;
    assert_eq!(value.versions.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 3], "nothing has the second");
    let web = ServiceSpec { labels: [("a".into(), "b".into())].into(), ..service("web", vec![ValueUse::of("db")]) };
    control.update_service(None, "web", None, &web, Never, false).await.expect("another label");
    assert_eq!(state(&control, "web"), (1, vec![1]));
    let forced = ServiceSpec { force: 1, ..web };
    control.update_service(None, "web", None, &forced, Never, false).await.expect("all tasks anew");
    assert_eq!(state(&control, "web"), (2, vec![3]));
}

#[tokio::test]
async fn a_stack_brings_its_secrets_rolls_with_them_and_takes_them_along() {
    let control = cluster().await;
    let stack = StackSpec {
        name: "shop".into(),
        services: vec![service("shop_web", vec![ValueUse::of("shop_db")])],
        ..StackSpec::default()
    };
    let db = |text: &str| vec![StackValue { kind: Secret, spec: spec("shop_db"), bytes: bytes(text) }];
    let deploy = async |values: &[StackValue]| control.deploy_stack(None, &stack, values, Keep, Never).await;
    deploy(&db("one")).await.expect("a stack");
    assert_eq!(state(&control, "shop_web"), (1, vec![1]));
    create(&control, "other", vec![ValueUse::of("shop_db")]).await;
    let before = control.store.view().service_by_name("shop_web").map(|it| it.meta.version);
    deploy(&db("one")).await.expect("the same again");
    assert_eq!(control.store.view().service_by_name("shop_web").map(|it| it.meta.version), before);
    deploy(&db("two")).await.expect("another value");
    assert_eq!(state(&control, "shop_web"), (2, vec![2]));
    assert_eq!(state(&control, "other"), (2, vec![2]));
    let (reason, text) = refused(control.remove_stack(None, "shop", false).await);
    assert_eq!((reason, text.as_str()), (Some(Reason::InUse), "secret `shop_db` is used by other"));
    control.remove_service(None, "other").await.expect("it is there");
    control.remove_stack(None, "shop", false).await.expect("nothing else uses it");
    assert_eq!(control.store.view().count(Kind::StoredSecret), 1, "a control loop removes it with its last task");
    deploy(&db("three")).await.expect("a stack of the same name takes it over");
    assert_eq!(state(&control, "shop_web"), (1, vec![3]));
    control.remove_stack(None, "shop", false).await.expect("nothing else uses it");
    control.remove_value(None, Secret, "shop_db").await.expect("nothing uses it");
    secret(&control, "shop_db").await;
    let (_, text) = refused(deploy(&db("one")).await);
    assert!(text.contains("declare it as `external`"), "{text}");
    deploy(&[]).await.expect("an external one");
}

#[tokio::test]
async fn templates_are_checked_whenever_they_come_and_what_has_them_keeps_them() {
    let control = cluster().await;
    let template = ValueSpec { template: true, ..spec("web.conf") };
    let create = |text: &'static str| control.create_value(None, Config, template.clone(), bytes(text));
    let why = refused(create("listen {{.Task.Port}};").await).1;
    assert!(why.contains("value: `{{.Task.Port}}` is not a template"), "{why}");
    let binary = control.create_value(None, Config, template.clone(), vec![0xff].into());
    assert!(refused(binary.await).1.contains("not UTF-8"));
    create("listen {{env \"PORT\"}}; # {{.Task.Slot}}").await.expect("good templates");
    let update = |text: &'static str| control.update_value(None, Config, "web.conf", bytes(text), false);
    assert!(refused(update("{{secret \"db\"}}").await).1.contains("is not a template"));
    update("{{.Node.Hostname}}").await.expect("a good template");
    // What is no template may have braces.
    control.create_value(None, Config, spec("alerts"), bytes("{{ $labels.job }}")).await.expect("any text");

    let own = |template| StackValue {
        kind: Config,
        spec: ValueSpec { template, ..spec("shop_app") },
        bytes: bytes("{{.Task.Slot}}"),
    };
    let stack = StackSpec { name: "shop".into(), ..StackSpec::default() };
    control.deploy_stack(None, &stack, &[own(true)], Keep, Never).await.expect("a stack");
    let why = refused(control.deploy_stack(None, &stack, &[own(false)], Keep, Never).await).1;
    assert!(why.contains("configs.shop_app: whether its templates are filled in can't be changed"), "{why}");
}
