//! The server as its clients see it, in namespaces of their own: a machine with resolvers on its loopback interface, and
//! a client on whose loopback interface the server answers.

mod forwarding;
mod hostile;
mod names;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::message::Transport;
use super::{Client, Directory, DnsServer, DnsSockets, Entry};
use crate::error::io;
use crate::{Connection, Namespace, NetworkError};

/// Longer than the server takes in the worst case.
const DEADLINE: Duration = Duration::from_secs(8);
const SERVER: &str = "127.0.0.11:53";
const NETWORK: &str = "key of front";

/// A machine with a server, and a client.
struct Machine {
    folder: tempfile::TempDir,
    namespace: Namespace,
    client: Namespace,
    directory: Directory,
    server: DnsServer,
    /// Runs the resolvers.
    runtime: Runtime,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for name in ["machine", "client"] {
            let _ = Namespace::remove(&self.folder.path().join(name));
        }
    }
}

impl Machine {
    /// Starts a server that serves one client, whose network `front` has no names yet.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [namespace, client] = ["machine", "client"].map(|name| {
            let namespace = Namespace::make(&folder.path().join(name)).expect("tests run as root");
            Connection::open(&namespace).and_then(|mut it| it.bring_up("lo")).unwrap();
            namespace
        });
        let directory = Directory::default();
        directory.set_network(NETWORK, "front").unwrap();
        let (names, resolvers) = (directory.clone(), folder.path().join("resolv.conf"));
        let server = within(&namespace, move || DnsServer::start(names, resolvers));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let machine = Self { folder, namespace, client, directory, server, runtime };
        machine.serve(Client { networks: vec![NETWORK.to_owned()], resolvers: Vec::new(), forwards: true });
        machine
    }

    /// Serves the client, which may ask for other networks now.
    fn serve(&self, client: Client) {
        // The previous sockets are closed by the server's thread when it gets to it.
        self.server.stop("client");
        let until = std::time::Instant::now() + DEADLINE;
        let sockets = loop {
            match DnsSockets::open(&self.client) {
                Err(_) if std::time::Instant::now() < until => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        self.server.serve("client", client, sockets);
    }

    /// Writes the machine's resolv.conf.
    fn set_resolvers(&self, addresses: &[&str]) {
        let lines: String = addresses.iter().map(|it| format!("nameserver {it}\n")).collect();
        std::fs::write(self.folder.path().join("resolv.conf"), lines).unwrap();
    }

    /// Gives an entry of the client's network one name and addresses.
    fn name(&self, name: &str, addresses: &[&str]) {
        self.directory.set(NETWORK, name, entry(&[name], addresses)).unwrap();
    }

    /// Returns a connected socket of the client.
    fn socket(&self) -> UdpSocket {
        let socket = within(&self.client, || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(SERVER)?;
            Ok(socket)
        });
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    fn connection(&self) -> TcpStream {
        let stream = within(&self.client, || TcpStream::connect(SERVER));
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Asks over UDP.
    fn ask(&self, question: &Message) -> Message {
        let socket = self.socket();
        socket.send(&question.to_vec().unwrap()).unwrap();
        recv(&socket)
    }

    /// Asks for records of a type, and returns the reply.
    fn look_up(&self, name: &str, kind: RecordType) -> Message {
        self.ask(&question(name, kind))
    }

    /// Returns the IPv4 addresses of a name, sorted.
    fn addresses(&self, name: &str) -> Vec<String> {
        let mut found = shown(&self.look_up(name, RecordType::A));
        found.sort();
        found
    }
}

/// Runs `work` in a namespace. The sockets that it makes stay there.
fn within<T: Send + 'static>(namespace: &Namespace, work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> T {
    namespace
        .enter(move || work().map_err(io("do a test's work")))
        .map_err(|error: NetworkError| format!("{error:?}"))
        .unwrap()
}

fn entry(names: &[&str], addresses: &[&str]) -> Entry {
    Entry {
        names: names.iter().map(|it| (*it).to_owned()).collect(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        ports: Vec::new(),
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

/// Returns the data of the answers as text.
fn shown(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

fn recv(socket: &UdpSocket) -> Message {
    let mut buffer = vec![0; 65_535];
    let size = socket.recv(&mut buffer).expect("the server answers");
    Message::from_vec(&buffer[..size]).unwrap()
}

fn send_framed(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
}

fn recv_framed(stream: &mut TcpStream) -> Message {
    let mut size = [0; 2];
    stream.read_exact(&mut size).expect("the server answers");
    let mut bytes = vec![0; u16::from_be_bytes(size).into()];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// A resolver on the machine's loopback interface. It ends with the machine.
struct Resolver {
    /// Number of questions that it has received.
    asked: Arc<AtomicUsize>,
}

/// A resolver's reply to a question.
type Script = dyn Fn(&Message, Transport) -> Vec<Vec<u8>> + Send + Sync;

impl Resolver {
    fn start(
        machine: &Machine,
        address: &str,
        script: impl Fn(&Message, Transport) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let (udp, tcp) = within(&machine.namespace, move || {
            let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let (script, count): (Arc<Script>, _) = (Arc::new(script), asked.clone());
        let (script_tcp, count_tcp) = (script.clone(), asked.clone());
        let _runtime = machine.runtime.enter();
        let udp = tokio::net::UdpSocket::from_std(udp).unwrap();
        let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((size, client)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                for reply in script(&Message::from_vec(&buffer[..size]).unwrap(), Transport::Udp) {
                    udp.send_to(&reply, client).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                count_tcp.fetch_add(1, Ordering::SeqCst);
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                for reply in script_tcp(&Message::from_vec(&question).unwrap(), Transport::Tcp) {
                    stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
        Self { asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Returns the beginning of a resolver's reply.
fn reply_to(question: &Message) -> Message {
    let mut reply = Message::response(question.id, OpCode::Query);
    reply.add_queries(question.queries.clone());
    reply
}

fn record(name: &Name, ttl: u32, address: &str) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::A(A(address.parse().unwrap())))
}

/// Answers every question for an IPv4 address with this one.
fn answering(address: &'static str, ttl: u32) -> impl Fn(&Message, Transport) -> Vec<Vec<u8>> + Send + Sync + 'static {
    move |question, _| {
        let mut reply = reply_to(question);
        reply.add_answer(record(&question.queries[0].name, ttl, address));
        vec![reply.to_vec().unwrap()]
    }
}
