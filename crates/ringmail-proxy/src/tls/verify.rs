//! Who the other end is: the chain to the trust anchors by webpki, then the exact name.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use ringmail_identity::Identity;
use ringmail_identity::certificate::CertificateInfo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What a client shows of itself.
pub(super) enum ClientAuth {
    /// Nothing.
    None,
    /// A certificate.
    Certificate {
        /// Leaf first.
        chain: Vec<CertificateDer<'static>>,
        /// The leaf's key.
        key: PrivateKeyDer<'static>,
    },
}

/// What a peer's certificate says, whether or not it is believed.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    pub(super) names: Vec<Identity>,
    pub(super) serial: String,
}

impl Presented {
    pub(super) fn read(leaf: &CertificateDer<'_>) -> Option<Self> {
        let info = CertificateInfo::read(leaf).ok()?;
        Some(Self { names: info.names, serial: info.serial })
    }
}

tokio::task_local! {
    /// The certificate that this task's handshake met, for the error that may follow: rustls' own errors do not name
    /// the peer, and one configuration serves all connections.
    static MET: RefCell<Option<Presented>>;
}

/// Runs a handshake and tells which certificate it met.
pub(super) async fn noting<F: Future>(handshake: F) -> (F::Output, Option<Presented>) {
    MET.scope(RefCell::new(None), async {
        let output = handshake.await;
        (output, MET.with(|met| met.borrow_mut().take()))
    })
    .await
}

fn note(leaf: &CertificateDer<'_>) -> Option<Presented> {
    let presented = Presented::read(leaf);
    let _ = MET.try_with(|met| met.replace(presented.clone()));
    presented
}

/// A chain that stands, and the wrong name on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrongName {
    pub(super) expected: Identity,
    pub(super) presented: Vec<Identity>,
}

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected `{}`, the certificate names ", self.expected)?;
        list(f, &self.presented)
    }
}

impl std::error::Error for WrongName {}

/// A chain that stands, and no name on it that the mesh understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate has neither a DNS name nor a URI")]
pub(super) struct Nameless;

pub(super) fn list(f: &mut fmt::Formatter<'_>, names: &[Identity]) -> fmt::Result {
    if names.is_empty() {
        return f.write_str("nobody");
    }
    for (index, name) in names.iter().enumerate() {
        write!(f, "{}`{name}`", if index == 0 { "" } else { ", " })?;
    }
    Ok(())
}

/// A client's view of one server. The name in the ClientHello plays no part: the identity that discovery told does.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    expected: Option<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, expected: Identity) -> Self {
        Self { expected: Some(expected), ..Self::nobody(roots) }
    }

    /// Believes nobody: the placeholder in a configuration that is not yet for one server.
    pub(super) fn nobody(roots: Arc<RootCertStore>) -> Self {
        Self { roots, expected: None, algorithms: super::provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _sni: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = note(leaf).map(|presented| presented.names).unwrap_or_default();
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match &self.expected {
            Some(expected) if presented.contains(expected) => Ok(ServerCertVerified::assertion()),
            Some(expected) => Err(other(WrongName { expected: expected.clone(), presented })),
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server's view of its clients: a certificate is welcome, not demanded; one that comes must be of this mesh and
/// have a name.
#[derive(Debug)]
pub(super) struct ClientVerifier(Arc<dyn ClientCertVerifier>);

impl ClientVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>) -> Result<Self, rustls::server::VerifierBuilderError> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, super::provider())
            .allow_unauthenticated()
            // Hints would tell every stranger the anchors' names, and help no mesh client choose.
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self(inner))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let presented = note(leaf);
        let verified = self.0.verify_client_cert(leaf, intermediates, now)?;
        match presented {
            Some(presented) if !presented.names.is_empty() => Ok(verified),
            _ => Err(other(Nameless)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}
