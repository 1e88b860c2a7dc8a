//! A connection to one family of generic netlink in one namespace (linux/genetlink.h).
//!
//! The kernel handles a request while it is sent and has queued its answer by then, so that no call waits.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;

use crate::error::{NetworkError, Refusal, io};
use crate::nftables::attributes::{self, Attributes};

/// The family that knows the others, its request for one, and the attributes of both.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The headers of netlink (16 bytes) and of generic netlink (4).
const NETLINK_HEADER: usize = 16;
const HEADER: usize = 20;
/// The version of all messages here.
const VERSION: u8 = 1;
/// The kernel's explanation of an error follows the code and, as `NETLINK_CAP_ACK` is set, the header of the request.
const EXPLANATION: usize = 20;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel fills at most this much per message of a dump.
const RECEIVE_BUFFER: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct GenericSocket {
    netlink: Netlink,
    family: u16,
    sequence: u32,
}

impl GenericSocket {
    /// Opens a connection in the namespace of this thread, which it keeps alive.
    pub(super) fn open_here(family: &str) -> Result<Self, NetworkError> {
        let act = format!("open a connection to {family}");
        let open = || {
            let mut netlink = Netlink::new(NETLINK_GENERIC)?;
            netlink.bind_auto()?;
            netlink.connect(&SocketAddr::new(0, 0))?;
            netlink.set_ext_ack(true)?;
            netlink.set_cap_ack(true)?;
            Ok(netlink)
        };
        let mut socket = Self { netlink: open().map_err(io(act.as_str()))?, family: CONTROL, sequence: 0 };
        let request = Attributes::new().text(FAMILY_NAME, family);
        let answers = socket.exchange(&act, GET_FAMILY, NLM_F_ACK, &request)?;
        let number = answers.first().and_then(|answer| attributes::find(answer, FAMILY_ID)?.try_into().ok());
        let missing = || io(act)(io::Error::other("the kernel has not told its number"));
        socket.family = number.map(u16::from_ne_bytes).ok_or_else(missing)?;
        Ok(socket)
    }

    /// Makes a change.
    pub(super) fn change(&mut self, act: &str, command: u8, attributes: &Attributes) -> Result<(), NetworkError> {
        self.exchange(act, command, NLM_F_ACK, attributes).map(drop)
    }

    /// Returns the attributes of each message of the answer to a request.
    pub(super) fn dump(
        &mut self,
        act: &str,
        command: u8,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetworkError> {
        self.exchange(act, command, NLM_F_DUMP, attributes)
    }

    fn exchange(
        &mut self,
        act: &str,
        command: u8,
        flags: u16,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetworkError> {
        let failed = |source| NetworkError::Io { act: act.to_owned(), source };
        let request = self.encode(command, flags, attributes);
        self.netlink.send(&request, 0).map_err(failed)?;
        let (mut found, mut buffer) = (Vec::new(), Vec::with_capacity(RECEIVE_BUFFER));
        loop {
            buffer.clear();
            self.netlink.recv(&mut buffer, 0).map_err(failed)?;
            for message in messages(&buffer).filter(|it| it.sequence == self.sequence) {
                match message.kind {
                    ERROR | DONE => return message.refusal(act).map_or(Ok(found), Err),
                    _ => found.push(message.body.get(HEADER - NETLINK_HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    fn encode(&mut self, command: u8, flags: u16, attributes: &Attributes) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let attributes = attributes.as_bytes();
        let mut bytes = Vec::with_capacity(HEADER + attributes.len());
        bytes.extend(u32::try_from(HEADER + attributes.len()).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(self.family.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([command, VERSION, 0, 0]);
        bytes.extend(attributes);
        bytes
    }
}

/// A message from the kernel, without netlink's header.
struct GenericMessage<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl GenericMessage<'_> {
    /// Returns the error that the last message of an answer states, if it states one.
    fn refusal(&self, act: &str) -> Option<NetworkError> {
        let code = self.body.first_chunk::<4>().map_or(0, |it| i32::from_ne_bytes(*it));
        let explanation = attributes::find(self.body.get(EXPLANATION..).unwrap_or_default(), NLMSGERR_ATTR_MSG);
        let source =
            Refusal { code: Errno::from_raw(code.saturating_abs()), explanation: explanation.map(attributes::text) };
        (code < 0).then(|| NetworkError::Refused { act: act.to_owned(), source })
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = GenericMessage<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<NETLINK_HEADER>()?;
        let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, sequence) = (number(0) as usize, number(8));
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(NETLINK_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(GenericMessage { kind, sequence, body })
    })
}
