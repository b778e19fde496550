//! Label sets, in the grammar of wire.md 9.3.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use ringmail_vocab::{Direction, PlaintextReason, Security};

use super::Side;

/// What discovery or policy says of the other side: `dst_…` or `srv_…`, `authz_…`, keys sorted. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<[(String, String)]>);

impl Labels {
    /// Takes labels as they come; at most 32, each key and value cut at 256 bytes. A key is made a valid one: letters, digits and
    /// `_`, not a digit first.
    pub fn new<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut labels: Vec<(String, String)> = labels
            .into_iter()
            .take(MAX_LABELS)
            .map(|(key, value)| (valid_key(key.into()), cut(value.into())))
            .collect();
        labels.sort();
        labels.dedup_by(|a, b| a.0 == b.0);
        Self(labels.into())
    }

    /// Each label, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of one label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

/// One full set of labels, as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LabelSet {
    own: Vec<(&'static str, String)>,
    given: Labels,
}

impl LabelSet {
    /// `direction`, `peer`, the target, TLS, and on the side that has them the labels of discovery or policy.
    pub(super) fn transport(
        direction: Direction,
        side: Side,
        original_dst: SocketAddr,
        dst: SocketAddr,
        security: &Security,
        labels: &Labels,
    ) -> Self {
        let target = if side == Side::Source { original_dst } else { dst };
        let mut own = vec![("direction", direction.label().to_owned()), ("peer", peer(side).to_owned())];
        push_target(&mut own, target);
        let given = if is_meshed_side(direction, side) {
            push_tls(&mut own, direction, security, true);
            labels.clone()
        } else {
            push_no_tls(&mut own, PlaintextReason::Loopback.label());
            Labels::default()
        };
        Self { own, given }
    }

    pub(super) fn transport_overflow(direction: Direction, side: Side, security: &Security) -> Self {
        let mut own = vec![("direction", direction.label().to_owned()), ("peer", peer(side).to_owned())];
        own.push(("target_addr", OTHER.to_owned()));
        if is_meshed_side(direction, side) {
            push_tls(&mut own, direction, security, false);
        } else {
            push_no_tls(&mut own, PlaintextReason::Loopback.label());
        }
        Self { own, given: Labels::default() }
    }

    /// As for a transport's meshed side, with the authority where this proxy is the client's.
    pub(super) fn request(
        direction: Direction,
        dst: SocketAddr,
        security: &Security,
        labels: &Labels,
        authority: &str,
    ) -> Self {
        let mut own = vec![("direction", direction.label().to_owned())];
        if direction == Direction::Outbound {
            own.push(("authority", cut(authority.to_owned())));
        }
        push_target(&mut own, dst);
        push_tls(&mut own, direction, security, true);
        Self { own, given: labels.clone() }
    }

    pub(super) fn request_overflow(direction: Direction, security: &Security) -> Self {
        let mut own = vec![("direction", direction.label().to_owned()), ("target_addr", OTHER.to_owned())];
        push_tls(&mut own, direction, security, false);
        Self { own, given: Labels::default() }
    }

    pub(super) fn authz(target: SocketAddr, security: &Security, labels: &Labels) -> Self {
        let mut own = Vec::new();
        push_target(&mut own, target);
        push_tls(&mut own, Direction::Inbound, security, true);
        Self { own, given: labels.clone() }
    }

    pub(super) fn authz_overflow(security: &Security) -> Self {
        let mut own = vec![("target_addr", OTHER.to_owned())];
        push_tls(&mut own, Direction::Inbound, security, false);
        Self { own, given: Labels::default() }
    }

    /// This set with more labels after it.
    pub(super) fn with(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let mut own = self.own.clone();
        own.extend(more);
        Self { own, given: self.given.clone() }
    }
}

impl EncodeLabelSet for LabelSet {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (key, value) in &self.own {
            EncodeLabel::encode(&(*key, value.as_str()), encoder.encode_label())?;
        }
        let outbound =
            self.own.iter().any(|(key, value)| *key == "direction" && value == Direction::Outbound.label());
        for (key, value) in self.given.iter() {
            // What discovery says of an endpoint is its namespace, pod and so on: as labels they are the destination's.
            let key =
                if outbound && !key.starts_with("dst_") { format!("dst_{key}") } else { key.to_owned() };
            if self.own.iter().all(|(own, _)| *own != key) {
                EncodeLabel::encode(&(key, value), encoder.encode_label())?;
            }
        }
        Ok(())
    }
}

fn peer(side: Side) -> &'static str {
    match side {
        Side::Source => "src",
        Side::Destination => "dst",
    }
}

/// The side that leaves the pod; the other one stays on its own interface.
fn is_meshed_side(direction: Direction, side: Side) -> bool {
    matches!((direction, side), (Direction::Inbound, Side::Source) | (Direction::Outbound, Side::Destination))
}

fn push_target(own: &mut Vec<(&'static str, String)>, target: SocketAddr) {
    own.push(("target_addr", target.to_string()));
    own.push(("target_ip", target.ip().to_string()));
    own.push(("target_port", target.port().to_string()));
}

/// `named` adds what the other end chose (its name, an SNI), which an overflow must leave out.
fn push_tls(own: &mut Vec<(&'static str, String)>, direction: Direction, security: &Security, named: bool) {
    let name = if direction == Direction::Inbound { "client_id" } else { "server_id" };
    match security {
        Security::Mutual { peer, .. } => {
            own.push(("tls", "true".to_owned()));
            if named {
                own.push((name, peer.to_string()));
            }
        }
        // Linkerd counts this one as `true` with an empty client: a share of secured traffic would then be too high.
        Security::ServerOnly { peer, .. } => {
            own.push(("tls", "server_only".to_owned()));
            if let (true, Some(peer)) = (named, peer) {
                own.push((name, peer.to_string()));
            }
        }
        Security::Passthrough { sni } => {
            own.push(("tls", "opaque".to_owned()));
            if named {
                own.push(("sni", cut(sni.clone())));
            }
        }
        Security::Plaintext { reason } => push_no_tls(own, reason.label()),
        Security::Refused { reason, .. } => push_no_tls(own, reason.label()),
    }
}

fn push_no_tls(own: &mut Vec<(&'static str, String)>, reason: &'static str) {
    own.push(("tls", "no_identity".to_owned()));
    own.push(("no_tls_reason", reason.to_owned()));
}

fn valid_key(key: String) -> String {
    let mut key: String =
        cut(key).chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if key.is_empty() || key.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        key.insert(0, '_');
    }
    key
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

const MAX_LABELS: usize = 32;
const MAX_TEXT: usize = 256;
const OTHER: &str = "other";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_valid_and_values_stay_bounded() {
        let labels =
            Labels::new([("dst/zone", "é".repeat(300)), ("9", "x".to_owned()), ("", "y".to_owned())]);
        let keys: Vec<_> = labels.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["_", "_9", "dst_zone"]);
        assert_eq!(labels.get("dst_zone").map(str::len), Some(256));
    }
}
