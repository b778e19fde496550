//! How a token proves a workload's name: behind a trait, so that a cluster's `TokenReview` fits as well.

use std::fmt;
use std::pin::Pin;
use std::time::SystemTime;

use crate::token::{JwtVerifier, PodRef, TokenError, TokenSubject};

/// What [`TokenReview::review`] returns.
pub type ReviewFuture<'a> = Pin<Box<dyn Future<Output = Result<TokenSubject, TokenError>> + Send + 'a>>;

/// Says whom a token proves. An implementation demands its audience; there is no fallback to none.
pub trait TokenReview: Send + Sync {
    /// Whom `token` proves at `now`.
    fn review<'a>(&'a self, token: &'a [u8], now: SystemTime) -> ReviewFuture<'a>;
}

/// Which pods live: a token outlives its pod by its remaining lifetime and must prove nothing then.
pub trait LivePods: Send + Sync {
    /// Whether this pod, by name and uid, exists in `namespace`, has not ended, and runs as `service_account`.
    fn is_live(&self, namespace: &str, pod: &PodRef, service_account: &str) -> bool;
}

/// Review by published keys: the token must be authentic, in time, for our audience, and bound to a pod that lives.
pub struct LocalReview<P> {
    verifier: JwtVerifier,
    pods: P,
}

impl<P: LivePods> LocalReview<P> {
    /// Joins the keys with the knowledge of which pods live.
    pub fn new(verifier: JwtVerifier, pods: P) -> Self {
        Self { verifier, pods }
    }

    fn check(&self, token: &[u8], now: SystemTime) -> Result<TokenSubject, TokenError> {
        let subject = self.verifier.verify(token, now)?;
        let named = || format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account);
        let Some(pod) = &subject.pod else { return Err(TokenError::Unbound(named())) };
        if !self.pods.is_live(&subject.namespace, pod, &subject.service_account) {
            return Err(TokenError::PodGone {
                subject: named(),
                namespace: subject.namespace.clone(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
            });
        }
        Ok(subject)
    }
}

impl<P: LivePods> TokenReview for LocalReview<P> {
    fn review<'a>(&'a self, token: &'a [u8], now: SystemTime) -> ReviewFuture<'a> {
        Box::pin(std::future::ready(self.check(token, now)))
    }
}

impl<P> fmt::Debug for LocalReview<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalReview").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}
