//! Decides the protocol from a client's first bytes, as early as it is certain.

/// Keeps the first bytes until they say what they are.
#[derive(Debug, Default)]
pub(super) struct Detector {
    kept: Vec<u8>,
    /// What the server said before the client's first bytes came; boxed, since it is rare and there is a detector for each
    /// connection.
    #[expect(clippy::box_collection, reason = "a third of the size where nothing is kept")]
    server: Option<Box<Vec<u8>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detected {
    NotYet,
    Http1,
    Http2,
    NotHttp,
}

impl Detector {
    /// Looks at the next bytes, which are kept only when they do not decide.
    pub(super) fn client(&mut self, bytes: &[u8]) -> Detected {
        if self.kept.is_empty() {
            let detected = classify(bytes);
            if detected == Detected::NotYet {
                self.kept.extend_from_slice(bytes);
            }
            return detected;
        }
        let before = self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(LONGEST_LINE)]);
        let detected = classify(&self.kept);
        if detected != Detected::NotYet {
            self.kept.truncate(before);
        }
        detected
    }

    /// Looks at what the server says before the client is understood, and keeps it where HTTP/2 is still possible: a server
    /// may send its SETTINGS without waiting for the client's preface (RFC 9113 3.4). No HTTP/1 server speaks first.
    pub(super) fn server(&mut self, bytes: &[u8]) -> Detected {
        let kept = self.server.get_or_insert_default();
        kept.extend_from_slice(&bytes[..bytes.len().min(MOST_FROM_SERVER)]);
        if kept.len() < MOST_FROM_SERVER && begins_with_settings(kept) {
            Detected::NotYet
        } else {
            Detected::NotHttp
        }
    }

    /// Whether the server spoke before the client was understood.
    pub(super) fn server_spoke(&self) -> bool {
        self.server.is_some()
    }

    /// The client's and the server's bytes kept before those that decided.
    pub(super) fn take(&mut self) -> (Vec<u8>, Vec<u8>) {
        (std::mem::take(&mut self.kept), self.server.take().map(|kept| *kept).unwrap_or_default())
    }
}

/// Whether these bytes begin, as far as they go, with a SETTINGS frame that is no acknowledgement (RFC 9113 6.5).
fn begins_with_settings(bytes: &[u8]) -> bool {
    let is = |at: usize, wanted: u8| bytes.get(at).is_none_or(|byte| *byte == wanted);
    let whole = |length: &[u8]| length.iter().fold(0, |sum, byte| sum * 256 + usize::from(*byte)) % 6 == 0;
    is(0, 0) && bytes.get(..3).is_none_or(whole) && is(3, 4) && (4..9).all(|at| is(at, 0))
}

fn classify(bytes: &[u8]) -> Detected {
    let shared = bytes.len().min(PREFACE_LINE.len());
    if bytes[..shared] == PREFACE_LINE[..shared] {
        return if shared == PREFACE_LINE.len() { Detected::Http2 } else { Detected::NotYet };
    }
    // Empty lines before a request are to be ignored (RFC 9112 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > MOST_BLANK {
        return Detected::NotHttp;
    }
    let line = &bytes[blank..];
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    if method > LONGEST_METHOD {
        return Detected::NotHttp;
    }
    let Some(rest) = line.get(method..).filter(|rest| !rest.is_empty()) else { return Detected::NotYet };
    let Some(rest) = rest.strip_prefix(b" ").filter(|_| method > 0) else { return Detected::NotHttp };
    if METHODS.contains(&&line[..method]) && unmistakable(rest) {
        return Detected::Http1;
    }
    // Other text protocols begin with a word and a blank too: the version decides.
    let target = rest.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    if target == rest.len() {
        return if line.len() < LONGEST_LINE { Detected::NotYet } else { Detected::NotHttp };
    }
    let Some(version) = rest[target..].strip_prefix(b" ").filter(|_| target > 0) else {
        return Detected::NotHttp;
    };
    let shared = version.len().min(VERSION.len());
    if version[..shared] != VERSION[..shared] {
        return Detected::NotHttp;
    }
    match version.get(VERSION.len()) {
        None => Detected::NotYet,
        Some(minor) if minor.is_ascii_digit() => Detected::Http1,
        Some(_) => Detected::NotHttp,
    }
}

/// A target that after a method of HTTP is HTTP, without waiting for the rest of the line.
fn unmistakable(target: &[u8]) -> bool {
    let begins = |with: &[u8]| target.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    begins(b"/") || begins(b"http://") || begins(b"https://")
}

/// RFC 9110 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
};

const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0";
const VERSION: &[u8] = b"HTTP/1.";
const METHODS: [&[u8]; 8] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"];
const LONGEST_METHOD: usize = 32;
const LONGEST_LINE: usize = 8 * 1024;
const MOST_BLANK: usize = 4;
const MOST_FROM_SERVER: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of bytes is found to be, and after how many of them.
    fn bytewise(bytes: &[u8]) -> (Detected, usize) {
        let mut detector = Detector::default();
        for (index, byte) in bytes.iter().enumerate() {
            let detected = detector.client(&[*byte]);
            if detected != Detected::NotYet {
                return (detected, index + 1);
            }
        }
        (Detected::NotYet, bytes.len())
    }

    #[test]
    fn http2_is_known_after_fourteen_bytes() {
        assert_eq!(bytewise(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (Detected::Http2, 14));
    }

    #[test]
    fn a_known_method_and_a_slash_are_enough() {
        assert_eq!(bytewise(b"GET / HTTP/1.1\r\n"), (Detected::Http1, 5));
        assert_eq!(bytewise(b"\r\nPOST /x HTTP/1.1\r\n"), (Detected::Http1, 8));
        assert_eq!(bytewise(b"GET HTTP://a/ HTTP/1.1\r\n"), (Detected::Http1, 11));
    }

    #[test]
    fn unknown_methods_and_other_targets_wait_for_the_version() {
        assert_eq!(bytewise(b"PURGE /x HTTP/1.1\r\n"), (Detected::Http1, 17));
        assert_eq!(bytewise(b"CONNECT a:443 HTTP/1.1\r\n"), (Detected::Http1, 22));
        assert_eq!(bytewise(b"OPTIONS * HTTP/1.0\r\n"), (Detected::Http1, 18));
    }

    #[test]
    fn other_text_protocols_are_told_apart_as_soon_as_they_differ() {
        for (bytes, after) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], 1),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", 1),
            (b"*1\r\n$4\r\nPING\r\n", 3),
            (b"PING\r\n", 5),
            (b"EHLO mail.example\r\n", 18),
            (b"CONNECT {\"verbose\":false}\r\n", 26),
            (b"OPTIONS rtsp://cam/1 RTSP/1.0\r\n", 22),
            (b"OPTIONS * RTSP/1.0\r\n", 11),
            (b"get key\r\n", 8),
            (b"PRI * HTTP/3", 12),
            (b"SSH-2.0-x\r\n", 10),
            (b" GET / HTTP/1.1", 1),
            (b"GET  / HTTP/1.1", 5),
            (b"\r\n\r\n\r\n", 5),
        ] {
            assert_eq!(bytewise(bytes), (Detected::NotHttp, after), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_server_that_speaks_first_may_speak_http2_and_nothing_else() {
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        let mut detector = Detector::default();
        for byte in settings {
            assert_eq!(detector.server(&[*byte]), Detected::NotYet);
        }
        assert_eq!(detector.take(), (Vec::new(), settings.to_vec()));
        for other in
            [&b"\x4a\0\0\0\x0a5.5.5"[..], b"220 mail\r\n", b"\0\0\x06\x04\x01\0\0\0\0", b"\0\0\x05\x04"]
        {
            assert_eq!(Detector::default().server(other), Detected::NotHttp, "{}", other.escape_ascii());
        }
        let endless = [settings.to_vec(), vec![0; 2 * MOST_FROM_SERVER]].concat();
        assert_eq!(Detector::default().server(&endless), Detected::NotHttp);
    }

    #[test]
    fn an_endless_first_word_or_line_ends_the_wait() {
        assert_eq!(bytewise(&[b'A'; 100]).0, Detected::NotHttp);
        let line = [b"PURGE ".to_vec(), vec![b'/'; 3 * LONGEST_LINE]].concat();
        assert_eq!(bytewise(&line), (Detected::NotHttp, LONGEST_LINE));
    }
}
