//! Who may call where nothing more special is said (features.md 6.2).

use std::fmt;
use std::str::FromStr;

/// Who may call a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultPolicy {
    /// Everybody.
    AllUnauthenticated,
    /// Everybody with an identity of the mesh.
    AllAuthenticated,
    /// Everybody from the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody from the cluster's networks with an identity of the mesh.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everybody, and each call is logged.
    Audit,
}

impl DefaultPolicy {
    /// The policy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    /// Whether callers need an identity of the mesh.
    pub fn authenticated(self) -> bool {
        matches!(self, Self::AllAuthenticated | Self::ClusterAuthenticated)
    }

    /// Whether callers must come from the cluster's networks.
    pub fn cluster_only(self) -> bool {
        matches!(self, Self::ClusterUnauthenticated | Self::ClusterAuthenticated)
    }

    /// The same for callers with an identity only; `deny` stays `deny`.
    #[must_use]
    pub fn with_identity(self) -> Self {
        match self {
            Self::AllUnauthenticated | Self::Audit => Self::AllAuthenticated,
            Self::ClusterUnauthenticated => Self::ClusterAuthenticated,
            other => other,
        }
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DefaultPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let known = ALL.into_iter().find(|policy| policy.name() == text.trim());
        known.ok_or_else(|| PolicyError(text.chars().take(64).collect()))
    }
}

/// A text that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no inbound policy: expected all-unauthenticated, all-authenticated, cluster-unauthenticated, \
     cluster-authenticated, deny or audit"
)]
pub struct PolicyError(String);

const ALL: [DefaultPolicy; 6] = [
    DefaultPolicy::AllUnauthenticated,
    DefaultPolicy::AllAuthenticated,
    DefaultPolicy::ClusterUnauthenticated,
    DefaultPolicy::ClusterAuthenticated,
    DefaultPolicy::Deny,
    DefaultPolicy::Audit,
];
