//! What a node says of itself over plain HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts
//! or spares it. There is no authorisation, so it listens only where its owner says.

mod page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::node::Node;

/// Most connections at once; more wait.
const CONNECTIONS: usize = 16;
/// How long a client has to send the head of a request, on a connection that is kept open too.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// Longest life of a connection.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// Pause after a connection that could not be accepted, because descriptors are short.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>, "Protocol Negotiation".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Listens at the address, and answers until the daemon ends.
///
/// # Errors
/// The address can't be listened at.
pub(crate) async fn listen(address: SocketAddr, node: Arc<Node>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("metrics-listen: failed to listen at {address}"))?;
    tokio::spawn(serve(listener, node));
    Ok(())
}

async fn serve(listener: TcpListener, node: Arc<Node>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection for metrics");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let node = Arc::clone(&node);
                async move { Ok::<_, Infallible>(answer(&request, &node).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT);
            // Whether a client breaks off is its own business.
            let _ = tokio::time::timeout(CONNECTION_LIFE, server.serve_connection(TokioIo::new(stream), answer)).await;
            drop(permit);
        });
    }
}

async fn answer(request: &Request<Incoming>, node: &Node) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        // A daemon whose Raft core fails ends, so one that answers is alive.
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match node.observe().await.readiness() {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => {
            let mut found = text(StatusCode::OK, page::page(&node.observe().await));
            found.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
            found
        }
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}
