//! Names, trust anchors, signing requests, the certificate authority and workload tokens; no I/O.
//!
//! Start here: [`WorkloadId`] is who a workload is, [`Identity`] is a name as proven on a connection,
//! [`TrustAnchors`](anchors::TrustAnchors) is whom a mesh believes,
//! [`CertificateAuthority`](authority::CertificateAuthority) turns a proven name and a signing request into a leaf, and
//! [`TokenReview`](review::TokenReview) is how a name is proven to it.
//!
//! Time and randomness come from the caller: functions take `now`, and [`random::Random`] stands for the system's
//! source.

pub mod anchors;
pub mod authority;
pub mod certificate;
pub mod csr;
pub mod fault;
mod key;
pub mod name;
pub mod random;
pub mod review;
pub mod root;
pub mod token;

pub use name::{Identity, NameError, TrustDomain, WorkloadId};
