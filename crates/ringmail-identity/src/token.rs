//! Service-account tokens as signed JWTs (RFC 7519, RFC 7515, ES256 of RFC 7518 3.4), in Kubernetes' claims.

mod error;
mod verifier;

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

pub use self::error::{JwksError, TokenError};
pub use self::verifier::JwtVerifier;
use crate::{NameError, TrustDomain, WorkloadId};

/// Whom a token names, once it is proven.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenSubject {
    /// The namespace.
    pub namespace: String,
    /// The service account in it.
    pub service_account: String,
    /// The pod that the token was made for, where it is bound to one.
    pub pod: Option<PodRef>,
}

impl TokenSubject {
    /// The workload's name in a trust domain.
    pub fn workload(&self, domain: &TrustDomain) -> Result<WorkloadId, NameError> {
        WorkloadId::new(&self.service_account, &self.namespace, domain)
    }
}

/// A pod by name, and by the uid that tells it from a later pod of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
}

/// An object by name and uid, as claims hold a service account.
pub type ObjectRef = PodRef;

/// The claims of a bound service-account token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom the token is.
    pub aud: Vec<String>,
    /// When it ends, in seconds since the Unix epoch.
    pub exp: u64,
    /// When it was made.
    pub iat: u64,
    /// Who made it.
    pub iss: String,
    /// Whom it names.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// From when it counts.
    pub nbf: u64,
    /// `system:serviceaccount:<namespace>:<service account>`.
    pub sub: String,
}

/// The objects that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// The namespace.
    pub namespace: String,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The service account.
    pub serviceaccount: ObjectRef,
}

impl Claims {
    /// Claims for `pod` of a service account, good for `audience` from `now` on for `lifetime`.
    pub fn new(
        issuer: &str,
        audience: &str,
        namespace: &str,
        serviceaccount: ObjectRef,
        pod: Option<PodRef>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Self {
        let now = seconds(now);
        Self {
            aud: vec![audience.to_owned()],
            exp: now.saturating_add(lifetime.as_secs()),
            iat: now,
            iss: issuer.to_owned(),
            nbf: now,
            sub: format!("{SUBJECT_PREFIX}{namespace}:{}", serviceaccount.name),
            kubernetes: KubernetesClaims { namespace: namespace.to_owned(), pod, serviceaccount },
        }
    }
}

/// The key that signs tokens. It lives in memory; its public half is published as a JSON Web Key Set.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    kid: String,
}

impl TokenKey {
    /// A new key, or `None` when the system's source of randomness fails.
    pub fn generate() -> Option<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
        let (x, y) = coordinates(pair.public_key().as_ref())?;
        // RFC 7638: the SHA-256 thumbprint of the key's required members, in lexical order.
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(digest(&SHA256, thumbprint.as_bytes()).as_ref());
        Some(Self { pair, kid })
    }

    /// The key's name, which each token's header carries.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half as a JSON Web Key Set (RFC 7517).
    pub fn jwks(&self) -> String {
        let (x, y) = coordinates(self.pair.public_key().as_ref()).unwrap_or_default();
        serde_json::json!({
            "keys": [{"alg": "ES256", "crv": "P-256", "kid": self.kid, "kty": "EC", "use": "sig", "x": x, "y": y}]
        })
        .to_string()
    }

    /// A token that holds `claims`, or `None` when the system's source of randomness fails.
    pub fn sign(&self, claims: &Claims) -> Option<String> {
        let header = serde_json::json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}).to_string();
        let claims = serde_json::to_vec(claims).ok()?;
        self.sign_raw(header.as_bytes(), &claims)
    }

    fn sign_raw(&self, header: &[u8], claims: &[u8]) -> Option<String> {
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).ok()?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Some(token)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

fn coordinates(point: &[u8]) -> Option<(String, String)> {
    let (&UNCOMPRESSED, rest) = point.split_first()? else { return None };
    (rest.len() == 64).then(|| (URL_SAFE_NO_PAD.encode(&rest[..32]), URL_SAFE_NO_PAD.encode(&rest[32..])))
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const SUBJECT_PREFIX: &str = "system:serviceaccount:";
const UNCOMPRESSED: u8 = 4;
