//! Heads of HTTP/1: where they end, their first line, their fields.

use std::borrow::Cow;

use super::super::detect::is_token;
use super::super::headers::{Field, Span, decimal};
use super::super::target::{absolute, without_query, without_user};
use super::super::{HEAD_LIMIT, Headers, Reason, RequestHead, Version};

/// Finds the end of a head or of trailers in a stream, copying only what comes in pieces.
#[derive(Debug, Default)]
pub(super) struct HeadBuffer {
    kept: Vec<u8>,
    /// No end lies before this.
    scanned: usize,
}

impl HeadBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The whole section with its empty line, and how many of `bytes` belong to it. `None` when it takes all of them and more.
    /// `trailers` may be nothing but the empty line. Call [`HeadBuffer::clear`] once the section was used.
    pub(super) fn take<'a>(
        &'a mut self,
        bytes: &'a [u8],
        trailers: bool,
    ) -> Result<Option<(&'a [u8], usize)>, Reason> {
        let before = self.kept.len();
        if before == 0 {
            return match find_end(bytes, &mut self.scanned, trailers) {
                Some(end) if end <= HEAD_LIMIT => Ok(Some((&bytes[..end], end))),
                None if bytes.len() < HEAD_LIMIT => {
                    self.kept.extend_from_slice(bytes);
                    Ok(None)
                }
                _ => Err(Reason::HeadTooLarge),
            };
        }
        self.kept.extend_from_slice(&bytes[..bytes.len().min(HEAD_LIMIT - before)]);
        match find_end(&self.kept, &mut self.scanned, trailers) {
            Some(end) => Ok(Some((&self.kept[..end], end - before))),
            None if self.kept.len() < HEAD_LIMIT => Ok(None),
            None => Err(Reason::HeadTooLarge),
        }
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.kept.shrink_to(4096);
        self.scanned = 0;
    }
}

/// The end of the first empty line, which must follow another line unless `trailers`.
fn find_end(bytes: &[u8], scanned: &mut usize, trailers: bool) -> Option<usize> {
    if trailers && *scanned == 0 {
        match bytes {
            [b'\n', ..] => return Some(1),
            [b'\r', b'\n', ..] => return Some(2),
            [] | [b'\r'] => return None,
            _ => {}
        }
    }
    while let Some(found) = memchr::memchr(b'\n', bytes.get(*scanned..)?) {
        let line_end = *scanned + found;
        match bytes.get(line_end + 1..)? {
            [b'\n', ..] => return Some(line_end + 2),
            [b'\r', b'\n', ..] => return Some(line_end + 3),
            [] | [b'\r'] => {
                *scanned = line_end;
                return None;
            }
            _ => *scanned = line_end + 1,
        }
    }
    *scanned = bytes.len();
    None
}

/// The first line of a request.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub(super) method: Span,
    target: Span,
    pub(super) version: Version,
    /// Bytes up to the first field.
    pub(super) length: usize,
}

/// RFC 9112 3. The head is complete, so it holds a line.
pub(super) fn request_line(head: &[u8]) -> Result<RequestLine, Reason> {
    let (line, length) = first_line(head);
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    let target_at = method + 1;
    let rest =
        line.get(target_at..).filter(|_| method > 0 && line[method] == b' ').ok_or(BAD_REQUEST_LINE)?;
    let target = rest.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    let version = rest[target..].strip_prefix(b" ").filter(|_| target > 0).ok_or(BAD_REQUEST_LINE)?;
    Ok(RequestLine {
        method: Span::new(0, method),
        target: Span::new(target_at, target_at + target),
        version: parse_version(version).ok_or(BAD_REQUEST_LINE)?,
        length,
    })
}

impl RequestLine {
    /// RFC 9112 3.2: the four forms of a target.
    pub(super) fn head<'a>(
        &self,
        text: &'a [u8],
        headers: Headers<'a>,
        host: Option<&'a [u8]>,
    ) -> Result<RequestHead<'a>, Reason> {
        let target = self.target.of(text);
        let method = self.method.of(text);
        let host = host.unwrap_or_default();
        let (scheme, authority, path) = if method == b"CONNECT" {
            (&b"http"[..], target, &b""[..])
        } else if target.starts_with(b"/") || target == b"*" {
            (&b"http"[..], host, target)
        } else {
            absolute(target).ok_or(Reason::Malformed("a request target in none of the four forms"))?
        };
        Ok(RequestHead {
            method: String::from_utf8_lossy(method),
            scheme: String::from_utf8_lossy(scheme),
            authority: String::from_utf8_lossy(without_user(authority)),
            path: String::from_utf8_lossy(without_query(path)),
            version: self.version,
            protocol: None,
            headers,
        })
    }
}

/// The first line of a response.
#[derive(Debug)]
pub(super) struct StatusLine {
    pub(super) status: u16,
    pub(super) version: Version,
    pub(super) length: usize,
}

/// RFC 9112 4. The reason phrase may be absent, together with the blank before it.
pub(super) fn status_line(head: &[u8]) -> Result<StatusLine, Reason> {
    let (line, length) = first_line(head);
    let (version, rest) = line.split_at_checked(8).ok_or(BAD_STATUS_LINE)?;
    let version = parse_version(version).ok_or(BAD_STATUS_LINE)?;
    let rest = rest.strip_prefix(b" ").ok_or(BAD_STATUS_LINE)?;
    let (status, rest) = rest.split_at_checked(3).ok_or(BAD_STATUS_LINE)?;
    let status = decimal(status).filter(|status| *status >= 100).ok_or(BAD_STATUS_LINE)?;
    if !rest.is_empty() && !rest.starts_with(b" ") {
        return Err(BAD_STATUS_LINE);
    }
    Ok(StatusLine { status: status as u16, version, length })
}

/// A minor version above 1 is read as 1.1 (RFC 9110 2.5).
fn parse_version(version: &[u8]) -> Option<Version> {
    match version.strip_prefix(b"HTTP/1.")? {
        b"0" => Some(Version::Http10),
        [minor] if minor.is_ascii_digit() => Some(Version::Http11),
        _ => None,
    }
}

fn first_line(head: &[u8]) -> (&[u8], usize) {
    let end = memchr::memchr(b'\n', head).unwrap_or(head.len());
    let line = &head[..end];
    (line.strip_suffix(b"\r").unwrap_or(line), (end + 1).min(head.len()))
}

/// Reads the fields of a section from `start` to its empty line. Their places refer to the text returned, which differs
/// from `section` only where lines were folded (RFC 9112 5.2).
pub(super) fn parse_fields<'a>(
    section: &'a [u8],
    start: usize,
    fields: &mut Vec<Field>,
) -> Result<Cow<'a, [u8]>, Reason> {
    fields.clear();
    if try_fields(section, start, fields)? {
        return Ok(Cow::Borrowed(section));
    }
    let mut unfolded = section.to_vec();
    for index in 1..unfolded.len() {
        if matches!(unfolded[index], b' ' | b'\t') && unfolded[index - 1] == b'\n' {
            unfolded[index - 1] = b' ';
            if let Some(byte) =
                index.checked_sub(2).and_then(|at| unfolded.get_mut(at)).filter(|byte| **byte == b'\r')
            {
                *byte = b' ';
            }
        }
    }
    fields.clear();
    if try_fields(&unfolded, start, fields)? { Ok(Cow::Owned(unfolded)) } else { Err(BAD_FIELD) }
}

/// `false` when a folded line is met.
fn try_fields(section: &[u8], start: usize, fields: &mut Vec<Field>) -> Result<bool, Reason> {
    let mut at = start;
    while at < section.len() {
        let end = memchr::memchr(b'\n', &section[at..]).map_or(section.len(), |found| at + found);
        let line = &section[at..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.first() {
            None => break,
            // A section that begins with a folded line has nothing to fold it onto.
            Some(b' ' | b'\t') if fields.is_empty() => return Err(BAD_FIELD),
            Some(b' ' | b'\t') => return Ok(false),
            Some(_) => {}
        }
        let name = line.iter().take_while(|byte| is_token(**byte)).count();
        if name == 0 || line.get(name) != Some(&b':') {
            return Err(BAD_FIELD);
        }
        let value = &line[name + 1..];
        if value.iter().any(|byte| matches!(byte, b'\r' | b'\0')) {
            return Err(BAD_FIELD);
        }
        if fields.len() == MOST_FIELDS {
            return Err(Reason::HeadTooLarge);
        }
        let from = at + name + 1 + blanks(value.iter());
        let to = at + line.len() - blanks(value.iter().rev());
        fields.push(Field { name: Span::new(at, at + name), value: Span::new(from, to.max(from)) });
        at = end + 1;
    }
    Ok(true)
}

fn blanks<'a>(bytes: impl Iterator<Item = &'a u8>) -> usize {
    bytes.take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// The fields that say how a message is framed and what becomes of its connection.
#[derive(Debug, Default)]
pub(super) struct Message<'a> {
    pub(super) content_length: Option<u64>,
    pub(super) coding: Coding,
    pub(super) upgrade: Upgrade,
    pub(super) host: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Coding {
    #[default]
    None,
    /// `chunked` is last, and comes once.
    Chunked,
    /// Any other transfer coding.
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Upgrade {
    #[default]
    None,
    H2c,
    Other,
}

impl<'a> Message<'a> {
    pub(super) fn of(headers: Headers<'a>) -> Result<Self, Reason> {
        let mut message = Self::default();
        let (mut offered, mut connection_says) = (Upgrade::None, false);
        for (name, value) in headers.iter() {
            // The lengths of the few names that matter are a cheap filter.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => message.host = message.host.or(Some(value)),
                7 if name.eq_ignore_ascii_case("upgrade") => {
                    let h2c = members(value).any(|member| member.eq_ignore_ascii_case(b"h2c"));
                    offered = if h2c { Upgrade::H2c } else { Upgrade::Other };
                }
                10 if name.eq_ignore_ascii_case("connection") => {
                    connection_says |= members(value).any(|member| member.eq_ignore_ascii_case(b"upgrade"));
                }
                14 if name.eq_ignore_ascii_case("content-length") => message.length(value)?,
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    for coding in members(value) {
                        message.coding = match message.coding {
                            Coding::Chunked => {
                                return Err(Reason::Malformed("a transfer coding after chunked"));
                            }
                            _ if coding.eq_ignore_ascii_case(b"chunked") => Coding::Chunked,
                            _ => Coding::Other,
                        };
                    }
                }
                _ => {}
            }
        }
        if connection_says {
            message.upgrade = offered;
        }
        Ok(message)
    }

    /// The same length several times is one (RFC 9112 6.3); two lengths are an attack.
    fn length(&mut self, value: &[u8]) -> Result<(), Reason> {
        let bad = Reason::Malformed("a Content-Length that is no single number");
        for member in value.split(|byte| *byte == b',') {
            let length = decimal(member.trim_ascii()).ok_or(bad)?;
            if self.content_length.is_some_and(|other| other != length) {
                return Err(bad);
            }
            self.content_length = Some(length);
        }
        Ok(())
    }
}

/// The non-empty members of a comma-separated list (RFC 9110 5.6.1).
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

const MOST_FIELDS: usize = 1024;
const BAD_REQUEST_LINE: Reason = Reason::Malformed("no HTTP/1 request line");
const BAD_STATUS_LINE: Reason = Reason::Malformed("no HTTP/1 status line");
const BAD_FIELD: Reason = Reason::Malformed("no HTTP/1 field line");
