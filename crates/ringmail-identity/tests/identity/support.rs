//! A mesh with a root and an issuer, at a fixed time.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::authority::CertificateAuthority;
use ringmail_identity::root::{Lifetimes, RootAndIssuer, make_root_and_issuer};
use ringmail_identity::{TrustDomain, WorkloadId};

pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

pub(crate) const HOUR: Duration = Duration::from_hours(1);
pub(crate) const DAY: Duration = Duration::from_hours(24);

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local", "ringmail").expect("valid")
}

pub(crate) fn workload(name: &str) -> WorkloadId {
    WorkloadId::new(name, "ballot", &domain()).expect("valid")
}

pub(crate) fn material() -> RootAndIssuer {
    make_root_and_issuer(&domain(), now(), Lifetimes::default()).expect("a root")
}

pub(crate) fn anchors(material: &RootAndIssuer) -> TrustAnchors {
    TrustAnchors::from_pem(&material.root_cert_pem).expect("anchors")
}

pub(crate) fn authority() -> CertificateAuthority {
    let material = material();
    let anchors = anchors(&material);
    CertificateAuthority::load(&material.issuer_cert_pem, &material.issuer_key_pem, anchors, &domain(), now())
        .expect("an authority")
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ascii"))
}

/// A request with these names and this common name, signed by `key`.
pub(crate) fn request(key: &KeyPair, common_name: Option<&str>, names: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(common_name) = common_name {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.subject_alt_names = names;
    params.serialize_request(key).expect("a request").der().to_vec()
}

pub(crate) fn p256() -> KeyPair {
    KeyPair::generate().expect("a key")
}
