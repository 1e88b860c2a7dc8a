//! Tests each operation of the store with every kind of object, enumerated from the declaration of kinds.

use futures::FutureExt;

use flota_api::id::Id;
use flota_api::model::{
    Audit, Cluster, Image, Network, Node, Registry, Service, ServiceSpec, Stack, StackSpec, StoredConfig, StoredSecret,
    Task, User, ValueData, Volume,
};
use flota_api::object::{Kind, Object, StoreObject};
use flota_api::version::Timestamp;

use super::*;
use crate::transaction::{Action, Conflict, Expectation, Transaction};

fn sample(kind: Kind, id: &str) -> Object {
    match kind {
        Kind::Cluster => Cluster { id: id.into(), epoch: 3, ..Cluster::default() }.into_object(),
        Kind::Node => Node { id: id.into(), address: "n:1".into(), ..Node::default() }.into_object(),
        Kind::Service => {
            let spec = Arc::new(ServiceSpec { name: "web".into(), ..ServiceSpec::default() });
            Service { id: id.into(), spec, spec_version: 1, ..Service::default() }.into_object()
        }
        Kind::Task => Task { id: id.into(), slot: 7, ..Task::default() }.into_object(),
        Kind::Image => {
            Image { id: id.into(), references: ["web:1".into(), "web:2".into()].into(), size: 9, ..Image::default() }
                .into_object()
        }
        Kind::Stack => {
            let spec = StackSpec { name: "shop".into(), ..StackSpec::default() };
            Stack { id: id.into(), spec, ..Stack::default() }.into_object()
        }
        Kind::Registry => Registry { id: id.into(), host: "r:5000".into(), ..Registry::default() }.into_object(),
        Kind::Network => Network { id: id.into(), ..Network::default() }.into_object(),
        Kind::StoredSecret => StoredSecret { id: id.into(), ..StoredSecret::default() }.into_object(),
        Kind::StoredConfig => StoredConfig { id: id.into(), ..StoredConfig::default() }.into_object(),
        Kind::User => User { id: id.into(), name: "ada".into(), ..User::default() }.into_object(),
        Kind::Audit => Audit { id: id.into(), actor: "ada".into(), ..Audit::default() }.into_object(),
        Kind::ValueData => {
            ValueData { id: id.into(), bytes: vec![1, 255].into(), ..ValueData::default() }.into_object()
        }
        Kind::Volume => Volume { id: id.into(), is_removed: true, ..Volume::default() }.into_object(),
    }
}

fn apply(store: &Store, index: Version, action: Action) -> Outcome {
    let transaction = Transaction { actions: vec![action], ..Transaction::default() };
    let entry = Entry { at: Timestamp(1), transactions: vec![transaction], ..Entry::default() };
    store.apply(index, entry).pop().expect("one outcome for one transaction")
}

#[test]
fn every_kind_survives_a_snapshot() {
    let store = Store::default();
    for (index, kind) in (1..).zip(Kind::ALL) {
        apply(&store, index, Action::Create(sample(kind, "id"))).expect("it is new");
    }
    let records: Vec<_> = store.view().records().collect();
    let restored = Tables::from_records(records.iter().map(Vec::as_slice)).expect("just written");
    for kind in Kind::ALL {
        let object = store.view().object(kind, "id").cloned();
        assert!(object.is_some(), "{kind}");
        assert_eq!(restored.object(kind, "id").cloned(), object, "{kind}");
    }
    assert_eq!(restored.digest(), store.digest());
}

#[test]
fn every_kind_has_its_events_in_the_history() {
    for kind in Kind::ALL {
        let (store, object) = (Store::default(), sample(kind, "id"));
        let actions = [Action::Create(object.clone()), Action::Update(object), Action::Remove(kind, "id".into())];
        for (index, action) in (1..).zip(actions) {
            apply(&store, index, action).expect("it is possible");
        }
        apply(&store, 4, Action::Remove(kind, "id".into())).expect_err("it is gone");
        let batch = store.events_after(EventCursor::end_of(0)).read(100).expect("all are kept");
        let line = |event: &flota_api::event::ClusterEvent| {
            format!("{} {} {} {} {}", event.cursor, event.at.0, event.kind, event.action, event.id)
        };
        let seen: Vec<_> = batch.events.iter().map(|event| line(event)).collect();
        let expected = [("1.1", "create"), ("2.1", "update"), ("3.1", "remove")];
        assert_eq!(seen, expected.map(|(cursor, action)| format!("{cursor} 1 {kind} {action} id")));
        assert_eq!(batch.through, EventCursor::end_of(4), "a refused transaction has no events");
        store.restore(store.view());
        assert!(store.events_after(EventCursor::end_of(3)).read(100).is_err(), "a snapshot brings none");
    }
}

#[test]
fn every_kind_survives_the_log() {
    for kind in Kind::ALL {
        let (object, id) = (sample(kind, "id"), Id::from("id"));
        let transaction = Transaction {
            expectations: vec![Expectation { kind, id, version: Some(7) }],
            actions: vec![Action::Create(object.clone()), Action::Update(object), Action::Remove(kind, id)],
            ..Transaction::default()
        };
        let entry = Entry { transactions: vec![transaction], ..Entry::default() };
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry), "{kind}");
    }
}

#[test]
fn every_kind_is_created_updated_and_removed_with_an_event_and_a_digest_of_its_own() {
    for kind in Kind::ALL {
        let store = Store::default();
        store.apply(1, Entry { at: Timestamp(1), ..Entry::default() });
        let (_, mut watch) = store.view_and_watch();
        let mut event = || watch.try_next().expect("no lag").expect("an entry was applied")[0].clone();
        let empty = store.digest();

        apply(&store, 2, Action::Create(sample(kind, "id"))).expect("it is new");
        let created = store.view().object(kind, "id").cloned().expect("just created");
        assert!(matches!(event(), Event::Created(object) if object == created), "{kind}");
        let first = store.digest();
        assert_ne!(first, empty, "{kind}");

        apply(&store, 3, Action::Update(created.clone())).expect("it is there");
        let updated = store.view().object(kind, "id").cloned().expect("just updated");
        assert_eq!((updated.meta().created, updated.meta().version), (2, 3), "{kind}");
        assert!(matches!(event(), Event::Updated { old, new } if old == created && new == updated), "{kind}");
        assert!(![empty, first].contains(&store.digest()), "{kind}");

        apply(&store, 4, Action::Remove(kind, "id".into())).expect("it is there");
        assert!(matches!(event(), Event::Removed(object) if object == updated), "{kind}");
        assert_eq!((store.view().object(kind, "id"), store.digest()), (None, empty), "{kind}");
    }
}

#[test]
fn whether_somebody_has_a_view_changes_nothing_but_who_sees_an_entry() {
    let (watched, alone) = (Store::default(), Store::default());
    let mut index = 0;
    for kind in Kind::ALL {
        let second = Transaction { actions: vec![Action::Create(sample(kind, "other"))], ..Transaction::default() };
        let both = |action: Action| {
            let first = Transaction { actions: vec![action], ..Transaction::default() };
            Entry { at: Timestamp(1), transactions: vec![first, second.clone()], ..Entry::default() }
        };
        let actions = [
            Action::Create(sample(kind, "id")),
            Action::Update(sample(kind, "id")),
            Action::Create(sample(kind, "id")),
            Action::Remove(kind, "id".into()),
        ];
        for action in actions {
            index += 1;
            let view = watched.view();
            let (version, objects) = (view.version, view.records().collect::<Vec<_>>());
            assert_eq!(watched.apply(index, both(action.clone())), alone.apply(index, both(action)), "{kind}");
            assert_eq!((view.version, view.records().collect::<Vec<_>>()), (version, objects), "{kind}: a view stays");
            assert_eq!(watched.digest(), alone.digest(), "{kind}");
        }
    }
    let events = |store: &Store| store.events_after(EventCursor::end_of(0)).read(1_000).expect("all are kept").events;
    assert_eq!(events(&watched), events(&alone));
    assert!(watched.view().records().eq(alone.view().records()));
}

#[tokio::test]
async fn a_watch_of_kinds_tells_of_changes_to_these_and_of_nothing_else() {
    for kind in Kind::ALL {
        let store = Store::default();
        let others: Vec<_> = Kind::ALL.into_iter().filter(|other| *other != kind).collect();
        let (mut of_kind, mut of_others) = (store.watch_kinds(&[kind]), store.watch_kinds(&others));
        let actions =
            [Action::Create(sample(kind, "id")), Action::Update(sample(kind, "id")), Action::Remove(kind, "id".into())];
        for (index, action) in (1..).zip(actions) {
            apply(&store, index, action.clone()).expect("it is possible");
            assert!(of_kind.next().now_or_never().is_some(), "{kind}: {action:?}");
            assert!(of_kind.next().now_or_never().is_none(), "{kind}: told once");
            apply(&store, index, Action::Remove(kind, "none".into())).expect_err("there is none");
            assert!(of_kind.next().now_or_never().is_none(), "{kind}: nothing has changed");
        }
        assert!(of_others.next().now_or_never().is_none(), "{kind}");
        store.restore(store.view());
        assert!(of_kind.next().now_or_never().is_some() && of_others.next().now_or_never().is_some(), "{kind}");
    }
}

#[test]
fn no_two_objects_of_a_kind_have_the_same_unique_name() {
    for kind in Kind::ALL {
        let store = Store::default();
        apply(&store, 1, Action::Create(sample(kind, "first"))).expect("it is new");
        let second = sample(kind, "second");
        let expected = match second.names().first() {
            Some(name) => Err(Conflict::NameTaken { kind: kind.to_string(), name: (*name).to_owned() }),
            None => Ok(2),
        };
        assert_eq!(apply(&store, 2, Action::Create(second)), expected, "{kind}");
    }
}

#[test]
fn an_image_is_found_by_each_of_its_names_until_it_loses_the_name() {
    let store = Store::default();
    let image = |id: &str, references: &[&str]| {
        let references = references.iter().map(|it| (*it).to_owned()).collect();
        Image { id: id.into(), references, ..Image::default() }.into_object()
    };
    apply(&store, 1, Action::Create(image("i", &["a", "b"]))).expect("it is new");
    let found = |name: &str| store.view().image_by_reference(name).map(|image| image.id.to_string());
    assert_eq!((found("a"), found("b")), (Some("i".into()), Some("i".into())));
    let taken = apply(&store, 2, Action::Create(image("j", &["c", "b"])));
    assert_eq!(taken, Err(Conflict::NameTaken { kind: "image".into(), name: "b".into() }));
    apply(&store, 3, Action::Update(image("i", &["a"]))).expect("it is there");
    apply(&store, 4, Action::Create(image("j", &["c", "b"]))).expect("the name is free");
    assert_eq!((found("a"), found("b"), found("c")), (Some("i".into()), Some("j".into()), Some("j".into())));
    apply(&store, 5, Action::Remove(Kind::Image, "j".into())).expect("it is there");
    assert_eq!((found("b"), found("c")), (None, None));
}
