//! The kinds of objects that the local mesh runs.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, PodSpec, Secret, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Document, fields};
use crate::problem::{Problem, Problems};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
    /// `v1` Service.
    Service,
    /// `v1` Pod.
    Pod,
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `batch/v1` Job.
    Job,
}

impl Kind {
    /// Every kind, in the order in which objects are made.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::Pod,
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::Job,
    ];

    /// As in a manifest: `StatefulSet`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
        }
    }

    /// The `apiVersion` under which it is accepted.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet => "apps/v1",
            Self::Job => "batch/v1",
            _ => "v1",
        }
    }

    /// As users abbreviate it: `deploy`, `deployment`, `deployments`.
    pub fn from_user(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Some(match text.trim_end_matches(".apps").trim_end_matches(".batch") {
            "ns" | "namespace" | "namespaces" => Self::Namespace,
            "sa" | "serviceaccount" | "serviceaccounts" => Self::ServiceAccount,
            "cm" | "configmap" | "configmaps" => Self::ConfigMap,
            "secret" | "secrets" => Self::Secret,
            "svc" | "service" | "services" => Self::Service,
            "po" | "pod" | "pods" => Self::Pod,
            "deploy" | "deployment" | "deployments" => Self::Deployment,
            "sts" | "statefulset" | "statefulsets" => Self::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => Self::DaemonSet,
            "job" | "jobs" => Self::Job,
            _ => return None,
        })
    }

    fn from_manifest(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == kind)
    }

    /// The kinds as a sentence lists them.
    pub fn listed() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().to_ascii_lowercase())
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)?;
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// Who made a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRef {
    /// The owner.
    pub key: ObjectKey,
    /// The owner's uid.
    pub uid: String,
}

/// What a workload makes its pods from.
#[derive(Clone, Debug)]
pub struct Template<'a> {
    /// Path of the pod's spec in the object.
    pub path: &'static str,
    /// Labels and annotations.
    pub metadata: Option<&'a ObjectMeta>,
    /// The spec.
    pub spec: Option<&'a PodSpec>,
    /// The selector by which the workload finds its pods, where it has one.
    pub selector: Option<&'a LabelSelector>,
}

impl Template<'_> {
    /// The pod's labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.metadata.and_then(|m| m.labels.clone()).unwrap_or_default()
    }
}

/// An object of one of the known kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A service account.
    ServiceAccount(ServiceAccount),
    /// A config map.
    ConfigMap(ConfigMap),
    /// A secret; `stringData` is already folded into `data`.
    Secret(Secret),
    /// A service.
    Service(Service),
    /// A pod.
    Pod(Pod),
    /// A deployment.
    Deployment(Deployment),
    /// A stateful set.
    StatefulSet(StatefulSet),
    /// A daemon set.
    DaemonSet(DaemonSet),
    /// A job.
    Job(Job),
}

impl Object {
    /// Gives a document its type. Returns what is not done here, to be told as warnings. Namespaced objects without a
    /// namespace go to `default`.
    pub fn parse(document: &Document) -> Result<(Self, Vec<Problem>), Problems> {
        let kind = known_kind(document)?;
        let object = match kind {
            Kind::Namespace => Self::Namespace(typed(document)?),
            Kind::ServiceAccount => Self::ServiceAccount(typed(document)?),
            Kind::ConfigMap => Self::ConfigMap(typed(document)?),
            Kind::Secret => {
                let mut secret: Secret = typed(document)?;
                let data = secret.data.get_or_insert_default();
                for (key, text) in secret.string_data.take().unwrap_or_default() {
                    data.insert(key, k8s_openapi::ByteString(text.into_bytes()));
                }
                Self::Secret(secret)
            }
            Kind::Service => Self::Service(typed(document)?),
            Kind::Pod => Self::Pod(typed(document)?),
            Kind::Deployment => Self::Deployment(typed(document)?),
            Kind::StatefulSet => Self::StatefulSet(typed(document)?),
            Kind::DaemonSet => Self::DaemonSet(typed(document)?),
            Kind::Job => Self::Job(typed(document)?),
        };
        let mut object = object;
        if kind == Kind::Namespace {
            object.metadata_mut().namespace = None;
        } else if object.metadata().namespace.is_none() {
            object.metadata_mut().namespace = Some("default".to_owned());
        }
        let warnings = fields::check(document, &object)?;
        Ok((object, warnings))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Secret(_) => Kind::Secret,
            Self::Service(_) => Kind::Service,
            Self::Pod(_) => Kind::Pod,
            Self::Deployment(_) => Kind::Deployment,
            Self::StatefulSet(_) => Kind::StatefulSet,
            Self::DaemonSet(_) => Kind::DaemonSet,
            Self::Job(_) => Kind::Job,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(o) => &o.metadata,
            Self::ServiceAccount(o) => &o.metadata,
            Self::ConfigMap(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Deployment(o) => &o.metadata,
            Self::StatefulSet(o) => &o.metadata,
            Self::DaemonSet(o) => &o.metadata,
            Self::Job(o) => &o.metadata,
        }
    }

    /// Its metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Namespace(o) => &mut o.metadata,
            Self::ServiceAccount(o) => &mut o.metadata,
            Self::ConfigMap(o) => &mut o.metadata,
            Self::Secret(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
            Self::Pod(o) => &mut o.metadata,
            Self::Deployment(o) => &mut o.metadata,
            Self::StatefulSet(o) => &mut o.metadata,
            Self::DaemonSet(o) => &mut o.metadata,
            Self::Job(o) => &mut o.metadata,
        }
    }

    /// Its key.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        ObjectKey {
            kind: self.kind(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The pod template of a workload; a pod is its own.
    pub fn template(&self) -> Option<Template<'_>> {
        match self {
            Self::Pod(o) => Some(Template {
                path: "spec",
                metadata: Some(&o.metadata),
                spec: o.spec.as_ref(),
                selector: None,
            }),
            Self::Deployment(o) => o.spec.as_ref().map(|s| Template {
                path: "spec.template.spec",
                metadata: s.template.metadata.as_ref(),
                spec: s.template.spec.as_ref(),
                selector: Some(&s.selector),
            }),
            Self::StatefulSet(o) => o.spec.as_ref().map(|s| Template {
                path: "spec.template.spec",
                metadata: s.template.metadata.as_ref(),
                spec: s.template.spec.as_ref(),
                selector: Some(&s.selector),
            }),
            Self::DaemonSet(o) => o.spec.as_ref().map(|s| Template {
                path: "spec.template.spec",
                metadata: s.template.metadata.as_ref(),
                spec: s.template.spec.as_ref(),
                selector: Some(&s.selector),
            }),
            Self::Job(o) => o.spec.as_ref().map(|s| Template {
                path: "spec.template.spec",
                metadata: s.template.metadata.as_ref(),
                spec: s.template.spec.as_ref(),
                selector: None,
            }),
            _ => None,
        }
    }

    /// The object as Kubernetes JSON.
    pub fn to_json(&self) -> Value {
        let value = match self {
            Self::Namespace(o) => serde_json::to_value(o),
            Self::ServiceAccount(o) => serde_json::to_value(o),
            Self::ConfigMap(o) => serde_json::to_value(o),
            Self::Secret(o) => serde_json::to_value(o),
            Self::Service(o) => serde_json::to_value(o),
            Self::Pod(o) => serde_json::to_value(o),
            Self::Deployment(o) => serde_json::to_value(o),
            Self::StatefulSet(o) => serde_json::to_value(o),
            Self::DaemonSet(o) => serde_json::to_value(o),
            Self::Job(o) => serde_json::to_value(o),
        };
        // These types have string keys and finite numbers only, so that JSON can hold every value of them.
        value.unwrap_or(Value::Null)
    }
}

fn known_kind(document: &Document) -> Result<Kind, Problem> {
    let text = |key: &str| document.value.get(key).and_then(Value::as_str);
    let Some(kind) = text("kind") else {
        return Err(Problem::new(
            "RM1542",
            document.place(""),
            "this document has no `kind`",
            "a manifest starts with `apiVersion` and `kind`",
        ));
    };
    let version = text("apiVersion").unwrap_or_default();
    let Some(known) = Kind::from_manifest(kind) else {
        return Err(Problem::new(
            "RM1542",
            document.place("kind"),
            format!("the local mesh does not run kind {kind} ({version})"),
            format!(
                "it runs {}; take the document out, or leave such documents out with `--skip-kind {kind}`",
                Kind::listed()
            ),
        ));
    };
    if version != known.api_version() {
        return Err(Problem::new(
            "RM1542",
            document.place("apiVersion"),
            format!("{kind} has apiVersion `{version}`"),
            format!("write `apiVersion: {}`", known.api_version()),
        ));
    }
    Ok(known)
}

fn typed<T: DeserializeOwned + Serialize>(document: &Document) -> Result<T, Problems> {
    let object: T = serde_path_to_error::deserialize(&document.value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let at = if path.is_empty() { String::new() } else { format!("`{path}`: ") };
        Problem::new("RM1543", document.place(&path), format!("{at}{}", error.inner()), "")
    })?;
    fields::unknown(document, &object)?;
    Ok(object)
}
