//! Service-account tokens for projected volumes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ringmail_identity::token::{Claims, PodRef, TokenKey};

/// Who a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// Its service account.
    pub account: String,
    /// The service account's uid.
    pub account_uid: String,
}

/// Signs tokens with a key that never leaves this process.
#[derive(Clone, Debug)]
pub struct Tokens {
    key: Arc<TokenKey>,
    issuer: String,
}

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("RM1566: the system gives no random numbers, so no token can be signed")]
pub struct NoRandomness;

impl Tokens {
    /// A signer with a new key.
    pub fn new(trust_domain: &str) -> Result<Self, NoRandomness> {
        let key = Arc::new(TokenKey::generate().ok_or(NoRandomness)?);
        Ok(Self { key, issuer: format!("https://kubernetes.default.svc.{trust_domain}") })
    }

    /// The public key, as a JSON Web Key Set.
    pub fn jwks(&self) -> String {
        self.key.jwks()
    }

    /// A token for an audience; none given is the issuer itself, as on a cluster.
    pub fn sign(
        &self,
        bearer: &Bearer,
        audience: Option<&str>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<String, NoRandomness> {
        let claims = Claims::new(
            &self.issuer,
            audience.filter(|a| !a.is_empty()).unwrap_or(&self.issuer),
            &bearer.namespace,
            PodRef { name: bearer.account.clone(), uid: bearer.account_uid.clone() },
            Some(PodRef { name: bearer.pod.clone(), uid: bearer.pod_uid.clone() }),
            now,
            lifetime,
        );
        self.key.sign(&claims).ok_or(NoRandomness)
    }
}

/// For how long a token is asked for: at least ten minutes, as on a cluster.
pub fn lifetime(expiration_seconds: Option<i64>) -> Duration {
    let seconds = expiration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(3600);
    Duration::from_secs(seconds.max(600))
}

/// When a token is replaced: after 80 % of its life and never later than 24 hours, as kubelet does it.
pub fn refresh_after(lifetime: Duration) -> Duration {
    (lifetime * 4 / 5).min(Duration::from_hours(24))
}

#[cfg(test)]
mod tests {
    use ringmail_identity::token::{JwtVerifier, TokenError};

    use super::*;

    fn bearer() -> Bearer {
        Bearer {
            namespace: "ballot".into(),
            pod: "web-1".into(),
            pod_uid: "u1".into(),
            account: "web".into(),
            account_uid: "u2".into(),
        }
    }

    #[test]
    fn a_token_proves_its_bearer_to_its_audience_until_it_ends() {
        let tokens = Tokens::new("cluster.local").unwrap();
        let now = SystemTime::now();
        let token =
            tokens.sign(&bearer(), Some("identity.ringmail.dev"), now, Duration::from_mins(10)).unwrap();
        let verifier = JwtVerifier::from_jwks(&tokens.jwks(), ["identity.ringmail.dev"]).unwrap();
        let subject = verifier.verify(token.as_bytes(), now).unwrap();
        assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("ballot", "web"));
        assert_eq!(subject.pod.unwrap().uid, "u1");

        let other = JwtVerifier::from_jwks(&tokens.jwks(), ["something else"]).unwrap();
        assert!(other.verify(token.as_bytes(), now).is_err());
        let later: Result<_, TokenError> = verifier.verify(token.as_bytes(), now + Duration::from_mins(20));
        assert!(later.is_err());
    }

    #[test]
    fn a_token_is_replaced_well_before_it_ends() {
        assert_eq!(lifetime(Some(10)), Duration::from_mins(10));
        assert_eq!(refresh_after(Duration::from_secs(1000)), Duration::from_secs(800));
        assert_eq!(refresh_after(Duration::from_secs(1_000_000)), Duration::from_hours(24));
    }
}
