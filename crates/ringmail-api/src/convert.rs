//! Flows between their wire form and [`ringmail_vocab`].

use std::net::SocketAddr;
use std::str::FromStr;

use ringmail_identity::Identity;
use ringmail_vocab as vocab;

use crate::flows;

/// A flow that came over the wire and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// A field is missing.
    #[error("flow {id}: `{field}` is missing")]
    Missing {
        /// The flow's id.
        id: u64,
        /// The field's name in `flows.proto`.
        field: &'static str,
    },
    /// A field's text is not what it should be.
    #[error("flow {id}: `{field}` is `{value}`")]
    Malformed {
        /// The flow's id.
        id: u64,
        /// The field's name in `flows.proto`.
        field: &'static str,
        /// What came.
        value: String,
    },
}

impl From<&vocab::Flow> for flows::Flow {
    fn from(flow: &vocab::Flow) -> Self {
        Self {
            id: flow.id.0,
            direction: flow.direction.label().to_owned(),
            src: flow.src.to_string(),
            dst: flow.dst.to_string(),
            original_dst: flow.original_dst.to_string(),
            dialled_from: flow.dialled_from.map(|a| a.to_string()).unwrap_or_default(),
            security: Some(security_to_wire(&flow.security)),
            protocol: flow.protocol.label().to_owned(),
            sent: flow.sent,
            received: flow.received,
            requests: flow.requests,
            opened_ms: flow.opened_ms,
            closed: flow.closed.as_ref().map(|closed| flows::Closed {
                at_ms: closed.at_ms,
                by: closed.by.label().to_owned(),
                reason: closed.reason.label().to_owned(),
                code: closed.code.clone().unwrap_or_default(),
            }),
        }
    }
}

impl TryFrom<flows::Flow> for vocab::Flow {
    type Error = FlowError;

    fn try_from(wire: flows::Flow) -> Result<Self, FlowError> {
        let id = wire.id;
        let closed = match wire.closed {
            None => None,
            Some(closed) => Some(vocab::Closed {
                at_ms: closed.at_ms,
                by: field(id, "closed.by", &closed.by)?,
                reason: field(id, "closed.reason", &closed.reason)?,
                code: (!closed.code.is_empty()).then_some(closed.code),
            }),
        };
        Ok(Self {
            id: vocab::FlowId(id),
            direction: field(id, "direction", &wire.direction)?,
            src: field(id, "src", &wire.src)?,
            dst: field(id, "dst", &wire.dst)?,
            original_dst: field(id, "original_dst", &wire.original_dst)?,
            dialled_from: optional::<SocketAddr>(id, "dialled_from", &wire.dialled_from)?,
            security: security_from_wire(id, wire.security)?,
            protocol: field(id, "protocol", &wire.protocol)?,
            sent: wire.sent,
            received: wire.received,
            requests: wire.requests,
            opened_ms: wire.opened_ms,
            closed,
        })
    }
}

fn security_to_wire(security: &vocab::Security) -> flows::Security {
    use flows::security::Kind;
    let kind = match security {
        vocab::Security::Mutual { peer, tls } => Kind::Mutual(tls_to_wire(Some(peer), tls)),
        vocab::Security::ServerOnly { peer, tls } => Kind::ServerOnly(tls_to_wire(peer.as_ref(), tls)),
        vocab::Security::Passthrough { sni } => Kind::Passthrough(sni.clone()),
        vocab::Security::Plaintext { reason } => Kind::Plaintext(reason.label().to_owned()),
        vocab::Security::Refused { reason, peer } => Kind::Refused(flows::Refused {
            reason: reason.label().to_owned(),
            peer: peer.as_ref().map(ToString::to_string).unwrap_or_default(),
        }),
    };
    flows::Security { kind: Some(kind) }
}

fn security_from_wire(id: u64, wire: Option<flows::Security>) -> Result<vocab::Security, FlowError> {
    use flows::security::Kind;
    let kind = wire.and_then(|s| s.kind).ok_or(FlowError::Missing { id, field: "security" })?;
    Ok(match kind {
        Kind::Mutual(tls) => {
            vocab::Security::Mutual { peer: field(id, "security.peer", &tls.peer)?, tls: tls_from_wire(tls) }
        }
        Kind::ServerOnly(tls) => vocab::Security::ServerOnly {
            peer: optional::<Identity>(id, "security.peer", &tls.peer)?,
            tls: tls_from_wire(tls),
        },
        Kind::Passthrough(sni) => vocab::Security::Passthrough { sni },
        Kind::Plaintext(reason) => {
            vocab::Security::Plaintext { reason: field(id, "security.plaintext", &reason)? }
        }
        Kind::Refused(refused) => vocab::Security::Refused {
            reason: field(id, "security.refused", &refused.reason)?,
            peer: optional::<Identity>(id, "security.peer", &refused.peer)?,
        },
    })
}

fn tls_to_wire(peer: Option<&Identity>, tls: &vocab::TlsSession) -> flows::Tls {
    flows::Tls {
        peer: peer.map(ToString::to_string).unwrap_or_default(),
        version: tls.version.clone(),
        cipher: tls.cipher.clone(),
        group: tls.group.clone(),
        peer_serial: tls.peer_serial.clone(),
        exporter: tls.exporter.clone(),
        client_random: tls.client_random.clone(),
    }
}

fn tls_from_wire(tls: flows::Tls) -> vocab::TlsSession {
    vocab::TlsSession {
        version: tls.version,
        cipher: tls.cipher,
        group: tls.group,
        peer_serial: tls.peer_serial,
        exporter: tls.exporter,
        client_random: tls.client_random,
    }
}

fn field<T: FromStr>(id: u64, field: &'static str, text: &str) -> Result<T, FlowError> {
    text.parse().map_err(|_| FlowError::Malformed { id, field, value: text.to_owned() })
}

fn optional<T: FromStr>(id: u64, name: &'static str, text: &str) -> Result<Option<T>, FlowError> {
    if text.is_empty() { Ok(None) } else { field(id, name, text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(security: vocab::Security) -> vocab::Flow {
        let addr = |text: &str| text.parse().expect("an address");
        vocab::Flow {
            id: vocab::FlowId(7),
            direction: vocab::Direction::Inbound,
            src: addr("10.142.0.9:40112"),
            dst: addr("10.142.0.12:8080"),
            original_dst: addr("10.142.0.12:8080"),
            dialled_from: None,
            security,
            protocol: vocab::Protocol::Http1,
            sent: 1,
            received: 2,
            requests: 3,
            opened_ms: 4,
            closed: Some(vocab::Closed {
                at_ms: 5,
                by: vocab::ClosedBy::Server,
                reason: vocab::CloseReason::Truncated,
                code: Some("RM1203".to_owned()),
            }),
        }
    }

    #[test]
    fn every_kind_of_security_survives_the_wire() {
        let peer: Identity =
            "web.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("valid");
        let tls = vocab::TlsSession {
            version: "TLSv1.3".to_owned(),
            exporter: "ab".to_owned(),
            ..Default::default()
        };
        for security in [
            vocab::Security::Mutual { peer: peer.clone(), tls: tls.clone() },
            vocab::Security::ServerOnly { peer: None, tls },
            vocab::Security::Passthrough { sni: "a.example".to_owned() },
            vocab::Security::Plaintext { reason: vocab::PlaintextReason::Loopback },
            vocab::Security::Refused { reason: vocab::RefusalReason::UnknownIssuer, peer: Some(peer) },
        ] {
            let flow = flow(security);
            assert_eq!(vocab::Flow::try_from(flows::Flow::from(&flow)), Ok(flow));
        }
    }

    #[test]
    fn a_mutual_flow_without_a_peer_is_refused() {
        let mut wire =
            flows::Flow::from(&flow(vocab::Security::Plaintext { reason: vocab::PlaintextReason::Loopback }));
        wire.security =
            Some(flows::Security { kind: Some(flows::security::Kind::Mutual(flows::Tls::default())) });
        assert!(matches!(
            vocab::Flow::try_from(wire),
            Err(FlowError::Malformed { field: "security.peer", .. })
        ));
    }
}
