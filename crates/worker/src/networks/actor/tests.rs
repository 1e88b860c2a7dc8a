//! Tests of the thread's decisions with a kernel in memory.

use std::sync::Arc;

use flota_api::model::{Attachment, Protocol, TunnelKey};
use flota_api::seal::Sealer;

use super::*;
use crate::disk_thread::DiskThread;
use crate::networks::fake_kernel::FakeKernel;
use crate::networks::view::tests::{endpoint, network};

/// A thread's state that the test moves on by hand, and the disk of its record.
struct Bench {
    kernel: FakeKernel,
    actor: Actor<FakeKernel>,
    programmed: watch::Receiver<Version>,
    facts: watch::Receiver<NetworkFacts>,
    disk: Arc<DiskThread>,
    now: Instant,
}

impl Bench {
    fn start(kernel: &FakeKernel, dir: &tempfile::TempDir) -> Self {
        let (confirm, programmed) = watch::channel(0);
        let (inform, facts) = watch::channel(kernel.machine().facts.clone());
        let disk = Arc::new(DiskThread::start().unwrap());
        let record = NetworkRecord::new(dir.path(), Sealer::new(&[7; 32]), Arc::clone(&disk));
        let mut actor = Actor::new(kernel.clone(), record, Told { programmed: confirm, facts: inform });
        actor.handle(Command::Begin, Instant::now());
        Self { actor, kernel: kernel.clone(), programmed, facts, disk, now: Instant::now() }
    }

    fn handle(&mut self, command: Command) {
        self.actor.handle(command, self.now);
        self.actor.turn(self.now);
    }

    /// Lets time pass, and does what is due then.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.actor.turn(self.now);
    }

    fn attach(&mut self, task: &str) -> oneshot::Receiver<Result<Attached, AttachError>> {
        let (sender, receiver) = oneshot::channel();
        self.handle(Command::Attach(task.into(), sender));
        receiver
    }

    fn detach(&mut self, task: &str) {
        let (sender, mut receiver) = oneshot::channel();
        self.handle(Command::Detach(task.into(), sender));
        receiver.try_recv().unwrap().unwrap();
    }

    fn networks(&self) -> Vec<String> {
        self.kernel.networks().into_iter().map(|it| it.to_string()).collect()
    }
}

fn update(version: Version, networks: &[&str]) -> Command {
    let networks = networks.iter().map(|id| network(id)).collect();
    Command::Update(NetworkUpdate { version, full: true, networks, ..NetworkUpdate::default() })
}

fn task(id: &str, network: &str) -> Command {
    let attachments = vec![Attachment { network: network.into(), addresses: vec![[10, 0, 1, 2].into()] }];
    Command::Accept(Box::new(Assignment { task_id: id.into(), attachments, ..Assignment::default() }))
}

#[test]
fn an_update_is_confirmed_when_the_kernel_has_it_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = Bench::start(&kernel, &dir);
    kernel.machine().refuses = true;
    bench.handle(update(5, &["n"]));
    assert!(!bench.programmed.has_changed().unwrap(), "nothing is programmed");
    kernel.machine().refuses = false;
    bench.pass(RETRY / 2);
    assert!(!bench.programmed.has_changed().unwrap(), "it is not tried again at once");
    bench.pass(RETRY);
    let programmed = *bench.programmed.borrow_and_update();
    assert_eq!((programmed, bench.networks()), (5, vec!["n".to_owned()]));
    bench.handle(update(5, &["n"]));
    assert!(bench.programmed.has_changed().unwrap(), "another session waits for the same version");
}

#[test]
fn an_ended_task_is_waited_for_until_it_has_sent_everything_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = Bench::start(&kernel, &dir);
    let flush = |bench: &mut Bench| {
        let (answer, flushed) = oneshot::channel();
        bench.handle(Command::Flush("t".into(), answer));
        flushed
    };
    assert_eq!(flush(&mut bench).try_recv(), Ok(()), "it has no connection");
    kernel.machine().sending.insert("t".into());
    let mut flushed = flush(&mut bench);
    assert!(flushed.try_recv().is_err());
    assert_eq!(bench.actor.wake_at(bench.now), bench.now + FLUSH_PAUSE);
    kernel.machine().sending.clear();
    bench.pass(FLUSH_PAUSE);
    assert_eq!(flushed.try_recv(), Ok(()));
    kernel.machine().sending.insert("t".into());
    let mut flushed = flush(&mut bench);
    bench.pass(FLUSH_WAIT - FLUSH_PAUSE);
    assert!(flushed.try_recv().is_err());
    bench.pass(FLUSH_PAUSE);
    assert_eq!(flushed.try_recv(), Ok(()), "the peer may be gone");
}

#[test]
fn a_network_stays_until_its_last_task_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&FakeKernel::default(), &dir);
    bench.handle(update(1, &["n"]));
    bench.handle(task("t", "n"));
    bench.attach("t").try_recv().unwrap().unwrap();
    bench.handle(update(2, &[]));
    assert_eq!(bench.networks(), ["n"], "a task uses it");
    bench.detach("t");
    assert!(bench.networks().is_empty());
}

#[test]
fn a_task_waits_for_the_description_of_its_networks_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&FakeKernel::default(), &dir);
    bench.handle(task("t", "n"));
    let mut attached = bench.attach("t");
    bench.pass(DESCRIPTION_WAIT / 2);
    assert!(attached.try_recv().is_err(), "it waits");
    bench.handle(update(1, &["n"]));
    attached.try_recv().unwrap().unwrap();
    bench.handle(task("u", "m"));
    let mut attached = bench.attach("u");
    bench.pass(DESCRIPTION_WAIT * 2);
    assert!(matches!(attached.try_recv(), Ok(Err(AttachError::Unknown(id))) if id == "m".into()));
    let mut given_up = bench.attach("u");
    bench.detach("u");
    bench.handle(update(2, &["n", "m"]));
    assert!(given_up.try_recv().is_err() && !bench.kernel.tasks().contains(&"u".into()), "nobody wants it any more");
}

#[test]
fn a_task_without_networks_waits_until_the_networks_of_the_node_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(&FakeKernel::default(), &dir);
    bench.handle(Command::Accept(Box::new(Assignment { task_id: "t".into(), ..Assignment::default() })));
    let mut attached = bench.attach("t");
    assert!(attached.try_recv().is_err(), "it waits");
    bench.handle(update(1, &[]));
    attached.try_recv().unwrap().unwrap();
}

#[test]
fn a_port_on_which_a_program_stays_is_reported_and_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let ports = |numbers: &[u16]| -> BTreeSet<NodePort> {
        numbers.iter().map(|number| NodePort { protocol: Protocol::Tcp, number: *number }).collect()
    };
    kernel.machine().facts.ports = ports(&[22]);
    let mut bench = Bench::start(&kernel, &dir);
    assert_eq!(kernel.machine().left, ports(&[22]), "what listens at the start is known at once");
    bench.handle(update(1, &[]));
    let look = |bench: &mut Bench, listening: &[u16]| {
        kernel.machine().facts.ports = ports(listening);
        bench.pass(LOOK);
        let is_news = bench.facts.has_changed().unwrap();
        let told = bench.facts.borrow_and_update().ports.clone();
        assert_eq!(told, kernel.machine().left);
        (told, is_news)
    };
    assert_eq!(look(&mut bench, &[22, 80]), (ports(&[22]), false), "80 may go at once");
    assert_eq!(look(&mut bench, &[22, 443]), (ports(&[22]), false), "and did");
    assert_eq!(look(&mut bench, &[22, 443]), (ports(&[22, 443]), true));
    assert_eq!(look(&mut bench, &[22, 443]), (ports(&[22, 443]), false), "nothing has changed");
    assert_eq!(look(&mut bench, &[443]), (ports(&[443]), true));
}

#[test]
fn a_daemon_without_a_manager_keeps_what_an_earlier_one_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let mut first = Bench::start(&kernel, &dir);
    let endpoints = vec![endpoint("n", "t", 2, true)];
    let networks = vec![network("n")];
    first.handle(Command::Update(NetworkUpdate { version: 3, full: true, networks, endpoints, ..Default::default() }));
    first.handle(task("t", "n"));
    first.attach("t").try_recv().unwrap().unwrap();
    first.pass(SAVE * 2);
    first.disk.drain();
    let view = first.actor.view.clone();
    kernel.machine().networks.insert("stale".into());
    let mut second = Bench::start(&kernel, &dir);
    assert_eq!(second.actor.view, view);
    second.handle(task("t", "n"));
    second.handle(Command::Adopt("t".into(), Vec::new()));
    assert_eq!((second.networks().len(), kernel.machine().adopted.len()), (2, 0), "the leader is waited for");
    second.pass(RECORD_WAIT);
    assert_eq!((second.networks(), kernel.machine().adopted.len()), (vec!["n".to_owned()], 1));
    assert!(!second.programmed.has_changed().unwrap(), "no session waits for it");
    let audits = kernel.machine().audits;
    second.pass(AUDIT * 2);
    assert_eq!(kernel.machine().audits, audits + 1);
}

#[test]
fn a_daemon_that_starts_takes_nothing_away_that_was_told_after_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let mut first = Bench::start(&kernel, &dir);
    first.handle(update(3, &["n"]));
    first.pass(SAVE * 2);
    first.disk.drain();
    // This daemon is killed before it records the last update.
    first.handle(update(4, &["n", "new"]));
    let mut second = Bench::start(&kernel, &dir);
    second.pass(RECORD_WAIT / 2);
    assert_eq!(second.networks(), ["n", "new"]);
    second.handle(update(4, &["n", "new"]));
    assert_eq!((second.networks(), *second.programmed.borrow()), (vec!["n".to_owned(), "new".to_owned()], 4));
    assert_eq!(kernel.machine().succeeded, Some(3), "what has gone since the record is known");
}

#[test]
fn a_daemon_that_knows_nothing_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    kernel.machine().networks.insert("old".into());
    let mut bench = Bench::start(&kernel, &dir);
    bench.pass(AUDIT * 2);
    assert_eq!((bench.networks(), kernel.machine().audits), (vec!["old".to_owned()], 0));
    bench.handle(update(1, &[]));
    assert!(bench.networks().is_empty(), "the leader has said what there is");
}

#[test]
fn a_task_that_starts_waits_for_one_that_ends_and_not_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = Bench::start(&kernel, &dir);
    bench.handle(update(1, &["n"]));
    for id in ["a", "b", "c"] {
        bench.handle(task(id, "n"));
        bench.attach(id).try_recv().unwrap().unwrap();
    }
    bench.handle(task("new", "n"));
    let mut detached = Vec::new();
    for id in ["a", "b", "c"] {
        let (sender, receiver) = oneshot::channel();
        detached.push(receiver);
        bench.actor.handle(Command::Detach(id.into(), sender), bench.now);
    }
    let (sender, mut nothing_left) = oneshot::channel();
    bench.actor.handle(Command::Detach("new".into(), sender), bench.now);
    nothing_left.try_recv().unwrap().unwrap();
    assert_eq!(kernel.tasks(), ["a", "b", "c"].map(Into::into).into(), "none is removed yet");
    bench.attach("new").try_recv().unwrap().unwrap();
    assert_eq!(kernel.tasks(), ["b", "c", "new"].map(Into::into).into(), "one is removed");
    let mut again = bench.attach("c");
    assert!(again.try_recv().is_err(), "it is removed first");
    bench.pass(Duration::ZERO);
    again.try_recv().unwrap().unwrap();
    assert!(detached.iter_mut().all(|it| matches!(it.try_recv(), Ok(Ok(())))));
    assert_eq!(kernel.tasks(), ["c", "new"].map(Into::into).into());
}

#[test]
fn a_new_key_is_reported_and_takes_the_place_of_the_other_as_soon_as_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::default();
    let key = |byte| TunnelKey { public: [byte; 32], port: 51_820 };
    kernel.machine().facts.tunnel_keys = vec![key(1)];
    let mut bench = Bench::start(&kernel, &dir);
    bench.pass(LOOK);
    assert!(!bench.facts.has_changed().unwrap(), "nothing is new");
    kernel.machine().new_key = Some(key(2));
    bench.pass(LOOK);
    assert_eq!(bench.facts.borrow_and_update().tunnel_keys, [key(1), key(2)]);
    bench.handle(Command::KeyKnown([2; 32]));
    assert_eq!(bench.facts.borrow_and_update().tunnel_keys, [key(2)], "it is said at once");
}
