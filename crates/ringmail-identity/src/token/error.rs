//! Why a token proves nothing.

use crate::fault::Fault;

/// Why a key set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Not a JSON Web Key Set.
    #[error("RM1030: the token keys are not a JSON Web Key Set: {0}")]
    Malformed(String),
    /// One key is unusable although it claims to be of the right kind.
    #[error("RM1030: key {number} of the token keys cannot be used: {reason}")]
    Key {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No key for ES256.
    #[error("RM1030: the token keys hold no P-256 key for ES256")]
    NoKey,
    /// A verifier that takes tokens for anybody.
    #[error(
        "RM1030: no token audience is set; without one, tokens made for other services would be accepted"
    )]
    NoAudience,
}

/// Why a token proves nothing. Where the signature has been verified, the text names the token's subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token at all.
    #[error("RM1031: the request carries no token")]
    Missing,
    /// Not a JWT of a service account.
    #[error("RM1031: the token is not a service account's JWT: {0}")]
    Malformed(&'static str),
    /// Another algorithm than ES256, `none` among them.
    #[error("RM1032: the token is signed with `{0}`; only ES256 is accepted")]
    Algorithm(String),
    /// Signed by a key that is not published.
    #[error("RM1033: the token is signed by the key `{0}`, which is not among this mesh's token keys")]
    UnknownKey(String),
    /// The signature is not that of the key it names.
    #[error("RM1034: the token's signature does not fit the key `{0}`")]
    Signature(String),
    /// Made by somebody else.
    #[error("RM1035: the token of `{subject}` was issued by `{came}`, expected `{expected}`")]
    Issuer {
        /// The token's subject.
        subject: String,
        /// `iss` of the token.
        came: String,
        /// What is expected.
        expected: String,
    },
    /// Made for somebody else.
    #[error("RM1036: the token of `{subject}` is for `{came}`, not for `{expected}`")]
    Audience {
        /// The token's subject.
        subject: String,
        /// `aud` of the token.
        came: String,
        /// What is accepted.
        expected: String,
    },
    /// Past its end.
    #[error("RM1037: the token of `{subject}` expired at {at}")]
    Expired {
        /// The token's subject.
        subject: String,
        /// RFC 3339.
        at: String,
    },
    /// Before its begin.
    #[error("RM1038: the token of `{subject}` is not valid before {from}; compare the clocks")]
    NotYetValid {
        /// The token's subject.
        subject: String,
        /// RFC 3339.
        from: String,
    },
    /// The claims name no service account, or contradict each other.
    #[error(
        "RM1039: the token's subject `{0}` is not one service account (`system:serviceaccount:<namespace>:<name>`)"
    )]
    Subject(String),
    /// Bound to no pod.
    #[error("RM1040: the token of `{0}` is not bound to a pod; use a projected token")]
    Unbound(String),
    /// Bound to a pod that is not there.
    #[error(
        "RM1041: the token of `{subject}` is bound to pod `{namespace}/{pod}` with uid `{uid}`, which does not run as that service account now"
    )]
    PodGone {
        /// The token's subject.
        subject: String,
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The pod's uid.
        uid: String,
    },
    /// The reviewer could not be asked.
    #[error("RM1042: the token cannot be checked now: {0}")]
    Unavailable(String),
}

impl TokenError {
    /// The stable code, such as `RM1037`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing | Self::Malformed(_) => "RM1031",
            Self::Algorithm(_) => "RM1032",
            Self::UnknownKey(_) => "RM1033",
            Self::Signature(_) => "RM1034",
            Self::Issuer { .. } => "RM1035",
            Self::Audience { .. } => "RM1036",
            Self::Expired { .. } => "RM1037",
            Self::NotYetValid { .. } => "RM1038",
            Self::Subject(_) => "RM1039",
            Self::Unbound(_) => "RM1040",
            Self::PodGone { .. } => "RM1041",
            Self::Unavailable(_) => "RM1042",
        }
    }

    /// The gRPC status to answer with (wire.md 2.5).
    pub fn fault(&self) -> Fault {
        match self {
            Self::Missing | Self::Malformed(_) | Self::Subject(_) => Fault::InvalidArgument,
            Self::Unavailable(_) => Fault::Unavailable,
            _ => Fault::FailedPrecondition,
        }
    }
}
