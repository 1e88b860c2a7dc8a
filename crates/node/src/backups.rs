//! The bytes of backups on their way from and to `ctl`.

use std::io::{self, BufWriter, Write};
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use flota_api::proto::node::{BackupPart, RestorePart, RestoreSettings};
use flota_raft_store::{Backup, read_backup, write_backup};

use crate::node::{BackupSource, backup_summary};

/// Bytes in one message.
const PART: usize = 1 << 20;
/// Largest backup that can be restored: a node reads it into memory.
const BACKUP_BOUND: usize = 2 << 30;

/// The messages of a backup.
pub(crate) type BackupParts = Pin<Box<dyn futures::Stream<Item = Result<BackupPart, Status>> + Send>>;

type Sender = mpsc::Sender<Result<BackupPart, Status>>;

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
