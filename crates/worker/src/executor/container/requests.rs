//! Requests to the programs of a container, which come from within its network namespace.

use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use flota_network::{Namespace, SocketThread};
use flota_runtime::ContainerState;

use crate::executor::Cause;

/// Largest part of a page that is read, in bytes.
const PAGE_BOUND: usize = 4 << 20;
/// Longest line of a page in bytes.
const LINE_BOUND: usize = 16 << 10;

/// A container, named by its folder, and the thread that opens sockets in it.
pub(super) type Container<'a> = (&'a SocketThread, &'a Path);

/// Calls `each` with the lines of a page of the container. Lines that are too long are left out, and so is what is
/// beyond the bound of a page.
///
/// # Errors
/// The container does not answer, or with another status than 200, or the page breaks off.
pub(super) async fn read_lines(
    container: Container<'_>,
    port: u16,
    path: &str,
    mut each: impl FnMut(&str),
) -> Result<(), Cause> {
    let read = async |response: Response<Incoming>| {
        if response.status() != StatusCode::OK {
            return Err(response.status().to_string().into());
        }
        let (mut body, mut lines) = (response.into_body(), Lines::default());
        while let Some(frame) = body.frame().await.transpose()? {
            if !lines.take(&frame.into_data().unwrap_or_default(), &mut each) {
                return Ok(());
            }
        }
        lines.finish(&mut each);
        Ok(())
    };
    get(container, (port, path), "flota-metrics", read).await
}

/// The lines of a page that comes in parts.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Whether the line is too long.
    is_long: bool,
    /// Number of bytes so far.
    size: usize,
}

impl Lines {
    /// Takes the next part. Returns whether more may follow.
    fn take(&mut self, part: &[u8], each: &mut impl FnMut(&str)) -> bool {
        let part = &part[..part.len().min(PAGE_BOUND - self.size)];
        self.size += part.len();
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            self.is_long |= self.line.len() + piece.len() > LINE_BOUND;
            if !self.is_long {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.finish(each);
            }
        }
        self.size < PAGE_BOUND
    }

    /// Ends the line.
    fn finish(&mut self, each: &mut impl FnMut(&str)) {
        if !self.is_long && !self.line.is_empty() {
            each(String::from_utf8_lossy(&self.line).trim_end());
        }
        (self.is_long, self.line) = (false, Vec::new());
    }
}

/// Sends a GET request to a port of the container, and returns what `take` makes of the response.
///
/// # Errors
/// The container does not answer, or what `take` says.
pub(super) async fn get<T>(
    container: Container<'_>,
    (port, path): (u16, &str),
    agent: &str,
    take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Cause>,
) -> Result<T, Cause> {
    let stream = connect(container, port).await?;
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{port}"))
        .header(header::USER_AGENT, agent)
        .body(Empty::<bytes::Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async { take(sender.send_request(request).await?).await };
    // A connection that ends may have brought all that the exchange needs; if not, the exchange has the reason.
    let driven = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        end = exchange => end,
        never = driven => never,
    }
}

/// Connects to a port in the network namespace of the container.
///
/// # Errors
/// The container does not run, or nothing accepts the connection.
pub(super) async fn connect((sockets, folder): Container<'_>, port: u16) -> Result<TcpStream, Cause> {
    let state = ContainerState::load(folder)?.ok_or("the container does not run")?;
    let opened = sockets.open_tcp(Namespace::of(state.pid)).await;
    // The process id may have become another process's before the namespace was opened.
    if !state.is_alive() {
        return Err("the container does not run".into());
    }
    // A socket stays in the namespace in which it was made.
    let socket = TcpSocket::from_std_stream(StdStream::from(opened?));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.connect(address).await.map_err(|error| format!("failed to connect to port {port}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of a page that comes in these parts, and whether it was read to its end.
    fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
        let (mut found, mut lines) = (Vec::new(), Lines::default());
        let mut each = |line: &str| found.push(line.to_owned());
        let is_whole = parts.into_iter().all(|part| lines.take(part, &mut each));
        if is_whole {
            lines.finish(&mut each);
        }
        (found, is_whole)
    }

    #[test]
    fn lines_are_whole_however_the_page_is_cut() {
        let page = b"one 1\r\n\ntwo 22\nthree 333";
        for size in 1..=page.len() {
            assert_eq!(read(page.chunks(size)), (["one 1", "", "two 22", "three 333"].map(str::to_owned).into(), true));
        }
    }

    #[test]
    fn what_is_too_long_is_left_out_and_never_cut_in_the_middle_of_a_number() {
        let long = [vec![b'x'; LINE_BOUND], b" 7\nshort 1\n".to_vec()].concat();
        assert_eq!(read(long.chunks(1000)), (vec!["short 1".to_owned()], true));
        let line = [vec![b'y'; 99], b" 12345\n".to_vec()].concat();
        let page = line.repeat(PAGE_BOUND / line.len() + 2);
        let (lines, is_whole) = read(page.chunks(10_000));
        assert!(!is_whole && lines.len() == PAGE_BOUND / line.len());
        assert!(lines.iter().all(|it| it.ends_with(" 12345")), "the last line is not a part of one");
    }
}
