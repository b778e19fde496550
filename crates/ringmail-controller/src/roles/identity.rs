//! The role identity: proves who a workload is and certifies it.

mod ledger;
mod refusal;
mod tokens;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prost_types::Timestamp;
use ringmail_api::linkerd::identity::identity_server::{Identity, IdentityServer};
use ringmail_api::linkerd::identity::{CertifyRequest, CertifyResponse};
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::authority::{CertificateAuthority, IssueError, Issued};
use ringmail_identity::certificate::timestamp;
use ringmail_identity::csr::CsrError;
use ringmail_identity::review::TokenReview;
use ringmail_identity::token::{PodRef, TokenError, TokenSubject};
use ringmail_identity::{TrustDomain, WorkloadId};
use ringmail_registry::{Index, Key, ObjectName, Registry};
use tonic::{Request, Response, Status};

pub use ledger::{Issuance, Ledger};
pub use refusal::CertifyRefusal;
pub use tokens::TokenKeys;

use crate::fault::printable;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::reload::{Recipe, Reloaded};
use crate::server::MAX_REQUEST;
use crate::settings::IdentitySettings;

/// Follows the issuer's files and the trust anchors. What is loaded can sign leaves that workloads believe.
pub fn authority(
    settings: &IdentitySettings,
    domain: &TrustDomain,
    metrics: &Metrics,
) -> Reloaded<CertificateAuthority> {
    let (domain, lifetime, metrics) = (domain.clone(), settings.lifetime, metrics.clone());
    Reloaded::follow(Recipe {
        what: "the issuer",
        files: vec![
            settings.issuer_dir.join("tls.crt"),
            settings.issuer_dir.join("tls.key"),
            settings.trust_anchors.clone(),
        ],
        make: Box::new(move |contents| {
            let [chain, key, anchors] = contents else { return Err("three files are expected".to_owned()) };
            let anchors = TrustAnchors::from_pem(anchors).map_err(|error| error.to_string())?;
            let authority = CertificateAuthority::load(chain, key, anchors, &domain, SystemTime::now());
            let authority = authority.map_err(|error| error.to_string())?.with_lifetime(lifetime);
            let (subject, end) = (&authority.issuer().subject, timestamp(authority.end()));
            tracing::info!("issuer `{subject}` can sign until {end}");
            Ok(authority)
        }),
        outcome: Box::new(move |well| metrics.issuer_reloaded(well)),
    })
}

/// The service that certifies.
pub struct Certifier {
    domain: TrustDomain,
    authority: Reloaded<CertificateAuthority>,
    review: Arc<dyn TokenReview>,
    registry: Registry,
    ledger: Arc<Ledger>,
    metrics: Metrics,
    refusals: LogLimit,
    /// How long a pod may take to appear in the registry.
    patience: Duration,
}

impl std::fmt::Debug for Certifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certifier").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Certifier {
    /// Certifies workloads whose tokens `review` accepts and whose pods are in `registry`.
    pub fn new(
        domain: TrustDomain,
        authority: Reloaded<CertificateAuthority>,
        review: Arc<dyn TokenReview>,
        registry: Registry,
        ledger: Arc<Ledger>,
        metrics: Metrics,
    ) -> Self {
        let refusals = LogLimit::new(50, Duration::from_secs(10));
        Self { domain, authority, review, registry, ledger, metrics, refusals, patience: PATIENCE }
    }

    /// As a gRPC service.
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// The checks, in the order in which they cost the asker knowledge: what is missing, who is asking, whether that
    /// is the name that is asked for, whether the pod lives, what the signing request holds.
    async fn certify(&self, request: &CertifyRequest) -> Result<Issued, CertifyRefusal> {
        let authority = self.authority.get().ok_or(CertifyRefusal::NoIssuer)?;
        if request.identity.is_empty() {
            return Err(CertifyRefusal::NoIdentity);
        }
        if request.token.is_empty() {
            return Err(TokenError::Missing.into());
        }
        if request.certificate_signing_request.is_empty() {
            return Err(CertifyRefusal::Request(CsrError::Missing));
        }
        let subject = self.review.review(&request.token, SystemTime::now()).await?;
        let proven = subject.workload(&self.domain).map_err(CertifyRefusal::Name)?;
        let name = proven.to_string();
        if request.identity != name {
            return Err(
                IssueError::OtherName { requested: printable(&request.identity), proven: name }.into()
            );
        }
        self.live(&subject, &proven).await?;
        Ok(authority.issue(
            &proven,
            &request.identity,
            &request.certificate_signing_request,
            SystemTime::now(),
        )?)
    }

    /// Whether the pod that the token is bound to is there and runs as the token's service account. The registry may
    /// hear of a pod a moment after the pod's proxy starts.
    async fn live(&self, subject: &TokenSubject, proven: &WorkloadId) -> Result<(), CertifyRefusal> {
        let named = || format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account);
        let Some(pod) = &subject.pod else { return Err(TokenError::Unbound(named()).into()) };
        let key = Key::Pod(ObjectName::new(&subject.namespace, &pod.name));
        let wait = async {
            self.registry.synced().await;
            self.registry.wait_for(key, |index| is_live(index, subject, pod).then_some(())).await;
        };
        match tokio::time::timeout(self.patience, wait).await {
            Ok(()) => Ok(()),
            Err(_) if !self.registry.is_synced() => Err(CertifyRefusal::NotSynced(proven.to_string())),
            Err(_) => {
                let (namespace, uid) = (subject.namespace.clone(), pod.uid.clone());
                Err(TokenError::PodGone { subject: named(), namespace, pod: pod.name.clone(), uid }.into())
            }
        }
    }

    fn record(&self, issued: &Issued, peer: Option<SocketAddr>) {
        self.metrics.issued();
        self.ledger.record(Issuance::of(issued, SystemTime::now()));
        let peer = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
        tracing::info!("{issued} (asked from {peer})");
    }

    fn refuse(&self, requested: &str, refusal: &CertifyRefusal, peer: Option<SocketAddr>) -> Status {
        self.metrics.refused(refusal.code());
        let requested =
            if requested.is_empty() { "no name".to_owned() } else { format!("`{}`", printable(requested)) };
        let message = format!("{refusal} ({requested} was requested)");
        if let Some(suppressed) = self.refusals.allow(Instant::now()) {
            let peer = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
            tracing::warn!(suppressed, "refused to certify for {peer}: {message}");
        }
        let status = Status::new(refusal.grpc_code(), message);
        self.metrics.not_answered("Certify", &status);
        status
    }
}

#[tonic::async_trait]
impl Identity for Certifier {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let peer = request.remote_addr();
        let request = request.into_inner();
        match Self::certify(self, &request).await {
            Ok(issued) => {
                self.record(&issued, peer);
                Ok(Response::new(CertifyResponse {
                    leaf_certificate: issued.leaf.to_vec(),
                    intermediate_certificates: issued.intermediates.iter().map(|der| der.to_vec()).collect(),
                    valid_until: Some(Timestamp::from(issued.not_after)),
                }))
            }
            Err(refusal) => Err(self.refuse(&request.identity, &refusal, peer)),
        }
    }
}

fn is_live(index: &Index, subject: &TokenSubject, bound: &PodRef) -> bool {
    index.pod(&ObjectName::new(&subject.namespace, &bound.name)).is_some_and(|pod| {
        *pod.uid == *bound.uid && pod.service_account == subject.service_account && !pod.terminated()
    })
}

/// How long a pod may take to appear in the registry, from its proxy's first request.
const PATIENCE: Duration = Duration::from_secs(2);
