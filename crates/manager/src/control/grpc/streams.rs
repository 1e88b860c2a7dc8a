//! Converts the frames of a user's stream, whose first one is the request.

use futures::Stream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use flota_api::model::{UserFrame, UserRole};
use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as Content;
use flota_raft_store::raft::RaftNode;

use super::super::Control;
use super::super::error::ControlError;
use super::super::streams::{LogSource, UserFrames};

/// Carries out the request in the user's first frame, and returns the frames for the user.
pub(super) async fn serve(
    control: Control<RaftNode>,
    mut user: Streaming<Frame>,
) -> Result<impl Stream<Item = Result<Frame, Status>>, Status> {
    let frames = match user.message().await?.and_then(|frame| frame.frame) {
        Some(Content::Exec(mut request)) => {
            control.needs(UserRole::Operator)?;
            let task = std::mem::take(&mut request.task);
            control.exec(&task, request.into(), user_frames(user)).await?
        }
        Some(Content::Logs(request)) => {
            let range = (&request).into();
            let source = match request.service {
                service if service.is_empty() => LogSource::Task(request.task),
                service => LogSource::Service(service),
            };
            control.logs(&source, range).await?
        }
        Some(Content::Forward(request)) => {
            control.needs(UserRole::Operator)?;
            let port = request.port.try_into().map_err(ControlError::from)?;
            control.forward(&request.task, port, request.turn, user_frames(user)).await?
        }
        _ => return Err(ControlError::invalid("frame", "a stream begins with `exec`, `logs` or `forward`").into()),
    };
    Ok(ReceiverStream::new(frames).map(|frame| frame.map(Frame::from).map_err(Status::from)))
}

/// Returns the frames that follow the first one. An error of the connection ends them, because the user is gone.
fn user_frames(user: Streaming<Frame>) -> impl UserFrames {
    user.map_while(Result::ok).map(|frame| UserFrame::try_from(frame).map_err(ControlError::from))
}
