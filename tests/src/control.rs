//! A manager's control socket, spoken to directly: for what `ctl` never does.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use flota_api::proto::control::control_client::ControlClient;

/// Connects to the control socket at `path`.
///
/// # Errors
/// Nobody listens there.
pub async fn connect(path: &Path) -> Result<ControlClient<Channel>, tonic::transport::Error> {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_| dial(path.clone()));
    let channel = Endpoint::from_static("http://flota").connect_with_connector(connector).await?;
    Ok(ControlClient::new(channel))
}

/// A channel to the control socket at `path`, which need not be there: it connects when it is used, each time anew
/// where the manager was away.
pub fn channel(path: &Path) -> Channel {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_| dial(path.clone()));
    Endpoint::from_static("http://flota").connect_with_connector_lazy(connector)
}

async fn dial(path: PathBuf) -> std::io::Result<TokioIo<tokio::net::UnixStream>> {
    tokio::net::UnixStream::connect(path).await.map(TokioIo::new)
}
