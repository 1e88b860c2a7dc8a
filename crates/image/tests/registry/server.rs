//! A registry with one image. Each test decides how it answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use flota_image::{Credentials, Image, ImageName, ImageStore, Registries};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar_core::HEADER_SIZE;
use tar_core::builder::EntryBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// How long a server is away that restarts: longer than the first pause of a client.
const DOWN: Duration = Duration::from_millis(500);

/// A request of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenRequest {
    pub(crate) method: String,
    pub(crate) path: String,
    /// With names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl SeenRequest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }
}

/// An answer to it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection breaks after this many bytes of the body.
    pub(crate) cut: Option<usize>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An image with a layer of some 300 kB and a small one.
pub(crate) struct Fixture {
    pub(crate) manifest: Vec<u8>,
    /// By digest.
    blobs: HashMap<String, Vec<u8>>,
    /// Digest of the large layer.
    pub(crate) large: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut entry = EntryBuilder::new_ustar();
    entry.path(name).size(content.len() as u64).unwrap().mode(0o644).unwrap();
    let mut archive = entry.finish_bytes();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(HEADER_SIZE) + 2 * HEADER_SIZE, 0);
    archive
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let noise: Vec<u8> =
            (0..300_000u32).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
        let config = json!({ "architecture": oci_spec::image::Arch::default().to_string(), "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [] } });
        let parts = [config.to_string().into_bytes(), layer("large", &noise), layer("small", b"text")];
        let descriptor = |kind: &str, bytes: &[u8]| {
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": sha256(bytes), "size": bytes.len() })
        };
        let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &parts[0]),
            "layers": [descriptor("layer.v1.tar", &parts[1]), descriptor("layer.v1.tar", &parts[2])] });
        let large = sha256(&parts[1]);
        let blobs = parts.into_iter().map(|bytes| (sha256(&bytes), bytes)).collect();
        Self { manifest: manifest.to_string().into_bytes(), blobs, large }
    }

    /// The answer of a registry that does all as it should.
    pub(crate) fn answer(&self, asked: &SeenRequest) -> Answer {
        if asked.is_manifest() {
            return Answer::new(200, self.manifest.clone());
        }
        let Some(blob) = asked.path.rsplit('/').next().and_then(|digest| self.blobs.get(digest)) else {
            return Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
        };
        let from = asked.header("range").and_then(|it| it.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
        match from {
            Some(from) => Answer::new(206, &blob[from..])
                .with("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
            None => Answer::new(200, blob.clone()),
        }
    }

    pub(crate) fn is_large(&self, asked: &SeenRequest) -> bool {
        asked.path.ends_with(&self.large)
    }
}

/// A running server.
pub(crate) struct Server {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<SeenRequest>>>,
    stop: Arc<Notify>,
}

impl Server {
    /// Returns what makes the server refuse connections for the time that a restart takes.
    pub(crate) fn restart(&self) -> impl Fn() + use<> {
        let stop = Arc::clone(&self.stop);
        move || stop.notify_one()
    }

    /// Serves until the test ends. `answer` gets the fixture, the request, and the number of requests for that path.
    pub(crate) async fn start(
        answer: impl Fn(&Fixture, &SeenRequest, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, answer).await
    }

    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Fixture, &SeenRequest, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let asked = Arc::<Mutex<Vec<SeenRequest>>>::default();
        let (log, answer, fixture) = (Arc::clone(&asked), Arc::new(answer), Arc::new(Fixture::new()));
        tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = stopped.notified() => {
                        drop(listener);
                        tokio::time::sleep(DOWN).await;
                        listener = TcpListener::bind(address).await.unwrap();
                        continue;
                    }
                };
                let (log, answer, fixture) = (Arc::clone(&log), Arc::clone(&answer), Arc::clone(&fixture));
                let reply = move |asked: SeenRequest| {
                    let mut log = log.lock().unwrap();
                    log.push(asked.clone());
                    let count = log.iter().filter(|it| it.path == asked.path).count();
                    drop(log);
                    answer(&fixture, &asked, count)
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, reply).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, reply).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address: address.to_string(), asked, stop }
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<SeenRequest> {
        self.asked.lock().unwrap().clone()
    }

    /// The name of the image here.
    pub(crate) fn image(&self) -> ImageName {
        ImageName { registry: self.address.clone(), repository: "team/box".into(), version: "1".into() }
    }
}

/// Answers one request.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    reply: impl FnOnce(SeenRequest) -> Answer + Send + 'static,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut asked = SeenRequest { method: words.next()?, path: words.next()?, ..SeenRequest::default() };
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        asked.headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let is_head = asked.method == "HEAD";
    // An answer may wait for other requests, and no task may be stuck behind a thread of the runtime that waits.
    let Answer { status, headers, body, cut } = tokio::task::spawn_blocking(|| reply(asked)).await.unwrap();
    let mut head = format!("HTTP/1.1 {status} \r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    if !is_head {
        stream.write_all(&body[..cut.unwrap_or(body.len())]).await.ok()?;
    }
    stream.shutdown().await.ok()
}

/// Pulls the image into a new store.
pub(crate) async fn pull(server: &Server, login: Option<(&str, &str)>) -> Result<Image, String> {
    let store = Store::new();
    store.pull(&server.image(), &Registries::default(), login).await
}

pub(crate) struct Store(TempDir, ImageStore);

impl Store {
    pub(crate) fn new() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path(), true).unwrap();
        Self(dir, store)
    }

    pub(crate) async fn pull(
        &self,
        name: &ImageName,
        registries: &Registries,
        login: Option<(&str, &str)>,
    ) -> Result<Image, String> {
        let login = login.map(|(user, password)| Credentials { username: user.into(), password: password.into() });
        let pulled = flota_image::pull(&self.1, registries, name, login.as_ref()).await;
        // A write that the failure of another blob has cut off ends on its own thread.
        let left = || std::fs::read_dir(self.0.path().join("blobs/partial")).unwrap().count();
        let gone = async {
            while left() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nothing half made is left");
        if let Ok(image) = &pulled {
            assert!(self.1.whole_image(&image.digest).is_some());
        }
        pulled.map_err(|error| error.to_string())
    }
}
