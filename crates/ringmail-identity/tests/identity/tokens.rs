//! What tokens prove, and which prove nothing.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::support::{HOUR, domain, now};
use ringmail_identity::review::{LivePods, LocalReview, TokenReview};
use ringmail_identity::token::{Claims, JwksError, JwtVerifier, PodRef, TokenError, TokenKey};

const AUDIENCE: &str = "identity.ringmail.dev";

fn object(name: &str, uid: &str) -> PodRef {
    PodRef { name: name.to_owned(), uid: uid.to_owned() }
}

fn claims() -> Claims {
    let pod = Some(object("web-0", "pod-uid"));
    Claims::new("https://issuer", AUDIENCE, "ballot", object("web", "sa-uid"), pod, now(), HOUR)
}

fn verifier(key: &TokenKey) -> JwtVerifier {
    JwtVerifier::from_jwks(&key.jwks(), [AUDIENCE]).expect("a verifier")
}

#[test]
fn a_good_token_proves_its_service_account_and_pod() {
    let key = TokenKey::generate().expect("a key");
    let token = key.sign(&claims()).expect("signs");
    let subject = verifier(&key).verify(format!("{token}\n").as_bytes(), now()).expect("good");
    assert_eq!(subject.workload(&domain()).expect("a name"), crate::support::workload("web"));
    assert_eq!(subject.pod, Some(object("web-0", "pod-uid")));
}

#[test]
fn claims_have_the_form_of_kubernetes() {
    let json = serde_json::to_value(claims()).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!({
            "aud": ["identity.ringmail.dev"], "exp": 1_795_003_600, "iat": 1_795_000_000, "iss": "https://issuer",
            "kubernetes.io": {
                "namespace": "ballot",
                "pod": {"name": "web-0", "uid": "pod-uid"},
                "serviceaccount": {"name": "web", "uid": "sa-uid"},
            },
            "nbf": 1_795_000_000, "sub": "system:serviceaccount:ballot:web",
        })
    );
}

#[test]
fn the_audience_is_demanded_without_a_fallback() {
    let key = TokenKey::generate().expect("a key");
    for (audiences, granted) in [
        (vec![AUDIENCE], true),
        (vec!["https://kubernetes.default.svc", AUDIENCE], true),
        (vec!["https://kubernetes.default.svc"], false),
        (vec![], false),
    ] {
        let claims = Claims { aud: audiences.iter().map(ToString::to_string).collect(), ..claims() };
        let result = verifier(&key).verify(key.sign(&claims).expect("signs").as_bytes(), now());
        assert_eq!(
            result.as_ref().map_err(TokenError::code).err(),
            (!granted).then_some("RM1036"),
            "{audiences:?}"
        );
        if let Err(error) = result {
            assert!(
                error.to_string().contains("system:serviceaccount:ballot:web")
                    && error.to_string().contains(AUDIENCE)
            );
        }
    }
    assert_eq!(JwtVerifier::from_jwks(&key.jwks(), Vec::<String>::new()).err(), Some(JwksError::NoAudience));
    assert_eq!(JwtVerifier::from_jwks(&key.jwks(), [""]).err(), Some(JwksError::NoAudience));
}

#[test]
fn a_token_counts_from_its_begin_to_its_end() {
    let key = TokenKey::generate().expect("a key");
    let token = key.sign(&claims()).expect("signs");
    let second = std::time::Duration::from_secs(1);
    for (at, code) in [
        (now() - second, Some("RM1038")),
        (now(), None),
        (now() + HOUR - second, None),
        (now() + HOUR, Some("RM1037")),
    ] {
        assert_eq!(verifier(&key).verify(token.as_bytes(), at).err().map(|error| error.code()), code);
    }
}

#[test]
fn a_token_of_an_unpublished_key_is_refused_even_under_a_published_name() {
    let (ours, other) = (TokenKey::generate().expect("a key"), TokenKey::generate().expect("a key"));
    let verifier = verifier(&ours);
    let good = ours.sign(&claims()).expect("signs");
    assert!(verifier.verify(good.as_bytes(), now()).is_ok());
    let foreign = other.sign(&claims()).expect("signs");
    assert_eq!(
        verifier.verify(foreign.as_bytes(), now()),
        Err(TokenError::UnknownKey(other.kid().to_owned()))
    );
    // Our key's header with the other key's signature.
    let (header, _) = good.split_once('.').expect("parts");
    let (_, rest) = foreign.split_once('.').expect("parts");
    let mixed = format!("{header}.{rest}");
    assert_eq!(verifier.verify(mixed.as_bytes(), now()), Err(TokenError::Signature(ours.kid().to_owned())));
}

#[test]
fn a_changed_claim_breaks_the_signature() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let key = TokenKey::generate().expect("a key");
    let token = key.sign(&claims()).expect("signs");
    let parts: Vec<_> = token.split('.').collect();
    let changed = Claims { sub: "system:serviceaccount:ballot:emoji".to_owned(), ..claims() };
    let changed = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&changed).expect("JSON"));
    let forged = format!("{}.{changed}.{}", parts[0], parts[2]);
    assert!(matches!(verifier(&key).verify(forged.as_bytes(), now()), Err(TokenError::Signature(_))));
    assert!(verifier(&key).verify(token.as_bytes(), now()).is_ok());
}

#[test]
fn the_issuer_is_checked_where_one_is_set() {
    let key = TokenKey::generate().expect("a key");
    let token = key.sign(&claims()).expect("signs");
    for (issuer, code) in [("https://issuer", None), ("https://elsewhere", Some("RM1035"))] {
        let result = verifier(&key).with_issuer(issuer).verify(token.as_bytes(), now());
        assert_eq!(result.err().map(|error| error.code()), code);
    }
}

#[test]
fn a_key_set_without_a_usable_key_is_refused() {
    let key = TokenKey::generate().expect("a key").jwks();
    assert!(JwtVerifier::from_jwks(&key, [AUDIENCE]).is_ok());
    assert_eq!(
        JwtVerifier::from_jwks(r#"{"keys":[{"kty":"RSA","kid":"a"}]}"#, [AUDIENCE]).err(),
        Some(JwksError::NoKey)
    );
    assert!(matches!(JwtVerifier::from_jwks("[]", [AUDIENCE]), Err(JwksError::Malformed(_))));
    let nameless = key.replace("\"kid\"", "\"kidd\"");
    assert!(matches!(JwtVerifier::from_jwks(&nameless, [AUDIENCE]), Err(JwksError::Key { number: 1, .. })));
}

struct OnePod(&'static str);

impl LivePods for OnePod {
    fn is_live(&self, namespace: &str, pod: &PodRef, service_account: &str) -> bool {
        namespace == "ballot" && pod.name == "web-0" && pod.uid == self.0 && service_account == "web"
    }
}

#[test]
fn a_pod_that_is_gone_gets_nothing() {
    let key = TokenKey::generate().expect("a key");
    let token = key.sign(&claims()).expect("signs");
    for (living, code) in [("pod-uid", None), ("the uid of its successor", Some("RM1041"))] {
        let review = LocalReview::new(verifier(&key), OnePod(living));
        let result = ready(review.review(token.as_bytes(), now()));
        assert_eq!(result.err().map(|error| error.code()), code);
    }
    let unbound =
        Claims::new("https://issuer", AUDIENCE, "ballot", object("web", "sa-uid"), None, now(), HOUR);
    let token = key.sign(&unbound).expect("signs");
    let review = LocalReview::new(verifier(&key), OnePod("pod-uid"));
    assert_eq!(ready(review.review(token.as_bytes(), now())).err().map(|error| error.code()), Some("RM1040"));
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a local review waits for nothing"),
    }
}
