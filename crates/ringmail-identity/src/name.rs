//! The names of workloads: the DNS-like name that leads a leaf's SANs, and the SPIFFE ID beside it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Who a workload is: a service account of a namespace, in a trust domain.
///
/// The DNS-like form is `<sa>.<ns>.serviceaccount.identity.<identity ns>.<trust domain>`; the SPIFFE form is
/// `spiffe://<trust domain>/ns/<ns>/sa/<sa>`. A service account may contain dots, a namespace may not, so the
/// DNS-like form is read from the word `serviceaccount` to the left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadId {
    namespace: Arc<str>,
    service_account: Arc<str>,
    domain: TrustDomain,
}

impl WorkloadId {
    /// A workload's name from its parts, each checked against the DNS-1123 rules of Kubernetes.
    pub fn new(service_account: &str, namespace: &str, domain: &TrustDomain) -> Result<Self, NameError> {
        if !is_subdomain(service_account) {
            return Err(NameError::ServiceAccount(service_account.to_owned()));
        }
        if !is_label(namespace) {
            return Err(NameError::Namespace(namespace.to_owned()));
        }
        let id = Self {
            namespace: namespace.into(),
            service_account: service_account.into(),
            domain: domain.clone(),
        };
        let length = id.to_string().len();
        if length > MAX_DNS_NAME {
            return Err(NameError::TooLong { name: id.to_string(), length });
        }
        Ok(id)
    }

    /// Reads the DNS-like form and demands that it ends in `domain`.
    pub fn parse_in(name: &str, domain: &TrustDomain) -> Result<Self, NameError> {
        let id: Self = name.parse()?;
        if id.domain == *domain {
            Ok(id)
        } else {
            Err(NameError::OtherDomain { name: name.to_owned(), expected: domain.clone() })
        }
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account in that namespace.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The trust domain and the namespace part of its identities.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// `spiffe://<trust domain>/ns/<ns>/sa/<sa>` (SPIFFE-ID specification, section 2).
    pub fn spiffe(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.domain.domain, self.namespace, self.service_account)
    }

    /// `<sa>.<ns>`, as tables print it.
    pub fn short(&self) -> String {
        format!("{}.{}", self.service_account, self.namespace)
    }

    /// The same name as an [`Identity`].
    pub fn identity(&self) -> Identity {
        Identity(self.to_string().into())
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.service_account, self.namespace, self.domain.suffix())
    }
}

impl FromStr for WorkloadId {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let malformed = || NameError::Malformed(name.to_owned());
        let (workload, rest) = name.split_once(MARKER).ok_or_else(malformed)?;
        let (service_account, namespace) = workload.rsplit_once('.').ok_or_else(malformed)?;
        let (identity_namespace, domain) = rest.split_once('.').ok_or_else(malformed)?;
        Self::new(service_account, namespace, &TrustDomain::new(domain, identity_namespace)?)
    }
}

/// A trust domain, with the namespace part that its DNS-like names carry (the control plane's namespace).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain {
    domain: Arc<str>,
    identity_namespace: Arc<str>,
}

impl TrustDomain {
    /// `domain` is a DNS-1123 subdomain such as `cluster.local`, `identity_namespace` a label such as `ringmail`.
    pub fn new(domain: &str, identity_namespace: &str) -> Result<Self, NameError> {
        if !is_subdomain(domain) {
            return Err(NameError::TrustDomain(domain.to_owned()));
        }
        if !is_label(identity_namespace) {
            return Err(NameError::Namespace(identity_namespace.to_owned()));
        }
        Ok(Self { domain: domain.into(), identity_namespace: identity_namespace.into() })
    }

    /// The SPIFFE trust domain, such as `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The namespace part of identities, such as `ringmail`.
    pub fn identity_namespace(&self) -> &str {
        &self.identity_namespace
    }

    /// What follows `<sa>.<ns>.` in a DNS-like name.
    pub fn suffix(&self) -> String {
        format!("serviceaccount.identity.{}.{}", self.identity_namespace, self.domain)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.domain)
    }
}

/// A name as a certificate proves it: a DNS name in lower case, or a URI as it stands.
///
/// Peers of other meshes have names that are no [`WorkloadId`]; they are compared as text (wire.md 3.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity(Arc<str>);

impl Identity {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The workload of our mesh that has this name, if it is one.
    pub fn workload(&self) -> Option<WorkloadId> {
        self.0.parse().ok()
    }

    /// `<sa>.<ns>` for a workload, `<sa>.<ns>` of a SPIFFE path where it has one, else the whole name.
    pub fn short(&self) -> String {
        if let Some(id) = self.workload() {
            return id.short();
        }
        let path = self.0.strip_prefix("spiffe://").and_then(|rest| rest.split_once("/ns/"));
        match path.and_then(|(_, path)| path.split_once("/sa/")) {
            Some((namespace, service_account)) => format!("{service_account}.{namespace}"),
            None => self.0.to_string(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Identity {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name.contains("://") {
            let printable = name.bytes().all(|b| b.is_ascii_graphic());
            return if printable && name.len() <= MAX_URI {
                Ok(Self(name.into()))
            } else {
                Err(NameError::Malformed(name.to_owned()))
            };
        }
        let name = name.to_ascii_lowercase();
        if name.len() <= MAX_DNS_NAME && is_subdomain(&name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError::Malformed(name))
        }
    }
}

impl TryFrom<String> for Identity {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.0.to_string()
    }
}

impl From<WorkloadId> for Identity {
    fn from(id: WorkloadId) -> Self {
        id.identity()
    }
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The service account breaks the DNS-1123 subdomain rule.
    #[error("`{0}` is no service account name: lower-case letters, digits, `-` and `.` (DNS-1123 subdomain)")]
    ServiceAccount(String),
    /// The namespace breaks the DNS-1123 label rule.
    #[error("`{0}` is no namespace name: lower-case letters, digits and `-`, at most 63 (DNS-1123 label)")]
    Namespace(String),
    /// The trust domain breaks the DNS-1123 subdomain rule.
    #[error("`{0}` is no trust domain: a DNS name in lower case such as `cluster.local`")]
    TrustDomain(String),
    /// The text is neither a workload's name nor a DNS name nor a URI.
    #[error(
        "`{0}` is no identity: expected `<sa>.<ns>.serviceaccount.identity.<ns>.<trust domain>`, a DNS name or a URI"
    )]
    Malformed(String),
    /// The name belongs to another mesh.
    #[error("`{name}` is not of the trust domain `{expected}`")]
    OtherDomain {
        /// The name that came.
        name: String,
        /// The trust domain that was expected.
        expected: TrustDomain,
    },
    /// A DNS name has at most 253 bytes (RFC 1035 2.3.4).
    #[error("`{name}` has {length} bytes, a DNS name at most 253")]
    TooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            bytes.len() <= 63 && inner(first) && inner(last) && bytes.iter().all(|&b| inner(b) || b == b'-')
        }
        _ => false,
    }
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_DNS_NAME && text.split('.').all(is_label)
}

const MARKER: &str = ".serviceaccount.identity.";
const MAX_DNS_NAME: usize = 253;
const MAX_URI: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("cluster.local", "ringmail").expect("valid")
    }

    #[test]
    fn a_workload_has_a_dns_form_and_a_spiffe_form() {
        let id = WorkloadId::new("web", "ballot", &domain()).expect("valid");
        assert_eq!(id.to_string(), "web.ballot.serviceaccount.identity.ringmail.cluster.local");
        assert_eq!(id.spiffe(), "spiffe://cluster.local/ns/ballot/sa/web");
        assert_eq!(id.short(), "web.ballot");
        assert_eq!(id.to_string().parse::<WorkloadId>(), Ok(id));
    }

    #[test]
    fn a_service_account_with_dots_keeps_its_namespace() {
        let id = WorkloadId::new("a.b", "ns", &domain()).expect("valid");
        let read: WorkloadId = id.to_string().parse().expect("reads back");
        assert_eq!((read.service_account(), read.namespace()), ("a.b", "ns"));
    }

    #[test]
    fn a_name_of_another_mesh_is_refused_and_its_own_is_taken() {
        let name = "web.ballot.serviceaccount.identity.ringmail.cluster.local";
        assert!(WorkloadId::parse_in(name, &domain()).is_ok());
        let other = TrustDomain::new("other.example", "ringmail").expect("valid");
        assert!(matches!(WorkloadId::parse_in(name, &other), Err(NameError::OtherDomain { .. })));
    }

    #[test]
    fn names_that_break_the_rules_are_refused() {
        for (sa, ns) in
            [("", "ns"), ("Web", "ns"), ("web", "a.b"), ("web", ""), ("-web", "ns"), ("w/b", "ns")]
        {
            assert!(WorkloadId::new(sa, ns, &domain()).is_err(), "{sa}/{ns}");
        }
        assert!(matches!(
            WorkloadId::new(&"a.".repeat(100), "n", &domain()),
            Err(NameError::ServiceAccount(_))
        ));
        let long = format!("{0}.{0}.{0}.{0}", "a".repeat(62));
        assert!(matches!(WorkloadId::new(&long, "n", &domain()), Err(NameError::TooLong { .. })));
    }

    #[test]
    fn a_peer_outside_our_scheme_keeps_its_name() {
        let uri: Identity = "spiffe://a/ns/x/sa/y".parse().expect("a URI");
        assert_eq!((uri.short().as_str(), uri.workload()), ("y.x", None));
        let dns: Identity = "DB.Example.COM".parse().expect("a DNS name");
        assert_eq!(dns.as_str(), "db.example.com");
        assert!("trailing.dot.".parse::<Identity>().is_err());
    }
}
