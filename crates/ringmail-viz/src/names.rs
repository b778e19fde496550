//! What viz knows of pods: whose an address is, and which pods have a proxy to ask.

mod registry;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use ringmail_identity::Identity;
use ringmail_vocab::WorkloadRef;

pub use self::registry::RegistryNames;

/// A pod, as far as viz speaks of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedPod {
    /// Its name, its owner and its service account.
    pub workload: WorkloadRef,
    /// Its uid: another pod of the same name has another.
    pub uid: String,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The identity that its proxy must have; `None` for a pod without a proxy of this mesh.
    pub identity: Option<Identity>,
}

impl NamedPod {
    /// `<namespace>/<pod>`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.pod)
    }
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A pod's.
    Pod(Arc<NamedPod>),
    /// A node's: a kubelet's probe, a pod on its node's network.
    Node,
}

impl Named {
    /// The pod, where it is one's.
    pub fn pod(&self) -> Option<&Arc<NamedPod>> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Node => None,
        }
    }
}

/// A stream of "something about pods has changed".
pub type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// The knowledge of pods that viz works with.
pub trait Names: Send + Sync + 'static {
    /// Every pod that holds its addresses now, meshed or not.
    fn pods(&self) -> Vec<Arc<NamedPod>>;

    /// Whose an address is now.
    fn by_ip(&self, ip: IpAddr) -> Option<Named>;

    /// The addresses behind a service's ports; `None` when there is no such service.
    fn service(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>>;

    /// Tells of changes from now on.
    fn changes(&self) -> Changes;
}
