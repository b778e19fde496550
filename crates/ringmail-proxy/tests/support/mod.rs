//! What several tests need: a mesh's authority, an identity service that uses it, and a proxy's settings.

#![allow(dead_code, reason = "each test program takes its part of this")]

pub mod plane;
pub mod rig;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use ringmail_api::linkerd::identity::identity_server::{Identity as IdentityApi, IdentityServer};
use ringmail_api::linkerd::identity::{CertifyRequest, CertifyResponse};
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::authority::CertificateAuthority;
use ringmail_identity::root::{Lifetimes, make_root_and_issuer};
use ringmail_identity::{Identity, TrustDomain, WorkloadId};
use ringmail_proxy::config::Config;
use ringmail_proxy::tls::hello::{self, Opening};
use ringmail_proxy::tls::{self, Credentials, Prefixed};
use ringmail_vocab::Security;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// A mesh of its own, with its root and its issuer.
pub struct Mesh {
    pub domain: TrustDomain,
    pub anchors: TrustAnchors,
    pub anchors_pem: String,
    authority: CertificateAuthority,
    /// The same issuer; its certificates last for a second or two.
    brief: CertificateAuthority,
}

impl Mesh {
    pub fn new() -> Arc<Self> {
        let domain = TrustDomain::new("cluster.local", "ringmail").expect("valid");
        let now = SystemTime::now();
        let made = make_root_and_issuer(&domain, now, Lifetimes::default()).expect("makes");
        let anchors = TrustAnchors::from_pem(&made.root_cert_pem).expect("reads");
        let authority = |lifetime| {
            let (chain, key) = (&made.issuer_cert_pem, &made.issuer_key_pem);
            let authority = CertificateAuthority::load(chain, key, anchors.clone(), &domain, now);
            authority.expect("loads").with_lifetime(lifetime)
        };
        let (brief, authority) = (authority(Duration::from_secs(2)), authority(Duration::from_hours(1)));
        Arc::new(Self { domain, anchors, anchors_pem: made.root_cert_pem, authority, brief })
    }

    pub fn id(&self, service_account: &str, namespace: &str) -> WorkloadId {
        WorkloadId::new(service_account, namespace, &self.domain).expect("valid")
    }

    pub fn sign(&self, id: &WorkloadId, request: &[u8]) -> Vec<CertificateDer<'static>> {
        Self::sign_with(&self.authority, id, request)
    }

    fn sign_with(
        authority: &CertificateAuthority,
        id: &WorkloadId,
        request: &[u8],
    ) -> Vec<CertificateDer<'static>> {
        let issued = authority.issue(id, &id.to_string(), request, SystemTime::now()).expect("signs");
        std::iter::once(issued.leaf).chain(issued.intermediates).collect()
    }

    /// Credentials that stood a moment ago and have ended.
    pub async fn ended_credentials(&self, id: &WorkloadId) -> Arc<Credentials> {
        let (request, key) = request(id);
        let chain = Self::sign_with(&self.brief, id, &request);
        let credentials = Credentials::new(id.identity(), &self.anchors, chain, key).expect("stands");
        // Validity is counted in whole seconds, the last one included.
        let end = credentials.not_after() + Duration::from_secs(1);
        until("the certificate has ended", || end <= SystemTime::now()).await;
        Arc::new(credentials)
    }

    pub fn credentials(&self, id: &WorkloadId) -> Arc<Credentials> {
        let (chain, key) = leaf(self, id);
        Arc::new(Credentials::new(id.identity(), &self.anchors, chain, key).expect("stands"))
    }
}

/// A fresh key and the mesh's certificate for it.
pub fn leaf(mesh: &Mesh, id: &WorkloadId) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let (request, key) = request(id);
    (mesh.sign(id, &request), key)
}

/// A fresh key and the request for its certificate.
fn request(id: &WorkloadId) -> (Vec<u8>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("makes");
    let mut params = rcgen::CertificateParams::new(vec![id.to_string()]).expect("valid");
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).expect("signs").der().to_vec();
    (request, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
}

/// What the fake identity service saw of one call.
#[derive(Clone, Debug)]
pub struct Asked {
    pub token: Vec<u8>,
    pub public_key: Vec<u8>,
    /// How the caller came: `None` for plaintext.
    pub security: Option<Security>,
}

/// An identity service that signs for whoever brings the token `good`.
#[derive(Clone)]
pub struct FakeIdentity {
    pub addr: SocketAddr,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// Calls that are refused from now on.
    pub refusals: Arc<AtomicU32>,
    mesh: Arc<Mesh>,
}

#[derive(Clone)]
struct Came(Option<Security>);

impl FakeIdentity {
    /// With credentials the service is behind TLS that asks for a client certificate, as an inbound proxy does.
    pub async fn start(mesh: &Arc<Mesh>, credentials: Option<Arc<Credentials>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let this = Self {
            addr: listener.local_addr().expect("has one"),
            asked: Arc::default(),
            refusals: Arc::default(),
            mesh: Arc::clone(mesh),
        };
        let service = this.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let (service, credentials) = (service.clone(), credentials.clone());
                tokio::spawn(async move {
                    match credentials {
                        None => serve(stream, service, Came(None)).await,
                        Some(credentials) => {
                            let mut bytes = Vec::new();
                            let Ok(Opening::Tls(hello)) = hello::read(&mut stream, &mut bytes).await else {
                                return;
                            };
                            let Ok(tls) =
                                tls::accept(Prefixed::new(bytes, stream), &credentials, hello.random).await
                            else {
                                return;
                            };
                            let came = Came(Some(tls.security().clone()));
                            serve(tls, service, came).await;
                        }
                    }
                });
            }
        });
        this
    }

    pub fn calls(&self) -> usize {
        self.asked.lock().len()
    }
}

async fn serve<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
    service: FakeIdentity,
    came: Came,
) {
    let routes = tonic::service::Routes::new(IdentityServer::new(service)).prepare();
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(came.clone());
        tower::Service::call(&mut routes.clone(), request)
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

#[tonic::async_trait]
impl IdentityApi for FakeIdentity {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let came = request.extensions().get::<Came>().cloned().expect("every call came somehow");
        let request = request.into_inner();
        let csr = rcgen::CertificateSigningRequestParams::from_der(
            &request.certificate_signing_request.clone().into(),
        );
        let public_key = rcgen::PublicKeyData::der_bytes(&csr.expect("reads").public_key).to_vec();
        self.asked.lock().push(Asked { token: request.token.clone(), public_key, security: came.0 });
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(Status::unavailable("the issuer sleeps"));
        }
        if request.token != b"good" {
            return Err(Status::failed_precondition("RM1031: the token is not good"));
        }
        let id: WorkloadId = request.identity.parse().map_err(|_| Status::invalid_argument("no name"))?;
        let mut chain =
            self.mesh.sign(&id, &request.certificate_signing_request).into_iter().map(|der| der.to_vec());
        Ok(Response::new(CertifyResponse {
            leaf_certificate: chain.next().expect("has a leaf"),
            intermediate_certificates: chain.collect(),
            valid_until: Some((SystemTime::now() + Duration::from_hours(1)).into()),
        }))
    }
}

/// The settings of a proxy of `mesh`, with `more` on top.
pub fn config(mesh: &Mesh, local: &Identity, token_file: &Path, more: &[(&str, &str)]) -> Config {
    let mut all: HashMap<String, String> = HashMap::new();
    let token_file = token_file.to_string_lossy();
    let own = [
        ("IDENTITY_SVC_ADDR", "127.0.0.1:1"),
        ("DESTINATION_SVC_ADDR", "127.0.0.1:1"),
        ("POLICY_SVC_ADDR", "127.0.0.1:1"),
        ("POLICY_WORKLOAD", "{}"),
        ("IDENTITY_TOKEN_FILE", &*token_file),
        ("IDENTITY_TRUST_ANCHORS", &*mesh.anchors_pem),
        ("IDENTITY_LOCAL_NAME", local.as_str()),
    ];
    for (name, value) in own.iter().chain(more) {
        all.insert(format!("RINGMAIL_PROXY_{name}"), (*value).to_owned());
    }
    Config::read(|name| all.get(name).cloned()).expect("valid")
}

/// Waits until something holds, for as long as a busy machine may need.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
