//! What a backup is made of, and its bytes on their way from and to `ctl`.

use std::io::{self, BufWriter, Write};
use std::pin::Pin;

use anyhow::bail;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use flota_api::clock::Clock;
use flota_api::id::NodeId;
use flota_api::proto::node::{BackupPart, BackupSummary, ObjectCounts, RestorePart, RestoreSettings};
use flota_api::version::Timestamp;
use flota_manager::{Manager, RecoverySurvey, survey};
use flota_raft_store::{Backup, View, read_backup, write_backup};

/// Bytes in one message.
const PART: usize = 1 << 20;
/// Largest backup that can be restored: a node reads it into memory.
const BACKUP_BOUND: usize = 2 << 30;

/// The messages of a backup.
pub(crate) type BackupParts = Pin<Box<dyn futures::Stream<Item = Result<BackupPart, Status>> + Send>>;

type Sender = mpsc::Sender<Result<BackupPart, Status>>;

/// The tables that a backup is made of.
#[derive(Debug)]
pub(crate) struct BackupSource {
    pub(crate) view: View,
    pub(crate) made_at: Timestamp,
    /// Whether a majority has confirmed that the view shows everything that was acknowledged before.
    pub(crate) is_newest: bool,
}

/// Returns the newest tables that this manager can get.
pub(crate) async fn backup_source(manager: &Manager) -> anyhow::Result<BackupSource> {
    let is_newest = is_newest(manager).await;
    let view = manager.store().view();
    if view.cluster().is_none() {
        bail!("this manager has not received the cluster's state yet");
    }
    Ok(BackupSource { view, made_at: Clock::system().now(), is_newest })
}

/// Returns whether a majority confirms that this manager has applied everything that was acknowledged before the call.
pub(crate) async fn is_newest(manager: &Manager) -> bool {
    let raft = manager.raft();
    if manager.leadership().is_self {
        return raft.read_barrier().await.is_ok();
    }
    let asked = Instant::now();
    raft.freshen().await;
    raft.age().is_some_and(|age| age <= asked.elapsed())
}

/// Sends what is written to it as messages. It blocks while the receiver is slow.
struct PartWriter(Sender);

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let data = bytes[..bytes.len().min(PART)].to_vec();
        let count = data.len();
        let part = BackupPart { data: data.into(), summary: None };
        self.0.blocking_send(Ok(part)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a backup of `source`, encrypted unless the passphrase is empty.
pub(crate) fn send(source: BackupSource, passphrase: String) -> BackupParts {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let passphrase = Some(passphrase.as_str()).filter(|it| !it.is_empty());
        let mut out = BufWriter::with_capacity(PART, PartWriter(sender.clone()));
        let written = write_backup(&source.view, source.made_at, passphrase, &mut out);
        let last =
            written.map(|bytes| BackupPart { summary: Some(backup_summary(&source, bytes)), ..Default::default() });
        // A receiver that has gone away needs no last message.
        let _ =
            sender.blocking_send(last.map_err(|error| Status::internal(format!("failed to make the backup: {error}"))));
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// Receives a backup and verifies it.
pub(crate) async fn receive(mut parts: Streaming<RestorePart>) -> Result<(Backup, RestoreSettings), Status> {
    let first = parts.message().await?.ok_or_else(|| Status::invalid_argument("the backup is empty"))?;
    let settings = first.settings.unwrap_or_default();
    let mut bytes = first.data.to_vec();
    while let Some(part) = parts.message().await? {
        if bytes.len() + part.data.len() > BACKUP_BOUND {
            return Err(Status::invalid_argument(format!("the backup has more than {BACKUP_BOUND} bytes")));
        }
        bytes.extend_from_slice(&part.data);
    }
    let passphrase = settings.passphrase.clone();
    let read =
        tokio::task::spawn_blocking(move || read_backup(&bytes, Some(passphrase.as_str()).filter(|it| !it.is_empty())));
    let backup = read.await.map_err(|error| Status::internal(format!("failed to read the backup: {error}")))?;
    Ok((backup.map_err(|error| Status::invalid_argument(error.to_string()))?, settings))
}

/// Returns the number as messages have it.
pub(crate) fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Counts what a survey keeps.
pub(crate) fn counts(survey: &RecoverySurvey) -> ObjectCounts {
    ObjectCounts {
        services: number(survey.services),
        tasks: number(survey.tasks),
        networks: number(survey.networks),
        volumes: number(survey.volumes),
        secrets: number(survey.secrets),
        configs: number(survey.configs),
        images: number(survey.images),
        workers: number(survey.workers),
    }
}

/// Describes a backup of `bytes` bytes.
fn backup_summary(source: &BackupSource, bytes: u64) -> BackupSummary {
    let cluster = source.view.cluster();
    BackupSummary {
        cluster_id: cluster.map(|it| it.id.to_string()).unwrap_or_default(),
        epoch: cluster.map_or(0, |it| it.epoch),
        index: source.view.version,
        bytes,
        is_newest: source.is_newest,
        objects: Some(counts(&survey(&source.view, &NodeId::default()))),
    }
}
