//! Frames of HTTP/2 (RFC 9113 4.1), as far as an observer looks into them.

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes of payload.
    pub(super) length: u32,
    pub(super) kind: Kind,
    flags: u8,
    /// Without the reserved bit.
    pub(super) stream: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    RstStream,
    PushPromise,
    GoAway,
    Continuation,
    /// PRIORITY, SETTINGS, PING, WINDOW_UPDATE and what extensions add: no business of an observer.
    Other,
}

impl Kind {
    /// Whether it must name a stream.
    pub(super) fn of_a_stream(self) -> bool {
        !matches!(self, Self::GoAway | Self::Other)
    }
}

impl Frame {
    pub(super) const HEADER: usize = 9;

    pub(super) fn parse(header: [u8; Self::HEADER]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = header;
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Headers,
            3 => Kind::RstStream,
            5 => Kind::PushPromise,
            7 => Kind::GoAway,
            9 => Kind::Continuation,
            _ => Kind::Other,
        };
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & MASK,
        }
    }

    pub(super) fn end_stream(self) -> bool {
        self.flags & 0x1 != 0
    }

    pub(super) fn end_headers(self) -> bool {
        self.flags & 0x4 != 0
    }

    pub(super) fn padded(self) -> bool {
        self.flags & 0x8 != 0
    }

    /// The fragment of a header block in the payload of HEADERS, PUSH_PROMISE or CONTINUATION, without padding, priority and
    /// promised stream. `None` when the payload is too short for what its flags say.
    pub(super) fn fragment(self, payload: &[u8]) -> Option<&[u8]> {
        let (mut from, mut to) = (0, payload.len());
        if self.kind == Kind::Continuation {
            return Some(payload);
        }
        if self.padded() {
            from += 1;
            to = to.checked_sub(usize::from(*payload.first()?))?;
        }
        if self.kind == Kind::PushPromise {
            from += 4;
        } else if self.flags & 0x20 != 0 {
            from += 5;
        }
        payload.get(from..to)
    }
}

/// A 31-bit number, as stream ids are, at the start of a payload.
pub(super) fn stream_id(payload: &[u8]) -> Option<u32> {
    word(payload, 0).map(|id| id & MASK)
}

/// A 32-bit number.
pub(super) fn word(payload: &[u8], at: usize) -> Option<u32> {
    payload.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

const MASK: u32 = 0x7fff_ffff;
