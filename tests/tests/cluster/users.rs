//! Users: what each role and each prefix sees and changes, at the leader and through a follower, and the records of it.

use flota_api::model::{Audit, Role, UserRole};
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{
    CreateServiceRequest, CreateUserRequest, CreateValueRequest, CreateVolumeRequest, Empty, GetRequest,
    GetValueRequest, ListRequest, ListTasksRequest, ListValuesRequest, RemoveRequest, RenewUserRequest,
    RollbackServiceRequest, UpdateServiceRequest, UserGrant, WatchServiceRequest,
};
use flota_api::proto::specs::mount::Source;
use flota_api::proto::specs::{
    Dependency, FileSystem, Mount, NetworkAttachment, ServiceSpec, ValueKind, ValueSpec, VolumeMount, VolumeSpec,
};
use flota_api::proto::streams::frame::Frame as Content;
use flota_api::proto::streams::{ExecRequest, Frame};
use flota_api::reason::Reason;
use flota_identity::{KeyPair, Peer};
use flota_tests::sim::script::{Script, script, spec};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{another_leads, seen};

const ADDRESS: ([u8; 4], u16) = ([198, 18, 0, 99], 1);

fn csr() -> Vec<u8> {
    KeyPair::generate().and_then(|key| key.signing_request()).unwrap()
}

fn peer(grant: &UserGrant) -> Peer {
    let user = grant.user.as_ref().unwrap();
    Peer::User { name: user.name.clone(), key: user.certificates.last().unwrap().key.clone(), address: ADDRESS.into() }
}

/// Adds a user through this manager.
fn add(it: &mut Script, manager: usize, name: &str, role: UserRole, prefixes: &[&str]) -> Peer {
    let request = CreateUserRequest {
        request_id: format!("add {name}"),
        name: name.into(),
        role: role.to_wire(),
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
        csr_der: csr().into(),
        life_ms: None,
    };
    let grant = it.request(manager, |mut control| async move { control.create_user(request).await });
    peer(&grant.unwrap().into_inner())
}

fn remove(it: &mut Script, name: &str) {
    let request = RemoveRequest { request_id: format!("rm {name}"), name: name.into(), force: false };
    let leader = it.leader();
    it.request(leader, |mut control| async move { control.remove_user(request).await }).unwrap();
}

fn ask<T: Send + 'static, F: Future<Output = Result<T, Status>> + Send + 'static>(
    it: &mut Script,
    who: &Peer,
    manager: usize,
    call: impl FnOnce(ControlClient<Channel>) -> F + Send + 'static,
) -> Result<T, Status> {
    it.request_as(who.clone(), manager, |channel| call(ControlClient::new(channel)))
}

fn create(it: &mut Script, who: &Peer, manager: usize, id: &str, spec: ServiceSpec) -> Result<(), Status> {
    let request = CreateServiceRequest { request_id: id.into(), spec: Some(spec), ..CreateServiceRequest::default() };
    ask(it, who, manager, |mut control| async move { control.create_service(request).await.map(drop) })
}

/// Names of the services that the caller sees.
fn services(it: &mut Script, who: &Peer, manager: usize, stale: bool) -> Result<Vec<String>, Status> {
    ask(it, who, manager, move |mut control| async move {
        let mut request = Request::new(ListRequest { stale, ..ListRequest::default() });
        if stale {
            request.metadata_mut().insert(flota_manager::forward::STALE, MetadataValue::from_static("1"));
        }
        let mut pages = control.list_services(request).await?.into_inner();
        let mut names = Vec::new();
        while let Some(page) = pages.message().await? {
            let services = page.services.into_iter().filter_map(|row| row.service?.spec);
            names.extend(services.map(|spec| spec.name));
        }
        names.sort();
        Ok(names)
    })
}

fn why(refused: Result<impl Sized, Status>) -> (Code, Option<Reason>) {
    let status = refused.err().expect("it is refused");
    (status.code(), Reason::of(&status))
}

const NONE: [&str; 0] = [];
const DENIED: (Code, Option<Reason>) = (Code::PermissionDenied, Some(Reason::Denied));

#[test]
fn a_users_role_counts_at_the_leader_and_through_a_follower() {
    script(1, |it| {
        let (leader, follower) = (it.leader(), (it.leader() + 1) % 3);
        let viewer = add(it, follower, "vera", UserRole::Viewer, &[]);
        let operator = add(it, leader, "otto", UserRole::Operator, &[]);
        let admin = add(it, leader, "ada", UserRole::Admin, &[]);
        for manager in [leader, follower] {
            let name = format!("web{manager}");
            assert_eq!(why(create(it, &viewer, manager, &format!("a{manager}"), spec(&name, 1))), DENIED);
            create(it, &operator, manager, &format!("b{manager}"), spec(&name, 1)).unwrap();
            assert!(services(it, &viewer, manager, false).unwrap().contains(&name));
            let token = |it: &mut Script, who: &Peer| {
                let info = ask(it, who, manager, |mut control| async move { control.get_cluster(Empty {}).await });
                info.unwrap().into_inner().worker_token
            };
            assert_eq!((token(it, &viewer), token(it, &operator)), (String::new(), String::new()));
            assert!(token(it, &admin).starts_with("FLOTA"), "an admin sees the tokens");
            let request = GetRequest { name: "w1".into() };
            let row = |request: GetRequest| {
                move |mut control: ControlClient<Channel>| async move { control.get_node(request).await }
            };
            let of = |it: &mut Script, who: &Peer| {
                ask(it, who, manager, row(request.clone())).unwrap().into_inner().node.unwrap()
            };
            assert!(of(it, &viewer).address.is_empty() && !of(it, &operator).address.is_empty());
            assert_eq!(of(it, &viewer).description.unwrap().hostname, "w1");
            let exec =
                Frame { frame: Some(Content::Exec(ExecRequest { task: name.clone(), ..ExecRequest::default() })) };
            let opened = ask(it, &viewer, manager, |mut control| async move {
                let mut frames = control.open_stream(tokio_stream::iter([exec])).await?.into_inner();
                frames.message().await
            });
            assert_eq!(why(opened), DENIED, "a viewer runs nothing");
            let secrets = ListValuesRequest { kind: ValueKind::Secret.into(), ..ListValuesRequest::default() };
            let listed = ask(it, &viewer, manager, |mut control| async move { control.list_values(secrets).await });
            assert_eq!(why(listed), DENIED, "a viewer sees no secret");
            let again = CreateUserRequest { name: "eve".into(), csr_der: csr().into(), ..CreateUserRequest::default() };
            let added = ask(it, &operator, manager, |mut control| async move { control.create_user(again).await });
            assert_eq!(why(added), DENIED);
        }
    });
}

#[test]
fn a_removed_user_is_refused_within_a_second_at_every_manager_and_a_new_one_of_its_name_is_another() {
    script(1, |it| {
        let leader = it.leader();
        let ada = add(it, leader, "ada", UserRole::Operator, &[]);
        it.pass(500);
        for manager in 0..3 {
            assert_eq!(services(it, &ada, manager, true).unwrap(), NONE, "also from what a manager knows by itself");
        }
        remove(it, "ada");
        it.pass(900);
        for manager in 0..3 {
            for stale in [false, true] {
                let refused = services(it, &ada, manager, stale).expect_err("it was removed");
                assert!(refused.message().contains("the cluster has no user `ada`"), "{refused}");
            }
        }
        let request = CreateUserRequest {
            request_id: "add again".into(),
            name: "ada".into(),
            csr_der: csr().into(),
            ..CreateUserRequest::default()
        };
        let again = it.request(leader, |mut control| async move { control.create_user(request).await });
        let again = peer(&again.unwrap().into_inner());
        assert_eq!(why(services(it, &ada, leader, false)), DENIED, "with the certificate of before");
        assert_eq!(services(it, &again, leader, false).unwrap(), NONE);
    });
}

#[test]
fn nobody_but_a_manager_says_for_whom_a_request_is() {
    script(1, |it| {
        let (leader, follower) = (it.leader(), (it.leader() + 1) % 3);
        let Peer::User { name, key, address } = add(it, leader, "ada", UserRole::Admin, &[]) else { panic!("a user") };
        let viewer = add(it, leader, "vera", UserRole::Viewer, &[]);
        let worker = it.cluster().workers[0].node_id.clone();
        let worker = Peer::Node { id: worker, role: Role::Worker, address, key: String::new() };
        for forger in [viewer, worker] {
            for manager in [leader, follower] {
                let text = format!("user/{name}/{key}");
                let forged = ask(it, &forger, manager, move |mut control| async move {
                    let mut request = Request::new(RemoveRequest { name: "vera".into(), ..RemoveRequest::default() });
                    request.metadata_mut().insert("flota-forwarded", MetadataValue::from_static("1"));
                    request.metadata_mut().insert("flota-caller", text.parse().unwrap());
                    control.remove_user(request).await
                });
                assert_eq!(why(forged), DENIED);
            }
        }
    });
}

#[test]
fn a_leader_that_leads_no_more_refuses_no_user_whom_it_does_not_know_yet() {
    script(1, |it| {
        let old = it.leader();
        let hosts: Vec<_> = (0..3).map(|number| it.cluster().managers[number].host).collect();
        for other in (0..3).filter(|number| *number != old) {
            it.cluster().world.network.block(hosts[other], hosts[old]);
            it.cluster().world.network.block(hosts[old], hosts[other]);
        }
        it.wait("another manager leads", 2_000, another_leads(old));
        let new = it.leader();
        let ada = add(it, new, "ada", UserRole::Operator, &[]);
        // At once: it still thinks that it leads.
        let code = services(it, &ada, old, false).err().map(|status| status.code());
        assert_eq!(code, Some(Code::Unavailable));
        it.cluster().world.network.heal_all();
        it.converge();
        assert!(services(it, &ada, old, true).is_ok());
    });
}

#[test]
fn a_limited_user_finds_nothing_of_others_and_can_not_tell_that_it_is_there() {
    script(1, |it| {
        let (leader, root) = (it.leader(), Peer::Local);
        let ada = add(it, leader, "ada", UserRole::Operator, &["a-"]);
        for name in ["a-web", "b-web"] {
            create(it, &root, leader, name, spec(name, 1)).unwrap();
        }
        it.converge();
        assert_eq!(services(it, &ada, leader, false).unwrap(), ["a-web"]);
        let ids: Vec<_> =
            it.cluster().view().unwrap().services().map(|it| (it.spec.name.clone(), it.id.to_string())).collect();
        let id = |name: &str| ids.iter().find(|(known, _)| known == name).unwrap().1.clone();
        let tasks = ask(it, &ada, leader, |mut control| async move {
            control.list_tasks(ListTasksRequest::default()).await?.into_inner().message().await
        });
        let tasks = tasks.unwrap().unwrap().tasks;
        assert_eq!(tasks.iter().map(|row| row.service_name.as_str()).collect::<Vec<_>>(), ["a-web"]);

        // Each answer about what is there is the one about what is not, but for the reference that it repeats.
        let foreign = id("b-web");
        let absent = "b-none".to_owned();
        let short = foreign[..8].to_owned();
        let answers = |it: &mut Script, name: &str| {
            let named = || GetRequest { name: name.to_owned() };
            let (get, history, watch) = (named(), named(), WatchServiceRequest { service: name.to_owned() });
            let removal = RemoveRequest { request_id: format!("rm {name}"), name: name.to_owned(), force: false };
            let update = UpdateServiceRequest {
                service: name.to_owned(),
                spec: Some(spec("a-web", 1)),
                ..UpdateServiceRequest::default()
            };
            let task = GetRequest { name: format!("{name}.1") };
            let answers = [
                ask(it, &ada, leader, |mut control| async move { control.get_service(get).await.map(drop) }),
                ask(
                    it,
                    &ada,
                    leader,
                    |mut control| async move { control.get_service_history(history).await.map(drop) },
                ),
                ask(it, &ada, leader, |mut control| async move { control.watch_service(watch).await.map(drop) }),
                ask(it, &ada, leader, |mut control| async move { control.remove_service(removal).await.map(drop) }),
                ask(it, &ada, leader, |mut control| async move { control.update_service(update).await.map(drop) }),
                ask(it, &ada, leader, |mut control| async move { control.get_task(task).await.map(drop) }),
            ];
            answers.map(|answer| {
                let status = answer.expect_err("it is not found");
                (status.code(), Reason::of(&status), status.message().replace(name, "NAME"))
            })
        };
        let nothing = answers(it, &absent);
        assert!(nothing.iter().all(|(code, ..)| *code == Code::NotFound), "{nothing:?}");
        for there in ["b-web", &foreign, &short] {
            assert_eq!(answers(it, there), nothing, "{there}");
        }
        assert_eq!(it.cluster().view().unwrap().services().count(), 2, "and nothing has changed");
    });
}

#[test]
fn a_limited_user_makes_only_what_has_its_names_and_names_nothing_of_others() {
    script(1, |it| {
        let (leader, root) = (it.leader(), Peer::Local);
        let ada = add(it, leader, "ada", UserRole::Operator, &["a-"]);
        let secret = |name: &str| CreateValueRequest {
            request_id: format!("secret {name}"),
            kind: ValueKind::Secret.into(),
            spec: Some(ValueSpec { name: name.into(), ..ValueSpec::default() }),
            bytes: b"hunter2".to_vec().into(),
        };
        let (own, foreign, refused) = (secret("a-key"), secret("b-key"), secret("b-other"));
        ask(it, &ada, leader, |mut control| async move { control.create_value(own).await }).unwrap();
        ask(it, &root, leader, |mut control| async move { control.create_value(foreign).await }).unwrap();
        let made = ask(it, &ada, leader, |mut control| async move { control.create_value(refused).await });
        assert_eq!(why(made), (Code::InvalidArgument, Some(Reason::Invalid)));
        let uses = |name: &str, secret: &str| {
            let mut spec = spec(name, 1);
            spec.secrets = vec![flota_api::proto::specs::ValueUse { source: secret.into(), ..Default::default() }];
            spec
        };
        create(it, &ada, leader, "1", uses("a-web", "a-key")).unwrap();
        let depends = |on: &str| {
            let depends_on = vec![Dependency { service: on.into(), ..Dependency::default() }];
            ServiceSpec { depends_on, ..spec("a-dep", 1) }
        };
        let joins = |network: &str| {
            let networks = vec![NetworkAttachment { network: network.into(), ..NetworkAttachment::default() }];
            ServiceSpec { networks, ..spec("a-net", 1) }
        };
        let mounts = |file_system: FileSystem| {
            let volume =
                VolumeMount { name: "a-data".into(), file_system: Some(file_system), ..VolumeMount::default() };
            let mount = Mount { target: "/a".into(), read_only: false, source: Some(Source::Volume(volume)) };
            ServiceSpec { mounts: vec![mount], ..spec("a-disk", 1) }
        };
        let volume = |id: &str, name: &str, r#type: &str, device: &str| CreateVolumeRequest {
            request_id: id.into(),
            spec: Some(VolumeSpec {
                name: name.into(),
                file_system: Some(FileSystem { r#type: r#type.into(), device: device.into(), options: vec![] }),
                ..VolumeSpec::default()
            }),
        };
        let disk = volume("disk", "a-disk", "ext4", "/dev/sdb1");
        let own = disk.clone();
        let made = ask(it, &ada, leader, |mut control| async move { control.create_volume(own).await });
        assert_eq!(why(made), (Code::InvalidArgument, Some(Reason::Invalid)));
        let memory = volume("memory", "a-memory", "tmpfs", "tmpfs");
        ask(it, &ada, leader, |mut control| async move { control.create_volume(memory).await }).unwrap();
        let given = CreateVolumeRequest { request_id: "given".into(), ..disk };
        ask(it, &root, leader, |mut control| async move { control.create_volume(given).await }).unwrap();
        let used = VolumeMount { name: "a-disk".into(), ..VolumeMount::default() };
        let mount = Mount { target: "/a".into(), read_only: false, source: Some(Source::Volume(used)) };
        create(it, &ada, leader, "9", ServiceSpec { mounts: vec![mount], ..spec("a-given", 1) }).unwrap();
        for (id, spec) in [
            ("2", spec("b-web", 1)),
            ("3", uses("a-two", "b-key")),
            ("4", uses("a-two", "b-none")),
            ("5", depends("b-web")),
            ("6", ServiceSpec { privileged: true, ..spec("a-root", 1) }),
            ("8", mounts(FileSystem { r#type: "bind".into(), device: "/srv".into(), options: vec![] })),
        ] {
            assert_eq!(why(create(it, &ada, leader, id, spec)), (Code::InvalidArgument, Some(Reason::Invalid)), "{id}");
        }
        assert_eq!(
            why(create(it, &ada, leader, "7", joins("host"))).0,
            Code::NotFound,
            "the host's network is not for it"
        );
        let read = GetValueRequest { kind: ValueKind::Secret.into(), name: "b-key".into() };
        assert_eq!(
            why(ask(it, &ada, leader, |mut control| async move { control.get_value(read).await })).0,
            Code::NotFound
        );
        let images = ListRequest::default();
        assert_eq!(why(ask(it, &ada, leader, |mut control| async move { control.list_images(images).await })), DENIED);
    });
}

#[test]
fn a_limited_user_gets_nothing_back_that_it_may_not_ask_for() {
    script(1, |it| {
        let leader = it.leader();
        let ada = add(it, leader, "ada", UserRole::Operator, &["a-"]);
        create(it, &Peer::Local, leader, "1", ServiceSpec { priority: 7, ..spec("a-web", 1) }).unwrap();
        let hardened = UpdateServiceRequest {
            request_id: "2".into(),
            service: "a-web".into(),
            spec: Some(ServiceSpec { env: vec!["A=1".into()], ..spec("a-web", 1) }),
            ..UpdateServiceRequest::default()
        };
        ask(it, &Peer::Local, leader, |mut control| async move { control.update_service(hardened).await }).unwrap();
        it.converge();
        let back = |id: &str| RollbackServiceRequest {
            request_id: id.into(),
            service: "a-web".into(),
            ..RollbackServiceRequest::default()
        };
        let (refused, allowed) = (back("3"), back("4"));
        let refused = ask(it, &ada, leader, |mut control| async move { control.rollback_service(refused).await });
        assert_eq!(why(refused), (Code::InvalidArgument, Some(Reason::Invalid)));
        ask(it, &Peer::Local, leader, |mut control| async move { control.rollback_service(allowed).await }).unwrap();
    });
}

#[test]
fn the_id_of_one_users_request_gets_nobody_the_answer_of_another() {
    script(1, |it| {
        let leader = it.leader();
        let (ada, bob) =
            (add(it, leader, "ada", UserRole::Operator, &["a-"]), add(it, leader, "bob", UserRole::Operator, &[]));
        create(it, &ada, leader, "same", spec("a-web", 0)).unwrap();
        create(it, &bob, leader, "same", spec("b-web", 0)).unwrap();
        create(it, &Peer::Local, leader, "same", spec("c-web", 0)).unwrap();
        create(it, &ada, leader, "same", spec("a-web", 0)).expect("a retry");
        assert_eq!(services(it, &bob, leader, false).unwrap(), ["a-web", "b-web", "c-web"]);
        // The id of a request that was carried out, with a reference to what the user does not see.
        let changed = UpdateServiceRequest {
            request_id: "upd".into(),
            service: "a-web".into(),
            spec: Some(spec("a-web", 1)),
            ..UpdateServiceRequest::default()
        };
        let other = UpdateServiceRequest { service: "b-web".into(), ..changed.clone() };
        ask(it, &ada, leader, |mut control| async move { control.update_service(changed).await }).unwrap();
        assert_eq!(
            why(ask(it, &ada, leader, |mut control| async move { control.update_service(other).await })).0,
            Code::NotFound
        );
    });
}

#[test]
fn a_user_renews_its_own_certificate_and_an_admin_that_of_a_user_whose_key_was_stolen() {
    script(1, |it| {
        let leader = it.leader();
        let ada = add(it, leader, "ada", UserRole::Viewer, &[]);
        let bob = add(it, leader, "bob", UserRole::Viewer, &[]);
        let renew = |it: &mut Script, who: &Peer, name: &str| {
            let request = RenewUserRequest { name: name.into(), csr_der: csr().into(), ..RenewUserRequest::default() };
            ask(it, who, leader, |mut control| async move { control.renew_user(request).await })
                .map(|it| peer(&it.into_inner()))
        };
        let limited = add(it, leader, "lim", UserRole::Operator, &["a-"]);
        let again = renew(it, &limited, "").unwrap();
        assert_eq!(services(it, &again, leader, false).unwrap(), NONE, "one that is limited renews its own, too");
        let next = renew(it, &ada, "").unwrap();
        assert_eq!(services(it, &next, leader, false).unwrap(), NONE);
        assert_eq!(services(it, &ada, leader, false).unwrap(), NONE, "the present one is good until it expires");
        assert_eq!(why(renew(it, &bob, "ada")).0, Code::NotFound);
        // Neither more life than an admin has given, nor one after the other; and the one that was shown stays good.
        let longer =
            RenewUserRequest { csr_der: csr().into(), life_ms: Some(400 * 86_400_000), ..RenewUserRequest::default() };
        let longer = ask(it, &ada, leader, |mut control| async move { control.renew_user(longer).await });
        assert_eq!(why(longer), (Code::InvalidArgument, Some(Reason::Invalid)));
        assert_eq!(why(renew(it, &ada, "")).1, Some(Reason::WrongState));
        it.pass(61_000);
        let last = renew(it, &ada, "").unwrap();
        assert_eq!(services(it, &ada, leader, false).unwrap(), NONE);
        assert_eq!(why(services(it, &next, leader, false)), DENIED, "nobody has used it");
        let safe = renew(it, &Peer::Local, "ada").unwrap();
        for stolen in [&ada, &last] {
            assert_eq!(why(services(it, stolen, leader, false)), DENIED);
        }
        assert_eq!(services(it, &safe, leader, false).unwrap(), NONE);
    });
}

#[test]
fn the_record_of_a_change_comes_with_the_change_and_outlives_the_leader() {
    script(1, |it| {
        let (leader, follower) = (it.leader(), (it.leader() + 1) % 3);
        let ada = add(it, leader, "ada", UserRole::Operator, &[]);
        let mut web = spec("web", 0);
        web.env = vec!["PASSWORD=hunter2".into()];
        create(it, &ada, follower, "1", web).unwrap();
        assert!(create(it, &ada, follower, "2", spec("web", 0)).is_err(), "a refused request leaves no record");
        create(it, &Peer::Local, follower, "3", spec("db", 0)).unwrap();
        let records = |it: &mut Script| {
            let view = it.cluster().view().unwrap();
            let record = |it: &std::sync::Arc<Audit>| {
                let objects = it.objects.iter().map(|it| format!("{} {} {}", it.change, it.kind, it.name));
                format!("{} {}: {}", it.actor, it.request, objects.collect::<Vec<_>>().join(", "))
            };
            view.all::<Audit>().map(record).collect::<Vec<_>>()
        };
        let before = records(it);
        let (root, other) = (format!("root@m{}", leader + 1), format!("root@m{}", follower + 1));
        let expected = [
            format!("{root} CreateUser: create user ada"),
            "ada CreateService: create service web".into(),
            format!("{other} CreateService: create service db"),
        ];
        assert_eq!(before, expected);
        assert!(!format!("{before:?}").contains("hunter2"));
        it.cluster().crash_manager(leader, false);
        it.wait("another manager leads", 5_000, another_leads(leader));
        assert_eq!(records(it), expected);
        it.cluster().start_manager(leader);
        it.wait("it has caught up", 20_000, move |cluster| {
            let view = cluster.managers[leader].manager().map(|it| it.store().view()).ok_or("it is down")?;
            seen(view.all::<Audit>().count() == 3, view.all::<Audit>().count())
        });
        let events = |it: &mut Script, who: &Peer| {
            let filter = flota_api::proto::control::Filter { key: "type".into(), value: "audit".into() };
            let request = flota_api::proto::control::WatchEventsRequest {
                filters: vec![filter],
                since: Some(flota_api::event::EventCursor::default().into()),
                until_now: true,
                ..Default::default()
            };
            let leader = it.leader();
            ask(it, who, leader, |mut control| async move {
                let mut messages = control.watch_events(request).await?.into_inner();
                let mut lines = Vec::new();
                while let Some(message) = messages.message().await? {
                    let actor = |it: &flota_api::proto::control::Event| it.attributes[0].value.clone();
                    lines.extend(message.events.iter().map(|it| format!("{} {} {}", it.kind, it.name, actor(it))));
                    if message.last {
                        return Ok(lines);
                    }
                }
                Err(Status::aborted("the stream ended early"))
            })
        };
        let told = events(it, &Peer::Local).unwrap();
        assert_eq!(
            told,
            [
                format!("audit CreateUser {root}"),
                "audit CreateService ada".into(),
                format!("audit CreateService {other}")
            ]
        );
        assert_eq!(events(it, &ada).unwrap(), NONE, "an operator does not read who has done what");
    });
}
