//! Real connections over loopback: who gets through the door, and to which receiver.

use std::time::{Duration, SystemTime};

use flota_api::id::{ClusterId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::certificate::{MANAGER_NAME, NODE_NAME};
use crate::{Dialer, KeyPair, RootCa};

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
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let signed = self.ca.sign(&request, &NodeId::from(node), role, &self.id, SystemTime::now()).expect("signed");
        Identity::new(signed, key.to_der(), self.ca.certificate().to_vec()).expect("a node's")
    }

    fn dialer(&self, node: &str, role: Role) -> Dialer {
        Dialer::new(&self.identity(node, role)).expect("they belong together")
    }

    fn stranger(&self) -> Dialer {
        Dialer::to_join(&self.ca.digest())
    }
}

/// A manager's listener whose Raft connections run on a runtime of their own.
struct Listener {
    address: String,
    others: Incoming,
    raft: Incoming,
    runtime: tokio::runtime::Runtime,
}

impl Listener {
    async fn start(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let address = listener.local_addr().expect("it is bound").to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("made");
        let identity = cluster.identity("m", Role::Manager);
        let raft = Some(runtime.handle().clone());
        let (others, raft) = incoming(listener, &identity, raft, Sources::default()).expect("they belong together");
        Self { address, others, raft, runtime }
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
