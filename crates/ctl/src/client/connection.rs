//! A connection to one daemon, and the error that ended it: HTTP/2 passes on only its text.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flota_identity::{Dialer, Stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Interval of keepalive pings. A manager that stops answering in the middle of a stream is noticed after one interval
/// and one timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub(crate) enum ManagerAddress {
    /// At a socket on this machine.
    Socket(PathBuf),
    /// At `host:port`, as a manager that the dialer connects to as a user.
    Port { address: String, dialer: Dialer },
}

impl fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Port { address, .. } => f.write_str(address),
        }
    }
}

type End = Arc<Mutex<Option<io::Error>>>;

/// A connection to a daemon.
pub(super) struct Connection {
    pub(super) channel: Channel,
    end: End,
}

impl Connection {
    /// Opens a connection to the daemon that listens there.
    pub(super) async fn open(target: &ManagerAddress) -> Result<Self, Status> {
        let connected = match target {
            ManagerAddress::Socket(path) => UnixStream::connect(path).await.map(|it| Box::new(it) as Box<dyn Stream>),
            ManagerAddress::Port { address, dialer } => dialer.connect_manager(address).await,
        };
        let (end, inner) = (End::default(), connected.map_err(|error| unreachable(target, error))?);
        let mut stream = Some(TokioIo::new(WatchedStream { inner, end: Arc::clone(&end) }));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the connection is closed"));
            std::future::ready(stream)
        });
        let endpoint = Endpoint::from_static("http://flota")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let connected = endpoint.connect_with_connector(connector).await;
        let channel = connected.map_err(|error| unreachable(target, taken(&end).unwrap_or(io::Error::other(error))))?;
        Ok(Self { channel, end })
    }

    /// Takes the error with which reading from the connection has failed; `None` if it has not, or the other end has just
    /// closed it.
    pub(super) fn end(&self) -> Option<io::Error> {
        taken(&self.end)
    }
}

/// Returns a status that says that no answer came, for this reason.
pub(super) fn unavailable(text: String, source: io::Error) -> Status {
    let mut status = Status::unavailable(text);
    status.set_source(Arc::new(source));
    status
}

fn unreachable(target: &ManagerAddress, error: io::Error) -> Status {
    unavailable(format!("failed to connect to {target}: {error}"), error)
}

fn taken(end: &End) -> Option<io::Error> {
    end.lock().expect("no holder panics").take()
}

/// A stream that keeps the first error of a read.
struct WatchedStream {
    inner: Box<dyn Stream>,
    end: End,
}

impl AsyncRead for WatchedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Err(error) = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer)) else { return Poll::Ready(Ok(())) };
        let told = io::Error::new(error.kind(), error.to_string());
        self.end.lock().expect("no holder panics").get_or_insert(error);
        Poll::Ready(Err(told))
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
