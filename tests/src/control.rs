//! Connections to a manager's control socket, for requests that `ctl` never sends.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use flota_api::proto::control::control_client::ControlClient;

/// Connects to the control socket at `path`.
///
/// # Errors
/// Nothing listens at `path`.
pub async fn connect(path: &Path) -> Result<ControlClient<Channel>, tonic::transport::Error> {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_| dial(path.clone()));
    let channel = Endpoint::from_static("http://flota").connect_with_connector(connector).await?;
    Ok(ControlClient::new(channel))
}

/// Returns a channel to the control socket at `path`, which need not exist yet. The channel connects when it is used, and
/// reconnects after the manager was away.
pub fn channel(path: &Path) -> Channel {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_| dial(path.clone()));
    Endpoint::from_static("http://flota").connect_with_connector_lazy(connector)
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<tokio::net::UnixStream>> {
    tokio::net::UnixStream::connect(path).await.map(TokioIo::new)
}
