//! Names, trust anchors, signing requests and the certificate authority; no I/O.
//!
//! Start here: [`WorkloadId`] is who a workload is, [`Identity`] is a name as proven on a connection,
//! [`TrustAnchors`](anchors::TrustAnchors) is whom a mesh believes, and
//! [`CertificateAuthority`](authority::CertificateAuthority) turns a proven name and a signing request into a leaf.

pub mod name;

pub use name::{Identity, NameError, TrustDomain, WorkloadId};
