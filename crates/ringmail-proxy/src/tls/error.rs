//! Why there is no TLS connection: who is wrong, and what to call it.

use std::fmt;
use std::io;

use ringmail_identity::Identity;
use ringmail_vocab::RefusalReason;
use rustls::{AlertDescription, CertificateError};

use super::verify::{Nameless, Presented, WrongName, list};
use crate::report::Code;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer's certificate does not chain to our trust anchors.
    #[error("the certificate of {claimed} does not chain to this mesh's trust anchors")]
    UnknownIssuer {
        /// Whom the certificate claims to be.
        claimed: Claimed,
    },
    /// The peer's certificate is expired or not yet valid.
    #[error("the certificate of {claimed} is outside its validity: {detail}")]
    Expired {
        /// Whom the certificate claims to be.
        claimed: Claimed,
        /// The dates.
        detail: String,
    },
    /// The chain is right and the name is not.
    #[error("expected `{expected}`, and the peer proved to be {presented}")]
    WrongIdentity {
        /// The name that discovery told.
        expected: Identity,
        /// The names that the certificate proves.
        presented: Claimed,
    },
    /// The peer's certificate is wrong in another way.
    #[error("the certificate of {claimed} is refused: {detail}")]
    BadCertificate {
        /// Whom the certificate claims to be.
        claimed: Claimed,
        /// What is wrong.
        detail: String,
    },
    /// The peer refused our certificate, or to talk to us.
    #[error("the peer answered with the alert `{alert}`")]
    RefusedByPeer {
        /// The alert's name (RFC 8446 6).
        alert: String,
    },
    /// The peer ended the stream during the handshake.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The handshake did not end in time.
    #[error("no end of the handshake within {0:?}")]
    Timeout(std::time::Duration),
    /// The name for the ClientHello is none.
    #[error("`{0}` cannot be a server name: not a DNS name")]
    ServerName(String),
    /// Another protocol error.
    #[error("{0}")]
    Protocol(String),
    /// The socket failed.
    #[error("{0}")]
    Io(io::Error),
}

/// The names in a certificate that is not believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed(Vec<Identity>);

impl Claimed {
    /// The first of them.
    pub fn first(&self) -> Option<&Identity> {
        self.0.first()
    }
}

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0)
    }
}

impl TlsError {
    /// The reason in the words of the whole mesh.
    pub fn reason(&self) -> RefusalReason {
        match self {
            Self::UnknownIssuer { .. } => RefusalReason::UnknownIssuer,
            Self::Expired { .. } => RefusalReason::CertificateExpired,
            Self::WrongIdentity { .. } => RefusalReason::WrongIdentity,
            Self::RefusedByPeer { .. } => RefusalReason::RefusedByPeer,
            Self::Timeout(_) => RefusalReason::HandshakeTimeout,
            Self::BadCertificate { .. }
            | Self::Closed
            | Self::ServerName(_)
            | Self::Protocol(_)
            | Self::Io(_) => RefusalReason::HandshakeFailed,
        }
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        match self.reason() {
            RefusalReason::UnknownIssuer => Code::UnknownIssuer,
            RefusalReason::CertificateExpired => Code::CertificateExpired,
            RefusalReason::WrongIdentity => Code::WrongIdentity,
            RefusalReason::RefusedByPeer => Code::RefusedByPeer,
            RefusalReason::HandshakeTimeout => Code::HandshakeTimeout,
            _ => Code::HandshakeFailed,
        }
    }

    /// The name that the peer claimed and did not prove, or proved in another's stead.
    pub fn claimed(&self) -> Option<&Identity> {
        match self {
            Self::UnknownIssuer { claimed }
            | Self::Expired { claimed, .. }
            | Self::BadCertificate { claimed, .. } => claimed.first(),
            Self::WrongIdentity { presented, .. } => presented.first(),
            _ => None,
        }
    }

    pub(super) fn from_io(error: io::Error, met: Option<Presented>) -> Self {
        let claimed = Claimed(met.map(|presented| presented.names).unwrap_or_default());
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Closed;
        }
        let Some(tls) = rustls_error(&error) else { return Self::Io(error) };
        match tls {
            rustls::Error::InvalidCertificate(reason) => Self::from_certificate(reason, claimed),
            rustls::Error::AlertReceived(alert) if is_refusal(*alert) => {
                Self::RefusedByPeer { alert: format!("{alert:?}") }
            }
            other => Self::Protocol(other.to_string()),
        }
    }

    fn from_certificate(reason: &CertificateError, claimed: Claimed) -> Self {
        match reason {
            // A root of the same name with another key gives a bad signature: to us an unknown issuer as well.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownIssuer { claimed }
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                Self::Expired { claimed, detail: reason.to_string() }
            }
            CertificateError::Other(other) => {
                if let Some(wrong) = other.0.downcast_ref::<WrongName>() {
                    let presented = Claimed(wrong.presented.clone());
                    return Self::WrongIdentity { expected: wrong.expected.clone(), presented };
                }
                let detail = match other.0.downcast_ref::<Nameless>() {
                    Some(nameless) => nameless.to_string(),
                    None => other.0.to_string(),
                };
                Self::BadCertificate { claimed, detail }
            }
            other => Self::BadCertificate { claimed, detail: other.to_string() },
        }
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// The alert that a read met, if it is one by which a peer refuses us. In TLS 1.3 a client is done before the server
/// has looked at its certificate, so the refusal arrives as the first read.
pub(crate) fn refusal_in(error: &io::Error) -> Option<String> {
    match rustls_error(error) {
        Some(rustls::Error::AlertReceived(alert)) if is_refusal(*alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Alerts about who we are, in contrast to those about what we sent.
fn is_refusal(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}
