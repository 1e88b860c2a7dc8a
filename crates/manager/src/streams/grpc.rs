//! The gRPC edge of the stream broker: receives the streams that workers open, and converts their frames.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use flota_api::defaults::{HEALTH_RESULTS, MESSAGE_BOUND};
use flota_api::model::{LogLine, NetworkReport, TaskFrame};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as Content;
use flota_api::proto::streams::streams_server::{Streams, StreamsServer};
use flota_api::text::printable_within;
use flota_identity::Peer;

use crate::dispatcher::bounded_health;

use super::{BrokenStream, OPEN_WAIT, QUEUE, StreamBroker, WorkerStream};

/// Bytes of an error or a name of a worker that reach the user.
const TEXT_BOUND: usize = 1_000;

/// Serves Streams: a worker opens a stream that it was asked for.
#[derive(Clone, Debug)]
pub struct StreamsService(StreamBroker);

impl StreamsService {
    /// Creates the service that passes the workers' streams to this broker.
    pub(crate) fn server(broker: StreamBroker) -> StreamsServer<Self> {
        StreamsServer::new(Self(broker)).max_decoding_message_size(MESSAGE_BOUND)
    }
}

/// Makes what the worker itself says fit for a terminal. What its tasks write is the user's own.
fn printable(frame: TaskFrame) -> TaskFrame {
    match frame {
        TaskFrame::Error(text) => TaskFrame::Error(printable_within(&text, TEXT_BOUND)),
        TaskFrame::Log(line) => TaskFrame::Log(LogLine {
            task_name: printable_within(&line.task_name, TEXT_BOUND),
            node_name: printable_within(&line.node_name, TEXT_BOUND),
            ..line
        }),
        TaskFrame::Checked(report) => TaskFrame::Checked(printable_report(report)),
        TaskFrame::Health(health) => TaskFrame::Health(bounded_health(health, HEALTH_RESULTS)),
        other => other,
    }
}

fn printable_report(mut report: NetworkReport) -> NetworkReport {
    let failures = report.peers.iter_mut().flat_map(|peer| &mut peer.failures).map(|failure| &mut failure.why);
    failures.chain(&mut report.balancer.differences).for_each(|text| *text = printable_within(text, TEXT_BOUND));
    report
}

fn received(frame: Result<Frame, Status>) -> Result<TaskFrame, BrokenStream> {
    let frame = frame.map_err(|status| BrokenStream::Lost(status.message().to_owned()))?;
    Ok(printable(frame.try_into()?))
}

type Answers = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Streams for StreamsService {
    type DataStream = Answers;

    async fn data(&self, request: Request<Streaming<Frame>>) -> Result<Response<Answers>, Status> {
        let node = request.extensions().get::<Peer>().and_then(Peer::node_id).cloned();
        let node = node.ok_or_else(|| Status::permission_denied("only a node opens a data stream"))?;
        let mut inbox = request.into_inner();
        let late = |_| Status::deadline_exceeded("the first frame of a data stream did not come in time");
        let first = tokio::time::timeout(OPEN_WAIT, inbox.message()).await.map_err(late)??;
        let Some(Content::Accept(id)) = first.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("a data stream begins with `accept`"));
        };
        let (outbox, answers) = mpsc::channel(QUEUE);
        let stream = WorkerStream { inbox: inbox.map(received).boxed(), outbox };
        self.0.accept(&id, &node, stream).map_err(|error| Status::not_found(error.to_string()))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|frame| Ok(frame.into())))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{BalancerReport, Health, HealthResult, Output};
    use flota_api::version::Timestamp;

    #[test]
    fn a_worker_writes_no_escape_sequences_to_a_users_terminal() {
        assert_eq!(printable(TaskFrame::Error("\u{1b}c".into())), TaskFrame::Error("\\u001bc".into()));
        let report = |why: &str| {
            let balancer = BalancerReport { differences: vec![why.into()], ..BalancerReport::default() };
            TaskFrame::Checked(NetworkReport { balancer, ..NetworkReport::default() })
        };
        assert_eq!(printable(report("\u{1b}c")), report("\\u001bc"));
        let health = |output: &str| {
            let log = vec![HealthResult { output: output.into(), ..HealthResult::default() }];
            TaskFrame::Health(Health { log, ..Health::default() })
        };
        assert_eq!(printable(health("\u{1b}c\n")), health("\\u001bc "));
        let line = |name: &str| {
            let (at, output) = (Timestamp::default(), Output::Stdout);
            let (task_name, line) = ("web.1".to_owned(), "\u{1b}[1m".into());
            LogLine { task: "t".into(), task_name, node_name: name.into(), at, output, line, number: 0 }
        };
        let shown = printable(TaskFrame::Log(line("\u{1b}c")));
        assert_eq!(shown, TaskFrame::Log(line("\\u001bc")), "the line is the task's");
        assert_eq!(printable(TaskFrame::Stdout("\u{1b}c".into())), TaskFrame::Stdout("\u{1b}c".into()));
    }
}
