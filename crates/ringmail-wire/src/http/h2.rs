//! One HTTP/2 connection (RFC 9113), both directions.

mod frame;
mod hpack;
mod streams;

use super::headers::decimal;
use super::target::{without_query, without_user};
use super::{Emit, EndCause, Event, HEAD_LIMIT, Headers, Next, Reason, RequestHead, ResponseHead, Version};
use frame::{Frame, Kind};
use hpack::FieldList;
use streams::Streams;

/// What is known of a connection between two calls.
#[derive(Debug)]
pub(super) struct Connection {
    client: Side,
    server: Side,
    streams: Streams,
    list: FieldList,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    /// Bytes of the preface that are still to come; only a client sends one.
    preface: usize,
    state: State,
    /// What is gathered of the payload of a frame that comes in pieces.
    payload: Vec<u8>,
    /// A header block that goes on in CONTINUATION frames.
    block: Option<Block>,
    hpack: hpack::Decoder,
}

#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; Frame::HEADER],
        have: usize,
    },
    /// The first `want` bytes of the payload are needed at once.
    Gather {
        frame: Frame,
        want: usize,
    },
    /// Content, then padding.
    Data {
        frame: Frame,
        left: u32,
        padding: u32,
    },
    Skip {
        left: u32,
    },
}

#[derive(Debug)]
struct Block {
    first: Frame,
    bytes: Vec<u8>,
    frames: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

impl Connection {
    /// With prior knowledge; the client's preface is next.
    pub(super) fn with_preface() -> Self {
        Self {
            client: Side { preface: PREFACE.len(), ..Side::default() },
            server: Side::default(),
            streams: Streams::default(),
            list: FieldList::default(),
        }
    }

    /// After an upgrade: the request that asked for it is stream 1, complete on the client's side (RFC 7540 3.2).
    pub(super) fn upgraded(stream: u64, request_bytes: u64) -> Self {
        Self { streams: Streams::upgraded(stream, request_bytes), ..Self::with_preface() }
    }

    pub(super) fn client(&mut self, bytes: &[u8], emit: Emit<'_>) -> Result<Next, Reason> {
        let expected = &PREFACE[PREFACE.len() - self.client.preface..];
        let shared = expected.len().min(bytes.len());
        if bytes[..shared] != expected[..shared] {
            return Err(Reason::Malformed("a broken HTTP/2 preface"));
        }
        self.client.preface -= shared;
        self.frames(From::Client, &bytes[shared..], emit)
    }

    pub(super) fn server(&mut self, bytes: &[u8], emit: Emit<'_>) -> Result<Next, Reason> {
        self.frames(From::Server, bytes, emit)
    }

    pub(super) fn end_all(&mut self, cause: EndCause, emit: Emit<'_>) {
        self.streams.end_all(cause, emit);
    }

    fn frames(&mut self, from: From, mut bytes: &[u8], emit: Emit<'_>) -> Result<Next, Reason> {
        loop {
            let side = self.side(from);
            match &mut side.state {
                State::Header { bytes: header, have } => {
                    let taken = bytes.len().min(Frame::HEADER - *have);
                    header[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                    *have += taken;
                    bytes = &bytes[taken..];
                    if *have < Frame::HEADER {
                        return Ok(Next::Same);
                    }
                    let frame = Frame::parse(*header);
                    side.state = side.begin(frame)?;
                }
                &mut State::Gather { frame, want } => {
                    let missing = want - side.payload.len();
                    if bytes.len() < missing {
                        side.payload.extend_from_slice(bytes);
                        return Ok(Next::Same);
                    }
                    let (latest, rest) = bytes.split_at(missing);
                    bytes = rest;
                    side.state = State::default();
                    if side.payload.is_empty() {
                        self.act(from, frame, latest, emit)?;
                    } else {
                        side.payload.extend_from_slice(latest);
                        let mut payload = std::mem::take(&mut side.payload);
                        self.act(from, frame, &payload, emit)?;
                        payload.clear();
                        payload.shrink_to(2048);
                        self.side(from).payload = payload;
                    }
                }
                State::Data { frame, left, padding } => {
                    let taken = bytes.len().min(*left as usize);
                    *left -= taken as u32;
                    bytes = &bytes[taken..];
                    let (frame, left, padding) = (*frame, *left, *padding);
                    if left == 0 {
                        side.state = State::Skip { left: padding };
                    }
                    self.data(from, frame, taken as u64, left == 0, emit)?;
                    if left > 0 {
                        return Ok(Next::Same);
                    }
                }
                State::Skip { left } => {
                    let taken = bytes.len().min(*left as usize);
                    *left -= taken as u32;
                    bytes = &bytes[taken..];
                    if *left > 0 {
                        return Ok(Next::Same);
                    }
                    side.state = State::default();
                }
            }
        }
    }

    fn side(&mut self, from: From) -> &mut Side {
        match from {
            From::Client => &mut self.client,
            From::Server => &mut self.server,
        }
    }

    /// Handles a frame of which all that matters is there.
    fn act(&mut self, from: From, frame: Frame, payload: &[u8], emit: Emit<'_>) -> Result<(), Reason> {
        match frame.kind {
            Kind::Data => {
                let padding = u32::from(payload.first().copied().unwrap_or_default());
                let left = frame.length.checked_sub(1 + padding).ok_or(BAD_PADDING)?;
                self.side(from).state = State::Data { frame, left, padding };
                Ok(())
            }
            Kind::RstStream => {
                let code = frame::word(payload, 0).unwrap_or_default();
                self.streams.reset(frame.stream, code, emit);
                Ok(())
            }
            Kind::GoAway => {
                self.side(from).state = State::Skip { left: frame.length - GO_AWAY as u32 };
                if from == From::Server {
                    // Requests above this were not begun and never will be (6.8).
                    let last = frame::stream_id(payload).unwrap_or_default();
                    self.streams.refuse_above(last, emit);
                }
                Ok(())
            }
            Kind::Headers | Kind::PushPromise => {
                let fragment = frame.fragment(payload).ok_or(BAD_PADDING)?;
                if frame.end_headers() {
                    return self.header_block(from, frame, fragment, emit);
                }
                self.side(from).block = Some(Block { first: frame, bytes: fragment.to_vec(), frames: 1 });
                Ok(())
            }
            Kind::Continuation => {
                let Some(block) = &mut self.side(from).block else { return Err(BAD_CONTINUATION) };
                block.frames += 1;
                if block.bytes.len() + payload.len() > HEAD_LIMIT || block.frames > MOST_CONTINUATIONS {
                    return Err(Reason::HeadTooLarge);
                }
                block.bytes.extend_from_slice(payload);
                match self.side(from).block.take_if(|_| frame.end_headers()) {
                    Some(block) => self.header_block(from, block.first, &block.bytes, emit),
                    None => Ok(()),
                }
            }
            Kind::Other => Ok(()),
        }
    }

    fn header_block(&mut self, from: From, frame: Frame, block: &[u8], emit: Emit<'_>) -> Result<(), Reason> {
        let hpack = if from == From::Client { &mut self.client.hpack } else { &mut self.server.hpack };
        // Every block is decoded, also one of a stream that nobody asks about: the table must stay the encoder's.
        hpack.decode(block, &mut self.list)?;
        match (from, frame.kind) {
            (From::Client, Kind::Headers) => {
                if let Some(stream) = self.streams.open(frame.stream)? {
                    emit(Event::Request { stream, head: request_head(&self.list) });
                }
            }
            (From::Server, Kind::Headers) => self.response_headers(frame, emit)?,
            // A pushed stream answers no request of the client's.
            _ => {}
        }
        self.list.trim();
        Ok(())
    }

    fn response_headers(&mut self, frame: Frame, emit: Emit<'_>) -> Result<(), Reason> {
        let Some(open) = self.streams.get(frame.stream) else { return Ok(()) };
        if open.answered {
            if frame.end_stream() {
                self.streams.complete(frame.stream, self.list.all(), emit);
            }
            return Ok(());
        }
        let status =
            pseudo(&self.list, ":status").and_then(decimal).filter(|status| (100..1000).contains(status));
        let Some(status) = status else { return Err(Reason::Malformed("a response without :status")) };
        let headers = regular(&self.list);
        let head = ResponseHead { status: status as u16, version: Version::Http2, headers };
        if !head.informational() {
            open.answered = true;
            open.grpc_status = headers.grpc_status();
        }
        emit(Event::Response { stream: open.index, head });
        if frame.end_stream() {
            self.streams.complete(frame.stream, Headers::EMPTY, emit);
        }
        Ok(())
    }

    fn data(
        &mut self,
        from: From,
        frame: Frame,
        bytes: u64,
        whole: bool,
        emit: Emit<'_>,
    ) -> Result<(), Reason> {
        let Some(open) = self.streams.get(frame.stream) else { return Ok(()) };
        match from {
            From::Client => open.request_bytes += bytes,
            From::Server if !open.answered => return Err(Reason::Malformed("data before a response's head")),
            From::Server => {
                open.response_bytes += bytes;
                if whole && frame.end_stream() {
                    self.streams.complete(frame.stream, Headers::EMPTY, emit);
                }
            }
        }
        Ok(())
    }
}

impl Side {
    /// What to do with the payload of a frame.
    fn begin(&self, frame: Frame) -> Result<State, Reason> {
        // Nothing may come between the parts of a header block (6.10).
        let continues = self.block.as_ref().is_some_and(|block| block.first.stream == frame.stream);
        if continues != (frame.kind == Kind::Continuation) || self.block.is_some() != continues {
            return Err(BAD_CONTINUATION);
        }
        let length = frame.length as usize;
        if frame.kind.of_a_stream() && frame.stream == 0 {
            return Err(Reason::Malformed("a frame of a stream without its number"));
        }
        Ok(match frame.kind {
            Kind::Data if !frame.padded() => State::Data { frame, left: frame.length, padding: 0 },
            Kind::Data if length == 0 => return Err(BAD_PADDING),
            Kind::Data => State::Gather { frame, want: 1 },
            Kind::Headers | Kind::PushPromise | Kind::Continuation if length > HEAD_LIMIT => {
                return Err(Reason::HeadTooLarge);
            }
            Kind::Headers | Kind::PushPromise | Kind::Continuation => State::Gather { frame, want: length },
            Kind::RstStream if length == RST_STREAM => State::Gather { frame, want: RST_STREAM },
            Kind::GoAway if length >= GO_AWAY => State::Gather { frame, want: GO_AWAY },
            Kind::RstStream | Kind::GoAway => return Err(Reason::Malformed("a frame of the wrong length")),
            Kind::Other => State::Skip { left: frame.length },
        })
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Header { bytes: [0; Frame::HEADER], have: 0 }
    }
}

fn request_head(list: &FieldList) -> RequestHead<'_> {
    let headers = regular(list);
    let text = |name| pseudo(list, name).map(String::from_utf8_lossy);
    let authority = pseudo(list, ":authority").or_else(|| headers.get("host")).unwrap_or_default();
    let path = pseudo(list, ":path").unwrap_or_default();
    RequestHead {
        method: text(":method").unwrap_or_default(),
        scheme: text(":scheme").unwrap_or_default(),
        authority: String::from_utf8_lossy(without_user(authority)),
        path: String::from_utf8_lossy(without_query(path)),
        version: Version::Http2,
        protocol: text(":protocol"),
        headers,
    }
}

/// A pseudo-field; they stand before all others (8.3).
fn pseudo<'a>(list: &'a FieldList, name: &str) -> Option<&'a [u8]> {
    let fields = list.fields().iter().take_while(|field| field.name.of(list.bytes()).starts_with(b":"));
    let mut found = fields.filter(|field| field.name.of(list.bytes()) == name.as_bytes());
    found.next().map(|field| field.value.of(list.bytes()))
}

fn regular(list: &FieldList) -> Headers<'_> {
    let fields = list.fields();
    let start = fields.iter().take_while(|field| field.name.of(list.bytes()).starts_with(b":")).count();
    Headers::new(list.bytes(), &fields[start..])
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const RST_STREAM: usize = 4;
const GO_AWAY: usize = 8;
/// A header block of 64 KiB needs four frames of the default size.
const MOST_CONTINUATIONS: usize = 64;
const BAD_PADDING: Reason = Reason::Malformed("padding longer than its frame");
const BAD_CONTINUATION: Reason = Reason::Malformed("a header block that does not continue");
