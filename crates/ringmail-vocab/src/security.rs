//! What protects a connection, in one type with one text form.

use std::fmt;
use std::str::FromStr;

use ringmail_identity::Identity;
use serde::{Deserialize, Serialize};

/// What protects one connection, as one of its ends knows it.
///
/// `Mutual` is one end's word; only two ends that report the same exporter make a `√`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Security {
    /// Both ends proved an identity in a TLS handshake that ended well.
    Mutual {
        /// The name that the other end proved.
        peer: Identity,
        /// What the handshake agreed on.
        tls: TlsSession,
    },
    /// TLS in which the server proved its identity and the client showed none.
    ServerOnly {
        /// The server's name, where the client tells it; a server that met an anonymous client has none to tell.
        peer: Option<Identity>,
        /// What the handshake agreed on.
        tls: TlsSession,
    },
    /// The application's own TLS, passed on untouched: a ClientHello for a name that is not this proxy's.
    Passthrough {
        /// The server name that the client asked for; empty when the hello names none.
        sni: String,
    },
    /// No TLS.
    Plaintext {
        /// Why there is none.
        reason: PlaintextReason,
    },
    /// TLS was attempted or policy consulted, and no application byte was carried.
    Refused {
        /// Why.
        reason: RefusalReason,
        /// The name that the other end claimed or was expected to have, where there was one.
        peer: Option<Identity>,
    },
}

impl Security {
    /// The value of tap's `tls=` field and of metrics' labels: `true`, `passthru`, or the reason (features.md 2.2).
    pub fn tap_label(&self) -> &'static str {
        match self {
            Self::Mutual { .. } => "true",
            Self::ServerOnly { .. } => "server_only",
            Self::Passthrough { .. } => "passthru",
            Self::Plaintext { reason } => reason.label(),
            Self::Refused { reason, .. } => reason.label(),
        }
    }

    /// The words that a table prints for one end's account of this connection. Never `√`: that needs both ends.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Mutual { .. } => "Mutual",
            Self::ServerOnly { .. } => "No Client Certificate",
            Self::Passthrough { .. } => "Passed Through",
            Self::Plaintext { reason } => reason.words(),
            Self::Refused { reason, .. } => reason.words(),
        }
    }

    /// The name that the other end proved on this connection. A refused or merely expected name is none.
    pub fn proven_peer(&self) -> Option<&Identity> {
        match self {
            Self::Mutual { peer, .. } => Some(peer),
            Self::ServerOnly { peer, .. } => peer.as_ref(),
            Self::Passthrough { .. } | Self::Plaintext { .. } | Self::Refused { .. } => None,
        }
    }

    /// The session, where a mesh handshake ended well.
    pub fn tls(&self) -> Option<&TlsSession> {
        match self {
            Self::Mutual { tls, .. } | Self::ServerOnly { tls, .. } => Some(tls),
            _ => None,
        }
    }

    /// Whether this end holds the connection for mutual TLS.
    pub fn is_mutual(&self) -> bool {
        matches!(self, Self::Mutual { .. })
    }
}

/// What a TLS handshake agreed on, and the two values that name it to others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSession {
    /// Such as `TLSv1.3`.
    pub version: String,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: String,
    /// The key-exchange group, such as `X25519MLKEM768`.
    pub group: String,
    /// The peer certificate's serial number in hexadecimal; empty where the peer showed none.
    pub peer_serial: String,
    /// 32 bytes exported from the session (RFC 8446 7.5) in hexadecimal: equal at both ends of one handshake only.
    pub exporter: String,
    /// The ClientHello's random in hexadecimal: how packets find this session.
    pub client_random: String,
}

/// The label of the exporter that both ends report, with an empty context (RFC 8446 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-ringmail.dev/flow";

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $label:literal, $words:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* #[serde(rename = $label)] $variant,)+ }

        impl $name {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The reason as a label: lower case, underscores; stable.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// The reason in the words of a table.
            pub fn words(self) -> &'static str {
                match self { $(Self::$variant => $words),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text { $($label => Ok(Self::$variant),)+ other => Err(format!("`{other}` is no {}", $what)) }
            }
        }
    };
}

reasons! {
    /// Why a connection has no TLS (features.md 2.2, where a word fits).
    PlaintextReason, "reason for plaintext" {
        /// The first bytes were not a ClientHello: an unmeshed client, a probe, a port that the client skips.
        NoTlsFromRemote = "no_tls_from_remote", "No TLS From Remote";
        /// Discovery knows the destination, and it has no identity: it is not meshed, or skips this port.
        NotProvidedByServiceDiscovery = "not_provided_by_service_discovery", "Not Provided By Service Discovery";
        /// The destination is outside the mesh's networks and unknown to discovery.
        OutsideMesh = "outside_mesh", "Outside Mesh";
        /// The destination is this pod itself.
        Loopback = "loopback", "Loopback";
        /// The port is skipped, and this end saw the connection all the same.
        PortSkipped = "port_skipped", "Port Skipped";
        /// A silent client from an unmeshed source, taken for plaintext after the grace.
        SilentUnmeshedClient = "silent_unmeshed_client", "Silent Unmeshed Client";
    }
}

reasons! {
    /// Why a connection carried no application byte.
    RefusalReason, "reason for a refusal" {
        /// The peer's certificate does not chain to our trust anchors.
        UnknownIssuer = "unknown_issuer", "Refused: Unknown Issuer";
        /// The peer's certificate is expired or not yet valid.
        CertificateExpired = "certificate_expired", "Refused: Certificate Expired";
        /// The chain is right and the name is not the one that discovery told.
        WrongIdentity = "wrong_identity", "Refused: Wrong Identity";
        /// The peer refused our certificate.
        RefusedByPeer = "refused_by_peer", "Refused By Peer";
        /// The handshake broke for another reason: version, alert, malformed message, end of stream.
        HandshakeFailed = "handshake_failed", "Refused: Handshake Failed";
        /// The handshake did not end in time.
        HandshakeTimeout = "handshake_timeout", "Refused: Handshake Timeout";
        /// Policy does not let this peer call this port.
        PolicyDenied = "policy_denied", "Refused: Policy";
        /// Nothing answers at the destination.
        ConnectFailed = "connect_failed", "Refused: No Connection";
        /// Discovery did not answer in time for an address inside the mesh's networks.
        DiscoveryTimeout = "discovery_timeout", "Refused: Destination Unknown";
        /// The service has no ready endpoint.
        NoEndpoints = "no_endpoints", "Refused: No Endpoints";
        /// The proxy would have called itself.
        Loop = "loop", "Refused: Loop";
        /// A bound of this proxy is reached.
        Overloaded = "overloaded", "Refused: Overloaded";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_from_its_label() {
        for reason in PlaintextReason::ALL {
            assert_eq!(reason.label().parse(), Ok(*reason));
        }
        for reason in RefusalReason::ALL {
            assert_eq!(reason.label().parse(), Ok(*reason));
        }
        assert!("√".parse::<PlaintextReason>().is_err());
    }

    #[test]
    fn no_single_end_prints_the_mark() {
        let tls = TlsSession::default();
        let peer: Identity =
            "web.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("valid");
        for security in [
            Security::Mutual { peer: peer.clone(), tls: tls.clone() },
            Security::ServerOnly { peer: Some(peer), tls },
            Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote },
        ] {
            assert!(!security.words().contains('√'), "{security:?}");
        }
    }

    #[test]
    fn json_keeps_every_field() {
        let security = Security::Refused {
            reason: RefusalReason::WrongIdentity,
            peer: Some("a.b".parse().expect("valid")),
        };
        let json = serde_json::to_string(&security).expect("writes");
        assert_eq!(json, r#"{"kind":"refused","reason":"wrong_identity","peer":"a.b"}"#);
        assert_eq!(serde_json::from_str::<Security>(&json).expect("reads"), security);
    }
}
