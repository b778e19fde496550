//! Signing requests (PKCS#10, RFC 2986): one name, one P-256 key, and the proof that the asker holds it.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS,
    OID_SIG_ECDSA_WITH_SHA256, OID_X509_COMMON_NAME,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::Identity;
use crate::fault::Fault;
use crate::key::P256Key;
use crate::root::common_name;

/// A signing request that is well formed, asks for exactly one DNS name and is signed by the key it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    name: String,
    point: Vec<u8>,
}

impl SigningRequest {
    /// Reads and checks a request in DER. Whether its name may be had is the authority's question.
    pub fn read(der: &[u8]) -> Result<Self, CsrError> {
        if der.is_empty() {
            return Err(CsrError::Missing);
        }
        if der.len() > MAX_REQUEST {
            return Err(CsrError::Malformed("longer than any request for one name"));
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(CsrError::Malformed("not the DER encoding of one PKCS#10 request"));
        };
        let info = &request.certification_request_info;
        let point = p256_point(&info.subject_pki)?;
        if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
            return Err(CsrError::Signature);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
            .verify(info.raw, &request.signature_value.data)
            .map_err(|_| CsrError::Signature)?;
        let name = single_name(&request)?;
        for attribute in info.subject.iter_attributes() {
            let value = attribute.as_str().unwrap_or_default();
            if *attribute.attr_type() != OID_X509_COMMON_NAME {
                return Err(CsrError::Subject { subject: info.subject.to_string(), name });
            }
            if !value.is_empty() && value != name {
                return Err(CsrError::CommonName { common_name: value.to_owned(), name });
            }
        }
        Ok(Self { name, point })
    }

    /// The one DNS name that is asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The P-256 public key as an uncompressed point (SEC 1 2.3.3), 65 bytes.
    pub fn public_key(&self) -> &[u8] {
        &self.point
    }
}

/// A fresh P-256 key and the request for its certificate: what a proxy makes for each certificate.
pub struct KeyAndRequest {
    /// The private key. It goes nowhere but into the TLS configuration.
    pub key: PrivateKeyDer<'static>,
    /// The request in DER.
    pub request: Vec<u8>,
}

impl KeyAndRequest {
    /// Makes a key and asks for `name`, which must be a DNS name.
    pub fn generate(name: &Identity) -> Result<Self, CsrError> {
        let failed = |_| CsrError::Generate { name: name.to_string() };
        let key = P256Key::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(common_name) = common_name(name.as_str()) {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        let dns_name = name.as_str().try_into().map_err(|_| CsrError::Generate { name: name.to_string() })?;
        params.subject_alt_names = vec![SanType::DnsName(dns_name)];
        let request = params
            .serialize_request(&key)
            .map_err(|_| CsrError::Generate { name: name.to_string() })?
            .der()
            .to_vec();
        let key = PrivatePkcs8KeyDer::from(key.to_pkcs8().map_err(failed)?).into();
        Ok(Self { key, request })
    }
}

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// No request at all.
    #[error("RM1010: the certificate signing request is missing")]
    Missing,
    /// Not a PKCS#10 request.
    #[error("RM1010: the certificate signing request is malformed: {0}")]
    Malformed(&'static str),
    /// Not signed by the key that it asks for.
    #[error(
        "RM1011: the certificate signing request is not signed (ECDSA with SHA-256) by the key that it asks for"
    )]
    Signature,
    /// An RSA key.
    #[error("RM1012: the certificate signing request brings an RSA key; only P-256 keys are certified")]
    Rsa,
    /// A key that is neither RSA nor P-256.
    #[error(
        "RM1013: the certificate signing request brings a key of algorithm {0}; only P-256 keys are certified"
    )]
    Key(String),
    /// No name, several names, or a name of another kind.
    #[error(
        "RM1014: the certificate signing request must name exactly one DNS name and nothing else, it names: {0}"
    )]
    Names(String),
    /// The common name is another than the DNS name.
    #[error(
        "RM1015: the certificate signing request has the common name `{common_name}` beside the DNS name `{name}`; leave it empty or equal"
    )]
    CommonName {
        /// The subject's common name.
        common_name: String,
        /// The DNS name.
        name: String,
    },
    /// The subject says more than a common name.
    #[error(
        "RM1015: the certificate signing request for `{name}` has the subject `{subject}`; only a common name may be in it"
    )]
    Subject {
        /// The subject as text.
        subject: String,
        /// The DNS name.
        name: String,
    },
    /// An extension that no leaf gets.
    #[error("RM1016: the certificate signing request asks for {0}, which no workload's certificate gets")]
    Extension(&'static str),
    /// No key or request could be made for this name.
    #[error(
        "RM1017: no key and signing request could be made for `{name}`: not a DNS name, or no randomness"
    )]
    Generate {
        /// The name.
        name: String,
    },
}

impl CsrError {
    /// The stable code, such as `RM1011`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing | Self::Malformed(_) => "RM1010",
            Self::Signature => "RM1011",
            Self::Rsa => "RM1012",
            Self::Key(_) => "RM1013",
            Self::Names(_) => "RM1014",
            Self::CommonName { .. } | Self::Subject { .. } => "RM1015",
            Self::Extension(_) => "RM1016",
            Self::Generate { .. } => "RM1017",
        }
    }

    /// The gRPC status to answer with (wire.md 2.5).
    pub fn fault(&self) -> Fault {
        match self {
            Self::Missing | Self::Malformed(_) | Self::Signature => Fault::InvalidArgument,
            Self::Generate { .. } => Fault::Internal,
            _ => Fault::FailedPrecondition,
        }
    }
}

fn p256_point(key: &SubjectPublicKeyInfo<'_>) -> Result<Vec<u8>, CsrError> {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION || *algorithm == OID_PKCS1_RSASSAPSS {
        return Err(CsrError::Rsa);
    }
    if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(CsrError::Key(algorithm.to_id_string()));
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if curve.as_ref() != Some(&OID_EC_P256) {
        return Err(CsrError::Key(
            curve.map_or_else(|| "EC of no named curve".to_owned(), |oid| oid.to_id_string()),
        ));
    }
    let point = &key.subject_public_key.data;
    match point.first() {
        Some(4) if point.len() == 65 && key.subject_public_key.unused_bits == 0 => Ok(point.to_vec()),
        _ => Err(CsrError::Malformed("its key is not an uncompressed P-256 point")),
    }
}

/// The one DNS name, provided that the request asks for nothing that a leaf does not get.
fn single_name(request: &X509CertificationRequest<'_>) -> Result<String, CsrError> {
    let mut extensions = None;
    for attribute in request.certification_request_info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) if extensions.is_none() => {
                extensions = Some(&requested.extensions);
            }
            ParsedCriAttribute::ExtensionRequest(_) => {
                return Err(CsrError::Malformed("it has two extension requests"));
            }
            _ => return Err(CsrError::Malformed("it has an attribute other than an extension request")),
        }
    }
    let mut names: Option<&[GeneralName<'_>]> = None;
    for extension in extensions.into_iter().flatten() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) if names.is_none() => {
                names = Some(&san.general_names);
            }
            ParsedExtension::SubjectAlternativeName(_) => {
                return Err(CsrError::Malformed("it has two subject alternative names extensions"));
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(CsrError::Extension("an authority's certificate (`cA`)"));
            }
            // What a leaf has anyway; the authority writes its own values.
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectKeyIdentifier(_) => {}
            ParsedExtension::ParseError { .. } => {
                return Err(CsrError::Malformed("one of its extensions cannot be read"));
            }
            _ => {
                return Err(CsrError::Extension(
                    "an extension other than names, usages and basic constraints",
                ));
            }
        }
    }
    match names.unwrap_or_default() {
        [GeneralName::DNSName(name)] if !name.is_empty() => Ok((*name).to_owned()),
        [] => Err(CsrError::Names("none".to_owned())),
        several => Err(CsrError::Names(
            several.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", "),
        )),
    }
}

const MAX_REQUEST: usize = 16 * 1024;
