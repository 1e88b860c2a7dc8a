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
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://flota").connect_with_connector(connector).await?;
    Ok(ControlClient::new(channel))
}
