//! Gets this proxy its certificates, and new ones before the old ones end.
//!
//! Start here: [`Certifier::run`] is the whole life: a fresh key for each certificate, made in memory and never
//! written; a request that the identity service signs; the answer checked as a peer would check it; then everybody who
//! watches has it. A renewal comes at half of the lifetime. While one fails, the old certificate goes on being used.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use ringmail_api::linkerd::identity::{CertifyRequest, identity_client::IdentityClient};
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::certificate::{CertificateInfo, timestamp};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::config::Config;
use crate::control::{ControlClient, Service, backoff};
use crate::metrics::Metrics;
use crate::tls::{Credentials, CredentialsError};

/// Keeps one certificate alive.
pub struct Certifier {
    local: Identity,
    token_file: PathBuf,
    anchors: TrustAnchors,
    control: ControlClient,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    status: watch::Sender<CertifyStatus>,
}

/// Time, as a test may want to move it.
pub trait Clock: Send + Sync + 'static {
    /// What a wall clock says.
    fn now(&self) -> SystemTime;
    /// Waits.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Where the certificate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertifyStatus {
    /// There is none yet.
    Waiting {
        /// How often it was asked for.
        attempts: u32,
        /// Why the latest attempt failed.
        error: Option<String>,
    },
    /// There is one.
    Live {
        /// When it ends.
        not_after: SystemTime,
        /// Why its renewal failed, while it does.
        error: Option<String>,
    },
}

impl CertifyStatus {
    /// Why this proxy cannot prove who it is at `now`; `None` when it can.
    pub fn why_not_ready(&self, now: SystemTime) -> Option<String> {
        match self {
            Self::Waiting { error: None, .. } => Some("the first certificate is being asked for".to_owned()),
            Self::Waiting { error: Some(error), attempts } => {
                Some(format!("no certificate yet, after {attempts} attempt(s), and trying on: {error}"))
            }
            Self::Live { not_after, error } if *not_after < now => Some(format!(
                "RM1115: the certificate ended at {} and could not be renewed: {}",
                timestamp(*not_after),
                error.as_deref().unwrap_or("a renewal is under way")
            )),
            Self::Live { .. } => None,
        }
    }
}

impl Certifier {
    /// A certifier that publishes to `credentials`, which `control` watches, and the watch for how it fares.
    pub fn new(
        config: &Config,
        control: ControlClient,
        credentials: watch::Sender<Option<Arc<Credentials>>>,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> (Self, watch::Receiver<CertifyStatus>) {
        let (status, status_rx) = watch::channel(CertifyStatus::Waiting { attempts: 0, error: None });
        let this = Self {
            local: config.identity_local_name.clone(),
            token_file: config.identity_token_file.clone(),
            anchors: config.identity_trust_anchors.clone(),
            control,
            metrics,
            clock,
            credentials,
            status,
        };
        (this, status_rx)
    }

    /// Certifies and renews, for ever.
    pub async fn run(self) {
        let mut failures = 0_u32;
        loop {
            match self.certify().await {
                Ok(credentials) => {
                    failures = 0;
                    let renew_at = self.take(credentials);
                    self.sleep_until(renew_at).await;
                }
                Err(error) => {
                    let wait = self.failed(&error, failures);
                    failures = failures.saturating_add(1);
                    self.clock.sleep(wait).await;
                }
            }
        }
    }

    /// Publishes a certificate and says when to renew it.
    fn take(&self, credentials: Credentials) -> SystemTime {
        let now = self.clock.now();
        let not_after = credentials.not_after();
        let renew_at = now + renewal_after(not_after.duration_since(now).unwrap_or_default());
        tracing::info!(
            identity = %self.local,
            serial = credentials.serial(),
            until = timestamp(not_after),
            renewal = timestamp(renew_at),
            "certified"
        );
        self.metrics.identity().taken(not_after, now);
        self.credentials.send_replace(Some(Arc::new(credentials)));
        self.status.send_replace(CertifyStatus::Live { not_after, error: None });
        renew_at
    }

    /// Records a failure and says how long to wait.
    fn failed(&self, error: &CertifyError, failures: u32) -> Duration {
        self.metrics.identity().failed();
        let live = self.credentials.borrow().as_ref().map(|credentials| credentials.not_after());
        let wait = match live {
            None => backoff(failures, FIRST_BACKOFF, MAX_BACKOFF),
            Some(_) => backoff(failures, RENEWAL_FIRST_BACKOFF, RENEWAL_MAX_BACKOFF),
        };
        let text = error.to_string();
        match live {
            None => tracing::error!(identity = %self.local, retry_in = ?wait, "no certificate: {text}"),
            Some(until) if until < self.clock.now() => {
                tracing::error!(identity = %self.local, ended = timestamp(until), retry_in = ?wait, "RM1115: the certificate has ended: {text}");
            }
            Some(until) => {
                tracing::warn!(identity = %self.local, until = timestamp(until), retry_in = ?wait, "renewal failed, the old certificate stays in use: {text}");
            }
        }
        self.status.send_modify(|status| match status {
            CertifyStatus::Waiting { attempts, error } => {
                *attempts = attempts.saturating_add(1);
                *error = Some(text);
            }
            CertifyStatus::Live { error, .. } => *error = Some(text),
        });
        wait
    }

    /// One attempt.
    async fn certify(&self) -> Result<Credentials, CertifyError> {
        let token = read_token(&self.token_file).await?;
        let (key, request) = key_and_request(&self.local)?;
        // A connection of its own: the first proves nothing, later ones prove the present certificate.
        let channel = self.control.fresh(Service::Identity);
        let whom = channel.target().to_string();
        let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request =
            CertifyRequest { identity: self.local.to_string(), token, certificate_signing_request: request };
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, client.certify(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            // The channel's own words name whom and why already.
            Ok(Err(status))
                if status.code() == tonic::Code::Unavailable && status.message().starts_with("RM11") =>
            {
                return Err(CertifyError::Unreachable(status.message().to_owned()));
            }
            Ok(Err(status)) => {
                return Err(CertifyError::Refused {
                    whom,
                    code: status.code(),
                    message: status.message().to_owned(),
                });
            }
            Err(_) => return Err(CertifyError::Timeout { whom }),
        };
        let chain: Vec<CertificateDer<'static>> = std::iter::once(answer.leaf_certificate)
            .chain(answer.intermediate_certificates)
            .map(CertificateDer::from)
            .collect();
        let now = self.clock.now();
        // Before all other checks: with a wrong clock each of them would fail for a reason that misleads.
        if let Some(info) = chain.first().and_then(|leaf| CertificateInfo::read(leaf).ok())
            && !info.is_valid_at(now)
        {
            return Err(CertifyError::Clock {
                whom,
                not_before: info.not_before,
                not_after: info.not_after,
                now,
            });
        }
        let key = PrivateKeyDer::from(key);
        Credentials::new(self.local.clone(), &self.anchors, chain, key)
            .map_err(|error| CertifyError::Answer { whom, error })
    }

    /// Waits in parts: a machine that slept, or whose clock was set, renews when its wall clock says so.
    async fn sleep_until(&self, wanted: SystemTime) {
        while let Ok(left) = wanted.duration_since(self.clock.now()) {
            if left.is_zero() {
                break;
            }
            self.clock.sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}

/// Half of what is left, a tenth more or less by chance, so that workloads that started together renew apart.
fn renewal_after(left: Duration) -> Duration {
    (left / 2).mul_f64(rand::rng().random_range(0.9..1.1)).max(SHORTEST_LIFE)
}

async fn read_token(path: &Path) -> Result<Vec<u8>, CertifyError> {
    let failed = |reason: String| CertifyError::Token { path: path.to_owned(), reason };
    let length = tokio::fs::metadata(path).await.map_err(|error| failed(error.to_string()))?.len();
    if length > MAX_TOKEN {
        return Err(failed(format!("it has {length} bytes, a token at most {MAX_TOKEN}")));
    }
    let token = tokio::fs::read(path).await.map_err(|error| failed(error.to_string()))?;
    let token = token.trim_ascii().to_vec();
    if token.is_empty() { Err(failed("it is empty".to_owned())) } else { Ok(token) }
}

/// A fresh P-256 key and the request to certify it: no subject, one DNS name (wire.md 2.5).
fn key_and_request(local: &Identity) -> Result<(PrivatePkcs8KeyDer<'static>, Vec<u8>), CertifyError> {
    let failed = |error: rcgen::Error| CertifyError::Key(error.to_string());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = rcgen::CertificateParams::new(vec![local.to_string()]).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()), request.der().to_vec()))
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// The token's file cannot be used.
    #[error("RM1110: the token in `{path}` cannot be used: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No key could be made.
    #[error("RM1111: no key and signing request could be made: {0}")]
    Key(String),
    /// The identity service was not reached; the text says whom and why.
    #[error("{0}")]
    Unreachable(String),
    /// The identity service refused.
    #[error("RM1112: {whom} refused to certify: {message} ({code:?})")]
    Refused {
        /// Whom.
        whom: String,
        /// The gRPC status.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The identity service did not answer.
    #[error("RM1113: {whom} did not answer within {}s", ANSWER_TIMEOUT.as_secs())]
    Timeout {
        /// Whom.
        whom: String,
    },
    /// The certificate is for another time.
    #[error("RM1114: {whom} sent a certificate for another time: {}", Skew(*not_before, *not_after, *now))]
    Clock {
        /// Whom.
        whom: String,
        /// Its first moment.
        not_before: SystemTime,
        /// Its last moment.
        not_after: SystemTime,
        /// What this machine's clock says.
        now: SystemTime,
    },
    /// The certificate cannot be used.
    #[error("RM1116: {whom} sent a certificate that cannot be used: {error}")]
    Answer {
        /// Whom.
        whom: String,
        /// Why.
        error: CredentialsError,
    },
}

/// Two clocks that do not agree.
struct Skew(SystemTime, SystemTime, SystemTime);

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(not_before, not_after, now) = *self;
        write!(
            f,
            "it is valid from {} to {}, and this machine's clock says {}",
            timestamp(not_before),
            timestamp(not_after),
            timestamp(now)
        )?;
        let (side, by) = match not_before.duration_since(now) {
            Ok(by) => ("behind", by),
            Err(_) => ("ahead", now.duration_since(not_after).unwrap_or_default()),
        };
        write!(
            f,
            "; this clock is at least {}s {side} of the identity service's: set one of the two right",
            by.as_secs()
        )
    }
}

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const RENEWAL_FIRST_BACKOFF: Duration = Duration::from_secs(1);
const RENEWAL_MAX_BACKOFF: Duration = Duration::from_mins(1);
/// Between two renewals, however short certificates live.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_ANSWER: usize = 256 * 1024;
const MAX_TOKEN: u64 = 64 * 1024;
