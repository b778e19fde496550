//! One HTTP/1 connection (RFC 9112), both directions, with keep-alive and pipelining.

mod body;
mod head;

use std::collections::VecDeque;

use super::{
    Emit, End, EndCause, Event, HEAD_LIMIT, Headers, Next, Reason, ResponseHead, Version, headers::Field,
};
use body::{Body, Framing, Progress};
use head::{HeadBuffer, Upgrade};

/// What is known of a connection between two calls.
#[derive(Debug, Default)]
pub(super) struct Connection {
    requests: u64,
    open: VecDeque<Open>,
    client: Client,
    server: Server,
    fields: Vec<Field>,
}

/// A request whose response has not ended.
#[derive(Debug)]
struct Open {
    stream: u64,
    method: Method,
    upgrade: Upgrade,
    request_bytes: u64,
    response_bytes: u64,
    grpc_status: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

#[derive(Debug, Default)]
struct Client {
    buffer: HeadBuffer,
    state: ClientState,
    /// What follows a request that may turn the connection into something else, until the answer tells what it is.
    held: Vec<u8>,
    /// The request that the answer is awaited of.
    awaits: Option<u64>,
}

#[derive(Debug, Default)]
enum ClientState {
    #[default]
    Head,
    Body(Body),
    Trailers,
    Held,
}

#[derive(Debug, Default)]
struct Server {
    buffer: HeadBuffer,
    state: ServerState,
}

#[derive(Debug, Default)]
enum ServerState {
    #[default]
    Head,
    Body(Body),
    Trailers,
}

impl Connection {
    pub(super) fn client(&mut self, mut bytes: &[u8], emit: Emit<'_>) -> Result<Next, Reason> {
        while !bytes.is_empty() {
            match &mut self.client.state {
                ClientState::Head => {
                    if self.client.buffer.is_empty() {
                        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                        bytes = &bytes[blank..];
                    }
                    let used = self.request_head(bytes, emit)?;
                    bytes = &bytes[used..];
                }
                ClientState::Body(body) => {
                    let Progress { used, payload, state } = body.advance(bytes)?;
                    bytes = &bytes[used..];
                    // An early response may have closed the exchange while its request's body still comes.
                    if let Some(open) = self.open.back_mut().filter(|open| open.stream + 1 == self.requests) {
                        open.request_bytes += payload;
                    }
                    match state {
                        body::State::More => {}
                        body::State::Trailers => self.client.state = ClientState::Trailers,
                        body::State::Done => self.client.after_request(),
                    }
                }
                ClientState::Trailers => {
                    let Some((section, used)) = self.client.buffer.take(bytes, true)? else {
                        return Ok(Next::Same);
                    };
                    head::parse_fields(section, 0, &mut self.fields)?;
                    bytes = &bytes[used..];
                    self.client.buffer.clear();
                    self.client.after_request();
                }
                ClientState::Held => {
                    if self.client.held.len() + bytes.len() > HEAD_LIMIT {
                        return Err(Reason::Malformed(
                            "more than 64 KiB sent before an upgrade was answered",
                        ));
                    }
                    self.client.held.extend_from_slice(bytes);
                    return Ok(Next::Same);
                }
            }
        }
        Ok(Next::Same)
    }

    pub(super) fn server(&mut self, mut bytes: &[u8], emit: Emit<'_>) -> Result<Next, Reason> {
        while !bytes.is_empty() {
            match &mut self.server.state {
                ServerState::Head => match self.response_head(bytes, emit)? {
                    Answer::More => return Ok(Next::Same),
                    Answer::Http { used, released } => {
                        bytes = &bytes[used..];
                        if let Some(held) = released {
                            self.client(&held, emit)?;
                        }
                    }
                    Answer::Http2 { used, stream } => {
                        let request_bytes = self.open.pop_front().map_or(0, |open| open.request_bytes);
                        let client = std::mem::take(&mut self.client.held);
                        return Ok(Next::Http2 {
                            stream,
                            request_bytes,
                            client,
                            server: bytes[used..].to_vec(),
                        });
                    }
                },
                ServerState::Body(body) => {
                    let Progress { used, payload, state } = body.advance(bytes)?;
                    bytes = &bytes[used..];
                    if let Some(open) = self.open.front_mut() {
                        open.response_bytes += payload;
                    }
                    match state {
                        body::State::More => {}
                        body::State::Trailers => self.server.state = ServerState::Trailers,
                        body::State::Done => {
                            self.server.state = ServerState::Head;
                            end(self.open.pop_front(), EndCause::Complete, Headers::EMPTY, emit);
                        }
                    }
                }
                ServerState::Trailers => {
                    let Some((section, used)) = self.server.buffer.take(bytes, true)? else {
                        return Ok(Next::Same);
                    };
                    let section = head::parse_fields(section, 0, &mut self.fields)?;
                    let trailers = Headers::new(&section, &self.fields);
                    end(self.open.pop_front(), EndCause::Complete, trailers, emit);
                    bytes = &bytes[used..];
                    self.server.buffer.clear();
                    self.server.state = ServerState::Head;
                }
            }
        }
        Ok(Next::Same)
    }

    /// Both sides are gone. A response delimited by the close ends well; nothing else does.
    pub(super) fn close(&mut self, emit: Emit<'_>) {
        if matches!(&self.server.state, ServerState::Body(body) if body.until_close()) {
            end(self.open.pop_front(), EndCause::Complete, Headers::EMPTY, emit);
        }
        self.end_all(EndCause::Closed, emit);
    }

    pub(super) fn end_all(&mut self, cause: EndCause, emit: Emit<'_>) {
        while let Some(open) = self.open.pop_front() {
            end(Some(open), cause, Headers::EMPTY, emit);
        }
    }

    /// Returns how many bytes it took; all of them when the head is not complete.
    fn request_head(&mut self, bytes: &[u8], emit: Emit<'_>) -> Result<usize, Reason> {
        let Some((text, used)) = self.client.buffer.take(bytes, false)? else { return Ok(bytes.len()) };
        let line = head::request_line(text)?;
        let text = head::parse_fields(text, line.length, &mut self.fields)?;
        let headers = Headers::new(&text, &self.fields);
        let message = head::Message::of(headers)?;
        let method = match line.method.of(&text) {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        let body = Body::of_request(line.version, &message)?;
        // Only HTTP/1.1 knows upgrades (RFC 9110 7.8).
        let upgrade = if line.version == Version::Http11 { message.upgrade } else { Upgrade::None };
        let head = line.head(&text, headers, message.host)?;
        if self.open.len() >= MOST_OPEN {
            return Err(Reason::TooManyOpen);
        }
        let stream = self.requests;
        self.requests += 1;
        self.open.push_back(Open {
            stream,
            method,
            upgrade,
            request_bytes: 0,
            response_bytes: 0,
            grpc_status: None,
        });
        emit(Event::Request { stream, head });
        self.client.buffer.clear();
        trim(&mut self.fields);
        if method == Method::Connect || upgrade != Upgrade::None {
            self.client.awaits = Some(stream);
        }
        match body {
            // Content of a CONNECT has no meaning (RFC 9110 9.3.6): what follows is the tunnel's.
            Some(body) if method != Method::Connect => self.client.state = ClientState::Body(body),
            _ => self.client.after_request(),
        }
        Ok(used)
    }

    fn response_head(&mut self, bytes: &[u8], emit: Emit<'_>) -> Result<Answer, Reason> {
        let Some(open) = self.open.front_mut() else {
            return Err(Reason::Malformed("a response without a request"));
        };
        let Some((text, used)) = self.server.buffer.take(bytes, false)? else { return Ok(Answer::More) };
        let line = head::status_line(text)?;
        let text = head::parse_fields(text, line.length, &mut self.fields)?;
        let headers = Headers::new(&text, &self.fields);
        let message = head::Message::of(headers)?;
        let framing = framing(open.method, line.status, line.version, &message)?;
        let head = ResponseHead { status: line.status, version: line.version, headers };
        let informational = head.informational();
        if !informational {
            open.grpc_status = headers.grpc_status();
        }
        let (stream, asked, offered) = (open.stream, open.upgrade, message.upgrade);
        emit(Event::Response { stream, head });
        self.server.buffer.clear();
        trim(&mut self.fields);
        match framing {
            Framing::Switch => {
                if asked == Upgrade::None {
                    return Err(Reason::Malformed("101 to a request that asked for no upgrade"));
                }
                if asked == Upgrade::H2c && offered == Upgrade::H2c {
                    if !matches!(self.client.state, ClientState::Held) {
                        return Err(Reason::Malformed("h2c before the request was complete"));
                    }
                    return Ok(Answer::Http2 { used, stream });
                }
                end(self.open.pop_front(), EndCause::Complete, Headers::EMPTY, emit);
                Err(Reason::Tunnel)
            }
            Framing::Tunnel => {
                end(self.open.pop_front(), EndCause::Complete, Headers::EMPTY, emit);
                Err(Reason::Tunnel)
            }
            Framing::Empty if informational => Ok(Answer::Http { used, released: None }),
            Framing::Empty => {
                let released = self.client.answered(stream);
                end(self.open.pop_front(), EndCause::Complete, Headers::EMPTY, emit);
                Ok(Answer::Http { used, released })
            }
            Framing::Body(body) => {
                self.server.state = ServerState::Body(body);
                Ok(Answer::Http { used, released: self.client.answered(stream) })
            }
        }
    }
}

impl Client {
    /// The request is complete: the next one follows, unless its answer may change what the bytes are.
    fn after_request(&mut self) {
        self.state = if self.awaits.is_some() { ClientState::Held } else { ClientState::Head };
    }

    /// The answer to a request is HTTP: what was held behind it are further requests.
    fn answered(&mut self, stream: u64) -> Option<Vec<u8>> {
        if self.awaits != Some(stream) {
            return None;
        }
        self.awaits = None;
        if matches!(self.state, ClientState::Held) {
            self.state = ClientState::Head;
        }
        Some(std::mem::take(&mut self.held))
    }
}

/// What the server's bytes turned out to be.
enum Answer {
    More,
    Http { used: usize, released: Option<Vec<u8>> },
    Http2 { used: usize, stream: u64 },
}

/// RFC 9112 6.3, for a response.
fn framing(
    asked: Method,
    status: u16,
    version: Version,
    message: &head::Message<'_>,
) -> Result<Framing, Reason> {
    Ok(match (asked, status) {
        (_, 101) => Framing::Switch,
        (Method::Connect, 200..300) => Framing::Tunnel,
        (Method::Head, _) | (_, 100..200 | 204 | 304) => Framing::Empty,
        _ => Body::of_response(version, message)?.map_or(Framing::Empty, Framing::Body),
    })
}

fn end(open: Option<Open>, cause: EndCause, trailers: Headers<'_>, emit: Emit<'_>) {
    let Some(open) = open else { return };
    let end = End {
        cause,
        request_bytes: open.request_bytes,
        response_bytes: open.response_bytes,
        grpc_status: trailers.grpc_status().or(open.grpc_status),
        reset: None,
        trailers,
    };
    emit(Event::End { stream: open.stream, end });
}

/// A head with very many fields must not cost memory for as long as its connection lasts.
fn trim(fields: &mut Vec<Field>) {
    fields.clear();
    fields.shrink_to(64);
}

/// Most pipelined requests without an answer.
const MOST_OPEN: usize = 1024;
