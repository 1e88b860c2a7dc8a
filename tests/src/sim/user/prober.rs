//! A user who creates and removes one service all the time, and asks every manager at once: a manager that has lost its
//! leadership without noticing is always asked, and it is seen for how long nobody can write.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::Status;
use tonic::transport::Channel;

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{CreateServiceRequest, RemoveRequest};
use flota_api::proto::specs::ServiceSpec;
use flota_api::proto::types::RestartPolicy;

use super::{Client, TAG, answer_of, is_lost};
use crate::sim::services::{Answer, Op};

/// The service, which has no tasks. Its history is checked first, and soon decided, because its writes follow each other.
const NAME: &str = "a-probe";
/// Time limit of one try.
const TRY: Duration = Duration::from_secs(1);
/// Pause between two writes, and between two tries.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Writes until the history is stopped.
    pub(super) async fn probe(self) {
        while !self.history.is_stopped() {
            let tag = self.history.tag();
            let request_id = self.request_id(tag);
            let spec = ServiceSpec {
                name: NAME.into(),
                labels: [(TAG.to_owned(), tag.to_string())].into(),
                image: self.wishes.image.into(),
                stop_grace_ms: 1_000,
                restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
                ..ServiceSpec::default()
            };
            let create = CreateServiceRequest { request_id, spec: Some(spec), ..CreateServiceRequest::default() };
            self.write_everywhere(Op::Create { tag }, |mut client| {
                let create = create.clone();
                async move { client.create_service(create).await.map(drop) }
            })
            .await;
            let request_id = self.request_id(self.history.tag());
            let remove = RemoveRequest { request_id, name: NAME.into(), ..RemoveRequest::default() };
            self.write_everywhere(Op::Remove, |mut client| {
                let remove = remove.clone();
                async move { client.remove_service(remove).await.map(drop) }
            })
            .await;
        }
    }

    /// Sends a request to every manager, again and again until one gives a final answer or the history is stopped.
    async fn write_everywhere<F>(&self, op: Op, call: impl Fn(ControlClient<Channel>) -> F)
    where
        F: Future<Output = Result<(), Status>>,
    {
        let number = self.history.begin(self.number, NAME, op);
        let mut answer = None;
        while answer.is_none() && !self.history.is_stopped() {
            answer = self.try_everywhere(&call).await;
            if answer.is_none() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if answer.is_some() {
            self.history.note_write();
        }
        self.history.end(number, answer);
        tokio::time::sleep(PAUSE).await;
    }

    /// Sends a request to every manager. Returns the first final answer, if one gives any.
    async fn try_everywhere<F>(&self, call: impl Fn(ControlClient<Channel>) -> F) -> Option<Answer>
    where
        F: Future<Output = Result<(), Status>>,
    {
        let tries = self.channels.iter().map(|it| tokio::time::timeout(TRY, call(ControlClient::new(it.clone()))));
        let mut tries: FuturesUnordered<_> = tries.collect();
        while let Some(answer) = tries.next().await {
            match answer {
                Ok(Ok(())) => return Some(Answer::Done),
                Ok(Err(status)) if !is_lost(&status) => return answer_of(&status),
                _ => {}
            }
        }
        None
    }
}
