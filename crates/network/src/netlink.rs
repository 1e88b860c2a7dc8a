//! A connection to the kernel's routing subsystem (rtnetlink(7)) in one namespace. Everything in this crate that makes
//! links, addresses, routes and neighbours goes through it.
//!
//! A connection is one blocking socket. The kernel handles a request while it is sent and has queued its answer by then,
//! so a call takes microseconds and cannot block. A connection remembers what is changed over it: the functions that
//! compare the kernel's state with the wanted one make just the changes that are needed, and this says which they were.

use std::fmt::Display;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::error::{NetworkError, Refusal, io};
use crate::namespace::Namespace;

/// The kernel's explanation of an error (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The header of the request that the kernel repeats in front of its explanation.
const REQUEST_HEADER: usize = 16;
/// The kernel fills at most this much per message of a dump (linux/netlink.h, `NLMSG_GOODSIZE` and af_netlink.c).
const RECEIVE_BUFFER: usize = 64 << 10;

type Answer = NetlinkMessage<RouteNetlinkMessage>;

/// A netlink connection in one namespace, which it keeps alive.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    sequence: u32,
    changes: Vec<String>,
}

impl Connection {
    /// Opens a connection in a namespace, which a thread of its own enters for that moment.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        namespace.enter(Self::open_here)
    }

    /// Opens a connection in the namespace of this thread.
    pub(crate) fn open_here() -> Result<Self, NetworkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            // Without the request in it, an answer has its explanation in a fixed place.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(io("open a netlink connection"))?, sequence: 0, changes: Vec::new() })
    }

    /// Returns what has been changed over this connection since the last call, as phrases.
    pub fn take_changes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.changes)
    }

    /// Makes a change, which the phrase `act` describes.
    ///
    /// # Errors
    /// The kernel refuses the change, or the socket fails.
    pub(crate) fn change(
        &mut self,
        act: impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetworkError> {
        #[cfg(test)]
        cut::before_a_change()?;
        self.exchange(&act, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.changes.push(act.to_string());
        Ok(())
    }

    /// Makes a change whose effect may be there already: the answer `code` is a success.
    ///
    /// # Errors
    /// The kernel refuses with any other code.
    pub(crate) fn change_unless(
        &mut self,
        code: Errno,
        act: impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetworkError> {
        match self.change(act, message, flags) {
            Err(error) if error.refusal() == Some(code) => Ok(()),
            result => result,
        }
    }

    /// Returns the object that `message` names, or `None` if there is none.
    ///
    /// # Errors
    /// The kernel refuses with another code than "no such device".
    pub(crate) fn get(
        &mut self,
        act: impl Display,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetworkError> {
        match self.exchange(&act, message, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.refusal() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns all objects of the kind that `message` names.
    ///
    /// # Errors
    /// The kernel refuses to list the objects, or the socket fails.
    pub(crate) fn dump(
        &mut self,
        act: impl Display,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        self.exchange(&act, message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        act: &impl Display,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        let failed = |source| NetworkError::Io { act: act.to_string(), source };
        self.send(message, flags).map_err(failed)?;
        let (mut found, mut buffer) = (Vec::new(), Vec::with_capacity(RECEIVE_BUFFER));
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0).map_err(failed)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let answer = Answer::deserialize(rest).map_err(|error| failed(io::Error::other(error)))?;
                rest = rest.get((answer.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                // An exchange that failed may have left answers unread.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(found),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(refused(act, error.raw_code(), &error.header)),
                    NetlinkPayload::Done(done) => return Err(refused(act, done.code, &[])),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }
}

/// Describes a refusal; `answer` holds the header of the request and the kernel's explanation.
fn refused(act: &impl Display, code: i32, answer: &[u8]) -> NetworkError {
    let attributes = NlasIterator::new(answer.get(REQUEST_HEADER..).unwrap_or_default());
    let explanation = attributes.flatten().find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG).map(|attribute| {
        let text = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    });
    let source = Refusal { code: Errno::from_raw(code.saturating_abs()), explanation };
    NetworkError::Refused { act: act.to_string(), source }
}

/// Ends a sequence of changes as if this process were killed.
#[cfg(test)]
pub(crate) mod cut {
    use std::cell::Cell;

    use crate::error::NetworkError;

    thread_local! {
        /// How many more changes this thread makes, if it is to end.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    pub(super) fn before_a_change() -> Result<(), NetworkError> {
        match LEFT.get() {
            Some(0) => Err(NetworkError::NoLink("killed".into())),
            left => {
                LEFT.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }

    /// Runs `work`, of which the changes after the first `count` fail. Returns whether there were more.
    pub(crate) fn after<T>(count: usize, work: impl FnOnce() -> Result<T, NetworkError>) -> bool {
        LEFT.set(Some(count));
        let cut = matches!(work(), Err(NetworkError::NoLink(name)) if name == "killed");
        LEFT.set(None);
        cut
    }
}
