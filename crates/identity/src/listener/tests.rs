//! Real connections over loopback: who gets through the door, and to which receiver.

use std::time::{Duration, SystemTime};

use flota_api::clock::Clock;
use flota_api::id::{ClusterId, NodeId};
use flota_api::version::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::certificate::{MANAGER_NAME, NODE_NAME};
use crate::{Dialer, Identity, KeyPair, RootCa, UserIdentity};

const LIFE: Duration = Duration::from_secs(3_600);

fn credentials(identity: Identity) -> Credentials {
    Credentials::new(identity, Clock::system()).expect("they belong together")
}

struct Cluster {
    ca: RootCa,
    id: ClusterId,
}

impl Cluster {
    fn new() -> Self {
        let id = ClusterId::from("c");
        let ca = RootCa::generate(&id, SystemTime::now()).expect("made");
        Self { ca, id }
    }

    fn identity(&self, node: &str, role: Role) -> Identity {
        self.identity_of(&self.id, node, role, SystemTime::now())
    }

    /// Issues a certificate as a leader whose clock shows `now` does. It is valid for an hour.
    fn identity_of(&self, cluster: &ClusterId, node: &str, role: Role, now: SystemTime) -> Identity {
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let signed = self.ca.sign(&request, &NodeId::from(node), role, cluster, now, LIFE).expect("signed");
        Identity::new(signed, key.to_der(), vec![self.ca.certificate().to_vec()]).expect("a node's")
    }

    fn dialer(&self, node: &str, role: Role) -> Dialer {
        Dialer::new(credentials(self.identity(node, role)))
    }

    fn user(&self, name: &str) -> Dialer {
        let (key, now) = (KeyPair::generate().expect("made"), SystemTime::now());
        let request = key.signing_request().expect("made");
        let signed = self.ca.sign_user(&request, name, &self.id, now, now + LIFE).expect("signed");
        let trusted = vec![self.ca.certificate().to_vec()];
        let user = UserIdentity::new(signed, key.to_der(), Vec::new(), trusted).expect("a user's");
        Dialer::for_user(&user).expect("they belong together")
    }

    fn stranger(&self) -> Dialer {
        Dialer::to_join(&self.ca.digest())
    }
}

/// A manager's listener whose Raft connections run on a runtime of their own.
struct Listener {
    address: String,
    credentials: Credentials,
    others: Incoming,
    raft: Incoming,
    runtime: tokio::runtime::Runtime,
}

impl Listener {
    async fn start(cluster: &Cluster) -> Self {
        Self::start_with(credentials(cluster.identity("m", Role::Manager))).await
    }

    async fn start_with(credentials: Credentials) -> Self {
        Self::start_counting(credentials, Sources::default()).await
    }

    async fn start_counting(credentials: Credentials, sources: Sources) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let address = listener.local_addr().expect("it is bound").to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("made");
        let raft = Some(runtime.handle().clone());
        let (others, raft) = incoming(listener, credentials.clone(), raft, sources);
        Self { address, credentials, others, raft, runtime }
    }

    fn end(self) {
        self.runtime.shutdown_background();
    }
}

/// Sends a byte and returns whether one comes back. With TLS 1.3 a client learns only then that it was refused.
async fn is_answered(mut stream: Box<dyn crate::Stream>) -> bool {
    let answered = async { stream.write_all(b"x").await.is_ok() && stream.read_u8().await.is_ok() };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("the listener refuses it or answers")
}

async fn echo(mut stream: PeerStream) {
    let byte = stream.read_u8().await.expect("the client sends one");
    stream.write_u8(byte).await.expect("the client waits");
    stream.flush().await.expect("the client waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managers_raft_connection_runs_on_rafts_runtime() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let client = cluster.dialer("other", Role::Manager).connect(&listener.address, RAFT_NAME).await.expect("welcome");
    let stream = listener.raft.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(&stream.peer, Peer::Node { id, role: Role::Manager, .. } if id.as_str() == "other"));
    let served = listener.runtime.spawn(echo(stream));
    assert!(is_answered(client).await);
    served.await.expect("it does not panic");
    assert!(listener.others.try_recv().is_err(), "it arrives once");
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_loses_rights_loses_what_it_has_open_on_either_runtime() {
    let (cluster, sources) = (Cluster::new(), Sources::default());
    let manager = credentials(cluster.identity("m", Role::Manager));
    let mut listener = Listener::start_counting(manager, sources.clone()).await;
    let dialer = cluster.dialer("other", Role::Manager);
    let _raft = dialer.connect(&listener.address, RAFT_NAME).await.expect("welcome");
    let mut raft = listener.raft.recv().await.expect("it arrives").expect("it is whole");
    let _session = dialer.connect(&listener.address, NODE_NAME).await.expect("welcome");
    let mut session = listener.others.recv().await.expect("it arrives").expect("it is whole");
    let (sent, waits) = tokio::sync::oneshot::channel();
    let reads = listener.runtime.spawn(async move {
        sent.send(()).expect("it is waited for");
        raft.read_u8().await.map_err(|error| error.kind())
    });
    waits.await.expect("it reads");
    sources.end(&"other".into());
    assert_eq!(reads.await.expect("it does not panic"), Err(std::io::ErrorKind::ConnectionAborted));
    assert_eq!(session.read_u8().await.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionAborted));
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_a_manager_reaches_rafts_runtime() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let other = Cluster::new();
    for dialer in [cluster.stranger(), cluster.dialer("w", Role::Worker), other.dialer("m", Role::Manager)] {
        if let Ok(stream) = dialer.connect(&listener.address, RAFT_NAME).await {
            assert!(!is_answered(stream).await);
        }
    }
    assert!(listener.raft.try_recv().is_err() && listener.others.try_recv().is_err());
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_certificate_are_bounded_and_nodes_come_through() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let (mut clients, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..128 {
        clients.push(cluster.stranger().connect(&listener.address, MANAGER_NAME).await.expect("there is room"));
        accepted.push(listener.others.recv().await.expect("it arrives").expect("it is whole"));
    }
    assert!(accepted.iter().all(|stream| matches!(stream.peer, Peer::Anonymous { .. })));
    if let Ok(stream) = cluster.stranger().connect(&listener.address, MANAGER_NAME).await {
        assert!(!is_answered(stream).await, "one too many");
    }
    let _node = cluster.dialer("w", Role::Worker).connect(&listener.address, NODE_NAME).await.expect("welcome");
    let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(&stream.peer, Peer::Node { id, .. } if id.as_str() == "w"), "{:?}", stream.peer);
    accepted.pop();
    let _stranger = cluster.stranger().connect(&listener.address, MANAGER_NAME).await.expect("there is room again");
    let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(stream.peer, Peer::Anonymous { .. }));
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_that_send_nothing_give_way_to_others() {
    // Of the machine's other tests, none needs that many at once.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("it is known");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a process may take what it may have");
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let server = listener.address.parse().expect("it has an address");
    let mut silent = Vec::new();
    for host in 2..32 {
        for _ in 0..100 {
            let socket = tokio::net::TcpSocket::new_v4().expect("there are descriptors");
            socket.bind(([127, 0, 0, host], 0).into()).expect("an address of loopback");
            silent.push(socket.connect(server).await.expect("it listens"));
        }
        let name = format!("w{host}");
        let _node = cluster.dialer(&name, Role::Worker).connect(&listener.address, NODE_NAME).await.expect("welcome");
        let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
        assert!(matches!(&stream.peer, Peer::Node { id, .. } if id.as_str() == name), "{:?}", stream.peer);
    }
    let oldest = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, silent[0].read_u8()).await;
    assert!(oldest.expect("it does not have its whole time").is_err(), "it has given way");
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_node_are_bounded_and_other_nodes_come_through() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let (dialer, mut open) = (cluster.dialer("w", Role::Worker), Vec::new());
    for _ in 0..128 {
        let client = dialer.connect(&listener.address, NODE_NAME).await.expect("there is room");
        open.push((client, listener.others.recv().await.expect("it arrives").expect("it is whole")));
    }
    if let Ok(stream) = dialer.connect(&listener.address, NODE_NAME).await {
        assert!(!is_answered(stream).await, "one too many");
    }
    let _other = cluster.dialer("v", Role::Worker).connect(&listener.address, NODE_NAME).await.expect("welcome");
    let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(&stream.peer, Peer::Node { id, .. } if id.as_str() == "v"), "{:?}", stream.peer);
    open.pop();
    let _again = dialer.connect(&listener.address, NODE_NAME).await.expect("there is room again");
    listener.others.recv().await.expect("it arrives").expect("it is whole");
    listener.end();
}

/// A ClientHello that offers TLS 1.2 and nothing newer (RFC 5246, 7.4.1.2): one cipher suite, and the extensions that a
/// server of that time needs.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut extensions = Vec::new();
    // supported_groups: secp256r1; ec_point_formats: uncompressed; signature_algorithms: ecdsa_secp256r1_sha256.
    extensions.extend([0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).expect("it is short").to_be_bytes());
    body.extend(extensions);
    let length = |bytes: usize| u16::try_from(bytes).expect("it is short").to_be_bytes();
    let mut handshake = vec![1, 0];
    handshake.extend(length(body.len()));
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(length(handshake.len()));
    record.extend(handshake);
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_refused() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let mut stream = TcpStream::connect(&listener.address).await.expect("it listens");
    stream.write_all(&hello_of_tls_1_2()).await.expect("it is taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the connection is closed");
    // A fatal alert (21, level 2): protocol_version (RFC 8446, 6.2).
    assert_eq!((answer.first(), answer.get(5..)), (Some(&21), Some(&[2, 70][..])), "{answer:?}");
    assert!(listener.others.try_recv().is_err() && listener.raft.try_recv().is_err());
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_or_has_a_certificate_that_was_changed_gets_nowhere() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    for text in ["GET / HTTP/1.1\r\nHost: m1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\0"] {
        let mut stream = TcpStream::connect(&listener.address).await.expect("it listens");
        stream.write_all(text.as_bytes()).await.expect("it is taken");
        let mut answer = Vec::new();
        let end = tokio::time::timeout(HANDSHAKE_TIMEOUT * 2, stream.read_to_end(&mut answer)).await;
        // A connection that is closed with unread bytes is reset.
        end.expect("the connection is closed").unwrap_or_default();
        assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "no more than an alert: {answer:?}");
    }
    let mut identity = cluster.identity("w", Role::Worker);
    *identity.certificate.last_mut().expect("it ends with its signature") ^= 1;
    let said = refused(&Dialer::new(credentials(identity)), &listener.address, MANAGER_NAME).await;
    assert!(said.contains("it was not signed by the CA of the other end's cluster"), "{said}");
    assert!(listener.others.try_recv().is_err() && listener.raft.try_recv().is_err());
    listener.end();
}

/// Connects and sends a byte. Returns why that failed.
async fn refused(dialer: &Dialer, address: &str, name: &'static str) -> String {
    let sent = async {
        let mut stream = dialer.connect(address, name).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await.map_err(|error| match error.get_ref().and_then(|it| it.downcast_ref()) {
            Some(inner) => io::Error::other(crate::refusal(inner)),
            None => error,
        })
    };
    let sent = tokio::time::timeout(Duration::from_secs(20), sent).await.expect("the listener refuses it");
    sent.expect_err("it is refused").to_string()
}

/// A clock that is off by so many seconds.
fn clock_off_by(seconds: i64) -> Clock {
    Clock::new(move || Timestamp(Clock::system().now().0.saturating_add_signed(seconds * 1_000)))
}

const DAY: i64 = 24 * 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_of_a_node_is_refused_and_the_node_learns_why() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let at = |seconds: i64| clock_off_by(seconds).now().to_system();
    let node = |now| cluster.identity_of(&cluster.id, "w", Role::Worker, now);
    let other = Cluster::new();
    let foreign =
        Identity { trusted: cluster.identity("w", Role::Worker).trusted, ..other.identity("w", Role::Worker) };
    let expired = "it has expired, or is not valid yet, by the other end's clock";
    for (identity, why) in [
        (node(at(-2 * 3_600)), expired),
        (node(at(DAY + 60)), expired),
        (foreign, "it was not signed by the CA of the other end's cluster"),
        (self_signed(&cluster), "it was not signed by the CA of the other end's cluster"),
    ] {
        let dialer = Dialer::new(credentials(identity));
        let said = refused(&dialer, &listener.address, MANAGER_NAME).await;
        assert!(said.contains(why), "{why}: {said}");
    }
    // Its CA is this cluster's, and the certificate says that it belongs to another.
    let elsewhere = cluster.identity_of(&ClusterId::from("d"), "w", Role::Worker, SystemTime::now());
    refused(&Dialer::new(credentials(elsewhere)), &listener.address, MANAGER_NAME).await;
    // One that is valid, although the clock of the leader that has issued it was a day ahead.
    let _node =
        Dialer::new(credentials(node(at(DAY - 60)))).connect(&listener.address, NODE_NAME).await.expect("welcome");
    let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(stream.peer, Peer::Node { .. }), "nothing else arrived: {:?}", stream.peer);
    listener.end();
}

/// Returns an identity whose certificate says what that of a manager does, and that it has signed itself.
fn self_signed(cluster: &Cluster) -> Identity {
    let key = rcgen::KeyPair::generate().expect("made");
    let names = [NODE_NAME, MANAGER_NAME, RAFT_NAME].map(str::to_owned);
    let mut params = rcgen::CertificateParams::new(names).expect("legal names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "m");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "flota-manager");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, cluster.id.as_str());
    let signed = params.self_signed(&key).expect("made");
    Identity::new(signed.der().to_vec(), key.serialize_der(), vec![cluster.ca.certificate().to_vec()])
        .expect("a node's")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_of_a_manager_is_refused_and_the_node_says_why() {
    let cluster = Cluster::new();
    let manager = |now| cluster.identity_of(&cluster.id, "m", Role::Manager, now);
    let dialer = cluster.dialer("w", Role::Worker);
    let at = |seconds: i64| clock_off_by(seconds).now().to_system();
    for (identity, why) in [
        (manager(at(-2 * 3_600)), "the certificate of the other end has expired"),
        (manager(at(DAY + 60)), "the certificate of the other end is not valid yet"),
        (Cluster::new().identity("m", Role::Manager), "was not signed by this cluster's CA"),
        (self_signed(&cluster), "was not signed by this cluster's CA"),
        (cluster.identity("w", Role::Worker), "the other end is not a manager"),
    ] {
        let listener = Listener::start_with(credentials(identity)).await;
        let said = refused(&dialer, &listener.address, MANAGER_NAME).await;
        assert!(said.contains(why), "{why}: {said}");
        listener.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_serves_new_connections_and_open_ones_go_on() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let node = credentials(cluster.identity("w", Role::Worker));
    let dialer = Dialer::new(node.clone());
    let mut open = dialer.connect(&listener.address, NODE_NAME).await.expect("welcome");
    let mut served = listener.others.recv().await.expect("it arrives").expect("it is whole");
    let renewed = |credentials: &Credentials, role| {
        let next = cluster.identity("renewed", role);
        let certificate = next.certificate.clone();
        credentials.install(credentials.prepare(next).expect("they belong together"));
        certificate
    };
    let of_node = renewed(&node, Role::Worker);
    renewed(&listener.credentials, Role::Manager);
    for name in [NODE_NAME, MANAGER_NAME] {
        let _stream = dialer.connect(&listener.address, name).await.expect("welcome");
        let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
        let shown = stream.stream.get_ref().1.peer_certificates().expect("it has one");
        assert_eq!(shown[0].as_ref(), of_node);
    }
    // Raft's connections are made with the new one too.
    let raft = Dialer::new(listener.credentials.clone()).connect(&listener.address, RAFT_NAME).await.expect("welcome");
    let stream = listener.raft.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(&stream.peer, Peer::Node { id, .. } if id.as_str() == "renewed"), "{:?}", stream.peer);
    drop(raft);
    open.write_all(b"x").await.expect("it is open");
    assert_eq!(served.read_u8().await.expect("it is open"), b'x');
    let mismatched = Identity { key: cluster.identity("x", Role::Worker).key, ..cluster.identity("x", Role::Worker) };
    node.prepare(mismatched).expect_err("the key is another's");
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_certificate_has_expired_reaches_a_manager_without_it() {
    let cluster = Cluster::new();
    let mut listener = Listener::start(&cluster).await;
    let long_ago = SystemTime::now() - LIFE * 24 * 100;
    let expired = credentials(cluster.identity_of(&cluster.id, "w", Role::Worker, long_ago));
    let dialer = Dialer::without_certificate(expired);
    let _stream = dialer.connect(&listener.address, MANAGER_NAME).await.expect("welcome");
    let stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    assert!(matches!(stream.peer, Peer::Anonymous { .. }));
    // It trusts no other cluster for that.
    let other = Cluster::new();
    let stranger = Dialer::without_certificate(credentials(other.identity("w", Role::Worker)));
    let said = refused(&stranger, &listener.address, MANAGER_NAME).await;
    assert!(said.contains("was not signed by this cluster's CA"), "{said}");
    listener.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_not_resumed_with_a_certificate_that_has_expired_meanwhile() {
    let cluster = Cluster::new();
    let ahead = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    let seconds = std::sync::Arc::clone(&ahead);
    let clock = Clock::new(move || clock_off_by(seconds.load(std::sync::atomic::Ordering::Relaxed)).now());
    let manager = cluster.identity("m", Role::Manager);
    let mut listener = Listener::start_with(Credentials::new(manager, clock).expect("they belong together")).await;
    let dialer = cluster.dialer("w", Role::Worker);
    let mut stream = dialer.connect(&listener.address, NODE_NAME).await.expect("welcome");
    let served = listener.others.recv().await.expect("it arrives").expect("it is whole");
    let echoed = tokio::spawn(echo(served));
    stream.write_all(b"x").await.expect("it is open");
    stream.read_u8().await.expect("a ticket, if there is one, came before this");
    echoed.await.expect("it does not panic");
    ahead.store(2 * 3_600, std::sync::atomic::Ordering::Relaxed);
    let said = refused(&dialer, &listener.address, NODE_NAME).await;
    assert!(said.contains("it has expired, or is not valid yet"), "{said}");
    listener.end();
}

/// Issues an identity of the cluster `of` for a node that trusts these CAs, with these certificates between.
fn between(of: &Cluster, node: &str, role: Role, trusted: &[&Cluster], chain: &[Vec<u8>]) -> Identity {
    let trusted = trusted.iter().map(|it| it.ca.certificate().to_vec()).collect();
    Identity { trusted, ..of.identity(node, role) }.with_intermediates(chain.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_accept_each_other_in_whatever_order_they_change_the_ca_and_the_former_one_ends() {
    let [former, new, dropped] = [(); 3].map(|()| Cluster::new());
    let now = SystemTime::now();
    let cross = |next: &Cluster| vec![former.ca.cross_sign(&next.ca, now).expect("it is accepted")];
    let (to_new, to_dropped) = (cross(&new), cross(&dropped));
    // Not told yet; renewed in a rotation that another one has replaced; renewed; and after the end.
    let stages = |node: &str, role| {
        [
            between(&former, node, role, &[&former], &[]),
            between(&dropped, node, role, &[&dropped, &former], &to_dropped),
            between(&new, node, role, &[&new, &former], &to_new),
            between(&new, node, role, &[&new], &[]),
        ]
    };
    // Nodes end one after the other, when all have renewed; before, none has ended.
    let meets = |one: usize, other: usize| (one == 3) <= (other >= 2) && (other == 3) <= (one >= 2);
    for (at, manager) in stages("m", Role::Manager).into_iter().enumerate() {
        let mut listener = Listener::start_with(credentials(manager)).await;
        for (from, worker) in stages("w", Role::Worker).into_iter().enumerate() {
            let connected = Dialer::new(credentials(worker)).connect(&listener.address, MANAGER_NAME).await;
            let is_welcome = match connected {
                Ok(client) => {
                    let arrived = tokio::time::timeout(Duration::from_secs(2), listener.others.recv());
                    match arrived.await {
                        Ok(stream) => {
                            let served = tokio::spawn(echo(stream.expect("it listens").expect("it is whole")));
                            let answered = is_answered(client).await;
                            served.await.expect("it does not panic");
                            answered
                        }
                        Err(_) => false,
                    }
                }
                Err(_) => false,
            };
            assert_eq!(is_welcome, meets(at, from), "a worker at stage {from}, a manager at stage {at}");
        }
        // A join token of the former CA is good until the end.
        let joins = former.stranger().connect(&listener.address, MANAGER_NAME).await;
        assert_eq!(joins.is_ok(), at < 3, "stage {at}");
        listener.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_known_by_name_and_key_and_never_gets_to_raft_and_loses_what_is_open() {
    let (cluster, sources) = (Cluster::new(), Sources::default());
    let manager = credentials(cluster.identity("m", Role::Manager));
    let mut listener = Listener::start_counting(manager, sources.clone()).await;
    // A name that is also the id of a manager makes nobody a node.
    let dialer = cluster.user("m");
    let client = dialer.connect(&listener.address, MANAGER_NAME).await.expect("welcome");
    let mut stream = listener.others.recv().await.expect("it arrives").expect("it is whole");
    let Peer::User { name, key, .. } = stream.peer.clone() else { panic!("{:?}", stream.peer) };
    assert_eq!((name.as_str(), key.len()), ("m", 64));
    if let Ok(stream) = dialer.connect(&listener.address, RAFT_NAME).await {
        assert!(!is_answered(stream).await);
    }
    assert!(listener.raft.try_recv().is_err());
    sources.end_user(&key);
    let ends = tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.expect("the connection ends");
    assert_eq!(ends.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionAborted));
    drop(client);
    let other = Cluster::new().user("m");
    assert!(other.connect(&listener.address, MANAGER_NAME).await.is_err(), "it trusts another CA");
    listener.end();
}
