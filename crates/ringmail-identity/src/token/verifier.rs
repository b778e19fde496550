//! Checking tokens against published keys.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::{JwksError, KubernetesClaims, SUBJECT_PREFIX, TokenError, TokenSubject, UNCOMPRESSED, seconds};
use crate::certificate::timestamp;

/// Checks tokens against published keys. Whether the pod still lives is [`LocalReview`](crate::review::LocalReview)'s
/// question.
#[derive(Clone)]
pub struct JwtVerifier {
    keys: HashMap<String, Vec<u8>>,
    audiences: Vec<String>,
    issuer: Option<String>,
}

impl JwtVerifier {
    /// Takes a JSON Web Key Set and the audiences of which a token must name at least one. Keys of other kinds are
    /// left aside; a set without one usable key is refused.
    pub fn from_jwks(
        jwks: &str,
        audiences: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, JwksError> {
        let audiences: Vec<String> =
            audiences.into_iter().map(Into::into).filter(|a: &String| !a.is_empty()).collect();
        if audiences.is_empty() {
            return Err(JwksError::NoAudience);
        }
        let set: KeySet =
            serde_json::from_str(jwks).map_err(|error| JwksError::Malformed(error.to_string()))?;
        let mut keys = HashMap::new();
        for (index, key) in set.keys.into_iter().enumerate() {
            let usable = key.kty == "EC"
                && key.crv.as_deref() == Some("P-256")
                && key.alg.as_deref().is_none_or(|alg| alg == ALGORITHM)
                && key.r#use.as_deref().is_none_or(|r#use| r#use == "sig");
            if !usable {
                continue;
            }
            let number = index + 1;
            let kid = key
                .kid
                .filter(|kid| !kid.is_empty())
                .ok_or(JwksError::Key { number, reason: "it has no `kid`" })?;
            let point = point(key.x.as_deref(), key.y.as_deref()).ok_or(JwksError::Key {
                number,
                reason: "`x` and `y` are not two coordinates of 32 bytes",
            })?;
            if keys.insert(kid, point).is_some() {
                return Err(JwksError::Key { number, reason: "its `kid` appears twice" });
            }
        }
        if keys.is_empty() {
            return Err(JwksError::NoKey);
        }
        Ok(Self { keys, audiences, issuer: None })
    }

    /// Demands that tokens name this issuer (`iss`).
    #[must_use]
    pub fn with_issuer(mut self, issuer: &str) -> Self {
        self.issuer = Some(issuer.to_owned());
        self
    }

    /// The audiences of which a token must name at least one.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Whom a token proves, at `now`. White space around the token (a file's last newline) is ignored.
    pub fn verify(&self, token: &[u8], now: SystemTime) -> Result<TokenSubject, TokenError> {
        let claims = self.authentic(token)?;
        let named = || claims.sub.clone();
        if let Some(expected) = &self.issuer
            && claims.iss != *expected
        {
            return Err(TokenError::Issuer {
                subject: named(),
                came: claims.iss.clone(),
                expected: expected.clone(),
            });
        }
        let audience = claims.aud.0.as_slice();
        if !audience.iter().any(|audience| self.audiences.contains(audience)) {
            let (came, expected) = (audience.join(", "), self.audiences.join(", "));
            return Err(TokenError::Audience { subject: named(), came, expected });
        }
        let now = seconds(now);
        if claims.exp <= now {
            return Err(TokenError::Expired { subject: named(), at: moment(claims.exp) });
        }
        let from = claims.nbf.unwrap_or(0).max(claims.iat.unwrap_or(0));
        if from > now {
            return Err(TokenError::NotYetValid { subject: named(), from: moment(from) });
        }
        subject(&claims)
    }

    /// The claims, once the signature has proven them. Nothing in a token is believed before, not even its subject.
    fn authentic(&self, token: &[u8]) -> Result<ClaimsRead, TokenError> {
        let token = token.trim_ascii();
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed("longer than any service-account token"));
        }
        let text = std::str::from_utf8(token).map_err(|_| TokenError::Malformed("not text"))?;
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed("not three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed("not three parts"))?;
        let decode =
            |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("not base64url"));
        let header: Header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| TokenError::Malformed("its header is not a JWT's"))?;
        if header.alg != ALGORITHM {
            return Err(TokenError::Algorithm(printable(&header.alg)));
        }
        if header.crit.is_some() || header.typ.as_deref().is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT"))
        {
            return Err(TokenError::Malformed("its header demands what is not understood (`crit` or `typ`)"));
        }
        let kid = header.kid.unwrap_or_default();
        let key = self.keys.get(&kid).ok_or_else(|| TokenError::UnknownKey(printable(&kid)))?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature(kid))?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| {
            TokenError::Malformed("its claims are not a service account's (`sub`, `aud`, `exp`)")
        })
    }
}

impl fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kids: Vec<_> = self.keys.keys().collect();
        kids.sort();
        f.debug_struct("JwtVerifier")
            .field("kids", &kids)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ClaimsRead {
    #[serde(default)]
    aud: Audiences,
    exp: u64,
    iat: Option<u64>,
    nbf: Option<u64>,
    #[serde(default)]
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

/// `aud` is one string or several (RFC 7519 4.1.3).
#[derive(Default)]
struct Audiences(Vec<String>);

impl<'de> Deserialize<'de> for Audiences {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::One(audience) => vec![audience],
            Either::Many(audiences) => audiences,
        }))
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    crv: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    kid: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn subject(claims: &ClaimsRead) -> Result<TokenSubject, TokenError> {
    let refused = || TokenError::Subject(printable(&claims.sub));
    let account = claims.sub.strip_prefix(SUBJECT_PREFIX).ok_or_else(refused)?;
    let (namespace, service_account) = account.split_once(':').ok_or_else(refused)?;
    if namespace.is_empty() || service_account.is_empty() || service_account.contains(':') {
        return Err(refused());
    }
    if let Some(bound) = &claims.kubernetes
        && (bound.namespace != namespace || bound.serviceaccount.name != service_account)
    {
        return Err(refused());
    }
    let pod = claims.kubernetes.as_ref().and_then(|bound| bound.pod.clone());
    Ok(TokenSubject { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod })
}

fn point(x: Option<&str>, y: Option<&str>) -> Option<Vec<u8>> {
    let mut point = vec![UNCOMPRESSED];
    point.extend(URL_SAFE_NO_PAD.decode(x?).ok().filter(|bytes| bytes.len() == 32)?);
    point.extend(URL_SAFE_NO_PAD.decode(y?).ok().filter(|bytes| bytes.len() == 32)?);
    Some(point)
}

fn moment(seconds: u64) -> String {
    // Year 9999 is the last that RFC 3339 can say.
    timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)))
}

/// What a stranger sent, cut and cleaned for a log line.
fn printable(text: &str) -> String {
    text.chars().take(128).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

const ALGORITHM: &str = "ES256";
const MAX_TOKEN: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::TokenKey;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }

    fn key_and_verifier() -> (TokenKey, JwtVerifier) {
        let key = TokenKey::generate().expect("randomness");
        let verifier = JwtVerifier::from_jwks(&key.jwks(), ["identity.ringmail.dev"]).expect("a key set");
        (key, verifier)
    }

    #[test]
    fn an_algorithm_other_than_es256_is_refused_before_its_signature_is_looked_at() {
        let (key, verifier) = key_and_verifier();
        let claims = br#"{"aud":"identity.ringmail.dev","exp":4000000000,"sub":"system:serviceaccount:a:b"}"#;
        for (alg, accepted) in [("none", false), ("HS256", false), ("es256", false), ("ES256", true)] {
            let header = serde_json::json!({"alg": alg, "kid": key.kid()}).to_string();
            let token = key.sign_raw(header.as_bytes(), claims).expect("signs");
            let result = verifier.verify(token.as_bytes(), now());
            if accepted {
                assert_eq!(result.expect("accepted").service_account, "b");
            } else {
                assert_eq!(result, Err(TokenError::Algorithm(alg.to_owned())));
            }
        }
    }

    #[test]
    fn a_critical_header_and_a_foreign_type_are_refused() {
        let (key, verifier) = key_and_verifier();
        let claims =
            br#"{"aud":["identity.ringmail.dev"],"exp":4000000000,"sub":"system:serviceaccount:a:b"}"#;
        for (extra, accepted) in
            [(r#","crit":["b64"]"#, false), (r#","typ":"dpop+jwt""#, false), (r#","typ":"jwt""#, true)]
        {
            let header = format!(r#"{{"alg":"ES256","kid":"{}"{extra}}}"#, key.kid());
            let token = key.sign_raw(header.as_bytes(), claims).expect("signs");
            assert_eq!(verifier.verify(token.as_bytes(), now()).is_ok(), accepted, "{extra}");
        }
    }

    #[test]
    fn a_subject_that_contradicts_its_binding_is_refused() {
        let (key, verifier) = key_and_verifier();
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, key.kid());
        for (sub, accepted) in [
            ("system:serviceaccount:ballot:web", true),
            ("system:serviceaccount:ballot:emoji", false),
            ("system:serviceaccount:other:web", false),
            ("system:serviceaccount:ballot:web:x", false),
            ("system:node:web", false),
        ] {
            let claims = serde_json::json!({
                "aud": ["identity.ringmail.dev"], "exp": 4_000_000_000_u64, "sub": sub,
                "kubernetes.io": {"namespace": "ballot", "serviceaccount": {"name": "web", "uid": "1"}},
            });
            let token = key.sign_raw(header.as_bytes(), claims.to_string().as_bytes()).expect("signs");
            assert_eq!(verifier.verify(token.as_bytes(), now()).is_ok(), accepted, "{sub}");
        }
    }
}
