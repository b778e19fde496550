//! Whom a mesh believes: the roots under which every workload's certificate must stand.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::certificate::{CertificateInfo, timestamp};

/// A set of root certificates, at least one. Cheap to clone.
#[derive(Clone)]
pub struct TrustAnchors(Arc<Inner>);

struct Inner {
    certificates: Vec<CertificateDer<'static>>,
    infos: Vec<CertificateInfo>,
    roots: Vec<TrustAnchor<'static>>,
}

impl TrustAnchors {
    /// Reads a PEM bundle. Text around the blocks is ignored; any block but `CERTIFICATE` is refused, a private key
    /// above all, since anchors are handed to everybody.
    pub fn from_pem(pem: &str) -> Result<Self, AnchorError> {
        if pem.len() > MAX_BUNDLE {
            return Err(AnchorError::TooLarge(pem.len()));
        }
        let mut certificates = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
            match section.map_err(|error| AnchorError::Pem(error.to_string()))? {
                (SectionKind::Certificate, der) => certificates.push(CertificateDer::from(der)),
                (SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey, _) => {
                    return Err(AnchorError::PrivateKey);
                }
                (other, _) => return Err(AnchorError::NotACertificate(format!("{other:?}"))),
            }
        }
        Self::from_der(certificates)
    }

    /// Takes certificates as they are. Duplicates are kept once.
    pub fn from_der(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, AnchorError> {
        let mut inner = Inner { certificates: Vec::new(), infos: Vec::new(), roots: Vec::new() };
        for (index, certificate) in certificates.into_iter().enumerate() {
            if inner.certificates.contains(&certificate) {
                continue;
            }
            let number = index + 1;
            let malformed = |reason: String| AnchorError::Malformed { number, reason };
            let info = CertificateInfo::read(&certificate).map_err(|error| malformed(error.to_string()))?;
            if !info.is_ca {
                return Err(AnchorError::NotAnAuthority { number, subject: info.subject });
            }
            let root = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| malformed(error.to_string()))?;
            inner.roots.push(root.to_owned());
            inner.infos.push(info);
            inner.certificates.push(certificate);
        }
        match inner.roots.len() {
            0 => Err(AnchorError::Empty),
            1..=MAX_ANCHORS => Ok(Self(Arc::new(inner))),
            count => Err(AnchorError::TooMany(count)),
        }
    }

    /// The anchors as `webpki` and `rustls` take them.
    pub fn roots(&self) -> &[TrustAnchor<'static>] {
        &self.0.roots
    }

    /// The root certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// What each root certificate says.
    pub fn infos(&self) -> &[CertificateInfo] {
        &self.0.infos
    }

    /// SHA-256 of each root certificate in lower-case hexadecimal.
    pub fn fingerprints(&self) -> impl Iterator<Item = &str> {
        self.0.infos.iter().map(|info| info.fingerprint.as_str())
    }

    /// The set as a PEM bundle.
    pub fn to_pem(&self) -> String {
        self.0.certificates.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// Whether `certificate` is one of the anchors itself.
    pub fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.0.certificates.iter().any(|anchor| anchor.as_ref() == certificate.as_ref())
    }

    /// Verifies that a leaf (first) with its intermediates chains to an anchor at `now` and may be used as both a
    /// TLS server and a TLS client. Returns when the first certificate on that path ends, the anchor included.
    ///
    /// Who the leaf is, is another question: see [`CertificateInfo::names`].
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SystemTime, ChainError> {
        let issuers = self.issuers_end(chain, now)?;
        let leaf = chain.first().ok_or(ChainError::Empty)?;
        let leaf = CertificateInfo::read(leaf).map_err(|error| ChainError::Refused(error.to_string()))?;
        Ok(leaf.not_after.min(issuers))
    }

    /// Like [`TrustAnchors::verify`], and returns when the first certificate above the leaf ends.
    pub(crate) fn issuers_end(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<SystemTime, ChainError> {
        let (leaf, intermediates) = chain.split_first().ok_or(ChainError::Empty)?;
        let refused = |reason: &dyn fmt::Display| ChainError::Refused(reason.to_string());
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let intermediates: Vec<_> =
            intermediates.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
        let leaf_der = CertificateDer::from(leaf.as_ref());
        let parsed = EndEntityCert::try_from(&leaf_der).map_err(|error| refused(&error))?;
        let mut end = None;
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let path = parsed
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &self.0.roots,
                    &intermediates,
                    UnixTime::since_unix_epoch(since),
                    usage,
                    None,
                    None,
                )
                .map_err(|error| self.refusal(&error, leaf))?;
            // webpki takes an anchor as trusted for ever; its dates count here, as they do for other verifiers.
            let anchor = self.info_of(path.anchor()).ok_or(ChainError::Empty)?;
            if !anchor.is_valid_at(now) {
                return Err(ChainError::AnchorNotValid {
                    subject: anchor.subject.clone(),
                    not_before: timestamp(anchor.not_before),
                    not_after: timestamp(anchor.not_after),
                });
            }
            let mut earliest = anchor.not_after;
            for certificate in path.intermediate_certificates() {
                let info = CertificateInfo::read(&certificate.der()).map_err(|error| refused(&error))?;
                earliest = earliest.min(info.not_after);
            }
            end = Some(end.map_or(earliest, |end: SystemTime| end.min(earliest)));
        }
        end.ok_or(ChainError::Empty)
    }

    fn info_of(&self, anchor: &TrustAnchor<'_>) -> Option<&CertificateInfo> {
        // Two anchors may share name and key (a root that was renewed): the one that lasts longest speaks for both.
        let same = |root: &TrustAnchor<'_>| {
            root.subject == anchor.subject && root.subject_public_key_info == anchor.subject_public_key_info
        };
        let matching = self.0.roots.iter().zip(&self.0.infos).filter(|(root, _)| same(root));
        matching.map(|(_, info)| info).max_by_key(|info| info.not_after)
    }

    fn refusal(&self, error: &webpki::Error, leaf: &CertificateDer<'_>) -> ChainError {
        match error {
            webpki::Error::UnknownIssuer => ChainError::UnknownIssuer {
                issuer: crate::certificate::parse(leaf).map(|c| c.issuer().to_string()).unwrap_or_default(),
                anchors: self.0.infos.iter().map(|info| info.subject.as_str()).collect::<Vec<_>>().join("; "),
            },
            other => ChainError::Refused(other.to_string()),
        }
    }
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.infos.iter().map(|info| (&info.subject, &info.fingerprint))).finish()
    }
}

impl PartialEq for TrustAnchors {
    fn eq(&self, other: &Self) -> bool {
        self.0.certificates == other.0.certificates
    }
}

impl Eq for TrustAnchors {}

/// Why a bundle is no set of trust anchors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// No certificate at all.
    #[error(
        "RM1001: the trust anchors hold no certificate; expected PEM with at least one `-----BEGIN CERTIFICATE-----`"
    )]
    Empty,
    /// Broken PEM.
    #[error("RM1001: the trust anchors are not PEM: {0}")]
    Pem(String),
    /// A PEM block of another kind.
    #[error("RM1001: the trust anchors hold a {0} block; only certificates belong there")]
    NotACertificate(String),
    /// A certificate that cannot be read.
    #[error("RM1001: certificate {number} of the trust anchors cannot be read: {reason}")]
    Malformed {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate that is no authority's.
    #[error(
        "RM1001: certificate {number} of the trust anchors (`{subject}`) is not a certificate authority's; give the root's certificate, not a leaf"
    )]
    NotAnAuthority {
        /// Which one, counted from 1.
        number: usize,
        /// Its subject.
        subject: String,
    },
    /// A private key where everybody will read it.
    #[error(
        "RM1002: the trust anchors hold a private key; anchors go to every workload, so treat that key as stolen and make a new one"
    )]
    PrivateKey,
    /// More text than any bundle has.
    #[error("RM1001: the trust anchors have {0} bytes, at most {MAX_BUNDLE} are read")]
    TooLarge(usize),
    /// More anchors than any mesh has.
    #[error("RM1001: the trust anchors hold {0} certificates, at most {MAX_ANCHORS} are taken")]
    TooMany(usize),
}

/// Why a chain is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No certificate at all.
    #[error("RM1003: the chain holds no certificate")]
    Empty,
    /// No anchor has signed it.
    #[error("RM1003: issued by `{issuer}`, which does not chain to the trust anchors (`{anchors}`)")]
    UnknownIssuer {
        /// The issuer that the leaf names.
        issuer: String,
        /// The anchors' subjects.
        anchors: String,
    },
    /// The anchor it stands under is outside its validity.
    #[error("RM1003: the trust anchor `{subject}` is valid from {not_before} to {not_after} only")]
    AnchorNotValid {
        /// The anchor's subject.
        subject: String,
        /// RFC 3339.
        not_before: String,
        /// RFC 3339.
        not_after: String,
    },
    /// Anything else: dates, usages, constraints, signatures.
    #[error("RM1003: the chain is refused: {0}")]
    Refused(String),
}

/// One PEM block with lines of 64 characters (RFC 7468 2).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

const MAX_BUNDLE: usize = 1 << 20;
const MAX_ANCHORS: usize = 64;
