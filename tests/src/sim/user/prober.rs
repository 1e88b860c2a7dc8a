//! A user who writes all the time and asks every manager at once, to find out for how long nobody can write.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use flota_api::proto::control::UpdateNodeRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::specs::NodeSpec;
use flota_api::proto::types::Availability;

use super::Client;

/// Node whose labels are changed: one that never leaves.
const NODE: &str = "w1";
/// Time limit of one try.
const TRY: Duration = Duration::from_secs(1);
/// Pause between two writes, and between two tries.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Writes until the history is stopped.
    pub(super) async fn probe(self) {
        while !self.history.is_stopped() {
            let tag = self.history.tag();
            let spec = NodeSpec {
                availability: Availability::Active.into(),
                labels: [("probe".to_owned(), tag.to_string())].into(),
                ..NodeSpec::default()
            };
            let request_id = self.request_id(tag);
            let request = UpdateNodeRequest { request_id, node: NODE.into(), version: 0, spec: Some(spec) };
            while !self.history.is_stopped() && !self.try_everywhere(&request).await {
                tokio::time::sleep(PAUSE).await;
            }
            self.history.note_write();
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends the request to every manager. Returns whether one has carried it out.
    async fn try_everywhere(&self, request: &UpdateNodeRequest) -> bool {
        let tries = self.channels.iter().map(|channel| {
            let (mut client, request) = (ControlClient::new(channel.clone()), request.clone());
            tokio::time::timeout(TRY, async move { client.update_node(request).await.is_ok() })
        });
        let mut tries: FuturesUnordered<_> = tries.collect();
        while let Some(done) = tries.next().await {
            if done.unwrap_or(false) {
                return true;
            }
        }
        false
    }
}
