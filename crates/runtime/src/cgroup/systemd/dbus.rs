//! A client of the D-Bus system bus, as far as systemd's manager requires one: calls, replies and signals with texts,
//! numbers and properties (D-Bus Specification, "Message Protocol").
//!
//! It has no thread of its own, because the runtime's process clones itself.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Address of the system bus unless `DBUS_SYSTEM_BUS_ADDRESS` gives another.
const ADDRESS: &str = "unix:path=/run/dbus/system_bus_socket";

/// Longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest accepted message in bytes. Replies and signals of systemd's manager are short.
const BOUND: usize = 1 << 20;

/// Byte order of this machine, in which messages are sent and expected.
const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// An object with one of its interfaces.
pub(super) struct Object {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

/// The bus itself.
pub(super) const BUS: Object =
    Object { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u32>),
}

/// Bytes in the wire format. Each value is aligned to its size.
#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, it: u32) {
        self.align(4);
        self.0.extend(it.to_ne_bytes());
    }

    fn text(&mut self, it: &str) {
        self.number(u32::try_from(it.len()).unwrap_or(u32::MAX));
        self.0.extend(it.bytes().chain([0]));
    }

    fn signature(&mut self, it: &str) {
        self.0.push(u8::try_from(it.len()).unwrap_or(u8::MAX));
        self.0.extend(it.bytes().chain([0]));
    }

    /// Writes an array whose elements have this alignment. Its length does not include the padding before the first.
    fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let length = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        elements(self);
        let bytes = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length..length + 4].copy_from_slice(&bytes.to_ne_bytes());
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Text(it) => {
                self.signature("s");
                self.text(it);
            }
            Value::Flag(it) => {
                self.signature("b");
                self.number(u32::from(*it));
            }
            Value::Number(it) => {
                self.signature("t");
                self.align(8);
                self.0.extend(it.to_ne_bytes());
            }
            Value::Numbers(list) => {
                self.signature("au");
                self.array(4, |bytes| list.iter().for_each(|it| bytes.number(*it)));
            }
        }
    }
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    signature: String,
    bytes: Bytes,
}

impl Arguments {
    pub(super) fn text(mut self, it: &str) -> Self {
        self.signature.push('s');
        self.bytes.text(it);
        self
    }

    pub(super) fn flag(mut self, it: bool) -> Self {
        self.signature.push('b');
        self.bytes.number(u32::from(it));
        self
    }

    pub(super) fn properties(mut self, list: &[(&str, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        self.bytes.array(8, |bytes| {
            for (name, value) in list {
                bytes.align(8);
                bytes.text(name);
                bytes.variant(value);
            }
        });
        self
    }

    /// Adds an empty list of units with their properties.
    pub(super) fn no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        self.bytes.array(8, |_| ());
        self
    }
}

/// A received message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    kind: u8,
    reply_serial: u32,
    error: String,
    pub(super) member: String,
    /// The texts among its arguments.
    pub(super) texts: Vec<String>,
}

/// Reads values of the wire format. Every read is `None` beyond the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, align: usize, count: usize) -> Option<&[u8]> {
        let start = self.at.next_multiple_of(align);
        let taken = self.bytes.get(start..start.checked_add(count)?)?;
        self.at = start + count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1, 1).map(|it| it[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4, 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let bytes = self.take(1, length + 1)?;
        String::from_utf8(bytes[..length].to_vec()).ok()
    }

    /// Reads a value of a type that header fields and systemd's answers have; a number as text.
    fn value(&mut self, kind: u8) -> Option<String> {
        let length = match kind {
            b's' | b'o' => self.number()? as usize,
            b'g' => usize::from(self.byte()?),
            b'u' | b'b' => return self.number().map(|it| it.to_string()),
            _ => return None,
        };
        self.text(length)
    }
}

/// Parses the header fields and the body of a message.
fn parse(kind: u8, fields: &[u8], body: &[u8]) -> Option<Message> {
    let mut message = Message { kind, ..Message::default() };
    let mut reader = Reader { bytes: fields, at: 0 };
    let mut signature = String::new();
    while reader.at < fields.len() {
        let code = reader.take(8, 1)?[0];
        let kind = reader.value(b'g')?;
        let value = reader.value(*kind.as_bytes().first()?)?;
        match code {
            MEMBER => message.member = value,
            ERROR_NAME => message.error = value,
            REPLY_SERIAL => message.reply_serial = value.parse().ok()?,
            SIGNATURE => signature = value,
            _ => {}
        }
    }
    let mut reader = Reader { bytes: body, at: 0 };
    for kind in signature.bytes() {
        // The values after another type are not needed.
        let Some(value) = reader.value(kind) else { break };
        if matches!(kind, b's' | b'o') {
            message.texts.push(value);
        }
    }
    Some(message)
}

/// A connection to the system bus.
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects to the system bus.
    pub(super) fn system() -> io::Result<Self> {
        Self::open(&std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| ADDRESS.to_owned()))
    }

    fn open(address: &str) -> io::Result<Self> {
        let path = address.strip_prefix("unix:path=").and_then(|it| it.split([',', ';']).next());
        let path =
            path.ok_or_else(|| io::Error::other(format!("the address `{address}` does not begin with unix:path=")))?;
        let stream = UnixStream::connect(path)
            .map_err(|error| io::Error::other(format!("{path}: {}", crate::error::kernel_words(&error))))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream: BufReader::new(stream), serial: 0, signals: VecDeque::new() };
        bus.authenticate()?;
        bus.call(&BUS, "Hello", &Arguments::default())?;
        Ok(bus)
    }

    /// Authenticates by the user id that the kernel reports (D-Bus Specification, "EXTERNAL").
    fn authenticate(&mut self) -> io::Result<()> {
        let user: String = nix::unistd::geteuid().to_string().bytes().map(|it| format!("{it:02x}")).collect();
        self.stream.get_mut().write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.by_ref().take(1024).read_line(&mut answer)?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::other(format!("the bus refuses this user: {}", answer.trim_end())));
        }
        self.stream.get_mut().write_all(b"BEGIN\r\n")
    }

    /// Calls a method and waits for its reply.
    pub(super) fn call(&mut self, object: &Object, member: &str, arguments: &Arguments) -> io::Result<Message> {
        self.serial += 1;
        let mut message = Bytes(vec![ENDIAN, CALL, 0, 1]);
        message.number(u32::try_from(arguments.bytes.0.len()).map_err(io::Error::other)?);
        message.number(self.serial);
        let texts = [(PATH, "o", object.path), (INTERFACE, "s", object.interface), (MEMBER, "s", member)];
        message.array(8, |bytes| {
            for (code, kind, text) in texts.into_iter().chain([(DESTINATION, "s", object.name)]) {
                bytes.align(8);
                bytes.0.push(code);
                bytes.signature(kind);
                bytes.text(text);
            }
            if !arguments.signature.is_empty() {
                bytes.align(8);
                bytes.0.push(SIGNATURE);
                bytes.signature("g");
                bytes.signature(&arguments.signature);
            }
        });
        message.align(8);
        message.0.extend(&arguments.bytes.0);
        self.stream.get_mut().write_all(&message.0)?;
        loop {
            let message = self.recv()?;
            match message.kind {
                SIGNAL => self.signals.push_back(message),
                REPLY if message.reply_serial == self.serial => return Ok(message),
                ERROR if message.reply_serial == self.serial => {
                    let why = message.texts.first().unwrap_or(&message.error);
                    return Err(io::Error::other(format!("{why} ({})", message.error)));
                }
                _ => {}
            }
        }
    }

    /// Returns the next signal that the bus has sent to this client.
    pub(super) fn next_signal(&mut self) -> io::Result<Message> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.recv()?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn recv(&mut self) -> io::Result<Message> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other(format!("no answer within {PATIENCE:?}")),
            _ => error,
        })?;
        let number =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        let malformed = || io::Error::other("the bus has sent a malformed message");
        if header[0] != ENDIAN || body > BOUND || fields > BOUND {
            return Err(malformed());
        }
        let padded = fields.next_multiple_of(8);
        let mut rest = vec![0; padded + body];
        self.stream.read_exact(&mut rest)?;
        parse(header[1], &rest[..fields], &rest[padded..]).ok_or_else(malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_aligned_as_the_specification_requires() {
        let arguments = Arguments::default().text("x").properties(&[("A", Value::Flag(true))]).no_units();
        assert_eq!(arguments.signature, "sa(sv)a(sa(sv))");
        let number = |it: u32| it.to_ne_bytes().to_vec();
        let expected = [
            number(1),
            b"x\0\0\0".to_vec(),
            // The first element of an array is aligned, and its length counts from there.
            number(16),
            number(0),
            number(1),
            b"A\0\x01b\0\0\0\0".to_vec(),
            number(1),
            number(0),
            number(0),
        ];
        assert_eq!(arguments.bytes.0, expected.concat());
    }

    #[test]
    fn messages_that_are_cut_or_odd_are_no_messages() {
        let mut fields = Bytes::default();
        for (code, text) in [(MEMBER, "JobRemoved"), (SIGNATURE, "uoss")] {
            fields.align(8);
            fields.0.push(code);
            if code == SIGNATURE {
                fields.signature("g");
                fields.signature(text);
            } else {
                fields.signature("s");
                fields.text(text);
            }
        }
        let mut body = Bytes::default();
        body.number(4);
        ["/job/4", "box.scope", "done"].iter().for_each(|it| body.text(it));
        let message = parse(SIGNAL, &fields.0, &body.0).expect("a whole message");
        assert_eq!((message.member.as_str(), message.texts.join(" ")), ("JobRemoved", "/job/4 box.scope done".into()));
        for length in 1..fields.0.len() {
            assert!(parse(SIGNAL, &fields.0[..length], &body.0).is_none_or(|it| it.texts.is_empty()), "{length}");
        }
        assert_eq!(parse(SIGNAL, &fields.0, &[]).expect("without a body").texts, [""; 0]);
    }
}
