//! Tests of requests to managers that refuse, hang, or die in mid-request.

use std::path::Path;
use std::time::{Duration, SystemTime};

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;
use flota_api::proto::control::{CreateServiceRequest, ServiceProgress, TaskRow, Tasks, WatchServiceRequest};
use flota_api::proto::streams::{ExecRequest, LogLine, LogsRequest};
use flota_identity::{Identity, KeyPair, RootCa, Sources, UserIdentity};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::fake::{Act, FakeManager};
use super::*;

/// A short limit for tests that wait until it has passed; long enough for a busy machine.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(30);
/// How long the certificates of a test are valid.
const LIFE: Duration = Duration::from_secs(3_600);

fn client(sockets: &[&Path], bound: Duration, patience: Duration) -> Client {
    let limits = Limits { change: bound, read: bound, patience, pause: Duration::from_millis(1) };
    Client {
        targets: sockets.iter().map(|path| ManagerAddress::Socket(path.to_path_buf())).collect(),
        limits,
        context: None,
    }
}

async fn create(client: &Client) -> Result<String, (u8, String)> {
    let request = CreateServiceRequest { request_id: "the-id".into(), ..CreateServiceRequest::default() };
    let created = client.change(request, |mut control, request| async move { control.create_service(request).await });
    created
        .await
        .map(|created| created.service.unwrap_or_default().id)
        .map_err(|error| (crate::error::code(&error), error.to_string()))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test]
async fn a_create_whose_manager_dies_in_mid_request_goes_to_the_next_with_the_same_id() {
    let folder = folder();
    let dies = FakeManager::start(folder.path(), "dies", [Act::Break]);
    let answers = FakeManager::start(folder.path(), "answers", [Act::Create]);
    let client = client(&[&dies.socket, &answers.socket], LONG, LONG);
    assert_eq!(create(&client).await, Ok("created".into()));
    assert_eq!((dies.seen(), answers.seen()), (vec!["the-id".to_owned()], vec!["the-id".to_owned()]));
}

#[tokio::test]
async fn a_manager_that_hangs_is_left_for_the_next() {
    let folder = folder();
    let hangs = FakeManager::start(folder.path(), "hangs", [Act::Hang]);
    let answers = FakeManager::start(folder.path(), "answers", [Act::Create]);
    let client = client(&[&hangs.socket, &answers.socket], LONG, SHORT);
    assert_eq!(create(&client).await, Ok("created".into()));
}

#[tokio::test]
async fn managers_that_can_not_answer_yet_are_asked_again() {
    let folder = folder();
    let starting = Act::Refuse(Reason::Starting.attach(Status::unavailable("this manager is starting")));
    let alone = FakeManager::start(folder.path(), "alone", [starting.clone(), starting, Act::Break, Act::Create]);
    assert_eq!(create(&client(&[&alone.socket], LONG, LONG)).await, Ok("created".into()));
    assert_eq!(alone.seen(), ["the-id"; 4]);
}

#[tokio::test]
async fn an_answer_about_the_request_is_final() {
    let folder = folder();
    let judges = FakeManager::start(
        folder.path(),
        "judges",
        [Act::Refuse(Reason::AlreadyExists.attach(Status::already_exists("it is there")))],
    );
    let other = FakeManager::start(folder.path(), "other", [Act::Create]);
    let client = client(&[&judges.socket, &other.socket], LONG, LONG);
    assert_eq!(create(&client).await, Err((4, "it is there".into())));
    assert_eq!(other.seen(), [""; 0]);
}

#[tokio::test]
async fn a_workers_answer_is_final_where_no_manager_is_named() {
    let folder = folder();
    let refusal = Act::Refuse(Reason::NotAManager.attach(Status::failed_precondition("this node is not a manager")));
    let worker = FakeManager::start(folder.path(), "worker", [refusal.clone()]);
    let alone = client(&[&worker.socket], LONG, LONG);
    assert_eq!(create(&alone).await, Err((1, "this node is not a manager".into())));
    assert_eq!(worker.seen(), ["the-id"]);
    let slow = Act::Refuse(Status::unavailable("not yet"));
    let manager = FakeManager::start(folder.path(), "manager", [slow, Act::Create]);
    let both = client(&[&worker.socket, &manager.socket], LONG, LONG);
    assert_eq!(create(&both).await, Ok("created".into()));
    assert_eq!(worker.seen().len(), 2, "it is not asked again in the second round");
}

#[tokio::test]
async fn without_a_quorum_it_ends_within_its_bound_with_5_and_what_a_manager_said() {
    let folder = folder();
    let status =
        Reason::NoLeader.attach(Status::unavailable("no leader: fewer than 2 of 3 managers answer each other"));
    let left = FakeManager::start(folder.path(), "left", [Act::Refuse(status)]);
    let gone = folder.path().join("gone.sock");
    drop(tokio::net::UnixListener::bind(&gone).expect("bound"));
    let bounded = client(&[&left.socket, &gone], SHORT, SHORT);
    let (code, text) = tokio::time::timeout(LONG, create(&bounded)).await.expect("bounded").expect_err("no quorum");
    assert_eq!((code, text.as_str()), (5, "no leader: fewer than 2 of 3 managers answer each other"));
    assert!(left.seen().len() > 1, "it is asked again until then");
}

#[tokio::test]
async fn a_request_that_no_manager_answers_ends_within_its_bound_with_5() {
    let folder = folder();
    let hangs = FakeManager::start(folder.path(), "hangs", [Act::Hang]);
    let bounded = client(&[&hangs.socket], SHORT, LONG);
    let refused = tokio::time::timeout(LONG, create(&bounded)).await.expect("bounded").expect_err("no answer");
    assert!(refused.0 == 5 && refused.1.ends_with("does not answer: there may be no quorum"), "{refused:?}");
}

/// Listens as a manager of `cluster`. Keeps what arrives, and answers nothing.
async fn listen(ca: &RootCa, cluster: &ClusterId) -> (String, JoinHandle<()>) {
    let (key, now) = (KeyPair::generate().expect("made"), SystemTime::now());
    let request = key.signing_request().expect("made");
    let signed = ca.sign(&request, &NodeId::from("m"), Role::Manager, cluster, now, LIFE).expect("signed");
    let identity = Identity::new(signed, key.to_der(), vec![ca.certificate().to_vec()]).expect("a node's");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
    let address = listener.local_addr().expect("it is bound").to_string();
    let credentials = flota_identity::Credentials::new(identity, Clock::system()).expect("they belong together");
    let (mut others, raft) = flota_identity::incoming(listener, credentials, None, Sources::default());
    let keep = async move {
        let (mut kept, _raft) = (Vec::new(), raft);
        while let Some(arrived) = others.recv().await {
            kept.push(arrived);
        }
    };
    (address, tokio::spawn(keep))
}

#[tokio::test]
async fn a_user_of_another_cluster_learns_at_once_what_to_do_whichever_end_refuses() {
    let cluster = ClusterId::from("c");
    let [theirs, own] = [(); 2].map(|()| RootCa::generate(&cluster, SystemTime::now()).expect("made"));
    let (address, listener) = listen(&theirs, &cluster).await;
    // With the manager's CA, it is the manager that does not know the user's.
    for trusted in [&own, &theirs] {
        let (key, now) = (KeyPair::generate().expect("made"), SystemTime::now());
        let request = key.signing_request().expect("made");
        let signed = own.sign_user(&request, "ada", &cluster, now, now + LIFE).expect("signed");
        let trusted = vec![trusted.certificate().to_vec()];
        let user = UserIdentity::new(signed, key.to_der(), Vec::new(), trusted).expect("a user's");
        let dialer = Dialer::for_user(&user).expect("they belong together");
        let target = ManagerAddress::Port { address: address.clone(), dialer };
        let client = Client { targets: vec![target], ..client(&[], LONG, LONG) };
        let call = client.change(CreateServiceRequest::default(), |mut control, request| async move {
            control.create_service(request).await
        });
        let error = tokio::time::timeout(LONG / 2, call).await.expect("at once").expect_err("a stranger");
        assert_eq!(crate::error::code(&error), 5, "{error}");
        let hint = error.downcast_ref::<Hinted>().map(|it| it.hint.as_str()).unwrap_or_default();
        assert!(hint.contains("`ctl swarm user renew USER --out FILE`"), "{error}");
    }
    listener.abort();
}

#[tokio::test]
async fn where_no_daemon_is_it_ends_at_once_with_5_and_a_hint() {
    let folder = folder();
    let client = client(&[&folder.path().join("none.sock")], LONG, LONG);
    let request = CreateServiceRequest::default();
    let created = client.change(request, |mut control, request| async move { control.create_service(request).await });
    let error = tokio::time::timeout(LONG / 2, created).await.expect("at once").expect_err("no daemon listens");
    assert_eq!(crate::error::code(&error), 5);
    assert!(error.downcast_ref::<Hinted>().is_some_and(|it| it.hint.starts_with("is flotad running?")), "{error}");
}

#[tokio::test]
async fn a_list_that_breaks_after_a_page_is_read_whole_from_the_next_manager() {
    let folder = folder();
    let page = |size: usize| {
        let row = |name: String| TaskRow { service_name: name, ..TaskRow::default() };
        Tasks { tasks: vec![row("x".repeat(size))], ..Tasks::default() }
    };
    // The first page arrives whole, the second only in part.
    let pages = Act::Pages(vec![page(100), page(60_000)]);
    let breaks = FakeManager::start_limited(folder.path(), "breaks", [pages.clone()], 20_000);
    let answers = FakeManager::start(folder.path(), "answers", [pages]);
    let client = client(&[&breaks.socket, &answers.socket], LONG, LONG);
    let list = client.list(
        ListTasksRequest::default(),
        |mut control, request| async move { control.list_tasks(request).await },
        |whole, page| whole.tasks.extend(page.tasks),
    );
    let sizes: Vec<usize> = list.await.expect("a list").tasks.iter().map(|row| row.service_name.len()).collect();
    assert_eq!(sizes, [100, 60_000]);
    assert_eq!((breaks.seen().len(), answers.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_watch_is_taken_up_with_the_next_manager() {
    let folder = folder();
    let progress = |running| ServiceProgress { running, converged: running == 3, ..ServiceProgress::default() };
    let moved = Reason::LeadershipMoved.attach(Status::unavailable("leadership has moved; try again"));
    let first = FakeManager::start(
        folder.path(),
        "first",
        [Act::Watch(vec![progress(1)], Some(moved.clone())), Act::Refuse(moved)],
    );
    // The first stream ends too early, without a status; the second one reaches the goal.
    let second = FakeManager::start(
        folder.path(),
        "second",
        [Act::Watch(vec![progress(2)], None), Act::Watch(vec![progress(2), progress(3), progress(4)], None)],
    );
    let client = client(&[&first.socket, &second.socket], LONG, LONG);
    let mut seen = Vec::new();
    let watch = client.watch(
        WatchServiceRequest::default(),
        |mut control, request| async move { control.watch_service(request).await },
        |progress| {
            seen.push(progress.running);
            Ok(if progress.converged { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        },
    );
    watch.await.expect("it converges");
    assert_eq!(seen, [1, 2, 2, 3]);
}

#[tokio::test]
async fn a_watch_ends_with_the_error_of_a_manager() {
    let folder = folder();
    let missing = Reason::NotFound.attach(Status::not_found("no image"));
    let judges = FakeManager::start(folder.path(), "judges", [Act::Watch(vec![], Some(missing))]);
    let client = client(&[&judges.socket], LONG, LONG);
    let call = |mut control: ControlClient<Channel>, request| async move { control.watch_service(request).await };
    let watch = client.watch(WatchServiceRequest::default(), call, |_| Ok(ControlFlow::Continue(())));
    assert_eq!(crate::error::code(&watch.await.expect_err("it is gone")), 3);
}

fn log_line(at: u64) -> Frame {
    Frame { frame: Some(F::Log(LogLine { at, ..LogLine::default() })) }
}

#[tokio::test]
async fn logs_are_taken_up_with_the_next_manager() {
    let folder = folder();
    let moved = Reason::LeadershipMoved.attach(Status::unavailable("leadership has moved; try again"));
    let first = FakeManager::start(
        folder.path(),
        "first",
        [Act::Frames(vec![log_line(1)], Some(moved.clone())), Act::Refuse(moved)],
    );
    let second = FakeManager::start(folder.path(), "second", [Act::Frames(vec![log_line(1), log_line(2)], None)]);
    let client = client(&[&first.socket, &second.socket], LONG, LONG);
    let (mut requests, mut seen) = (0, Vec::new());
    let request = || {
        requests += 1;
        F::Logs(LogsRequest::default())
    };
    let each = |frame| {
        if let F::Log(line) = frame {
            seen.push(line.at);
        }
    };
    client.receive(request, each).await.expect("the end of the logs");
    assert_eq!((requests, seen), (2, vec![1, 1, 2]));
}

#[tokio::test]
async fn an_exec_is_opened_with_the_next_manager_but_never_begun_twice() {
    let folder = folder();
    let dies = FakeManager::start(folder.path(), "dies", [Act::Break]);
    let lost = Act::Frames(vec![], Some(Status::unavailable("the node went away")));
    let opens = FakeManager::start(folder.path(), "opens", [lost]);
    let client = client(&[&dies.socket, &opens.socket], LONG, LONG);
    let (_sender, mut answers) = client.stream(F::Exec(ExecRequest::default())).await.expect("it is opened");
    assert_eq!(answers.message().await.expect_err("it is lost").message(), "the node went away");
    assert_eq!(dies.seen(), ["OpenStream"], "the command did not reach the one that died");
    assert_eq!(opens.seen().len(), 2, "one stream, and one first frame");
}
