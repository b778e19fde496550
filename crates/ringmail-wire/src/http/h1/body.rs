//! Bodies of HTTP/1: counted and skipped, never copied (RFC 9112 6, 7).

use super::super::{Reason, Version};
use super::head::{Coding, Message};

/// How a response's message goes on after its head.
#[derive(Debug)]
pub(super) enum Framing {
    Empty,
    Body(Body),
    /// 101: the connection speaks something else.
    Switch,
    /// 2xx to CONNECT.
    Tunnel,
}

/// The rest of a body.
#[derive(Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

/// Where in the chunked coding the next byte is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chunk {
    /// In the digits of a chunk's size.
    Size { size: u64, digits: u8 },
    /// In what may follow the size on its line.
    Extension { size: u64, length: u16 },
    /// After the CR of a size line.
    SizeEnd { size: u64 },
    /// In a chunk's data.
    Data { left: u64 },
    /// Before the CR after a chunk's data.
    DataCr,
    /// Before the LF after a chunk's data.
    DataLf,
}

/// What some bytes were to a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that belong to it.
    pub(super) used: usize,
    /// Bytes of content among them.
    pub(super) payload: u64,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    More,
    /// The last chunk was read; the trailers follow, or the empty line.
    Trailers,
    Done,
}

impl Body {
    /// `None` for a request without a body. Framings that servers are known to read differently are refused: an observer
    /// must not claim to have seen what the server may not.
    pub(super) fn of_request(version: Version, message: &Message<'_>) -> Result<Option<Self>, Reason> {
        match (message.coding, message.content_length) {
            (Coding::None, None | Some(0)) => Ok(None),
            (Coding::None, Some(length)) => Ok(Some(Self::Length(length))),
            (_, Some(_)) => Err(Reason::Malformed("both Transfer-Encoding and Content-Length")),
            _ if version == Version::Http10 => Err(OLD_CODING),
            (Coding::Chunked, None) => Ok(Some(Self::Chunked(Chunk::START))),
            (Coding::Other, None) => Err(Reason::Malformed("a request whose transfer coding is not chunked")),
        }
    }

    /// `None` for a response of length 0.
    pub(super) fn of_response(version: Version, message: &Message<'_>) -> Result<Option<Self>, Reason> {
        match (message.coding, message.content_length) {
            (Coding::None, Some(0)) => Ok(None),
            (Coding::None, Some(length)) => Ok(Some(Self::Length(length))),
            (Coding::None, None) => Ok(Some(Self::UntilClose)),
            _ if version == Version::Http10 => Err(OLD_CODING),
            (Coding::Chunked, _) => Ok(Some(Self::Chunked(Chunk::START))),
            (Coding::Other, _) => Ok(Some(Self::UntilClose)),
        }
    }

    pub(super) fn until_close(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Takes bytes as far as they belong to the body; there is at least one.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Progress, Reason> {
        match self {
            Self::Length(left) => {
                let used = skip(left, bytes.len());
                let state = if *left == 0 { State::Done } else { State::More };
                Ok(Progress { used, payload: used as u64, state })
            }
            Self::Chunked(chunk) => chunk.advance(bytes),
            Self::UntilClose => {
                Ok(Progress { used: bytes.len(), payload: bytes.len() as u64, state: State::More })
            }
        }
    }
}

impl Chunk {
    const START: Self = Self::Size { size: 0, digits: 0 };

    fn advance(&mut self, bytes: &[u8]) -> Result<Progress, Reason> {
        let (mut used, mut payload) = (0, 0);
        while let Some(&byte) = bytes.get(used) {
            if let Self::Data { left } = self {
                let skipped = skip(left, bytes.len() - used);
                used += skipped;
                payload += skipped as u64;
                if *left == 0 {
                    *self = Self::DataCr;
                }
                continue;
            }
            used += 1;
            *self = match (*self, byte) {
                (Self::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                    // Sixteen digits fill 64 bits; a size near that is an attack on somebody's arithmetic.
                    if digits == 15 {
                        return Err(BAD_CHUNK);
                    }
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                }
                (Self::Size { digits: 0, .. }, _) => return Err(BAD_CHUNK),
                (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => Self::SizeEnd { size },
                (Self::Size { size, .. }, b';' | b' ' | b'\t') => Self::Extension { size, length: 1 },
                // A lone LF here is read as the end of the line by some and not by others.
                (Self::Extension { size, length }, _) if byte != b'\n' && length < LONGEST_EXTENSION => {
                    Self::Extension { size, length: length + 1 }
                }
                (Self::SizeEnd { size: 0 }, b'\n') => {
                    return Ok(Progress { used, payload, state: State::Trailers });
                }
                (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
                (Self::DataCr, b'\r') => Self::DataLf,
                (Self::DataLf, b'\n') => Self::START,
                _ => return Err(BAD_CHUNK),
            };
        }
        Ok(Progress { used, payload, state: State::More })
    }
}

/// Takes as many as there are of what is left.
fn skip(left: &mut u64, available: usize) -> usize {
    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= skipped as u64;
    skipped
}

const LONGEST_EXTENSION: u16 = 4096;
const BAD_CHUNK: Reason = Reason::Malformed("a broken chunk");
const OLD_CODING: Reason = Reason::Malformed("Transfer-Encoding in HTTP/1.0");
