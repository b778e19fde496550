//! TLS 1.3 between proxies, and the only place that knows rustls.
//!
//! Start here: [`Credentials`] is a certificate that stands, with everything prepared to use it; [`connect`] and
//! [`accept`] make a [`TlsConnection`] of a byte stream; [`hello::read`] tells mesh TLS from other bytes before that.
//! No resumption, no tickets, no early data: every connection proves its ends anew.

use std::sync::{Arc, LazyLock};

use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};

mod connection;
mod credentials;
mod error;
pub mod hello;
mod prefixed;
mod verify;

pub use connection::TlsConnection;
pub use credentials::{Credentials, CredentialsError, CredentialsRx};
pub use error::TlsError;
pub(crate) use error::refusal_in;
pub use prefixed::Prefixed;

/// Opens TLS as a client and demands that the server proves the name `server`.
///
/// With `credentials` the handshake is mutual and their anchors count; without, the server alone is verified, against
/// `anchors`: for the first certificate. `sni` is the name in the ClientHello, by which the server's proxy knows that
/// it is meant. There is no deadline here: the caller has one.
pub async fn connect<IO>(
    io: IO,
    credentials: Option<&Credentials>,
    anchors: &TrustAnchors,
    server: &Identity,
    sni: &str,
) -> Result<TlsConnection<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    if let Some(credentials) = credentials {
        return credentials.connect(io, server, sni).await;
    }
    let roots = roots(anchors);
    let config = client_config(&roots, verify::ClientAuth::None)?;
    connection::connect(io, &config, &roots, server, sni, false).await
}

/// Ends TLS as a server. A client certificate is asked for; where one comes, it must chain to the anchors.
///
/// `io` starts with the ClientHello that was read before; `client_random` is that hello's. There is no deadline here:
/// the caller has one.
pub async fn accept<IO>(
    io: Prefixed<IO>,
    credentials: &Credentials,
    client_random: [u8; 32],
) -> Result<TlsConnection<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    connection::accept(io, credentials.server_config(), client_random).await
}

/// The suites and groups of the mesh, in their order, and nothing else.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

fn roots(anchors: &TrustAnchors) -> Arc<RootCertStore> {
    Arc::new(RootCertStore { roots: anchors.roots().to_vec() })
}

/// A client without a verifier of its own yet: [`connection::connect`] puts one in for each server name.
fn client_config(
    roots: &Arc<RootCertStore>,
    auth: verify::ClientAuth,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::ServerVerifier::nobody(Arc::clone(roots))));
    let mut config = match auth {
        verify::ClientAuth::None => builder.with_no_client_auth(),
        verify::ClientAuth::Certificate { chain, key } => builder.with_client_auth_cert(chain, key)?,
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
