//! P-256 keys that stay in the crypto library's memory.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};

/// A P-256 signing key. It is encoded only when [`P256Key::to_pkcs8`] is called.
pub(crate) struct P256Key(EcdsaKeyPair);

/// The key could not be made, read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyFailure;

impl P256Key {
    pub(crate) fn generate() -> Result<Self, KeyFailure> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self).map_err(|_| KeyFailure)
    }

    /// Reads PKCS#8 or SEC 1 (RFC 5915); a key of another curve or algorithm is a failure.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, KeyFailure> {
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map(Self)
            .map_err(|_| KeyFailure)
    }

    pub(crate) fn to_pkcs8(&self) -> Result<Vec<u8>, KeyFailure> {
        self.0.to_pkcs8v1().map(|document| document.as_ref().to_vec()).map_err(|_| KeyFailure)
    }

    /// The uncompressed point (SEC 1 2.3.3), 65 bytes.
    pub(crate) fn point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
}

impl PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        self.point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for P256Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature =
            self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A P-256 public key: the uncompressed point.
pub(crate) struct P256Point<'a>(pub(crate) &'a [u8]);

impl PublicKeyData for P256Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
