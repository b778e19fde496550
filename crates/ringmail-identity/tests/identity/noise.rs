//! Nothing that a stranger can send makes this crate panic or say yes.

use std::sync::LazyLock;

use crate::support::{HOUR, anchors, domain, material, now, workload};
use proptest::prelude::*;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::authority::CertificateAuthority;
use ringmail_identity::certificate::CertificateInfo;
use ringmail_identity::csr::{KeyAndRequest, SigningRequest};
use ringmail_identity::root::RootAndIssuer;
use ringmail_identity::token::{Claims, JwtVerifier, PodRef, TokenKey};

static MATERIAL: LazyLock<RootAndIssuer> = LazyLock::new(material);
static REQUEST: LazyLock<Vec<u8>> =
    LazyLock::new(|| KeyAndRequest::generate(&workload("web").identity()).expect("a request").request);
static TOKENS: LazyLock<(JwtVerifier, String)> = LazyLock::new(|| {
    let key = TokenKey::generate().expect("a key");
    let object = |name: &str| PodRef { name: name.to_owned(), uid: "1".to_owned() };
    let claims = Claims::new("i", "a", "ballot", object("web"), Some(object("web-0")), now(), HOUR);
    (JwtVerifier::from_jwks(&key.jwks(), ["a"]).expect("keys"), key.sign(&claims).expect("signs"))
});

fn noise() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..600)
}

/// A good thing with a few bytes changed, cut or added: what random bytes alone never reach.
fn mutated(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (edits, any::<prop::sample::Index>(), 0..3_u8).prop_map(move |(edits, cut, how)| {
        let mut bytes = good.clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        match how {
            0 => bytes.truncate(cut.index(bytes.len())),
            1 => bytes.extend_from_slice(&good),
            _ => {}
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_are_no_request_no_certificate_and_no_token(bytes in noise()) {
        prop_assert!(SigningRequest::read(&bytes).is_err());
        prop_assert!(CertificateInfo::read(&bytes.as_slice().into()).is_err());
        prop_assert!(TOKENS.0.verify(&bytes, now()).is_err());
        prop_assert!(TrustAnchors::from_der([bytes.clone().into()]).is_err());
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(TrustAnchors::from_pem(&text).is_err());
        prop_assert!(JwtVerifier::from_jwks(&text, ["a"]).is_err());
        prop_assert!(CertificateAuthority::load(&text, &text, anchors(&MATERIAL), &domain(), now()).is_err());
    }

    #[test]
    fn a_request_that_was_tampered_with_never_gets_another_key_or_name(bytes in mutated(REQUEST.clone())) {
        if let Ok(read) = SigningRequest::read(&bytes) {
            let original = SigningRequest::read(&REQUEST).expect("good");
            prop_assert_eq!(read, original);
        }
    }

    #[test]
    fn a_token_that_was_tampered_with_proves_nothing_else(bytes in mutated(TOKENS.1.clone().into_bytes())) {
        if let Ok(subject) = TOKENS.0.verify(&bytes, now()) {
            prop_assert_eq!(subject, TOKENS.0.verify(TOKENS.1.as_bytes(), now()).expect("good"));
        }
    }

    #[test]
    fn a_tampered_bundle_or_issuer_never_panics(
        root in mutated(MATERIAL.root_cert_pem.clone().into_bytes()),
        issuer in mutated(MATERIAL.issuer_cert_pem.clone().into_bytes()),
        key in mutated(MATERIAL.issuer_key_pem.clone().into_bytes()),
    ) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let _ = TrustAnchors::from_pem(&text(&root));
        let _ = CertificateAuthority::load(&text(&issuer), &MATERIAL.issuer_key_pem, anchors(&MATERIAL), &domain(), now());
        let _ = CertificateAuthority::load(&MATERIAL.issuer_cert_pem, &text(&key), anchors(&MATERIAL), &domain(), now());
    }
}
