//! What a certificate says: names, serial, validity, fingerprint. Reading only; nothing here verifies anything.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::Identity;

/// The parts of a certificate that the mesh speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The subject's distinguished name as text.
    pub subject: String,
    /// DNS names first, then URIs, each in the certificate's order. Names that are neither are left out.
    pub names: Vec<Identity>,
    /// The serial number: lower-case hexadecimal, whole bytes, no leading zero bytes.
    pub serial: String,
    /// The first moment of validity.
    pub not_before: SystemTime,
    /// The last moment of validity.
    pub not_after: SystemTime,
    /// Whether basic constraints say `cA`.
    pub is_ca: bool,
    /// SHA-256 over the DER, in lower-case hexadecimal.
    pub fingerprint: String,
}

impl CertificateInfo {
    /// Reads one certificate.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        Self::of(&parse(der)?, der)
    }

    /// Whether `now` lies within the validity, both ends included (RFC 5280 4.1.2.5).
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// The name that the mesh knows this certificate by: the first DNS name, else the first URI.
    pub fn identity(&self) -> Option<&Identity> {
        self.names.first()
    }

    fn of(parsed: &X509Certificate<'_>, der: &[u8]) -> Result<Self, CertificateError> {
        let mut dns = Vec::new();
        let mut uris = Vec::new();
        let sans = parsed.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
        for name in sans.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns.extend(name.parse::<Identity>()),
                GeneralName::URI(uri) => uris.extend(uri.parse::<Identity>()),
                _ => {}
            }
        }
        dns.append(&mut uris);
        let constraints = parsed.basic_constraints().map_err(|_| CertificateError::Malformed)?;
        Ok(Self {
            subject: parsed.subject().to_string(),
            names: dns,
            serial: hex(without_leading_zeros(parsed.raw_serial())),
            not_before: moment(parsed.validity().not_before)?,
            not_after: moment(parsed.validity().not_after)?,
            is_ca: constraints.is_some_and(|c| c.value.ca),
            fingerprint: fingerprint(der),
        })
    }
}

/// A certificate that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not the DER of one X.509 certificate.
    #[error("not the DER encoding of one X.509 certificate")]
    Malformed,
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 over a certificate's DER, in lower-case hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

/// A moment as RFC 3339 in UTC with whole seconds, for records and messages.
pub fn timestamp(moment: SystemTime) -> String {
    let moment = time::OffsetDateTime::from(moment);
    let (hour, minute, second) = moment.to_hms();
    format!(
        "{}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        moment.year(),
        u8::from(moment.month()),
        moment.day()
    )
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

fn moment(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = time.timestamp();
    let moment = match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    moment.ok_or(CertificateError::Malformed)
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_000_000_999);
        assert_eq!(timestamp(moment), "2026-11-18T11:06:40Z");
    }

    #[test]
    fn noise_is_no_certificate() {
        for noise in [&b""[..], b"\x30\x03\x02\x01\x01", b"-----BEGIN CERTIFICATE-----"] {
            assert_eq!(CertificateInfo::read(&noise.into()), Err(CertificateError::Malformed));
        }
    }

    #[test]
    fn a_serial_loses_its_sign_byte_only() {
        assert_eq!(hex(without_leading_zeros(&[0, 0x80, 0, 1])), "800001");
    }
}
