//! A written form of what an observer saw, and ways to feed it.

use std::fmt::Write as _;

use ringmail_wire::http::{Event, Headers, Observer};

/// Who sends some bytes.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

/// The client sends.
pub(crate) fn client(bytes: impl AsRef<[u8]>) -> Says {
    Says::Client(bytes.as_ref().to_vec())
}

/// The server sends.
pub(crate) fn server(bytes: impl AsRef<[u8]>) -> Says {
    Says::Server(bytes.as_ref().to_vec())
}

/// The events of a conversation that ends with a close, one a line.
pub(crate) fn observe(conversation: &[Says]) -> Vec<String> {
    in_pieces(conversation, usize::MAX)
}

/// The same, in pieces of at most `size` bytes.
pub(crate) fn in_pieces(conversation: &[Says], size: usize) -> Vec<String> {
    let mut observer = Observer::new();
    let mut lines = Vec::new();
    let mut note = |event: Event<'_>| lines.push(line(&event));
    for says in conversation {
        match says {
            Says::Client(bytes) => bytes.chunks(size).for_each(|piece| observer.client(piece, &mut note)),
            Says::Server(bytes) => bytes.chunks(size).for_each(|piece| observer.server(piece, &mut note)),
        }
    }
    observer.close(&mut note);
    lines
}

fn fields(headers: Headers<'_>) -> String {
    headers.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = write!(text, " {name}={}", value.escape_ascii());
        text
    })
}

/// One event as text.
pub(crate) fn line(event: &Event<'_>) -> String {
    match event {
        Event::Detected(protocol) => format!("{protocol:?}"),
        Event::Request { stream, head } => {
            let protocol = head.protocol.as_deref().map_or(String::new(), |name| format!(" protocol={name}"));
            format!(
                "{stream} > {} {}|{}|{} {}{protocol}{}",
                head.method,
                head.scheme,
                head.authority,
                head.path,
                head.version,
                fields(head.headers)
            )
        }
        Event::Response { stream, head } => {
            let informational = if head.informational() { " informational" } else { "" };
            format!("{stream} < {} {}{informational}{}", head.status, head.version, fields(head.headers))
        }
        Event::End { stream, end } => {
            let mut text = format!("{stream} . {:?} {}/{}", end.cause, end.request_bytes, end.response_bytes);
            if let Some(status) = end.grpc_status {
                let _ = write!(text, " grpc={status}");
            }
            if let Some(code) = end.reset {
                let _ = write!(text, " reset={code}");
            }
            text + &fields(end.trailers)
        }
        Event::GaveUp(reason) => format!("gave up: {reason}"),
    }
}
