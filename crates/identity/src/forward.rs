//! A TCP connection of which a stream of frames carries one part: `ctl` has one end, and the worker of a task the other.
//! Both run the same code.
//!
//! Each direction ends by itself, as in TCP (RFC 9293, section 3.6): the end of one is a frame. A reader that is slow
//! fills the windows of its own stream, and then its sender waits. A connection that ends in any other way is reset, so
//! that no reader takes a part of the data for all of it.

use std::io;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::Status;

use flota_api::proto::streams::Frame;
use flota_api::proto::streams::frame::Frame as Content;

/// Largest amount of data in a frame, in bytes.
const PIECE: usize = 16 << 10;

/// Why a connection did not end in order. It has been reset.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// This end of the connection broke.
    #[error("the connection broke")]
    Connection(#[from] io::Error),
    /// The other end ended the connection with this reason.
    #[error("{0}")]
    OtherEnd(String),
    /// The stream broke, or its reader has gone.
    #[error("the stream to the other end broke{}", .0.as_ref().map(|it| format!(": {}", it.message())).unwrap_or_default())]
    Stream(Option<Status>),
}

/// Copies what arrives from `connection` to `outbox`, and what `inbox` has to the connection, until both directions have
/// ended. Waits while `outbox` is full, and reads nothing from `inbox` while the connection takes no more.
///
/// # Errors
/// The connection did not end in order.
pub async fn carry(
    mut connection: TcpStream,
    outbox: &mpsc::Sender<Frame>,
    inbox: &mut (impl Stream<Item = Result<Frame, Status>> + Unpin),
) -> Result<(), CarryError> {
    let (mut reader, mut writer) = connection.split();
    let mut inbox = inbox.fuse();
    let there = async {
        let mut piece = vec![0; PIECE];
        loop {
            let count = tokio::select! {
                // Without this branch, an end of the stream is not noticed while the connection is silent.
                () = outbox.closed() => return Err(CarryError::Stream(None)),
                count = reader.read(&mut piece) => count?,
            };
            let content = match count {
                0 => Content::DataEnd(true),
                _ => Content::Data(bytes::Bytes::copy_from_slice(&piece[..count])),
            };
            let sent = outbox.send(Frame { frame: Some(content) }).await;
            sent.map_err(|_| CarryError::Stream(None))?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    let back = async {
        while let Some(frame) = inbox.next().await {
            match frame.map_err(|status| CarryError::Stream(Some(status)))?.frame {
                Some(Content::Data(piece)) => writer.write_all(&piece).await?,
                Some(Content::DataEnd(_)) => return Ok(writer.shutdown().await?),
                Some(Content::Error(why)) => return Err(CarryError::OtherEnd(why)),
                _ => {}
            }
        }
        Err(CarryError::Stream(None))
    };
    let mut carried = tokio::try_join!(there, back).map(drop);
    if matches!(carried, Err(CarryError::Stream(None))) {
        // The reason may be among the frames that were not read yet.
        carried = Err(reason(&mut inbox).await);
    }
    if carried.is_err() {
        // If this fails, the connection is closed in order: nothing better is left.
        let _ = connection.set_zero_linger();
    }
    carried
}

/// Returns why a stream that has ended did so.
async fn reason(inbox: &mut (impl Stream<Item = Result<Frame, Status>> + Unpin)) -> CarryError {
    while let Some(frame) = inbox.next().await {
        match frame.map(|it| it.frame) {
            Ok(Some(Content::Error(why))) => return CarryError::OtherEnd(why),
            Err(status) => return CarryError::Stream(Some(status)),
            Ok(_) => {}
        }
    }
    CarryError::Stream(None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    /// Long enough for anything that happens at all.
    const DEADLINE: Duration = Duration::from_secs(10);

    /// Returns the two ends of a connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.expect("it connects"), theirs.expect("it accepts").0)
    }

    /// Returns a user's connection and a program's, with a forward between them that holds a frame in each direction, and
    /// how the two ends of the forward end.
    async fn forward() -> (TcpStream, TcpStream, impl Future<Output = [Result<(), CarryError>; 2]>) {
        let ((user, near), (far, program)) = (pair().await, pair().await);
        let (near_outbox, far_inbox) = mpsc::channel(1);
        let (far_outbox, near_inbox) = mpsc::channel(1);
        let end = |connection, outbox: mpsc::Sender<Frame>, inbox| {
            tokio::spawn(async move {
                let frames = ReceiverStream::new(inbox).map(Ok);
                carry(connection, &outbox, &mut Box::pin(frames)).await
            })
        };
        let (near, far) = (end(near, near_outbox, near_inbox), end(far, far_outbox, far_inbox));
        let ended = async move {
            let ended = tokio::time::timeout(DEADLINE, async { [near.await, far.await] }).await;
            ended.expect("in time").map(|it| it.expect("it does not panic"))
        };
        (user, program, ended)
    }

    #[tokio::test]
    async fn a_direction_ends_while_the_other_goes_on() {
        let (mut user, mut program, ended) = forward().await;
        user.write_all(b"question").await.expect("it is written");
        user.shutdown().await.expect("the user's side ends");
        let mut asked = String::new();
        program.read_to_string(&mut asked).await.expect("it ends");
        assert_eq!(asked, "question");
        program.write_all(b"answer").await.expect("the other direction is still open");
        drop(program);
        let mut answered = String::new();
        user.read_to_string(&mut answered).await.expect("it ends in order");
        assert_eq!(answered, "answer");
        assert!(matches!(ended.await, [Ok(()), Ok(())]));
    }

    // The paused clock moves when no task can run, which is when the program waits.
    #[tokio::test(start_paused = true)]
    async fn a_sender_waits_while_its_reader_is_slow_and_the_other_direction_goes_on() {
        let (mut user, mut program, _ended) = forward().await;
        let chunk = vec![b'x'; 1 << 20];
        let mut written = 0;
        // Far more than all buffers of sockets take.
        let writes = async {
            while written < 64 << 20 {
                program.write_all(&chunk).await.expect("both ends are open");
                written += chunk.len();
            }
        };
        tokio::time::timeout(Duration::from_secs(1), writes).await.expect_err("the program waits");
        user.write_all(b"stop").await.expect("it is written");
        let mut read = [0; 4];
        program.read_exact(&mut read).await.expect("it arrives");
        assert_eq!(&read, b"stop");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_reset_at_the_other_end() {
        let (mut user, program, ended) = forward().await;
        program.set_zero_linger().expect("a socket option");
        drop(program);
        let error = user.read_to_end(&mut Vec::new()).await.expect_err("the connection does not end in order");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let ended = ended.await;
        assert!(matches!(ended, [Err(CarryError::Stream(None)), Err(CarryError::Connection(_))]), "{ended:?}");
    }

    #[tokio::test]
    async fn the_end_of_the_stream_ends_a_connection_that_is_silent() {
        let ((mut user, near), (outbox, inbox)) = (pair().await, mpsc::channel(1));
        let mut frames = futures::stream::iter([Ok(Frame { frame: Some(Content::DataEnd(true)) })]);
        drop(inbox);
        let carried = tokio::time::timeout(DEADLINE, carry(near, &outbox, &mut frames)).await.expect("in time");
        assert!(matches!(carried, Err(CarryError::Stream(None))), "{carried:?}");
        user.read_to_end(&mut Vec::new()).await.expect_err("the connection does not end in order");
    }

    #[tokio::test]
    async fn the_reason_of_the_other_end_is_returned_although_it_has_closed_the_stream() {
        let ((_user, near), (outbox, _)) = (pair().await, mpsc::channel(1));
        let refused = Frame { frame: Some(Content::Error("nothing listens".into())) };
        let carried = carry(near, &outbox, &mut futures::stream::iter([Ok(refused)])).await;
        assert_eq!(carried.expect_err("it is refused").to_string(), "nothing listens");
    }
}
