//! Netlink messages: attributes, batches, dumps (netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::RedirectError;

/// The attributes of a message, nested as needed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (HEADER + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// Numbers of nf_tables are big-endian.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Walks over attributes; ends at the first that does not fit.
pub(crate) struct Read<'a>(&'a [u8]);

impl<'a> Read<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn find(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        Self(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    pub(crate) fn number(bytes: &'a [u8], kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(Self::find(bytes, kind)?.try_into().ok()?))
    }

    pub(crate) fn text(bytes: &'a [u8], kind: u16) -> Option<&'a str> {
        let value = Self::find(bytes, kind)?;
        let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        std::str::from_utf8(value.get(..end)?).ok()
    }
}

impl<'a> Iterator for Read<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(short(self.0, 0)?);
        let kind = short(self.0, 2)? & !(NESTED | BYTE_ORDER);
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// One request to nf_tables.
pub(crate) struct Request {
    /// `NFT_MSG_*`.
    pub(crate) message: u16,
    /// `NLM_F_*` beside `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    pub(crate) attributes: Attributes,
    /// What the request is about, for errors.
    pub(crate) object: String,
}

/// A netfilter socket in the network namespace of the thread that opened it.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> Result<Self, RedirectError> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|errno| RedirectError::NoNfTables { source: errno.into() })?;
        let failed = |attempt| move |errno: Errno| RedirectError::Netlink { attempt, source: errno.into() };
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("binding the socket"))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))
            .map_err(failed("setting the receive timeout"))?;
        Ok(Self(fd))
    }

    /// Sends all requests as one transaction; either all take effect or none.
    pub(crate) fn transact(&self, requests: &[Request]) -> Result<(), RedirectError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let mut bytes = Vec::new();
        message(&mut bytes, BATCH_BEGIN, 0, 0, libc::AF_UNSPEC as u8, NF_TABLES, &[]);
        for (index, request) in requests.iter().enumerate() {
            // Only the last one asks for an answer, else the answers to a large batch overflow the receive buffer.
            // Errors are always answered.
            let flags = request.flags | if index == last { ACK } else { 0 };
            let kind = (NF_TABLES << 8) | request.message;
            message(&mut bytes, kind, flags, index as u32 + 1, INET, 0, &request.attributes.0);
        }
        message(&mut bytes, BATCH_END, 0, 0, libc::AF_UNSPEC as u8, NF_TABLES, &[]);
        self.send(&bytes)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            for answer in self.receive(&mut buffer)? {
                if answer.kind != ERROR {
                    continue;
                }
                let object = |index: u32| {
                    let request = index.checked_sub(1).and_then(|index| requests.get(index as usize));
                    request.map_or_else(|| "the rules".to_owned(), |request| request.object.clone())
                };
                match answer.errno()? {
                    None if answer.sequence == last as u32 + 1 => return Ok(()),
                    None => {}
                    Some(errno) => return Err(refused(errno, || object(answer.sequence))),
                }
            }
        }
    }

    /// Asks for all objects of a kind and gives the attributes of each.
    pub(crate) fn dump(&self, request: &Request) -> Result<Vec<Vec<u8>>, RedirectError> {
        'again: for _ in 0..DUMP_TRIES {
            let mut bytes = Vec::new();
            let kind = (NF_TABLES << 8) | request.message;
            message(&mut bytes, kind, request.flags | DUMP, 1, INET, 0, &request.attributes.0);
            self.send(&bytes)?;
            let mut found = Vec::new();
            let mut changed = false;
            let mut buffer = vec![0; BUFFER];
            loop {
                for answer in self.receive(&mut buffer)? {
                    changed |= answer.flags & DUMP_INTERRUPTED != 0;
                    match answer.kind {
                        DONE if changed => continue 'again,
                        DONE => return Ok(found),
                        ERROR => {
                            if let Some(errno) = answer.errno()? {
                                return Err(refused(errno, || request.object.clone()));
                            }
                        }
                        _ => found.push(answer.body.get(GENERIC..).unwrap_or_default().to_vec()),
                    }
                }
            }
        }
        Err(RedirectError::Answer("the rules changed during each of several readings"))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), RedirectError> {
        if bytes.len() > DEFAULT_SEND {
            // The forced form passes the sysctl's limit, where the kernel lets us.
            let size = bytes.len().saturating_mul(2);
            if setsockopt(&self.0, sockopt::SndBufForce, &size).is_err() {
                let _kernel_takes_what_it_may = setsockopt(&self.0, sockopt::SndBuf, &size);
            }
        }
        match sendto(self.0.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) | Err(Errno::EMSGSIZE) => Err(RedirectError::TooLarge { bytes: bytes.len() }),
            Err(errno) => Err(RedirectError::Netlink { attempt: "sending", source: errno.into() }),
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Vec<Answer<'a>>, RedirectError> {
        let length = loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let source = io::Error::new(io::ErrorKind::TimedOut, "no answer");
                    return Err(RedirectError::Netlink { attempt: "waiting for the kernel", source });
                }
                Err(errno) => {
                    return Err(RedirectError::Netlink { attempt: "receiving", source: errno.into() });
                }
            }
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        let mut answers = Vec::new();
        while !rest.is_empty() {
            let (answer, after) =
                Answer::read(rest).ok_or(RedirectError::Answer("a message is cut short"))?;
            answers.push(answer);
            rest = after;
        }
        Ok(answers)
    }
}

struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let answer = Self {
            kind: short(bytes, 4)?,
            flags: short(bytes, 6)?,
            sequence: word(bytes, 8)?,
            body: bytes.get(MESSAGE..length)?,
        };
        Some((answer, bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default()))
    }

    /// `None` for an acknowledgement.
    fn errno(&self) -> Result<Option<i32>, RedirectError> {
        let number = word(self.body, 0).ok_or(RedirectError::Answer("an error without a number"))?;
        let number = i32::from_ne_bytes(number.to_ne_bytes()).wrapping_neg();
        Ok((number != 0).then_some(number))
    }
}

fn refused(errno: i32, object: impl Fn() -> String) -> RedirectError {
    let source = io::Error::from_raw_os_error(errno);
    match errno {
        libc::EPERM | libc::EACCES => {
            RedirectError::NoPermission { attempt: format!("set or read {}", object()) }
        }
        libc::EOPNOTSUPP if object() == "the rules" => RedirectError::NoNfTables { source },
        _ => RedirectError::Refused { object: object(), source },
    }
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn message(
    to: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) {
    let length = (MESSAGE + GENERIC + attributes.len()) as u32;
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend((flags | REQUEST).to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend(0_u32.to_ne_bytes());
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(attributes);
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const BYTE_ORDER: u16 = 0x4000;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const NF_TABLES: u16 = 10;
/// `NFPROTO_INET`.
const INET: u8 = 1;
const ALIGN: usize = 4;
/// Size of an attribute's header, of `struct nlmsghdr`, and of `struct nfgenmsg`.
const HEADER: usize = 4;
const MESSAGE: usize = 16;
const GENERIC: usize = 4;
/// The kernel fills dumps in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Below the kernel's default send buffer (`net.core.wmem_default`, 208 KiB).
const DEFAULT_SEND: usize = 128 * 1024;
const DUMP_TRIES: usize = 10;
const ANSWER_SECONDS: i64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let inner = Attributes::default().number(2, 7);
        let all = Attributes::default().text(1, "lo").nested(3, &inner).bytes(4, &[1, 2, 3]);
        assert_eq!(Read::text(&all.0, 1), Some("lo"));
        assert_eq!(Read::find(&all.0, 3).and_then(|inner| Read::number(inner, 2)), Some(7));
        assert_eq!(Read::find(&all.0, 4), Some(&[1_u8, 2, 3][..]));
        assert_eq!(Read::find(&all.0, 5), None);
    }

    #[test]
    fn cut_or_false_lengths_end_the_reading() {
        let all = Attributes::default().text(1, "name").number(2, 7);
        for end in 0..all.0.len() {
            assert!(Read::new(&all.0[..end]).count() <= 1, "{end}");
            assert!(Answer::read(&all.0[..end]).is_none(), "{end}");
        }
        assert_eq!(Read::new(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(Read::new(&[3, 0, 0, 0, 9, 9]).count(), 0);
    }
}
