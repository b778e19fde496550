//! Reads a TLS ClientHello from the first bytes of a connection, to tell mesh TLS from application TLS from plaintext.

use std::borrow::Cow;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A proper beginning of a ClientHello (or nothing at all); read more.
    Incomplete,
    /// Not the beginning of a ClientHello: plaintext, or a protocol that the mesh does not know.
    NotTls,
    /// Begins like a ClientHello but is none; says which rule it breaks.
    Malformed(&'static str),
    /// A whole ClientHello.
    Complete(ClientHello),
}

/// What a client asks for in its ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The first `host_name` of the `server_name` extension, as sent (RFC 6066 3).
    pub sni: Option<String>,
    /// The client random, by which packets and flows are joined.
    pub random: [u8; 32],
    /// Protocols offered, in order (RFC 7301 3.1).
    pub alpn: Vec<Vec<u8>>,
    /// Bytes from the start of the connection to the end of the record in which the hello ends.
    pub len: usize,
}

/// Reads a ClientHello from all bytes that a connection has brought so far; call it again with more on
/// [`Hello::Incomplete`].
///
/// The hello may lie in many TCP segments and in several TLS records. Work until it is whole is one step per record, of
/// which at most [`MAX_RECORDS`] are taken; more than [`LIMIT`] bytes are never asked for.
pub fn read(bytes: &[u8]) -> Hello {
    match assemble(bytes) {
        Err(answer) => answer,
        Ok((message, len)) => match parse(&message) {
            Ok(hello) => Hello::Complete(ClientHello { len, ..hello }),
            Err(rule) => Hello::Malformed(rule),
        },
    }
}

/// Longest hello, in bytes with record headers.
pub const LIMIT: usize = 64 * 1024;

/// Most records that one hello may be cut into.
pub const MAX_RECORDS: usize = 64;

/// Finds the body of the handshake message, which is borrowed where it lies in one record. The number is where its last
/// record ends.
fn assemble(bytes: &[u8]) -> Result<(Cow<'_, [u8]>, usize), Hello> {
    if bytes.iter().zip(BEGINNING).any(|(byte, range)| !range.contains(byte)) {
        return Err(Hello::NotTls);
    }
    if bytes.len() < BEGINNING.len() {
        return Err(Hello::Incomplete);
    }
    let mut total = None;
    let (mut gathered, mut offset) = (0, 0);
    let mut prefix = [0_u8; HANDSHAKE_HEADER];
    for _ in 0..MAX_RECORDS {
        let Some(record) = bytes.get(offset..offset + RECORD_HEADER) else { return Err(Hello::Incomplete) };
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        if record[0] != HANDSHAKE_RECORD || record[1] != 3 {
            return Err(Hello::Malformed("a ClientHello broken off by another record"));
        }
        if length == 0 {
            return Err(Hello::Malformed("an empty handshake record"));
        }
        if length > MAX_RECORD {
            return Err(Hello::Malformed("a TLS record above 16 KiB"));
        }
        let start = offset + RECORD_HEADER;
        let payload = bytes.get(start..(start + length).min(bytes.len())).unwrap_or_default();
        for (index, byte) in payload.iter().enumerate().take(HANDSHAKE_HEADER.saturating_sub(gathered)) {
            prefix[gathered + index] = *byte;
        }
        if gathered + payload.len() >= HANDSHAKE_HEADER {
            let body = usize::from(prefix[1]) << 16 | usize::from(prefix[2]) << 8 | usize::from(prefix[3]);
            if body > LIMIT - HANDSHAKE_HEADER {
                return Err(Hello::Malformed("a ClientHello above 64 KiB"));
            }
            total = Some(HANDSHAKE_HEADER + body);
        }
        if payload.len() < length {
            return Err(Hello::Incomplete);
        }
        gathered += length;
        offset = start + length;
        if let Some(total) = total.filter(|total| *total <= gathered) {
            return Ok((message(bytes, total), offset));
        }
        if offset > LIMIT {
            return Err(Hello::Malformed("a ClientHello above 64 KiB"));
        }
    }
    Err(Hello::Malformed("a ClientHello in too many records"))
}

/// The body of the handshake message of `total` bytes that begins in the first record; the records were checked.
fn message(bytes: &[u8], total: usize) -> Cow<'_, [u8]> {
    let payload = |offset: usize| {
        let length = usize::from(u16::from_be_bytes([bytes[offset + 3], bytes[offset + 4]]));
        &bytes[offset + RECORD_HEADER..offset + RECORD_HEADER + length]
    };
    let first = payload(0);
    if first.len() >= total {
        return Cow::Borrowed(&first[HANDSHAKE_HEADER..total]);
    }
    let mut whole = Vec::with_capacity(total + MAX_RECORD);
    let mut offset = 0;
    while whole.len() < total {
        let part = payload(offset);
        whole.extend_from_slice(part);
        offset += RECORD_HEADER + part.len();
    }
    whole.truncate(total);
    whole.drain(..HANDSHAKE_HEADER);
    Cow::Owned(whole)
}

/// RFC 8446 4.1.2: version, random, session id, cipher suites, compression methods, extensions.
fn parse(message: &[u8]) -> Result<ClientHello, &'static str> {
    let mut rest = Reader(message);
    let version = rest.take(2)?;
    if version[0] != 3 {
        return Err("a ClientHello of an unknown version");
    }
    let mut random = [0; 32];
    random.copy_from_slice(rest.take(32)?);
    if rest.vector8()?.0.len() > 32 {
        return Err("a session id above 32 bytes");
    }
    rest.vector16()?;
    rest.vector8()?;
    let mut hello = ClientHello { sni: None, random, alpn: Vec::new(), len: 0 };
    if rest.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = rest.vector16()?;
    if !rest.0.is_empty() {
        return Err("bytes after the extensions");
    }
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let body = extensions.vector16()?;
        match kind {
            SERVER_NAME if std::mem::replace(&mut seen_name, true) => {
                return Err("two server_name extensions");
            }
            SERVER_NAME => hello.sni = server_name(body)?,
            ALPN if std::mem::replace(&mut seen_alpn, true) => return Err("two ALPN extensions"),
            ALPN => hello.alpn = protocols(body)?,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(mut body: Reader<'_>) -> Result<Option<String>, &'static str> {
    let mut names = body.vector16()?;
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?.0;
        if kind == HOST_NAME {
            if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                return Err("a server name that is no host name");
            }
            return Ok(std::str::from_utf8(name).ok().map(str::to_owned));
        }
    }
    Ok(None)
}

fn protocols(mut body: Reader<'_>) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut list = body.vector16()?;
    let mut names = Vec::new();
    while !list.0.is_empty() {
        if names.len() == MAX_PROTOCOLS {
            return Err("too many ALPN protocols");
        }
        names.push(list.vector8()?.0.to_vec());
    }
    Ok(names)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a ClientHello cut short inside")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<Reader<'a>, &'static str> {
        let length = self.take(1)?[0];
        self.take(usize::from(length)).map(Reader)
    }

    fn vector16(&mut self) -> Result<Reader<'a>, &'static str> {
        let length = self.number16()?;
        self.take(usize::from(length)).map(Reader)
    }
}

const HANDSHAKE_RECORD: u8 = 22;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const MAX_RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;
const MAX_PROTOCOLS: usize = 64;

/// The first six bytes of a connection that begins with a ClientHello: a handshake record of version 3.0 to 3.4, any
/// length, handshake type 1.
const BEGINNING: [std::ops::RangeInclusive<u8>; 6] = [22..=22, 3..=3, 0..=4, 0..=255, 0..=255, 1..=1];
