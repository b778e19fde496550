//! What the authority signs, and what it refuses. Every refusal stands beside a request that is granted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::{DAY, HOUR, anchors, authority, dns, domain, material, now, p256, request, workload};
use rcgen::{CertificateParams, KeyPair, SanType};
use ringmail_identity::authority::{CertificateAuthority, IssueError};
use ringmail_identity::certificate::CertificateInfo;
use ringmail_identity::csr::{CsrError, KeyAndRequest, SigningRequest};
use ringmail_identity::fault::Fault;
use ringmail_identity::random::{Random, RandomError};
use ringmail_identity::root::{Lifetimes, make_root_and_issuer};
use ringmail_identity::{TrustDomain, WorkloadId};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn chain(issued: &ringmail_identity::authority::Issued) -> Vec<CertificateDer<'static>> {
    std::iter::once(issued.leaf.clone()).chain(issued.intermediates.clone()).collect()
}

#[test]
fn a_leaf_verifies_with_webpki_under_the_anchors_for_its_name_only() {
    let authority = authority();
    let web = workload("web");
    let made = KeyAndRequest::generate(&web.identity()).expect("a request");
    let issued = authority.issue(&web, &web.to_string(), &made.request, now()).expect("issued");
    assert_eq!(authority.anchors().verify(&chain(&issued), now()), Ok(issued.not_after));
    let leaf = webpki::EndEntityCert::try_from(&issued.leaf).expect("a leaf");
    let name = |text: String| ServerName::try_from(text).expect("a name");
    assert!(leaf.verify_is_valid_for_subject_name(&name(web.to_string())).is_ok());
    assert!(leaf.verify_is_valid_for_subject_name(&name(workload("emoji").to_string())).is_err());
    let stranger = anchors(&material());
    assert!(
        stranger.verify(&chain(&issued), now()).unwrap_err().to_string().starts_with("RM1003: issued by")
    );
}

#[test]
fn a_leaf_has_the_profile_of_a_workload() {
    let authority = authority();
    let web = workload("web");
    let made = KeyAndRequest::generate(&web.identity()).expect("a request");
    let issued = authority.issue(&web, &web.to_string(), &made.request, now()).expect("issued");
    let (rest, leaf) = X509Certificate::from_der(&issued.leaf).expect("DER");
    assert!(rest.is_empty());
    let names = &leaf.subject_alternative_name().expect("readable").expect("present").value.general_names;
    let text = web.to_string();
    assert_eq!(
        names[..],
        [GeneralName::DNSName(&text), GeneralName::URI("spiffe://cluster.local/ns/ballot/sa/web")]
    );
    let usage = leaf.key_usage().expect("readable").expect("present");
    assert!(
        usage.critical && usage.value.flags == 0b101,
        "digitalSignature and keyEncipherment: {:b}",
        usage.value.flags
    );
    let extended = leaf.extended_key_usage().expect("readable").expect("present").value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    assert!(!leaf.basic_constraints().expect("readable").expect("present").value.ca);
    let serial = leaf.raw_serial();
    assert!(serial[0] < 0x80, "positive");
    assert_eq!(issued.serial.len(), 32);
    let info = CertificateInfo::read(&issued.leaf).expect("readable");
    assert_eq!((info.serial, info.fingerprint), (issued.serial.clone(), issued.fingerprint.clone()));
    assert_eq!(info.names, [web.identity(), web.spiffe().parse().expect("a URI")]);
    assert_eq!(info.not_before, now() - Duration::from_mins(5));
    assert_eq!((info.not_after, issued.not_after), (now() + DAY, now() + DAY));
    assert!(issued.to_string().starts_with("issued certificate for web.ballot.serviceaccount.identity.ringmail.cluster.local until 2026-11-19T11:06:40Z: serial "));
}

#[test]
fn the_chain_is_the_issuer_without_the_root() {
    let material = material();
    let anchors = anchors(&material);
    // Whoever keeps the root beside the issuer gets the same chain.
    let both = format!("{}{}", material.issuer_cert_pem, material.root_cert_pem);
    let authority =
        CertificateAuthority::load(&both, &material.issuer_key_pem, anchors.clone(), &domain(), now())
            .expect("loads");
    let made = KeyAndRequest::generate(&workload("web").identity()).expect("a request");
    let issued = authority
        .issue(&workload("web"), &workload("web").to_string(), &made.request, now())
        .expect("issued");
    assert_eq!(issued.intermediates.len(), 1);
    assert!(!anchors.contains(&issued.intermediates[0]));
    assert_eq!(
        CertificateInfo::read(&issued.intermediates[0]).expect("readable").fingerprint,
        authority.issuer().fingerprint
    );
}

#[test]
fn a_request_for_another_name_is_refused_with_both_names() {
    let authority = authority();
    let (web, emoji) = (workload("web"), workload("emoji"));
    let for_web = KeyAndRequest::generate(&web.identity()).expect("a request").request;
    let for_emoji = KeyAndRequest::generate(&emoji.identity()).expect("a request").request;
    assert!(authority.issue(&web, &web.to_string(), &for_web, now()).is_ok());
    for (requested, request, code) in
        [(&emoji, &for_emoji, "RM1007"), (&emoji, &for_web, "RM1007"), (&web, &for_emoji, "RM1008")]
    {
        let error = authority.issue(&web, &requested.to_string(), request, now()).expect_err("refused");
        assert_eq!((error.code(), error.fault()), (code, Fault::FailedPrecondition));
        let text = error.to_string();
        assert!(
            text.starts_with(code) && text.contains("`web.ballot.") && text.contains("`emoji.ballot."),
            "{text}"
        );
    }
    let error = authority.issue(&web, "", &for_web, now()).expect_err("refused");
    assert_eq!((error.code(), error.fault()), ("RM1006", Fault::InvalidArgument));
}

#[test]
fn a_name_of_another_trust_domain_is_refused() {
    let authority = authority();
    for (domain, granted) in [("cluster.local", true), ("other.local", false)] {
        let id = WorkloadId::new("web", "ballot", &TrustDomain::new(domain, "ringmail").expect("valid"))
            .expect("valid");
        let request = KeyAndRequest::generate(&id.identity()).expect("a request").request;
        let result = authority.issue(&id, &id.to_string(), &request, now());
        assert_eq!(result.as_ref().err().map(IssueError::code), (!granted).then_some("RM1009"), "{domain}");
    }
}

#[test]
fn a_request_with_a_broken_signature_is_refused() {
    let name = workload("web").to_string();
    let good = KeyAndRequest::generate(&workload("web").identity()).expect("a request").request;
    assert_eq!(SigningRequest::read(&good).expect("good").name(), name);
    let mut broken = good.clone();
    *broken.last_mut().expect("bytes") ^= 1;
    assert_eq!(SigningRequest::read(&broken), Err(CsrError::Signature));
    // Another key's signature over the same content: what somebody has who knows only a public key.
    let (victim, thief) = (p256(), p256());
    let info = request(&victim, Some(&name), vec![dns(&name)]);
    let forged = resigned(&info, &thief);
    assert_eq!(SigningRequest::read(&forged), Err(CsrError::Signature));
    assert!(SigningRequest::read(&resigned(&info, &victim)).is_ok());
}

/// The request's content with a new signature by `key`.
fn resigned(request: &[u8], key: &KeyPair) -> Vec<u8> {
    use rcgen::SigningKey;
    let (_, parsed) =
        x509_parser::certification_request::X509CertificationRequest::from_der(request).expect("DER");
    let info = parsed.certification_request_info.raw;
    let signature = key.sign(info).expect("signs");
    let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let bits: Vec<u8> =
        [&[0x03, u8::try_from(signature.len() + 1).expect("short"), 0][..], &signature].concat();
    let body = [info, &algorithm, &bits].concat();
    let length = u16::try_from(body.len()).expect("short").to_be_bytes();
    [&[0x30, 0x82, length[0], length[1]][..], &body].concat()
}

#[test]
fn more_or_fewer_than_one_dns_name_is_refused() {
    let name = workload("web").to_string();
    let uri = SanType::URI(workload("web").spiffe().as_str().try_into().expect("ascii"));
    let mail = SanType::Rfc822Name("a@b".try_into().expect("ascii"));
    let address = SanType::IpAddress([10, 142, 0, 9].into());
    assert!(SigningRequest::read(&request(&p256(), None, vec![dns(&name)])).is_ok());
    for names in [
        vec![],
        vec![dns(&name), dns(&workload("emoji").to_string())],
        vec![dns(&name), dns(&name)],
        vec![dns(&name), uri.clone()],
        vec![dns(&name), mail],
        vec![dns(&name), address],
        vec![uri],
    ] {
        let result = SigningRequest::read(&request(&p256(), Some(&name), names.clone()));
        assert_eq!(result.as_ref().map_err(CsrError::code), Err("RM1014"), "{names:?} gave {result:?}");
        assert_eq!(result.map_err(|error| error.fault()), Err(Fault::FailedPrecondition));
    }
}

#[test]
fn a_common_name_is_empty_or_equal() {
    let name = workload("web").to_string();
    for (common_name, accepted) in
        [(None, true), (Some(""), true), (Some(&*name), true), (Some("emoji"), false), (Some("WEB"), false)]
    {
        let result = SigningRequest::read(&request(&p256(), common_name, vec![dns(&name)]));
        assert_eq!(
            result.as_ref().err().map(CsrError::code),
            (!accepted).then_some("RM1015"),
            "{common_name:?}"
        );
    }
}

#[test]
fn only_p256_keys_are_certified() {
    let name = workload("web").to_string();
    for (algorithm, code) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, None),
        (&rcgen::PKCS_RSA_SHA256, Some("RM1012")),
        (&rcgen::PKCS_ECDSA_P384_SHA384, Some("RM1013")),
        (&rcgen::PKCS_ED25519, Some("RM1013")),
    ] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let result = SigningRequest::read(&request(&key, Some(&name), vec![dns(&name)]));
        assert_eq!(result.as_ref().err().map(CsrError::code), code, "{algorithm:?} gave {result:?}");
    }
}

#[test]
fn an_authoritys_certificate_is_never_asked_for() {
    let name = workload("web").to_string();
    for (is_ca, accepted) in [
        (rcgen::IsCa::NoCa, true),
        (rcgen::IsCa::ExplicitNoCa, true),
        (rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained), false),
    ] {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![dns(&name)];
        params.is_ca = is_ca;
        let request = params.serialize_request(&p256()).expect("a request");
        let result = SigningRequest::read(request.der());
        assert_eq!(result.as_ref().err().map(CsrError::code), (!accepted).then_some("RM1016"), "{result:?}");
    }
}

#[test]
fn trailing_bytes_and_nothing_are_refused() {
    let mut request = KeyAndRequest::generate(&workload("web").identity()).expect("a request").request;
    assert!(SigningRequest::read(&request).is_ok());
    request.push(0);
    assert_eq!(SigningRequest::read(&request).map_err(|error| error.code()), Err("RM1010"));
    assert_eq!(SigningRequest::read(b""), Err(CsrError::Missing));
}

#[test]
fn no_leaf_outlives_the_issuer_nor_the_root() {
    for (lifetimes, end) in [
        (Lifetimes { root: 10 * DAY, issuer: 5 * DAY }, 24 * HOUR),
        (Lifetimes { root: 10 * DAY, issuer: 3 * HOUR }, 3 * HOUR),
        (Lifetimes { root: 2 * HOUR, issuer: 5 * DAY }, 2 * HOUR),
    ] {
        let material = make_root_and_issuer(&domain(), now(), lifetimes).expect("a root");
        let authority = CertificateAuthority::load(
            &material.issuer_cert_pem,
            &material.issuer_key_pem,
            anchors(&material),
            &domain(),
            now(),
        )
        .expect("loads");
        let request = KeyAndRequest::generate(&workload("web").identity()).expect("a request").request;
        let issue =
            |at: SystemTime| authority.issue(&workload("web"), &workload("web").to_string(), &request, at);
        assert_eq!(issue(now()).expect("issued").not_after, now() + end);
        let late = issue(authority.end()).expect_err("the issuer has ended");
        assert_eq!((late.code(), late.fault()), ("RM1018", Fault::Unavailable));
    }
}

#[test]
fn a_fraction_of_a_second_never_lengthens_a_leaf() {
    let authority = authority().with_lifetime(Duration::from_millis(90_700));
    let request = KeyAndRequest::generate(&workload("web").identity()).expect("a request").request;
    let at = now() + Duration::from_millis(900);
    let issued =
        authority.issue(&workload("web"), &workload("web").to_string(), &request, at).expect("issued");
    assert_eq!(issued.not_after, now() + Duration::from_secs(90));
    assert_eq!(CertificateInfo::read(&issued.leaf).expect("readable").not_after, issued.not_after);
}

#[derive(Debug)]
struct Fixed(u8);

impl Random for Fixed {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        bytes.fill(self.0);
        Ok(())
    }
}

#[test]
fn serials_come_from_the_source_of_randomness_and_stay_positive() {
    let request = KeyAndRequest::generate(&workload("web").identity()).expect("a request").request;
    let issue = |authority: &CertificateAuthority| {
        authority.issue(&workload("web"), &workload("web").to_string(), &request, now())
    };
    let authority = authority();
    let (one, two) = (issue(&authority).expect("issued").serial, issue(&authority).expect("issued").serial);
    assert_ne!(one, two);
    let authority = authority.with_random(Arc::new(Fixed(0xff)));
    let issued = issue(&authority).expect("issued");
    assert_eq!(issued.serial, "ff".repeat(16));
    let (_, leaf) = X509Certificate::from_der(&issued.leaf).expect("DER");
    assert_eq!(leaf.raw_serial()[..2], [0, 0xff], "a sign byte keeps it positive");
    let dead = authority.with_random(Arc::new(Fixed(0)));
    assert_eq!(issue(&dead).expect_err("no randomness").code(), "RM1019");
}
