//! The first bytes of an inbound connection, read until they say what it is.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use ringmail_wire::client_hello::{self, ClientHello, Hello};
use tokio::io::{AsyncRead, ReadBuf};

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A whole ClientHello.
    Tls(ClientHello),
    /// No ClientHello.
    NotTls,
    /// The stream ended before that was known.
    Ended,
}

/// Reads until it is known what the connection begins with. What was read is in `bytes`, also when the future is
/// dropped half way, so that a deadline loses nothing.
///
/// Bytes are consumed, not peeked at: a partial hello would make a peeking reader spin. Nothing is allocated before
/// the first byte came, so that a connection which is opened and left costs little.
pub async fn read<IO: AsyncRead + Unpin>(io: &mut IO, bytes: &mut Vec<u8>) -> io::Result<Opening> {
    loop {
        if !bytes.is_empty() {
            match client_hello::read(bytes) {
                Hello::Complete(hello) => return Ok(Opening::Tls(hello)),
                Hello::NotTls | Hello::Malformed(_) => return Ok(Opening::NotTls),
                Hello::Incomplete => {}
            }
        }
        let read = poll_fn(|cx| {
            let mut part = [0; PART];
            let mut buf = ReadBuf::new(&mut part);
            std::task::ready!(Pin::new(&mut *io).poll_read(cx, &mut buf))?;
            bytes.extend_from_slice(buf.filled());
            std::task::Poll::Ready(Ok::<_, io::Error>(buf.filled().len()))
        });
        if read.await? == 0 {
            return Ok(Opening::Ended);
        }
    }
}

/// Larger than a post-quantum ClientHello.
const PART: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plaintext_is_known_by_its_first_byte_and_kept() {
        let mut bytes = Vec::new();
        let opening = read(&mut &b"GET / HTTP/1.1\r\n"[..], &mut bytes).await;
        assert_eq!(opening.expect("reads"), Opening::NotTls);
        assert_eq!(bytes, b"GET / HTTP/1.1\r\n");
    }

    #[tokio::test]
    async fn half_a_hello_and_the_end_is_an_end() {
        let mut bytes = Vec::new();
        let opening = read(&mut &[0x16, 3, 1, 2, 0, 1][..], &mut bytes).await;
        assert_eq!(opening.expect("reads"), Opening::Ended);
        assert_eq!(bytes.len(), 6);
    }

    #[tokio::test]
    async fn a_reader_that_is_dropped_loses_nothing() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut bytes = Vec::new();
        tokio::io::AsyncWriteExt::write_all(&mut near, &[0x16, 3, 1]).await.expect("writes");
        let first =
            tokio::time::timeout(std::time::Duration::from_millis(20), read(&mut far, &mut bytes)).await;
        assert!(first.is_err(), "three bytes decide nothing");
        assert_eq!(bytes, [0x16, 3, 1]);
    }
}
