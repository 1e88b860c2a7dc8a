//! A user who changes a service of which each slot has data in a volume, and removes first the service and then the volume.

use rand::Rng;

use flota_api::proto::control::RemoveRequest;
use flota_api::proto::specs::mount::Source;
use flota_api::proto::specs::{Mount, ServiceSpec, VolumeMount};
use flota_api::proto::types::RestartPolicy;

use super::Client;

/// The service, and the name of its volumes.
pub(in crate::sim) const VAULT: (&str, &str) = ("the-vault", "the-coins");
/// The most that it may have of tasks.
const MOST: u64 = 3;

impl Client {
    /// Changes the service and its volumes until the history is stopped.
    pub(super) async fn change_vault(mut self) {
        while !self.history.is_stopped() {
            for _ in 0..self.rng.random_range(1..=4) {
                let spec = self.vault();
                self.deploy(spec).await;
                self.pause(2_000).await;
            }
            self.remove_vault(false).await;
            // It is refused while a task uses it.
            for _ in 0..self.rng.random_range(0..=20) {
                if self.remove_vault(true).await {
                    break;
                }
                self.pause(200).await;
            }
        }
    }

    /// Asks to remove the service, or its volume. Returns whether that was done.
    async fn remove_vault(&mut self, volume: bool) -> bool {
        let request_id = self.request_id(self.history.tag());
        let name = if volume { VAULT.1 } else { VAULT.0 };
        let request = RemoveRequest { request_id, name: name.into(), ..RemoveRequest::default() };
        let removed = self.request(|mut client| {
            let request = request.clone();
            async move {
                match volume {
                    true => client.remove_volume(request).await.map(drop),
                    false => client.remove_service(request).await.map(drop),
                }
            }
        });
        let removed = removed.await;
        tracing::info!(client = self.number, name, ?removed, "it was to be removed");
        matches!(removed, Some(Ok(())))
    }

    fn vault(&mut self) -> ServiceSpec {
        let source = VolumeMount { name: VAULT.1.into(), per_slot: true, ..VolumeMount::default() };
        ServiceSpec {
            name: VAULT.0.into(),
            image: self.wishes.image.into(),
            replicas: self.rng.random_range(0..=MOST),
            env: vec![format!("RELEASE={}", self.rng.random_range(0..2))],
            mounts: vec![Mount { target: "/data".into(), source: Some(Source::Volume(source)), ..Mount::default() }],
            stop_grace_ms: 1_000,
            restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
            ..ServiceSpec::default()
        }
    }
}
