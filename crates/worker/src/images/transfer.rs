//! Receives blobs from the nodes that hold them. A transfer continues where the one before broke off, with another
//! holder if need be.

use std::io::Write;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use flota_api::defaults::MESSAGE_BOUND;
use flota_api::model::ImageSource;
use flota_api::proto::images::GetBlobRequest;
use flota_api::proto::images::image_store_client::ImageStoreClient;
use flota_image::BlobWriter;

use super::{FetchError, Images, PROGRESS_WAIT, blocking, stored};

/// Longest wait for holders that serve as many nodes as they can.
const BUSY_WAIT: Duration = Duration::from_secs(600);
/// Pause between two rounds of such holders.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Why a holder has not sent all of a blob.
enum Stopped {
    /// It serves as many other nodes as it can.
    Busy(String),
    Failed(String),
}

/// The answers of the holders, none of which has sent the blob.
struct Unsent {
    answers: Vec<String>,
    /// Whether one of them serves as many other nodes as it can, and may send it later.
    is_busy: bool,
}

impl From<Status> for Stopped {
    fn from(status: Status) -> Self {
        let why = status.message().to_owned();
        if status.code() == Code::ResourceExhausted { Self::Busy(why) } else { Self::Failed(why) }
    }
}

impl Images {
    /// Fetches one blob of at most `most` bytes. Waits for holders that are busy, if no other one sends it.
    pub(super) async fn fetch_blob(&self, source: &ImageSource, digest: &str, most: u64) -> Result<(), FetchError> {
        let until = Instant::now() + BUSY_WAIT;
        loop {
            match self.fetch_from_any(source, digest, most).await? {
                Ok(()) => return Ok(()),
                Err(failed) if failed.is_busy && Instant::now() < until => tokio::time::sleep(BUSY_PAUSE).await,
                Err(Unsent { answers, .. }) => {
                    return Err(FetchError::Holders { digest: digest.to_owned(), answers });
                }
            }
        }
    }

    /// Asks each holder once. A transfer that breaks off continues with the next holder at the same offset; after a
    /// damaged one, the next holder starts from the beginning.
    async fn fetch_from_any(
        &self,
        source: &ImageSource,
        digest: &str,
        most: u64,
    ) -> Result<Result<(), Unsent>, FetchError> {
        let (store, wanted) = (self.store.clone(), digest.to_owned());
        let begun = blocking(move || if store.blobs.has(&wanted) { Ok(None) } else { store.blobs.writer().map(Some) });
        let Some(mut writer) = begun.await?.map_err(stored)? else { return Ok(Ok(())) };
        let mut unsent = Unsent { answers: Vec::new(), is_busy: false };
        for holder in &source.holders {
            let done;
            (writer, done) = self.transfer(source, digest, most, &holder.address, writer).await?;
            let failed = match done {
                Err(stopped) => stopped,
                Ok(()) => {
                    let whole = digest.to_owned();
                    let Err(error) = blocking(move || writer.finish(Some(&whole))).await? else { return Ok(Ok(())) };
                    tracing::warn!(holder = holder.address, %error, "a node sent something else than the blob it was asked for");
                    writer = self.store.blobs.writer().map_err(stored)?;
                    Stopped::Failed(error.to_string())
                }
            };
            unsent.is_busy |= matches!(failed, Stopped::Busy(_));
            let (Stopped::Busy(why) | Stopped::Failed(why)) = failed;
            let address = &holder.address;
            unsent.answers.push(if why.contains(address) { why } else { format!("{address}: {why}") });
        }
        if unsent.answers.is_empty() {
            unsent.answers.push("no node holds it".to_owned());
        }
        Ok(Err(unsent))
    }

    /// Appends what one holder sends, from the offset that was reached.
    async fn transfer(
        &self,
        source: &ImageSource,
        digest: &str,
        most: u64,
        holder: &str,
        mut writer: BlobWriter,
    ) -> Result<(BlobWriter, Result<(), Stopped>), FetchError> {
        let offset = writer.size();
        let request =
            GetBlobRequest { grant: source.grant.as_ref().map(Into::into), digest: digest.to_owned(), offset };
        let mut client = ImageStoreClient::new(self.dialer.node(holder)).max_decoding_message_size(MESSAGE_BOUND);
        let silent = || Stopped::Failed(format!("{holder} has not answered for {PROGRESS_WAIT:?}"));
        let mut stream = match timeout(PROGRESS_WAIT, client.get_blob(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ok((writer, Err(status.into()))),
            Err(_) => return Ok((writer, Err(silent()))),
        };
        loop {
            let chunk = match timeout(PROGRESS_WAIT, stream.message()).await {
                Ok(Ok(Some(chunk))) => chunk.data,
                Ok(Ok(None)) => return Ok((writer, Ok(()))),
                Ok(Err(status)) => return Ok((writer, Err(status.into()))),
                Err(_) => return Ok((writer, Err(silent()))),
            };
            if writer.size() + chunk.len() as u64 > most {
                let why = format!("{holder} gave more than the {most} bytes that the blob has");
                return Ok((writer, Err(Stopped::Failed(why))));
            }
            let written;
            (writer, written) = blocking(move || {
                let written = writer.write_all(&chunk);
                (writer, written)
            })
            .await?;
            written.map_err(stored)?;
        }
    }
}
