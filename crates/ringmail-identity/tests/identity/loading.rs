//! Which anchors and issuers are taken, and which are refused before they can do harm.

use crate::support::{DAY, HOUR, anchors, domain, material, now, p256, workload};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use ringmail_identity::anchors::{AnchorError, TrustAnchors};
use ringmail_identity::authority::{AuthorityError, CertificateAuthority};
use ringmail_identity::certificate::CertificateInfo;
use ringmail_identity::csr::KeyAndRequest;

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (now() - HOUR).into();
    params.not_after = (now() + 100 * DAY).into();
    params
}

fn load(chain: &str, key: &str, anchors: TrustAnchors) -> Result<CertificateAuthority, AuthorityError> {
    CertificateAuthority::load(chain, key, anchors, &domain(), now())
}

#[test]
fn a_bundle_of_several_anchors_survives_its_own_pem() {
    let (one, two) = (material(), material());
    let bundle = format!("two roots\n{}\n{}{}", one.root_cert_pem, two.root_cert_pem, one.root_cert_pem);
    let anchors = TrustAnchors::from_pem(&bundle).expect("anchors");
    assert_eq!(anchors.roots().len(), 2, "a duplicate counts once");
    assert_eq!(TrustAnchors::from_pem(&anchors.to_pem()), Ok(anchors.clone()));
    assert!(anchors.fingerprints().all(|fingerprint| fingerprint.len() == 64));
}

#[test]
fn what_is_no_bundle_of_roots_is_refused() {
    let material = material();
    let leaf = {
        let authority = crate::support::authority();
        let made = KeyAndRequest::generate(&workload("web").identity()).expect("a request");
        authority
            .issue(&workload("web"), &workload("web").to_string(), &made.request, now())
            .expect("issued")
            .leaf
    };
    assert!(TrustAnchors::from_pem(&material.root_cert_pem).is_ok());
    assert_eq!(TrustAnchors::from_pem("no PEM at all"), Err(AnchorError::Empty));
    let with_key = format!("{}{}", material.root_cert_pem, material.issuer_key_pem);
    assert_eq!(TrustAnchors::from_pem(&with_key), Err(AnchorError::PrivateKey));
    assert!(matches!(TrustAnchors::from_der([leaf]), Err(AnchorError::NotAnAuthority { number: 1, .. })));
    let broken = material.root_cert_pem.replacen("MII", "AAA", 1);
    assert!(matches!(
        TrustAnchors::from_pem(&broken),
        Err(AnchorError::Malformed { number: 1, .. } | AnchorError::Pem(_))
    ));
}

#[test]
fn the_issuer_must_have_the_key_chain_and_rights_that_it_needs() {
    let (ours, other) = (material(), material());
    assert!(load(&ours.issuer_cert_pem, &ours.issuer_key_pem, anchors(&ours)).is_ok());
    let code = |result: Result<CertificateAuthority, AuthorityError>| {
        result.expect_err("refused").to_string()[..6].to_owned()
    };
    assert_eq!(code(load("", &ours.issuer_key_pem, anchors(&ours))), "RM1020");
    assert_eq!(code(load(&ours.issuer_cert_pem, "no key", anchors(&ours))), "RM1021");
    assert_eq!(code(load(&ours.issuer_cert_pem, &other.issuer_key_pem, anchors(&ours))), "RM1022");
    assert_eq!(code(load(&ours.issuer_cert_pem, &ours.issuer_key_pem, anchors(&other))), "RM1026");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key").serialize_pem();
    assert_eq!(code(load(&ours.issuer_cert_pem, &p384, anchors(&ours))), "RM1021");
}

#[test]
fn a_root_is_no_issuer_and_an_intermediate_under_it_is() {
    let root = CertifiedIssuer::self_signed(authority_params("root"), p256()).expect("a root");
    let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
    let refused = load(&root.pem(), &root.key().serialize_pem(), anchors.clone()).expect_err("refused");
    assert!(matches!(refused, AuthorityError::IsAnchor(_)), "{refused}");
    let issuer = CertifiedIssuer::signed_by(authority_params("issuer"), p256(), &root).expect("an issuer");
    assert!(load(&issuer.pem(), &issuer.key().serialize_pem(), anchors).is_ok());
}

#[test]
fn a_leaf_is_no_issuer() {
    let root = CertifiedIssuer::self_signed(authority_params("root"), p256()).expect("a root");
    let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
    for (is_ca, usages, granted) in [
        (IsCa::Ca(BasicConstraints::Unconstrained), vec![KeyUsagePurpose::KeyCertSign], true),
        (IsCa::Ca(BasicConstraints::Unconstrained), vec![KeyUsagePurpose::DigitalSignature], false),
        (IsCa::NoCa, vec![KeyUsagePurpose::KeyCertSign], false),
    ] {
        let mut params = authority_params("issuer");
        params.is_ca = is_ca;
        params.key_usages = usages;
        let issuer = CertifiedIssuer::signed_by(params, p256(), &root).expect("an issuer");
        let result = load(&issuer.pem(), &issuer.key().serialize_pem(), anchors.clone());
        assert_eq!(result.is_ok(), granted, "{result:?}");
    }
}

#[test]
fn an_issuer_whose_leaves_peers_would_refuse_is_not_loaded() {
    let root = CertifiedIssuer::self_signed(authority_params("root"), p256()).expect("a root");
    let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
    for (permitted, granted) in [("ringmail.cluster.local", true), ("example.com", false)] {
        let mut params = authority_params("issuer");
        let tree = rcgen::GeneralSubtree::DnsName(permitted.to_owned());
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: vec![tree], excluded_subtrees: vec![] });
        let issuer = CertifiedIssuer::signed_by(params, p256(), &root).expect("an issuer");
        let result = load(&issuer.pem(), &issuer.key().serialize_pem(), anchors.clone());
        assert_eq!(result.is_ok(), granted, "{permitted}: {result:?}");
    }
    // The intermediate above the issuer lets only leaves be signed below it, or more.
    for (path_length, granted) in [(1, true), (0, false)] {
        let mut params = authority_params("middle");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
        let middle = CertifiedIssuer::signed_by(params, p256(), &root).expect("an issuer");
        let issuer =
            CertifiedIssuer::signed_by(authority_params("issuer"), p256(), &middle).expect("an issuer");
        let chain = format!("{}{}", issuer.pem(), middle.pem());
        let result = load(&chain, &issuer.key().serialize_pem(), anchors.clone());
        assert_eq!(result.is_ok(), granted, "{path_length}: {result:?}");
    }
}

#[test]
fn a_chain_of_several_intermediates_is_sent_issuer_first() {
    let root = CertifiedIssuer::self_signed(authority_params("root"), p256()).expect("a root");
    let middle = CertifiedIssuer::signed_by(authority_params("middle"), p256(), &root).expect("an issuer");
    let issuer = CertifiedIssuer::signed_by(authority_params("issuer"), p256(), &middle).expect("an issuer");
    let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
    let chain = format!("{}{}", issuer.pem(), middle.pem());
    let authority = load(&chain, &issuer.key().serialize_pem(), anchors.clone()).expect("loads");
    let made = KeyAndRequest::generate(&workload("web").identity()).expect("a request");
    let issued = authority
        .issue(&workload("web"), &workload("web").to_string(), &made.request, now())
        .expect("issued");
    assert_eq!(issued.intermediates, [issuer.der().clone(), middle.der().clone()]);
    let error =
        load(&issuer.pem(), &issuer.key().serialize_pem(), anchors).expect_err("the middle is missing");
    assert!(matches!(error, AuthorityError::Unusable { .. }), "{error}");
}

#[test]
fn dates_of_the_issuer_and_of_the_root_are_checked_at_load() {
    for (issuer_ends, root_ends, granted) in [
        (now() + HOUR, now() + HOUR, true),
        (now() - HOUR / 2, now() + HOUR, false),
        (now() + HOUR, now() - HOUR / 2, false),
    ] {
        let mut params = authority_params("root");
        params.not_after = root_ends.into();
        let root = CertifiedIssuer::self_signed(params, p256()).expect("a root");
        let mut params = authority_params("issuer");
        params.not_after = issuer_ends.into();
        let issuer = CertifiedIssuer::signed_by(params, p256(), &root).expect("an issuer");
        let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
        let result = load(&issuer.pem(), &issuer.key().serialize_pem(), anchors);
        assert_eq!(result.is_ok(), granted, "{result:?}");
    }
}

#[test]
fn a_root_with_an_rsa_key_is_believed() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
    let root = CertifiedIssuer::self_signed(authority_params("root"), key).expect("a root");
    let issuer = CertifiedIssuer::signed_by(authority_params("issuer"), p256(), &root).expect("an issuer");
    let anchors = TrustAnchors::from_pem(&root.pem()).expect("anchors");
    assert!(load(&issuer.pem(), &issuer.key().serialize_pem(), anchors).is_ok());
}

#[test]
fn a_new_root_and_issuer_are_what_they_say() {
    let material = material();
    let anchors = anchors(&material);
    let root = &anchors.infos()[0];
    assert!(root.is_ca && root.names.is_empty());
    let authority =
        load(&material.issuer_cert_pem, &material.issuer_key_pem, anchors.clone()).expect("loads");
    let issuer = authority.issuer();
    assert!(issuer.is_ca && issuer.subject != root.subject && issuer.serial != root.serial);
    assert!(issuer.not_after <= root.not_after);
    let info = CertificateInfo::read(&anchors.certificates()[0]).expect("readable");
    assert_eq!(&info, root);
    assert!(!material.root_cert_pem.contains("PRIVATE"));
}
