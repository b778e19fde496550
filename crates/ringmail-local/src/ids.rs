//! Identifiers that the mesh makes up: uids, revisions, the random ends of pods' names.

use aws_lc_rs::digest;
use rand::Rng as _;
use serde::Serialize;

/// A random UUID, version 4 (RFC 9562).
pub fn uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Ten characters that stand for a pod template: equal templates have equal revisions.
pub fn revision(template: &impl Serialize) -> String {
    // A template is plain data with string keys, which JSON always holds.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, &json);
    digest.as_ref().iter().take(10).map(|byte| letter(*byte)).collect()
}

/// Five random characters for the end of a pod's name.
pub fn suffix() -> String {
    let bytes: [u8; 5] = rand::rng().random();
    bytes.iter().map(|byte| letter(*byte)).collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Kubernetes' alphabet for names: no vowels (no words by chance), nothing that is easily mistaken.
fn letter(byte: u8) -> char {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    char::from(LETTERS[usize::from(byte) % LETTERS.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_ne!(uid, super::uid());
    }

    #[test]
    fn equal_templates_have_equal_revisions() {
        assert_eq!(revision(&"a"), revision(&"a"));
        assert_ne!(revision(&"a"), revision(&"b"));
        assert_eq!(revision(&"a").len(), 10);
    }
}
