//! A connection to the kernel's netfilter subsystem in one namespace (linux/netfilter/nfnetlink.h). It sends batches,
//! each of which takes effect as a whole or not at all, and lists what the kernel has.
//!
//! The kernel handles a request while it is sent and has queued its answer by then, so that no call waits.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::attributes::{self, Attributes};
use crate::error::{NetworkError, Refusal, io};
use crate::namespace::Namespace;

/// The part of netfilter that a message is for, in the upper byte of its type.
pub(crate) const NFTABLES: u16 = 10 << 8;
pub(crate) const CONNTRACK: u16 = 1 << 8;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The headers of netlink (16 bytes) and of netfilter (4).
const NETLINK_HEADER: usize = 16;
const HEADER: usize = 20;
/// The kernel's explanation of an error follows the code and, as `NETLINK_CAP_ACK` is set, the header of the request.
const EXPLANATION: usize = 20;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel fills at most this much per message of a dump.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Bytes that a socket can send at once without a larger buffer. The kernel's default is more.
const SEND_BUFFER: usize = 64 << 10;

/// A message to netfilter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    /// The subsystem and the number of the request in it.
    pub(crate) kind: u16,
    /// `NLM_F_…`, beside those of every request.
    pub(crate) flags: u16,
    /// The address family, as `NFPROTO_…` or `AF_…`.
    pub(crate) family: u8,
    pub(crate) attributes: Attributes,
}

/// A netfilter connection.
#[derive(Debug)]
pub(crate) struct Socket {
    netlink: Netlink,
    sequence: u32,
}

impl Socket {
    /// Opens a connection in a namespace, which it keeps alive.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel has no netfilter.
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        let open = || {
            let mut netlink = Netlink::new(NETLINK_NETFILTER)?;
            netlink.bind_auto()?;
            netlink.connect(&SocketAddr::new(0, 0))?;
            netlink.set_ext_ack(true)?;
            netlink.set_cap_ack(true)?;
            // Nothing but answers arrives, and they are there before they are read.
            netlink.set_non_blocking(true)?;
            Ok(netlink)
        };
        let netlink = namespace.enter(|| open().map_err(io("open a connection to netfilter")))?;
        Ok(Self { netlink, sequence: 0 })
    }

    /// Sends changes of nftables as one transaction.
    ///
    /// # Errors
    /// The kernel refuses one of the messages, or the whole: then nothing has changed.
    pub(crate) fn transact(&mut self, act: &str, messages: &[Message]) -> Result<(), NetworkError> {
        let Some((last, others)) = messages.split_last() else { return Ok(()) };
        let mut batch = self.encode(&boundary(BATCH_BEGIN), 0);
        for message in others {
            batch.extend(self.encode(message, 0));
        }
        batch.extend(self.encode(last, NLM_F_ACK));
        let acknowledged = self.sequence;
        batch.extend(self.encode(&boundary(BATCH_END), 0));
        self.send(act, &batch)?;
        let answers = self.receive(act)?;
        if answers.iter().any(|answer| answer.sequence == acknowledged && answer.kind == ERROR) {
            return Ok(());
        }
        Err(failed(act)(io::Error::other("the kernel has not acknowledged the transaction")))
    }

    /// Sends a single request outside of a transaction.
    ///
    /// # Errors
    /// The kernel refuses the request, or the socket fails.
    pub(crate) fn request(&mut self, act: &str, message: &Message) -> Result<(), NetworkError> {
        let request = self.encode(message, NLM_F_ACK);
        self.send(act, &request)?;
        self.receive(act).map(drop)
    }

    /// Returns the attributes of each object that the kernel lists in answer to a request.
    ///
    /// # Errors
    /// The kernel refuses to list the objects, or the socket fails.
    pub(crate) fn list(&mut self, act: &str, message: &Message) -> Result<Vec<Vec<u8>>, NetworkError> {
        let request = self.encode(message, NLM_F_DUMP);
        self.send(act, &request)?;
        let answers = self.receive(act)?;
        Ok(answers.into_iter().filter(|answer| answer.kind > DONE).map(|answer| answer.attributes).collect())
    }

    /// Returns the attributes of the one object that a request names.
    ///
    /// # Errors
    /// The kernel refuses, or answers nothing.
    pub(crate) fn get(&mut self, act: &str, message: &Message) -> Result<Vec<u8>, NetworkError> {
        let request = self.encode(message, 0);
        self.send(act, &request)?;
        let answer = self.receive(act)?.into_iter().next();
        answer
            .map(|answer| answer.attributes)
            .ok_or_else(|| failed(act)(io::Error::other("the kernel has not answered")))
    }

    fn encode(&mut self, message: &Message, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let attributes = message.attributes.as_bytes();
        // The batch's boundaries name the subsystem here; all other messages have a zero.
        let resource = if message.kind <= BATCH_END { NFTABLES >> 8 } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER + attributes.len());
        bytes.extend(u32::try_from(HEADER + attributes.len()).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(message.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | message.flags | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([message.family, 0]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(attributes);
        bytes
    }

    fn send(&self, act: &str, bytes: &[u8]) -> Result<(), NetworkError> {
        // The kernel takes a batch only as one message, however large.
        if bytes.len() > SEND_BUFFER {
            let enlarged = setsockopt(&self.netlink.as_fd(), sockopt::SndBufForce, &(2 * bytes.len()));
            enlarged.map_err(|error| failed(act)(error.into()))?;
        }
        self.netlink.send(bytes, 0).map(drop).map_err(failed(act))
    }

    /// Reads all answers that the kernel has queued. A dump continues as it is read.
    fn receive(&self, act: &str) -> Result<Vec<KernelAnswer>, NetworkError> {
        let mut answers = Vec::new();
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        let mut refusal = None;
        loop {
            buffer.clear();
            match self.netlink.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed(act)(error)),
            }
            for answer in read_answers(&buffer) {
                refusal = refusal.or_else(|| answer.refusal());
                answers.push(answer);
            }
        }
        match refusal {
            Some(source) => Err(NetworkError::Refused { act: act.into(), source }),
            None => Ok(answers),
        }
    }
}

fn boundary(kind: u16) -> Message {
    Message { kind, flags: 0, family: 0, attributes: Attributes::new() }
}

fn failed(act: &str) -> impl FnOnce(io::Error) -> NetworkError {
    io(act.to_owned())
}

/// A message from the kernel. Of an error, `attributes` is what follows netlink's header.
struct KernelAnswer {
    kind: u16,
    sequence: u32,
    attributes: Vec<u8>,
}

impl KernelAnswer {
    fn refusal(&self) -> Option<Refusal> {
        if self.kind != ERROR && self.kind != DONE {
            return None;
        }
        let (code, _) = self.attributes.split_first_chunk::<4>()?;
        let code = i32::from_ne_bytes(*code);
        let explanation = attributes::find(self.attributes.get(EXPLANATION..).unwrap_or_default(), NLMSGERR_ATTR_MSG);
        (code < 0).then(|| Refusal { code: Errno::from_raw(-code), explanation: explanation.map(attributes::text) })
    }
}

fn read_answers(mut bytes: &[u8]) -> impl Iterator<Item = KernelAnswer> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<NETLINK_HEADER>()?;
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, sequence) = (number(0) as usize, number(8));
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let start = if kind <= DONE { NETLINK_HEADER } else { HEADER };
        let attributes = bytes.get(start..length)?.to_vec();
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(KernelAnswer { kind, sequence, attributes })
    })
}
