//! How a connection to the control port is refused so that its caller can read why.

use std::io;
use std::time::{Duration, SystemTime};

use ringmail_vocab::{CloseReason, ClosedBy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::report::Share;

/// RFC 8446 6.2.
pub(super) const UNRECOGNIZED_NAME: u8 = 112;
/// RFC 8446 6.2.
pub(super) const INTERNAL_ERROR: u8 = 80;

/// Writes a refusal to the log, unless there were many just now; what was left out is counted.
pub(super) fn complain(text: &str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if let Some(suppressed) = COMPLAINTS.admit(now) {
        tracing::warn!(suppressed, "{text}");
    }
}

/// Refuses a plaintext caller: one that speaks HTTP/2 is told why in a GOAWAY, another sees the connection end.
pub(super) async fn plaintext(stream: TcpStream, read: &[u8], text: &str) {
    let answer = if read.starts_with(b"PRI * HTTP/2.0") { goaway(text) } else { Vec::new() };
    last_words(stream, &answer).await;
}

/// Refuses a TLS caller with a fatal alert before any handshake (a plaintext alert record, RFC 8446 5.1, 6).
pub(super) async fn alert(stream: TcpStream, description: u8) {
    last_words(stream, &[21, 3, 3, 0, 2, 2, description]).await;
}

/// Empty SETTINGS, then GOAWAY with INADEQUATE_SECURITY and the reason (RFC 9113 6.5, 6.8, 7).
fn goaway(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(1024)];
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = (8 + text.len() as u32).to_be_bytes();
    frames.extend_from_slice(&length[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&0_u32.to_be_bytes());
    frames.extend_from_slice(&0xc_u32.to_be_bytes());
    frames.extend_from_slice(text);
    frames
}

/// Writes, then reads what is left for a moment: closing with unread bytes would reset the answer away.
async fn last_words(mut stream: TcpStream, words: &[u8]) {
    let speak = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        let mut waste = [0; 512];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut waste).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, speak).await;
}

/// Who ended a connection that ended with an error, and how.
pub(super) fn end_of(error: &hyper::Error) -> (ClosedBy, CloseReason) {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::UnexpectedEof => (ClosedBy::Client, CloseReason::Truncated),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    (ClosedBy::Client, CloseReason::Reset)
                }
                _ => (ClosedBy::Proxy, CloseReason::Error),
            };
        }
        source = cause.source();
    }
    if error.is_timeout() {
        (ClosedBy::Proxy, CloseReason::Idle)
    } else {
        (ClosedBy::Client, CloseReason::Error)
    }
}

static COMPLAINTS: Share = Share::new();
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 * 1024;
