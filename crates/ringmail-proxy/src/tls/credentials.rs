//! A certificate that stands, and everything prepared to use it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use ringmail_identity::Identity;
use ringmail_identity::anchors::{ChainError, TrustAnchors};
use ringmail_identity::certificate::{CertificateInfo, timestamp};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{self, TlsConnection};
use super::error::TlsError;
use super::verify::{ClientAuth, ClientVerifier, list};

/// The present certificate for everybody who needs it; `None` before the first.
pub type CredentialsRx = tokio::sync::watch::Receiver<Option<Arc<Credentials>>>;

/// This proxy's certificate with its key, checked against its own trust anchors, and the two TLS configurations that
/// use them. Immutable: a renewal makes new ones, connections keep those they started with.
pub struct Credentials {
    local: Identity,
    not_after: SystemTime,
    serial: String,
    roots: Arc<RootCertStore>,
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Checks that `chain` (leaf first) proves `local` to whoever believes `anchors`, now, as a server and as a client,
    /// and that `key` is the leaf's.
    pub fn new(
        local: Identity,
        anchors: &TrustAnchors,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CredentialsError> {
        let now = SystemTime::now();
        let leaf = chain.first().ok_or(CredentialsError::Empty)?;
        let info = CertificateInfo::read(leaf).map_err(|_| CredentialsError::Malformed)?;
        if !info.names.contains(&local) {
            return Err(CredentialsError::WrongName { expected: local, presented: info.names });
        }
        if !info.is_valid_at(now) {
            return Err(CredentialsError::NotValid {
                local,
                not_before: timestamp(info.not_before),
                not_after: timestamp(info.not_after),
                now: timestamp(now),
            });
        }
        // The chain may end before the leaf does; the certificate is worth nothing after that.
        let end = anchors
            .verify(&chain, now)
            .map_err(|reason| CredentialsError::Untrusted { local: local.clone(), reason })?;
        let roots = super::roots(anchors);
        let auth = ClientAuth::Certificate { chain: chain.clone(), key: key.clone_key() };
        let client = super::client_config(&roots, auth)?;
        let verifier = ClientVerifier::new(Arc::clone(&roots))
            .map_err(|error| CredentialsError::Tls(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(chain, key)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        Ok(Self { local, not_after: end, serial: info.serial, roots, client, server: Arc::new(server) })
    }

    /// The name that the certificate proves.
    pub fn local(&self) -> &Identity {
        &self.local
    }

    /// When the certificate, or one above it, ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Opens mutual TLS to whoever proves the name `server`; see [`super::connect`].
    pub async fn connect<IO>(
        &self,
        io: IO,
        server: &Identity,
        sni: &str,
    ) -> Result<TlsConnection<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        connection::connect(io, &self.client, &self.roots, server, sni, true).await
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("local", &self.local)
            .field("serial", &self.serial)
            .field("not_after", &timestamp(self.not_after))
            .finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No certificate.
    #[error("the answer holds no certificate")]
    Empty,
    /// The leaf cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// A certificate for somebody else.
    #[error("the certificate is not for `{expected}`: it names {}", Names(presented))]
    WrongName {
        /// This proxy's name.
        expected: Identity,
        /// The names in the certificate.
        presented: Vec<Identity>,
    },
    /// A certificate for another time.
    #[error(
        "the certificate of `{local}` is valid from {not_before} to {not_after}, and this machine's clock says {now}"
    )]
    NotValid {
        /// This proxy's name.
        local: Identity,
        /// RFC 3339.
        not_before: String,
        /// RFC 3339.
        not_after: String,
        /// RFC 3339.
        now: String,
    },
    /// A chain that our own anchors do not carry.
    #[error("the certificate of `{local}` does not stand under this proxy's own trust anchors: {reason}")]
    Untrusted {
        /// This proxy's name.
        local: Identity,
        /// What the chain check says.
        reason: ChainError,
    },
    /// The key is not the certificate's, or of a kind that TLS does not take.
    #[error("certificate and key cannot be used for TLS: {0}")]
    Tls(String),
}

impl From<rustls::Error> for CredentialsError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error.to_string())
    }
}

struct Names<'a>(&'a [Identity]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0)
    }
}
