//! HPACK's static and dynamic table (RFC 7541 2.3, 4, appendix A).

use std::collections::VecDeque;

/// The dynamic table behind the static one.
///
/// Names and values lie one after the other in one buffer, in which the evicted ones are overwritten from time to time; so an
/// entry costs no allocation.
#[derive(Debug)]
pub(super) struct Table {
    bytes: Vec<u8>,
    /// Newest first.
    entries: VecDeque<Entry>,
    /// By the RFC's count: lengths plus 32 for each entry.
    size: usize,
    limit: usize,
}

/// Lengths of one entry and its place in the bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    name: u32,
    value: u32,
}

impl Entry {
    fn size(self) -> usize {
        self.name as usize + self.value as usize + OVERHEAD
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { bytes: Vec::new(), entries: VecDeque::new(), size: 0, limit: INITIAL }
    }
}

impl Table {
    /// Name and value at an index that counts both tables, from 1.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len())?;
        let bytes = self.bytes.get(entry.start as usize..)?;
        let (name, rest) = bytes.split_at_checked(entry.name as usize)?;
        Some((name, rest.get(..entry.value as usize)?))
    }

    /// An entry larger than the table empties it, and is no error (4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(self.limit.saturating_sub(size));
        if size > self.limit {
            return;
        }
        self.compact();
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_front(Entry { start, name: name.len() as u32, value: value.len() as u32 });
        self.size += size;
    }

    /// At most [`LIMIT`], which the caller checks.
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
    }

    /// Moves the living to the front once the dead before them take more room than the table may hold.
    fn compact(&mut self) {
        let dead = self.entries.back().map_or(self.bytes.len(), |oldest| oldest.start as usize);
        if dead > self.limit || self.entries.is_empty() {
            self.bytes.drain(..dead);
            for entry in &mut self.entries {
                entry.start -= dead as u32;
            }
        }
    }
}

/// Largest table that is followed, whatever the other side allows its peer.
pub(super) const LIMIT: usize = 64 * 1024;

const INITIAL: usize = 4096;
const OVERHEAD: usize = 32;

#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entry_follows_the_static_ones_and_the_oldest_is_evicted_first() {
        let mut table = Table::default();
        table.resize(2 * (2 + OVERHEAD));
        for name in ["a", "b", "c"] {
            table.insert(name.as_bytes(), b"1");
        }
        assert_eq!(table.get(61), Some((&b"www-authenticate"[..], &b""[..])));
        assert_eq!(table.get(62), Some((&b"c"[..], &b"1"[..])));
        assert_eq!(table.get(63), Some((&b"b"[..], &b"1"[..])));
        assert_eq!((table.get(64), table.get(0)), (None, None));
        table.insert(&[b'x'; 100], b"");
        assert_eq!(table.get(62), None, "an entry larger than the table empties it");
    }

    #[test]
    fn memory_stays_within_three_tables_however_many_entries_pass() {
        let mut table = Table::default();
        for number in 0..100_000_u32 {
            table.insert(&number.to_be_bytes(), &[b'v'; 100]);
            assert_eq!(table.get(62).map(|(name, _)| name.to_vec()), Some(number.to_be_bytes().to_vec()));
        }
        assert!(table.bytes.len() <= 3 * INITIAL, "{} bytes", table.bytes.len());
    }
}
