//! Why a workload is not certified.

use ringmail_identity::NameError;
use ringmail_identity::authority::IssueError;
use ringmail_identity::csr::CsrError;
use ringmail_identity::fault::Fault;
use ringmail_identity::token::TokenError;
use tonic::Code;

/// Why a workload is not certified. The text begins with a stable code.
#[derive(Debug, thiserror::Error)]
pub enum CertifyRefusal {
    /// No issuer could be loaded yet.
    #[error("RM1051: the identity service has no issuer yet; its log says why")]
    NoIssuer,
    /// The registry has not been read yet.
    #[error("RM1052: the pods are not known yet; `{0}` proved its name")]
    NotSynced(String),
    /// The token's service account cannot be part of a name.
    #[error("RM1053: the token's service account has no name in this mesh: {0}")]
    Name(NameError),
    /// The request names nobody.
    #[error("RM1006: the request names no identity")]
    NoIdentity,
    /// There is no signing request.
    #[error(transparent)]
    Request(CsrError),
    /// The token proves nothing.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The authority does not sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl CertifyRefusal {
    /// The stable code, such as `RM1007`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoIssuer => "RM1051",
            Self::NotSynced(_) => "RM1052",
            Self::Name(_) => "RM1053",
            Self::NoIdentity => "RM1006",
            Self::Request(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Issue(error) => error.code(),
        }
    }

    /// The gRPC code that proxies act on (wire.md 2.5).
    pub fn grpc_code(&self) -> Code {
        let fault = match self {
            Self::NoIssuer | Self::NotSynced(_) => Fault::Unavailable,
            Self::Name(_) | Self::NoIdentity => Fault::InvalidArgument,
            Self::Request(error) => error.fault(),
            Self::Token(error) => error.fault(),
            Self::Issue(error) => error.fault(),
        };
        match fault {
            Fault::InvalidArgument => Code::InvalidArgument,
            Fault::FailedPrecondition => Code::FailedPrecondition,
            Fault::Unavailable => Code::Unavailable,
            Fault::Internal => Code::Internal,
        }
    }
}
