//! Adapts a stream of chunks from `ctl` to [`Read`], for code that blocks.

use std::io::{self, Read};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use flota_api::proto::node::ImageUpload;

/// Reads an upload until its stream ends.
pub(crate) struct UploadReader {
    chunks: mpsc::Receiver<Result<bytes::Bytes, Status>>,
    current: bytes::Bytes,
}

impl UploadReader {
    /// Starts receiving. `first` is the data of the first message, which the caller has received already.
    pub(crate) fn start(first: bytes::Bytes, mut stream: Streaming<ImageUpload>) -> Self {
        let (sender, chunks) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let chunk = match stream.message().await {
                    Ok(Some(upload)) => Ok(upload.data),
                    Ok(None) => return,
                    Err(status) => Err(status),
                };
                let failed = chunk.is_err();
                if sender.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        Self { chunks, current: first }
    }
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(status)) => return Err(io::Error::other(status.message().to_owned())),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
