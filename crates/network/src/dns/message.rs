//! Messages on the wire: reading a client's question, and writing the reply to it within the size that the client can
//! take. Whatever bytes come in, they cost a bounded amount of work.

use std::iter;

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, EmitAndCount, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
    emit_message_parts,
};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder, NameEncoding};

use super::records::Found;

/// The longest question that is read. The longest name takes 255 bytes, and options of EDNS rarely more than that.
pub(super) const LONGEST_QUESTION: usize = 4096;
/// A question has the record of EDNS beside its question, and at most a signature.
const MOST_ADDITIONALS: u16 = 2;
/// Bytes that every client accepts over UDP (RFC 1035 §4.2.1).
const PLAIN_SIZE: u16 = 512;
/// The largest reply over UDP. The path is a loopback interface, so no reply is cut into fragments.
const LARGEST_DATAGRAM: u16 = 4096;
const HEADER: usize = 12;
/// How long a client may keep what the directory says. An address that is withdrawn must not come out of a cache.
const TTL: u32 = 0;
/// Bytes of the record of EDNS in a reply, which has no options.
const EDNS_RECORD: usize = 11;

/// How a question has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The EDNS options of a question (RFC 6891).
#[derive(Clone, Copy, Debug)]
struct Extension {
    payload: u16,
    dnssec_ok: bool,
}

/// A question of a client that is answered from the directory or by a resolver.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) query: Query,
    request: Metadata,
    extension: Option<Extension>,
    transport: Transport,
}

/// A message from a client, as it was parsed.
#[derive(Debug)]
pub(super) enum Received {
    Question(Box<Question>),
    /// Not a question that is answered: the reply says why.
    Refused(Vec<u8>),
    /// Not a question at all. Nothing is sent, so that two servers can't keep each other busy.
    Nothing,
}

/// A reply of a resolver.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) authentic_data: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Reply {
    /// Returns the reply as it is after so many seconds.
    pub(super) fn aged(&self, seconds: u32) -> Self {
        let mut aged = self.clone();
        for record in aged.answers.iter_mut().chain(&mut aged.authorities).chain(&mut aged.additionals) {
            record.decrement_ttl(seconds);
        }
        aged
    }
}

/// Reads a message from a client.
pub(super) fn read(bytes: &[u8], transport: Transport) -> Received {
    let Ok(Header { metadata: request, counts, .. }) = Header::read(&mut BinDecoder::new(bytes)) else {
        return Received::Nothing;
    };
    if request.message_type == MessageType::Response {
        return Received::Nothing;
    }
    let refused = |code| Received::Refused(header_only(&request, code));
    if request.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let HeaderCounts { queries, answers, authorities, additionals } = counts;
    let is_plain = queries == 1 && answers == 0 && authorities == 0 && additionals <= MOST_ADDITIONALS;
    if !is_plain || bytes.len() > LONGEST_QUESTION {
        return refused(ResponseCode::FormErr);
    }
    let Ok(Message { mut queries, edns, .. }) = Message::from_vec(bytes) else { return refused(ResponseCode::FormErr) };
    let Some(query) = queries.pop() else { return refused(ResponseCode::FormErr) };
    let extension = edns.as_ref().map(|it| Extension { payload: it.max_payload(), dnssec_ok: it.flags().dnssec_ok });
    let question = Question { query, request, extension, transport };
    let code = match (question.query.query_class, question.query.query_type) {
        _ if edns.is_some_and(|it| it.version() > 0) => ResponseCode::BADVERS,
        (DNSClass::IN, RecordType::AXFR | RecordType::IXFR) => ResponseCode::Refused,
        (DNSClass::IN, _) => return Received::Question(Box::new(question)),
        _ => ResponseCode::Refused,
    };
    Received::Refused(question.encode_error(code))
}

/// Returns a reply to what could not be read beyond its header.
fn header_only(request: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::error_msg(request.id, request.op_code, code);
    message.metadata.recursion_desired = request.recursion_desired;
    message.metadata.recursion_available = true;
    message.to_vec().unwrap_or_default()
}

impl Question {
    /// Whether the client asks for the records of DNSSEC.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.extension.is_some_and(|it| it.dnssec_ok)
    }

    /// Whether the client checks signatures itself.
    pub(super) fn checking_disabled(&self) -> bool {
        self.request.checking_disabled
    }

    /// The largest reply that the client takes.
    fn limit(&self) -> u16 {
        match (self.transport, self.extension) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_SIZE,
            (Transport::Udp, Some(extension)) => extension.payload.clamp(PLAIN_SIZE, LARGEST_DATAGRAM),
        }
    }

    /// The bytes that are left for records in a reply.
    pub(super) fn room(&self) -> usize {
        const TYPE_AND_CLASS: usize = 4;
        let question = self.query.name.len() + 1 + TYPE_AND_CLASS;
        let extension = self.extension.map_or(0, |_| EDNS_RECORD);
        usize::from(self.limit()).saturating_sub(HEADER + question + extension)
    }

    /// Writes a reply from the directory, whose records fit.
    pub(super) fn encode_found(&self, found: &Found) -> Vec<u8> {
        // A client that came by TCP can't come by anything larger.
        let truncation = found.is_cut && self.transport == Transport::Udp;
        let mut metadata = self.metadata(ResponseCode::NoError);
        metadata.authoritative = true;
        metadata.truncation = truncation;
        let records: Vec<OfQuestion<'_>> = found.records.iter().map(OfQuestion).collect();
        self.emit(&metadata, records.iter(), &[], &[]).unwrap_or_else(|| self.encode_error(ResponseCode::ServFail))
    }

    /// Writes a reply of a resolver. One that is too large for the client is sent without records, marked as truncated
    /// (RFC 2181 §9).
    pub(super) fn encode(&self, reply: &Reply) -> Vec<u8> {
        let mut metadata = self.metadata(reply.code);
        metadata.authentic_data = reply.authentic_data;
        let whole = self.emit(&metadata, reply.answers.iter(), &reply.authorities, &reply.additionals);
        whole.unwrap_or_else(|| match self.transport {
            Transport::Udp => {
                metadata.truncation = true;
                self.encode_without_records(&metadata)
            }
            Transport::Tcp => self.encode_error(ResponseCode::ServFail),
        })
    }

    /// Writes a reply that says only that something is wrong.
    pub(super) fn encode_error(&self, code: ResponseCode) -> Vec<u8> {
        self.encode_without_records(&self.metadata(code))
    }

    fn encode_without_records(&self, metadata: &Metadata) -> Vec<u8> {
        let written = self.emit(metadata, iter::empty::<&Record>(), &[], &[]);
        written.unwrap_or_else(|| header_only(&self.request, ResponseCode::ServFail))
    }

    fn metadata(&self, response_code: ResponseCode) -> Metadata {
        let mut metadata = Metadata::response_from_request(&self.request);
        metadata.recursion_available = true;
        metadata.response_code = response_code;
        metadata
    }

    /// Writes a message; `None` if it does not fit or can't be written.
    fn emit(
        &self,
        metadata: &Metadata,
        mut answers: impl EmitAndCount,
        authorities: &[Record],
        additionals: &[Record],
    ) -> Option<Vec<u8>> {
        let edns = self.extension.map(|extension| {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_DATAGRAM).set_dnssec_ok(extension.dnssec_ok);
            edns
        });
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.limit());
        let header = emit_message_parts(
            metadata,
            &mut iter::once(&self.query),
            &mut answers,
            &mut authorities.iter(),
            &mut additionals.iter(),
            edns.as_ref(),
            None,
            &mut encoder,
        );
        header.is_ok_and(|it| it.metadata.truncation == metadata.truncation).then_some(bytes)
    }
}

/// A record of the name that the question asks for. The name is a pointer to the question, so the size of a message is
/// known before it is written.
struct OfQuestion<'a>(&'a RData);

impl BinEncodable for OfQuestion<'_> {
    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), ProtoError> {
        /// Points behind the header (RFC 1035 §4.1.4).
        const OWNER: u16 = 0xC000 | HEADER as u16;
        encoder.emit_u16(OWNER)?;
        self.0.record_type().emit(encoder)?;
        DNSClass::IN.emit(encoder)?;
        encoder.emit_u32(TTL)?;
        let size = encoder.place::<u16>()?;
        self.0.emit(&mut encoder.with_name_encoding(NameEncoding::Uncompressed))?;
        let bytes =
            u16::try_from(encoder.len_since_place(&size)).map_err(|_| ProtoError::from("a record is too large"))?;
        size.replace(encoder, bytes)
    }
}

/// Writes a question to a resolver, with EDNS or, for resolvers that don't know it, without.
pub(super) fn encode_query(
    id: u16,
    query: &Query,
    checking_disabled: bool,
    extension: Option<(u16, bool)>,
) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query.clone());
    if let Some((payload, dnssec_ok)) = extension {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
    }
    message.to_bytes().ok()
}
