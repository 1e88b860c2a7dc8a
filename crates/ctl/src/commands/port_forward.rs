//! `ctl port-forward` carries connections from this machine to a port of a task, on any node. Each connection has a
//! stream of its own through the managers, so one that breaks or waits does not affect the others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use flota_api::proto::control::GetRequest;
use flota_api::proto::streams::ForwardRequest;
use flota_api::proto::streams::frame::Frame as F;
use flota_identity::forward::{self, CarryError};

use crate::client::{Client, failure};
use crate::error::Usage;
use crate::printer;

/// Largest number of connections at once; more wait until one has ended. Each has two descriptors, of which a process
/// may usually have 1,024.
const CONNECTIONS: usize = 400;
/// Pause after a connection could not be accepted, which may last if memory or descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct PortForward {
    /// Task, SERVICE.SLOT, or service (each connection goes to the next of its running tasks)
    #[arg(value_name = "SERVICE|TASK")]
    target: String,
    /// Port of this machine and port of the task. Without LOCAL both are the same; an empty LOCAL is a free port
    #[arg(value_name = "[[ADDRESS:]LOCAL:]REMOTE", required = true, value_parser = pair)]
    pairs: Vec<Pair>,
}

/// Where `ctl` listens, and the port of the task that connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    /// Port 0 is a free one.
    local: SocketAddr,
    remote: u16,
}

fn pair(text: &str) -> Result<Pair, Usage> {
    let (before, remote) = text.rsplit_once(':').map_or((None, text), |(before, remote)| (Some(before), remote));
    let remote = match port("REMOTE", remote)? {
        0 => return Err(Usage("REMOTE: 0 is not a port of a task; a port is between 1 and 65535".into())),
        port => port,
    };
    let (address, local) =
        match before.map(|it| it.rsplit_once(':').map_or((None, it), |(address, local)| (Some(address), local))) {
            None => (None, remote),
            Some((address, "")) => (address, 0),
            Some((address, local)) => (address, port("LOCAL", local)?),
        };
    let address = match address {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(text) => address_of(text)?,
    };
    Ok(Pair { local: SocketAddr::new(address, local), remote })
}

fn port(field: &str, text: &str) -> Result<u16, Usage> {
    let digits = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let port = text.parse().ok().filter(|_| digits);
    port.ok_or_else(|| Usage(format!("{field}: `{text}` is not a port; a port is a number up to 65535")))
}

/// Parses an address, which in IPv6 is in brackets.
fn address_of(text: &str) -> Result<IpAddr, Usage> {
    let address = match text.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(v6) => v6.parse().map(IpAddr::V6).ok(),
        None => text.parse().map(IpAddr::V4).ok(),
    };
    address.ok_or_else(|| Usage(format!("ADDRESS: `{text}` is not an IP address such as 127.0.0.1 or [::1]")))
}

pub(crate) async fn run(flags: PortForward, client: &Client) -> anyhow::Result<()> {
    let request = GetRequest { name: flags.target.clone() };
    client.read(request, |mut control, request| async move { control.check_forward(request).await }).await?;
    let mut listeners = Vec::new();
    for pair in flags.pairs {
        let listener = TcpListener::bind(pair.local).await;
        let listener =
            listener.map_err(|error| anyhow::anyhow!("LOCAL: failed to listen on {}: {error}", pair.local))?;
        listeners.push((listener, Target { name: flags.target.clone(), port: pair.remote }));
    }
    // If one can't be bound, none is announced.
    for (listener, target) in &listeners {
        printer::line(&format!("{} -> {target}", listener.local_addr()?));
    }
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let served = listeners.into_iter().map(|(listener, target)| serve(listener, target, client, Arc::clone(&free)));
    tokio::select! {
        _ = futures::future::join_all(served) => {}
        // The user ends it.
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// A port of a task, or of the tasks of a service.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    port: u16,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// Accepts connections for ever.
async fn serve(listener: TcpListener, target: Target, client: &Client, free: Arc<Semaphore>) {
    for turn in 0.. {
        let Ok(place) = Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, peer)) => {
                let (client, target) = (client.clone(), target.clone());
                tokio::spawn(async move {
                    if let Err(error) = forward(connection, &target, turn, &client).await {
                        printer::message(&format!("warning: {peer} -> {target}: {error:#}"));
                    }
                    drop(place);
                });
            }
            Err(error) => {
                printer::message(&format!("warning: failed to accept a connection for {target}: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Carries one connection until it has ended.
async fn forward(connection: TcpStream, target: &Target, turn: u64, client: &Client) -> anyhow::Result<()> {
    // Data of the user's program is forwarded at once.
    let _ = connection.set_nodelay(true);
    let request = ForwardRequest { task: target.name.clone(), port: target.port.into(), turn };
    let (outbox, mut inbox) = match client.stream(F::Forward(request)).await {
        Ok(stream) => stream,
        Err(error) => {
            let _ = connection.set_zero_linger();
            return Err(error);
        }
    };
    match forward::carry(connection, &outbox, &mut inbox).await {
        // The user's own program has broken off, and knows.
        Ok(()) | Err(CarryError::Connection(_)) => Ok(()),
        Err(CarryError::Stream(Some(status))) => Err(failure(status)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use flota_api::proto::streams::Frame;

    use super::*;
    use crate::client::fake::{Act, FakeManager};

    fn parsed(text: &str) -> Result<String, String> {
        pair(text).map(|it| format!("{} {}", it.local, it.remote)).map_err(|it| it.to_string())
    }

    #[test]
    fn a_pair_says_what_of_it_is_chosen() {
        for (text, wanted) in [
            ("80", "127.0.0.1:80 80"),
            ("8080:80", "127.0.0.1:8080 80"),
            (":80", "127.0.0.1:0 80"),
            ("0:80", "127.0.0.1:0 80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080 80"),
            ("127.0.0.2::80", "127.0.0.2:0 80"),
            ("[::1]:8080:65535", "[::1]:8080 65535"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(wanted));
        }
    }

    #[test]
    fn a_pair_that_is_refused_names_its_field() {
        for (text, field) in [
            ("0", "REMOTE: 0 is not a port"),
            ("", "REMOTE: `` is not a port"),
            ("http", "REMOTE: `http`"),
            ("8080:", "REMOTE: ``"),
            ("8080:65536", "REMOTE: `65536`"),
            ("8080:+80", "REMOTE: `+80`"),
            ("65536:80", "LOCAL: `65536`"),
            ("x:80", "LOCAL: `x`"),
            ("localhost:8080:80", "ADDRESS: `localhost`"),
            ("::1:8080:80", "ADDRESS: `::1`"),
            ("1:2:3:4", "ADDRESS: `1:2`"),
        ] {
            let refused = parsed(text).expect_err(text);
            assert!(refused.starts_with(field), "{text}: {refused}");
        }
    }

    /// Connects to a target that a manager with these frames serves. Returns what the user's program reads, and how the
    /// connection ends for `ctl`.
    async fn through(frames: Vec<F>) -> (std::io::Result<String>, anyhow::Result<()>) {
        let folder = tempfile::tempdir().expect("a folder");
        let frames = frames.into_iter().map(|frame| Frame { frame: Some(frame) }).collect();
        let manager = FakeManager::start(folder.path(), "manager", [Act::Frames(frames, None)]);
        let client = Client::new(&[format!("unix://{}", manager.socket.display())]).expect("a socket");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut user = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it connects");
        let (connection, _) = listener.accept().await.expect("it is accepted");
        let target = Target { name: "web".into(), port: 80 };
        let program = async {
            user.write_all(b"question").await?;
            user.shutdown().await?;
            let mut answer = String::new();
            user.read_to_string(&mut answer).await.map(|_| answer)
        };
        tokio::join!(program, forward(connection, &target, 0, &client))
    }

    #[tokio::test]
    async fn a_refused_port_is_said_and_its_connection_is_reset() {
        let refused = F::Error("nothing listens on port 80".into());
        let (answer, ended) = through(vec![refused]).await;
        assert_eq!(ended.expect_err("it is refused").to_string(), "nothing listens on port 80");
        answer.expect_err("the connection does not end in order");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_no_end_of_the_data() {
        let (answer, ended) = through(vec![F::Data("half of the ans".into())]).await;
        ended.expect_err("the stream has no end in order");
        answer.expect_err("the connection does not end in order");
    }

    #[tokio::test]
    async fn a_local_port_that_is_taken_is_an_error_before_anything_is_forwarded() {
        let folder = tempfile::tempdir().expect("a folder");
        let manager = FakeManager::start(folder.path(), "manager", [Act::Check]);
        let client = Client::new(&[format!("unix://{}", manager.socket.display())]).expect("a socket");
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let local = taken.local_addr().expect("bound");
        let flags = PortForward { target: "web".into(), pairs: vec![Pair { local, remote: 80 }] };
        let refused = run(flags, &client).await.expect_err("the port is taken").to_string();
        assert!(refused.starts_with(&format!("LOCAL: failed to listen on {local}: ")), "{refused}");
        assert_eq!(manager.seen(), ["CheckForward web"]);
    }
}
