//! A new root and the issuer under it, for a mesh that brings none of its own.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, DnValue, IsCa,
    KeyUsagePurpose, SerialNumber,
};

use crate::TrustDomain;
use crate::anchors::pem;
use crate::certificate::hex;
use crate::key::P256Key;
use crate::random::{Random, System};

/// How long a new root and a new issuer are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the root: the mesh's workloads must learn another root before it ends.
    pub root: Duration,
    /// Of the issuer; cut to the root's.
    pub issuer: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: 3650 * DAY, issuer: 365 * DAY }
    }
}

/// What [`make_root_and_issuer`] gives. The root's private key is not among it.
#[derive(Clone)]
pub struct RootAndIssuer {
    /// The root: the mesh's trust anchor. Public.
    pub root_cert_pem: String,
    /// The issuer's certificate, signed by the root. Public.
    pub issuer_cert_pem: String,
    /// The issuer's private key in PKCS#8. For the identity component only.
    pub issuer_key_pem: String,
}

/// Makes a P-256 root, an issuer under it that may sign leaves only, and forgets the root's key: it exists inside
/// this call only and is never encoded, so nobody can make a second issuer of this mesh.
pub fn make_root_and_issuer(
    domain: &TrustDomain,
    now: SystemTime,
    lifetimes: Lifetimes,
) -> Result<RootAndIssuer, RootError> {
    let root_end = now.checked_add(lifetimes.root).ok_or(RootError::Lifetime(lifetimes.root))?;
    let issuer_end =
        now.checked_add(lifetimes.issuer).ok_or(RootError::Lifetime(lifetimes.issuer))?.min(root_end);
    let name = |role: &str| format!("{role}.{}.{}", domain.identity_namespace(), domain.domain());
    let root_params = authority_params(&name("root"), 1, now, root_end)?;
    let root = CertifiedIssuer::self_signed(root_params, P256Key::generate().map_err(|_| RootError::Key)?)?;
    let issuer_key = P256Key::generate().map_err(|_| RootError::Key)?;
    let issuer = authority_params(&name("identity"), 0, now, issuer_end)?.signed_by(&issuer_key, &root)?;
    let pkcs8 = issuer_key.to_pkcs8().map_err(|_| RootError::Key)?;
    Ok(RootAndIssuer {
        root_cert_pem: pem("CERTIFICATE", root.der()),
        issuer_cert_pem: pem("CERTIFICATE", issuer.der()),
        issuer_key_pem: pem("PRIVATE KEY", &pkcs8),
    })
}

/// Why no root could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// No key could be made.
    #[error("RM1005: no P-256 key could be made: the system's source of randomness failed")]
    Key,
    /// A lifetime beyond what a certificate can say.
    #[error("RM1005: a lifetime of {0:?} is more than a certificate can say")]
    Lifetime(Duration),
    /// The certificate could not be encoded or signed.
    #[error("RM1005: the certificate could not be made: {0}")]
    Certificate(String),
}

impl From<rcgen::Error> for RootError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

fn authority_params(
    name: &str,
    path_length: u8,
    now: SystemTime,
    end: SystemTime,
) -> Result<CertificateParams, RootError> {
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH).into();
    params.not_after = end.into();
    let serial = random_serial(&System).map_err(|_| RootError::Key)?;
    params.distinguished_name = DistinguishedName::new();
    // Two meshes must not have roots of one name: a verifier would then speak of a bad signature where it means an
    // unknown issuer.
    let unique = hex(&serial.as_ref()[..8]).as_str().try_into()?;
    params
        .distinguished_name
        .push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), DnValue::PrintableString(unique));
    params.serial_number = Some(serial);
    params.distinguished_name.push(DnType::CommonName, name.get(..MAX_COMMON_NAME).unwrap_or(name));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A name that fits a subject's common name (at most 64 characters, RFC 5280 appendix A.1).
pub(crate) fn common_name(name: &str) -> Option<&str> {
    (name.len() <= MAX_COMMON_NAME).then_some(name)
}

/// 128 random bits, positive, whose first byte is not zero: always 32 hexadecimal digits.
pub(crate) fn random_serial(random: &dyn Random) -> Result<SerialNumber, crate::random::RandomError> {
    let mut bytes = [0; 16];
    // A source that gives zeros for ever has failed; 16 draws of a sound one do so once in 2^128.
    for _ in 0..16 {
        random.fill(&mut bytes)?;
        if bytes[0] != 0 {
            return Ok(SerialNumber::from_slice(&bytes));
        }
    }
    Err(crate::random::RandomError)
}

const DAY: Duration = Duration::from_hours(24);
/// Workloads' clocks may be behind the one that makes the root.
const BACKDATE: Duration = Duration::from_hours(1);
/// The attribute `serialNumber` (X.520 6.2.9).
const SERIAL_NUMBER: &[u64] = &[2, 5, 4, 5];
const MAX_COMMON_NAME: usize = 64;
