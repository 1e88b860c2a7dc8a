//! A [`Transport`] for tests: a function answers each request, and nothing is sent.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tonic::Status;

use super::{AppendAnswers, Method, Transport};
use flota_api::proto::raft::RaftMessage;

type Answer = BoxFuture<'static, Result<RaftMessage, Status>>;

/// Answers the requests to all managers by one function.
pub(crate) struct FakeTransport(Arc<dyn Fn(Method, RaftMessage) -> Answer + Send + Sync>);

impl FakeTransport {
    /// Answers each request by `answer`.
    pub(crate) fn new(answer: impl Fn(Method, RaftMessage) -> Answer + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// No manager can be reached.
    pub(crate) fn silent() -> Self {
        Self::new(|_, _| Box::pin(async { Err(Status::unavailable("nobody is there")) }))
    }
}

impl Transport for FakeTransport {
    fn set_address(&self, _: u64, _: &str) {}

    fn call_at(&self, _: &str, method: Method, message: RaftMessage) -> Answer {
        self.0(method, message)
    }

    fn redirect(&self, _: u64, _: &str, _: &str) {}

    fn call(&self, _: u64, method: Method, message: RaftMessage) -> Answer {
        self.0(method, message)
    }

    fn append(
        &self,
        _: u64,
        requests: BoxStream<'static, RaftMessage>,
    ) -> BoxFuture<'static, Result<AppendAnswers, Status>> {
        let answer = Arc::clone(&self.0);
        let answers = requests.then(move |request| answer(Method::AppendOne, request)).boxed();
        Box::pin(async { Ok(answers) })
    }
}
