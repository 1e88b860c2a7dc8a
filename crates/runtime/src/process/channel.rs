//! The messages between the runtime and the processes that it creates, until the container is complete: one packet in
//! each direction at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::unistd::{read, write};

use crate::error::{Act, StepError};

/// Size of a packet, which holds one line of an error.
const PACKET: usize = 4096;

/// A message from a new process to the runtime.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ChildMessage {
    /// Asks the runtime to map the ids of its new user namespace. Answered.
    MapIds,
    /// Reports the container's init (in the runtime's PID namespace).
    Init(i32),
    /// Reports that everything is mounted and asks the runtime to run the hooks. Answered.
    Hooks,
    /// Asks the runtime to send this descriptor of the process to the seccomp agent. Answered.
    Listener(RawFd),
    /// Reports that only the program is left to run. Answered if the program is to run at once.
    Ready,
    /// Reports a failure, with an exit code if the program itself is the cause.
    Failed(Option<i32>, String),
}

/// One end of the channel.
pub(crate) struct Channel(OwnedFd);

/// Descriptor of the signals that interrupt the creation of a container, once they are watched.
static INTERRUPTS: OnceLock<SignalFd> = OnceLock::new();

/// Makes a signal that asks this process to end an error of the current operation, which is then undone, instead of
/// ending the process at once.
///
/// # Errors
/// The kernel refuses the change of the signal mask.
pub fn interruptible() -> io::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set.thread_block()?;
    let watch = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let _ = INTERRUPTS.set(watch);
    Ok(())
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Returns both ends, the runtime's first.
    pub(crate) fn pair() -> Result<(Self, Self), StepError> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        pair.map(|(one, other)| (Self(one), Self(other))).act(|| "make a socket".into())
    }

    /// Sends a message from a new process.
    pub(crate) fn send(&self, message: &ChildMessage) -> Result<(), StepError> {
        let mut packet = Vec::with_capacity(64);
        let number = |tag: u8, number: i32| [&[tag][..], &number.to_le_bytes()].concat();
        match message {
            ChildMessage::MapIds => packet.push(b'm'),
            ChildMessage::Init(pid) => packet = number(b'i', *pid),
            ChildMessage::Hooks => packet.push(b'h'),
            ChildMessage::Listener(fd) => packet = number(b'l', *fd),
            ChildMessage::Ready => packet.push(b'r'),
            ChildMessage::Failed(code, text) => {
                packet = number(b'f', code.unwrap_or(0));
                packet.extend_from_slice(&text.as_bytes()[..text.len().min(PACKET - 8)]);
            }
        }
        // Of the calls that a filter may forbid, these write(2) and read(2) are the last.
        write(&self.0, &packet).act(|| "send a message to the runtime".into()).map(drop)
    }

    /// Sends a message from a new process and waits for the answer.
    pub(crate) fn request(&self, message: &ChildMessage) -> Result<(), StepError> {
        self.send(message)?;
        self.await_answer()
    }

    /// Waits in a new process until the runtime's answer.
    pub(crate) fn await_answer(&self) -> Result<(), StepError> {
        let mut packet = [0; 1];
        match self.read_packet(&mut packet)? {
            0 => Err(StepError::refuse("continue", "the runtime has ended")),
            _ => Ok(()),
        }
    }

    /// Sends the runtime's answer, or its permission to begin.
    pub(crate) fn answer(&self) -> Result<(), StepError> {
        match send(self.0.as_raw_fd(), b"k", MsgFlags::MSG_NOSIGNAL) {
            // The process has ended. Its last message, which has the reason, can still be received.
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(error) => Err(error).act(|| "answer the container's init".into()),
        }
    }

    /// Waits in the runtime until all processes have closed their end; their messages can still be received.
    pub(crate) fn await_end(&self, until: Instant) -> Result<(), StepError> {
        self.wait(PollFlags::empty(), until)
    }

    /// Receives a message in the runtime; `None` when all processes have closed their end.
    pub(crate) fn receive(&self, until: Instant) -> Result<Option<ChildMessage>, StepError> {
        self.wait(PollFlags::POLLIN, until)?;
        let mut packet = [0; PACKET];
        let count = self.read_packet(&mut packet)?;
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |it| i32::from_le_bytes(*it));
        Ok(Some(match packet[..count].split_first() {
            None => return Ok(None),
            Some((b'm', _)) => ChildMessage::MapIds,
            Some((b'i', rest)) => ChildMessage::Init(number(rest)),
            Some((b'h', _)) => ChildMessage::Hooks,
            Some((b'l', rest)) => ChildMessage::Listener(number(rest)),
            Some((b'r', _)) => ChildMessage::Ready,
            Some((_, rest)) => {
                let code = Some(number(rest)).filter(|it| *it != 0);
                ChildMessage::Failed(code, String::from_utf8_lossy(rest.get(4..).unwrap_or_default()).into_owned())
            }
        }))
    }

    fn read_packet(&self, packet: &mut [u8]) -> Result<usize, StepError> {
        loop {
            match read(&self.0, packet) {
                // The other end was closed with unread data. This is reported once, and the messages that were sent
                // before follow.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                other => return other.act(|| "receive a message".into()),
            }
        }
    }

    /// Waits for events; POLLHUP is always included.
    fn wait(&self, what: PollFlags, until: Instant) -> Result<(), StepError> {
        let act = || "wait for the container's init".to_owned();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // The timeout is rounded up, because one of less than 1 ms becomes 0, which does not wait at all.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut polled = vec![PollFd::new(self.0.as_fd(), what)];
            polled.extend(INTERRUPTS.get().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
            match poll(&mut polled, left) {
                Ok(0) if Instant::now() >= until => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut)).act(act);
                }
                Ok(0) | Err(Errno::EINTR) => {}
                // The signal stays pending, so that the code that waits for the container receives it, too.
                Ok(_) if polled.get(1).is_some_and(|it| it.any() == Some(true)) => {
                    return Err(StepError::refuse("continue", "a signal asked this process to end"));
                }
                Ok(_) => return Ok(()),
                Err(error) => return Err(error).act(act),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (runtime, process) = Channel::pair().expect("a socket");
        let soon = Instant::now() + Duration::from_secs(20);
        for message in [
            ChildMessage::MapIds,
            ChildMessage::Init(4_000_000),
            ChildMessage::Hooks,
            ChildMessage::Listener(7),
            ChildMessage::Ready,
            ChildMessage::Failed(Some(127), "no such file".into()),
            ChildMessage::Failed(None, String::new()),
        ] {
            process.send(&message).expect("sent");
            assert_eq!(runtime.receive(soon).expect("received"), Some(message));
        }
        process.send(&ChildMessage::Failed(None, "x".repeat(100_000))).expect("a long error is cut");
        assert!(matches!(runtime.receive(soon), Ok(Some(ChildMessage::Failed(None, text))) if text.len() > 4000));
        drop(process);
        assert_eq!(runtime.receive(soon).expect("received"), None);
    }

    #[test]
    fn the_last_message_arrives_after_an_end_with_something_unread() {
        let (runtime, process) = Channel::pair().expect("a socket");
        let soon = Instant::now() + Duration::from_secs(20);
        runtime.answer().expect("sent before it is requested");
        process.send(&ChildMessage::Failed(Some(126), "why".into())).expect("sent");
        // The answer is unread, so the close is reported as a reset.
        drop(process);
        runtime.answer().expect("it succeeds although no process receives it");
        assert_eq!(runtime.receive(soon).expect("received"), Some(ChildMessage::Failed(Some(126), "why".into())));
        assert_eq!(runtime.receive(soon).expect("received"), None);
    }
}
