//! The transport header: what a proxy writes first, inside TLS, on a connection addressed to a peer's inbound proxy itself.
//!
//! It names the port that the connection is really for. Only the client sends one, and only when the handshake selected
//! [`ALPN`]; there is no reply.

use std::num::NonZeroU16;

/// The protocol that both ends must have agreed on by ALPN for a header to be sent.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The application's port, or the gateway target's.
    pub port: NonZeroU16,
    /// Gateway target, a DNS name; absent when the connection is for this pod.
    pub name: Option<String>,
    /// The protocol inside, where the client knows it.
    pub session_protocol: Option<SessionProtocol>,
}

/// HTTP version used inside the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionProtocol {
    /// HTTP/1
    Http1,
    /// HTTP/2
    Http2,
}

/// What the first bytes of a direct connection hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A proper beginning; read more.
    Incomplete,
    /// No header, or a bad one; says which rule it breaks.
    Malformed(&'static str),
    /// The header, and how many bytes it takes; what follows belongs to the connection inside.
    Complete(TransportHeader, usize),
}

impl TransportHeader {
    /// Appends the header's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut message = Vec::with_capacity(16);
        message.push(PORT_TAG);
        put_varint(u64::from(self.port.get()), &mut message);
        if let Some(name) = &self.name {
            message.push(NAME_TAG);
            put_varint(name.len() as u64, &mut message);
            message.extend_from_slice(name.as_bytes());
        }
        if let Some(protocol) = self.session_protocol {
            // A message that holds one empty message, whose number tells the version.
            let kind = match protocol {
                SessionProtocol::Http1 => HTTP1_TAG,
                SessionProtocol::Http2 => HTTP2_TAG,
            };
            message.extend_from_slice(&[SESSION_TAG, 2, kind, 0]);
        }
        out.extend_from_slice(PREFACE);
        out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        out.extend_from_slice(&message);
    }
}

/// Reads a header from the first bytes of a connection. Never looks beyond [`LIMIT`] bytes of message.
pub fn decode(bytes: &[u8]) -> Decoded {
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] != PREFACE[..shared] {
        return Decoded::Malformed("no transport header preface");
    }
    let Some(length) = bytes.get(PREFACE.len()..PREFACE.len() + 4) else { return Decoded::Incomplete };
    let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    if length > LIMIT {
        return Decoded::Malformed("transport header above 64 KiB");
    }
    let start = PREFACE.len() + 4;
    let Some(message) = bytes.get(start..start + length) else { return Decoded::Incomplete };
    match decode_message(message) {
        Ok(header) => Decoded::Complete(header, start + length),
        Err(rule) => Decoded::Malformed(rule),
    }
}

/// Longest message that is read, in bytes.
pub const LIMIT: usize = 64 * 1024;

fn decode_message(message: &[u8]) -> Result<TransportHeader, &'static str> {
    let (mut port, mut name, mut session_protocol) = (0_u64, &[][..], None);
    let mut rest = Fields(message);
    while let Some((tag, value)) = rest.next()? {
        match (tag, value) {
            (1, Value::Number(number)) => port = number,
            (2, Value::Bytes(bytes)) => name = bytes,
            (3, Value::Bytes(bytes)) => session_protocol = decode_session(bytes)?,
            (1..=3, _) => return Err("transport header field of the wrong type"),
            // Fields of a later version are skipped, as protobuf demands.
            _ => {}
        }
    }
    let port =
        u16::try_from(port).ok().and_then(NonZeroU16::new).ok_or("transport header port out of range")?;
    let name = match name {
        [] => None,
        name if is_dns_name(name) => std::str::from_utf8(name).ok().map(str::to_owned),
        _ => return Err("transport header name is not a DNS name"),
    };
    Ok(TransportHeader { port, name, session_protocol })
}

fn decode_session(message: &[u8]) -> Result<Option<SessionProtocol>, &'static str> {
    let mut protocol = None;
    let mut rest = Fields(message);
    while let Some((tag, value)) = rest.next()? {
        match (tag, value) {
            (1, Value::Bytes(_)) => protocol = Some(SessionProtocol::Http1),
            (2, Value::Bytes(_)) => protocol = Some(SessionProtocol::Http2),
            _ => {}
        }
    }
    Ok(protocol)
}

/// Labels of letters, digits, `-` and `_`, of 1 to 63 bytes, at most 253 in all; a final dot is allowed.
fn is_dns_name(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").unwrap_or(name);
    name.len() <= 253
        && name.split(|byte| *byte == b'.').all(|label| {
            (1..=63).contains(&label.len())
                && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with(b"-")
                && !label.ends_with(b"-")
        })
}

/// The fields of a protobuf message.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, &'static str> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err("transport header with an unknown wire type"),
        };
        Ok(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for (index, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err("transport header cut short")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("transport header cut short")?;
        self.0 = rest;
        Ok(taken)
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
const PORT_TAG: u8 = 1 << 3;
const NAME_TAG: u8 = 2 << 3 | 2;
const SESSION_TAG: u8 = 3 << 3 | 2;
const HTTP1_TAG: u8 = 1 << 3 | 2;
const HTTP2_TAG: u8 = 2 << 3 | 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(port: u16) -> TransportHeader {
        TransportHeader { port: NonZeroU16::new(port).expect("not zero"), name: None, session_protocol: None }
    }

    fn frame(message: &[u8]) -> Vec<u8> {
        [PREFACE, &(message.len() as u32).to_be_bytes(), message].concat()
    }

    #[test]
    fn a_port_alone_has_exactly_these_bytes() {
        let mut bytes = Vec::new();
        header(8080).encode(&mut bytes);
        assert_eq!(bytes, b"transport.l5d.io/v1\r\n\r\n\0\0\0\x03\x08\x90\x3f");
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_and_leaves_the_rest() {
        for (name, session_protocol) in [
            (None, None),
            (Some("web.ballot.svc.cluster.local"), None),
            (None, Some(SessionProtocol::Http1)),
            (Some("a.b"), Some(SessionProtocol::Http2)),
        ] {
            let header = TransportHeader { name: name.map(str::to_owned), session_protocol, ..header(65535) };
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            let length = bytes.len();
            bytes.extend_from_slice(b"application");
            for cut in 0..length {
                assert_eq!(decode(&bytes[..cut]), Decoded::Incomplete, "cut at {cut}");
            }
            assert_eq!(decode(&bytes), Decoded::Complete(header, length));
        }
    }

    #[test]
    fn another_preface_is_refused_at_its_first_wrong_byte() {
        assert_eq!(decode(b"transport.l5d.io/v2"), Decoded::Malformed("no transport header preface"));
        assert_eq!(decode(b"G"), Decoded::Malformed("no transport header preface"));
    }

    #[test]
    fn ports_names_and_lengths_out_of_range_are_refused() {
        for (message, rule) in [
            (&b""[..], "transport header port out of range"),
            (b"\x08\x00", "transport header port out of range"),
            (b"\x08\x80\x80\x04", "transport header port out of range"),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "transport header port out of range"),
            (b"\x08\x90\x3f\x12\x03a b", "transport header name is not a DNS name"),
            (b"\x08\x90\x3f\x12\x09abc", "transport header cut short"),
            (b"\x0a\x00", "transport header field of the wrong type"),
            (b"\x08", "transport header cut short"),
            (b"\x0f", "transport header with an unknown wire type"),
        ] {
            assert_eq!(decode(&frame(message)), Decoded::Malformed(rule), "{message:?}");
        }
        let long = [PREFACE, &(LIMIT as u32 + 1).to_be_bytes()].concat();
        assert_eq!(decode(&long), Decoded::Malformed("transport header above 64 KiB"));
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let message = b"\x08\x90\x3f\x4a\x02hi\x51\0\0\0\0\0\0\0\0\x5d\0\0\0\0";
        assert_eq!(
            decode(&frame(message)),
            Decoded::Complete(header(8080), PREFACE.len() + 4 + message.len())
        );
    }
}
