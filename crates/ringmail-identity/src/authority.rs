//! The certificate authority: an issuer under a root that it does not have, which signs leaves for proven names.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::anchors::TrustAnchors;
use crate::certificate::{CertificateError, CertificateInfo, fingerprint, hex, parse, timestamp};
use crate::csr::{CsrError, SigningRequest};
use crate::fault::Fault;
use crate::key::{P256Key, P256Point};
use crate::random::{Random, System};
use crate::root::{common_name, random_serial};
use crate::{TrustDomain, WorkloadId};

/// Signs leaf certificates. Everything that could make its signatures worthless is checked when it is loaded.
pub struct CertificateAuthority {
    issuer: Issuer<'static, P256Key>,
    info: CertificateInfo,
    /// The issuer's certificate first, then what links it to an anchor. No anchor is among it.
    chain: Vec<CertificateDer<'static>>,
    anchors: TrustAnchors,
    domain: TrustDomain,
    /// The earliest end on the path from the issuer to its anchor.
    end: SystemTime,
    lifetime: Duration,
    random: Arc<dyn Random>,
}

impl CertificateAuthority {
    /// Takes the issuer's certificate with its intermediates (PEM, issuer first; roots are left out), its private key
    /// (PEM, PKCS#8 or SEC 1), and the anchors it must chain to.
    pub fn load(
        chain_pem: &str,
        key_pem: &str,
        anchors: TrustAnchors,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| AuthorityError::Chain(error.to_string()))?;
        let first =
            chain.first().ok_or_else(|| AuthorityError::Chain("it holds no certificate".to_owned()))?;
        if anchors.contains(first) {
            return Err(AuthorityError::IsAnchor(CertificateInfo::read(first)?.subject));
        }
        let chain: Vec<_> = chain.into_iter().filter(|certificate| !anchors.contains(certificate)).collect();
        let issuer_der =
            chain.first().ok_or_else(|| AuthorityError::Chain("it holds no certificate".to_owned()))?;
        let info = CertificateInfo::read(issuer_der)?;
        let parsed = parse(issuer_der)?;
        let signs = parsed
            .key_usage()
            .map_err(|_| CertificateError::Malformed)?
            .is_none_or(|usage| usage.value.key_cert_sign());
        if !info.is_ca || !signs {
            return Err(AuthorityError::NotAnAuthority(info.subject));
        }
        if !info.is_valid_at(now) {
            return Err(AuthorityError::NotValid {
                subject: info.subject,
                not_before: timestamp(info.not_before),
                not_after: timestamp(info.not_after),
            });
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| AuthorityError::Key)?;
        let key = P256Key::from_der(key.secret_der()).map_err(|_| AuthorityError::Key)?;
        if parsed.public_key().subject_public_key.data != key.point() {
            return Err(AuthorityError::KeyMismatch(info.subject));
        }
        let issuer = Issuer::from_ca_cert_der(issuer_der, key)
            .map_err(|error| AuthorityError::Chain(error.to_string()))?;
        let mut authority = Self {
            issuer,
            end: info.not_after,
            info,
            chain,
            anchors,
            domain: domain.clone(),
            lifetime: DEFAULT_LIFETIME,
            random: Arc::new(System),
        };
        authority.end = authority.trial(now)?;
        Ok(authority)
    }

    /// How long leaves are valid, counted from their issuance; at least a second. Without this, 24 hours.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.max(Duration::from_secs(1));
        self
    }

    /// Takes serial numbers from another source than the system's.
    #[must_use]
    pub fn with_random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// What the issuer's certificate says.
    pub fn issuer(&self) -> &CertificateInfo {
        &self.info
    }

    /// The anchors that the issuer chains to.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// When the first certificate between the issuer and its anchor ends: no leaf is valid beyond it.
    pub fn end(&self) -> SystemTime {
        self.end
    }

    /// Signs a leaf for `proven`, the name that the asker's token proves, provided that it is also the name that was
    /// `requested` and the only one in the signing request.
    pub fn issue(
        &self,
        proven: &WorkloadId,
        requested: &str,
        request: &[u8],
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        if requested.is_empty() {
            return Err(IssueError::MissingIdentity(proven.to_string()));
        }
        if proven.domain() != &self.domain {
            return Err(IssueError::OtherDomain { proven: proven.to_string(), suffix: self.domain.suffix() });
        }
        let name = proven.to_string();
        if requested != name {
            return Err(IssueError::OtherName { requested: cut(requested), proven: name });
        }
        let request = SigningRequest::read(request).map_err(|error| IssueError::Request {
            error,
            requested: cut(requested),
            proven: name.clone(),
        })?;
        if request.name() != name {
            return Err(IssueError::RequestForOther { asked: cut(request.name()), proven: name });
        }
        self.sign(proven, request.public_key(), now)
    }

    fn sign(&self, id: &WorkloadId, point: &[u8], now: SystemTime) -> Result<Issued, IssueError> {
        let failed = |reason: String| IssueError::Signing { identity: id.to_string(), reason };
        let now = whole_seconds(now);
        if now >= self.end || now < self.info.not_before {
            return Err(IssueError::IssuerNotValid {
                identity: id.to_string(),
                issuer: self.info.subject.clone(),
                not_before: timestamp(self.info.not_before),
                not_after: timestamp(self.end),
            });
        }
        let not_after =
            now.checked_add(self.lifetime).map_or(self.end, |end| whole_seconds(end).min(self.end));
        let serial = random_serial(self.random.as_ref()).map_err(|error| failed(error.to_string()))?;
        let serial_text = hex(serial.as_ref());
        let name = id.to_string();
        let mut params = CertificateParams::default();
        params.not_before = now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH).into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial);
        params.distinguished_name = DistinguishedName::new();
        if let Some(common_name) = common_name(&name) {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        let ia5 = |text: &str| text.try_into().map_err(|error: rcgen::Error| failed(error.to_string()));
        params.subject_alt_names = vec![SanType::DnsName(ia5(&name)?), SanType::URI(ia5(&id.spiffe())?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf =
            params.signed_by(&P256Point(point), &self.issuer).map_err(|error| failed(error.to_string()))?;
        let leaf = CertificateDer::from(leaf);
        // Nothing leaves that a peer with these anchors would refuse.
        let mut whole = vec![leaf.clone()];
        whole.extend(self.chain.iter().cloned());
        self.anchors.verify(&whole, now).map_err(|error| failed(error.to_string()))?;
        Ok(Issued {
            identity: id.clone(),
            serial: serial_text,
            not_after,
            fingerprint: fingerprint(&leaf),
            leaf,
            intermediates: self.chain.clone(),
        })
    }

    /// Signs a leaf that nobody gets and verifies it like a peer: constraints on names or path length, a name that
    /// does not survive re-encoding, a missing intermediate all show here and not at the first workload.
    fn trial(&self, now: SystemTime) -> Result<SystemTime, AuthorityError> {
        let unusable = |reason: &dyn fmt::Display| AuthorityError::Unusable {
            subject: self.info.subject.clone(),
            reason: reason.to_string(),
        };
        let id = WorkloadId::new("trial", "trial", &self.domain).map_err(|error| unusable(&error))?;
        let key = P256Key::generate().map_err(|_| unusable(&"no key could be made"))?;
        let issued = self.sign(&id, key.point(), now).map_err(|error| unusable(&error))?;
        let chain = std::iter::once(issued.leaf).chain(issued.intermediates).collect::<Vec<_>>();
        self.anchors.issuers_end(&chain, now).map_err(|error| unusable(&error))
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("issuer", &self.info.subject)
            .field("end", &timestamp(self.end))
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// A leaf that was signed, with what the record of issuance says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Whose it is.
    pub identity: WorkloadId,
    /// The leaf in DER.
    pub leaf: CertificateDer<'static>,
    /// The leaf's issuer first, the root left out, in DER.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// The serial number: 32 digits of lower-case hexadecimal.
    pub serial: String,
    /// The last moment of validity, in whole seconds.
    pub not_after: SystemTime,
    /// SHA-256 of the leaf's DER in lower-case hexadecimal.
    pub fingerprint: String,
}

impl fmt::Display for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, serial, fingerprint, .. } = self;
        write!(
            f,
            "issued certificate for {identity} until {}: serial {serial}, sha256 {fingerprint}",
            timestamp(self.not_after)
        )
    }
}

/// Why an issuer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The chain's PEM is broken or empty.
    #[error("RM1020: the issuer's certificate cannot be read: {0}")]
    Chain(String),
    /// The key's PEM is broken, or the key is of another kind.
    #[error(
        "RM1021: the issuer's private key cannot be read; expected PEM with a P-256 key (PKCS#8 or SEC 1)"
    )]
    Key,
    /// The certificate is of another key.
    #[error(
        "RM1022: the issuer's private key is not that of its certificate `{0}`; the issuer's certificate comes first in its file"
    )]
    KeyMismatch(String),
    /// The certificate may not sign others.
    #[error("RM1023: `{0}` may not sign certificates (basic constraints `cA`, key usage `keyCertSign`)")]
    NotAnAuthority(String),
    /// The certificate is a trust anchor.
    #[error(
        "RM1024: `{0}` is itself a trust anchor; sign an intermediate with it and keep the root's key out of the mesh"
    )]
    IsAnchor(String),
    /// The certificate is outside its validity.
    #[error("RM1025: the issuer `{subject}` is valid from {not_before} to {not_after} only")]
    NotValid {
        /// The issuer's subject.
        subject: String,
        /// RFC 3339.
        not_before: String,
        /// RFC 3339.
        not_after: String,
    },
    /// Peers with these anchors would refuse what it signs.
    #[error("RM1026: leaves signed by `{subject}` would be refused by the workloads: {reason}")]
    Unusable {
        /// The issuer's subject.
        subject: String,
        /// Why.
        reason: String,
    },
}

impl From<CertificateError> for AuthorityError {
    fn from(error: CertificateError) -> Self {
        Self::Chain(error.to_string())
    }
}

/// Why a leaf is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request names nobody.
    #[error("RM1006: the request names no identity; its token proves `{0}`")]
    MissingIdentity(String),
    /// The token proves another name than the one requested.
    #[error("RM1007: `{requested}` was requested, and the token proves `{proven}`")]
    OtherName {
        /// The name that was requested.
        requested: String,
        /// The name that the token proves.
        proven: String,
    },
    /// The signing request names another workload.
    #[error("RM1008: the signing request is for `{asked}`, and the token proves `{proven}`")]
    RequestForOther {
        /// The name in the signing request.
        asked: String,
        /// The name that the token proves.
        proven: String,
    },
    /// The signing request is refused for what it is.
    #[error("{error} (requested `{requested}`, the token proves `{proven}`)")]
    Request {
        /// Why; its text begins with its code.
        error: CsrError,
        /// The name that was requested.
        requested: String,
        /// The name that the token proves.
        proven: String,
    },
    /// The name is not of this authority's trust domain.
    #[error("RM1009: `{proven}` is not of this mesh, whose names end in `{suffix}`")]
    OtherDomain {
        /// The name that the token proves.
        proven: String,
        /// The end of this mesh's names.
        suffix: String,
    },
    /// The issuer or its chain is outside its validity.
    #[error(
        "RM1018: nothing can be signed for `{identity}`: the issuer `{issuer}` with its chain is valid from {not_before} to {not_after} only"
    )]
    IssuerNotValid {
        /// Whose leaf was asked for.
        identity: String,
        /// The issuer's subject.
        issuer: String,
        /// RFC 3339.
        not_before: String,
        /// RFC 3339; the earliest end on the path to the anchor.
        not_after: String,
    },
    /// Signing failed, or what was signed would not be believed.
    #[error("RM1019: the leaf for `{identity}` could not be signed: {reason}")]
    Signing {
        /// Whose leaf was asked for.
        identity: String,
        /// Why.
        reason: String,
    },
}

impl IssueError {
    /// The stable code, such as `RM1007`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingIdentity(_) => "RM1006",
            Self::OtherName { .. } => "RM1007",
            Self::RequestForOther { .. } => "RM1008",
            Self::Request { error, .. } => error.code(),
            Self::OtherDomain { .. } => "RM1009",
            Self::IssuerNotValid { .. } => "RM1018",
            Self::Signing { .. } => "RM1019",
        }
    }

    /// The gRPC status to answer with (wire.md 2.5).
    pub fn fault(&self) -> Fault {
        match self {
            Self::MissingIdentity(_) => Fault::InvalidArgument,
            Self::Request { error, .. } => error.fault(),
            Self::OtherName { .. } | Self::RequestForOther { .. } | Self::OtherDomain { .. } => {
                Fault::FailedPrecondition
            }
            Self::IssuerNotValid { .. } => Fault::Unavailable,
            Self::Signing { .. } => Fault::Internal,
        }
    }
}

fn whole_seconds(moment: SystemTime) -> SystemTime {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// What a stranger asked for, cut and cleaned for a message.
fn cut(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);
/// Workloads' clocks may be behind the authority's.
const BACKDATE: Duration = Duration::from_mins(5);
