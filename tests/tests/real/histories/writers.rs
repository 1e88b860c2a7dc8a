//! A load of writes whose answers are all known in advance, beside the users of a history.
//!
//! Each writer creates and removes a service of its own in turn, so both always succeed. A change that was acknowledged
//! and is lost, or is done twice, turns the next answer into a refusal. Like `ctl`, a writer repeats a request under its id
//! at the next manager after any loss.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{CreateServiceRequest, RemoveRequest};
use flota_api::proto::specs::ServiceSpec;
use flota_tests::sim::user::{History, is_lost};

/// Number of writers, each with one request in flight.
const WRITERS: usize = 16;
/// Time limit of one try at one manager.
const TRY: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the writers until the users of `history` are stopped, and returns the number of changes that were acknowledged.
/// Every writer's service is removed in the end.
pub(super) async fn run(channels: Vec<Channel>, history: History) -> usize {
    let written = AtomicUsize::new(0);
    let writers = (0..WRITERS).map(|number| write(number, &channels, &history, &written));
    futures::future::join_all(writers).await;
    written.into_inner()
}

async fn write(number: usize, channels: &[Channel], history: &History, written: &AtomicUsize) {
    let name = format!("writer-{number}");
    let mut at = number % channels.len();
    for round in 0.. {
        if history.is_stopped() {
            return;
        }
        let spec = ServiceSpec { name: name.clone(), image: "whoami".into(), ..ServiceSpec::default() };
        let create = CreateServiceRequest {
            request_id: format!("{name} {round} create"),
            spec: Some(ServiceSpec { restart: Some(Default::default()), ..spec }),
            ..CreateServiceRequest::default()
        };
        let created = request(channels, &mut at, |mut client| {
            let create = create.clone();
            async move { client.create_service(create).await.map(drop) }
        });
        created.await.unwrap_or_else(|status| panic!("{name} does not exist in round {round}: {status}"));
        written.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("{name} {round} remove");
        let remove = RemoveRequest { request_id, name: name.clone(), ..RemoveRequest::default() };
        let removed = request(channels, &mut at, |mut client| {
            let remove = remove.clone();
            async move { client.remove_service(remove).await.map(drop) }
        });
        removed.await.unwrap_or_else(|status| panic!("{name} was created in round {round}: {status}"));
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tries one manager after the other until one gives a final answer.
async fn request<F>(
    channels: &[Channel],
    at: &mut usize,
    call: impl Fn(ControlClient<Channel>) -> F,
) -> Result<(), Status>
where
    F: Future<Output = Result<(), Status>>,
{
    loop {
        match tokio::time::timeout(TRY, call(ControlClient::new(channels[*at].clone()))).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) if !is_lost(&status) => return Err(status),
            _ => *at = (*at + 1) % channels.len(),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
