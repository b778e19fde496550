//! Whether a pod is injected, and if not, why.

use std::fmt;

use serde_json::{Map, Value};

use crate::inject::Request;
use crate::{INIT_CONTAINER, INJECT_ANNOTATION, PROXY_CONTAINER};

/// Why a pod is not injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// It shares its node's network, which is not redirected.
    HostNetwork,
    /// It has a proxy of ours, or of another mesh.
    SidecarExists,
    /// It is none of the kinds that have pods.
    UnsupportedResource,
    /// Nobody asked for it.
    AnnotationAbsent,
    /// It was excluded.
    AnnotationDisabled,
    /// The pod's annotation makes no sense.
    InvalidAtWorkload,
    /// The namespace's annotation makes no sense.
    InvalidAtNamespace,
}

impl SkipReason {
    /// The name of this reason, as metrics have it.
    pub fn id(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network_enabled",
            Self::SidecarExists => "sidecar_already_exists",
            Self::UnsupportedResource => "unsupported_resource",
            Self::AnnotationAbsent => "injection_enable_annotation_absent",
            Self::AnnotationDisabled => "injection_disable_annotation_present",
            Self::InvalidAtWorkload => "invalid_inject_annotation_at_workload",
            Self::InvalidAtNamespace => "invalid_inject_annotation_at_ns",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str("hostNetwork is enabled"),
            Self::SidecarExists => f.write_str("pod has a sidecar injected already"),
            Self::UnsupportedResource => f.write_str("this resource kind is unsupported"),
            Self::AnnotationAbsent => {
                write!(
                    f,
                    "neither the namespace nor the pod have the annotation \"{INJECT_ANNOTATION}:enabled\""
                )
            }
            Self::AnnotationDisabled => write!(f, "pod has the annotation \"{INJECT_ANNOTATION}:disabled\""),
            Self::InvalidAtWorkload => {
                write!(f, "invalid value for annotation \"{INJECT_ANNOTATION}\" at workload")
            }
            Self::InvalidAtNamespace => {
                write!(f, "invalid value for annotation \"{INJECT_ANNOTATION}\" at namespace")
            }
        }
    }
}

/// All reasons against injection; none means that the pod is injected.
pub(crate) fn reasons(request: &Request<'_>) -> Vec<SkipReason> {
    let mut reasons = shape_reasons(request.pod);
    reasons.extend(wish_reason(wish(request.namespace.annotations), wish(request.annotations())));
    reasons
}

/// Reasons that lie in the pod itself.
pub(crate) fn shape_reasons(pod: &Value) -> Vec<SkipReason> {
    let mut reasons = Vec::new();
    if pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true) {
        reasons.push(SkipReason::HostNetwork);
    }
    if containers(pod).any(is_sidecar) {
        reasons.push(SkipReason::SidecarExists);
    }
    reasons
}

/// Whether the pod has a proxy of this mesh.
pub(crate) fn has_our_proxy(pod: &Value) -> bool {
    containers(pod).any(|container| name_of(container) == PROXY_CONTAINER)
}

/// Init containers and containers.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let list = |path| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    list("/spec/initContainers").chain(list("/spec/containers"))
}

/// What an annotation asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Absent,
    Enabled,
    Disabled,
    Invalid,
}

pub(crate) fn wish(annotations: Option<&Map<String, Value>>) -> Wish {
    let of = |key| annotations.and_then(|annotations| annotations.get(key));
    match of(INJECT_ANNOTATION).or_else(|| of("linkerd.io/inject")).map(Value::as_str) {
        None => Wish::Absent,
        Some(Some("enabled")) => Wish::Enabled,
        Some(Some("disabled")) => Wish::Disabled,
        Some(_) => Wish::Invalid,
    }
}

fn wish_reason(namespace: Wish, pod: Wish) -> Option<SkipReason> {
    match (namespace, pod) {
        (_, Wish::Invalid) => Some(SkipReason::InvalidAtWorkload),
        (_, Wish::Disabled) => Some(SkipReason::AnnotationDisabled),
        (Wish::Invalid, _) => Some(SkipReason::InvalidAtNamespace),
        (_, Wish::Enabled) | (Wish::Enabled, Wish::Absent) => None,
        (Wish::Disabled | Wish::Absent, Wish::Absent) => Some(SkipReason::AnnotationAbsent),
    }
}

fn is_sidecar(container: &Value) -> bool {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let repository = image.split('@').next().unwrap_or_default();
    let tag = repository.rfind(':').filter(|colon| !repository[*colon..].contains('/'));
    let repository = &repository[..tag.unwrap_or(repository.len())];
    let known = SIDECAR_IMAGES.iter().any(|known| {
        repository == *known || repository.strip_suffix(known).is_some_and(|registry| registry.ends_with('/'))
    });
    SIDECARS.contains(&name_of(container)) || known
}

fn name_of(container: &Value) -> &str {
    container.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Names of containers that redirect or proxy a pod's connections.
const SIDECARS: &[&str] = &[
    PROXY_CONTAINER,
    INIT_CONTAINER,
    "linkerd-proxy",
    "linkerd-init",
    "istio-proxy",
    "istio-init",
    "envoy-sidecar",
];

/// Their images, whatever the registry.
const SIDECAR_IMAGES: &[&str] =
    &["ringmail/proxy", "linkerd/proxy", "linkerd/proxy-init", "istio/proxyv2", "istio/proxy_init"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pods_wish_wins_over_the_namespaces() {
        use Wish::{Absent, Disabled, Enabled, Invalid};
        for (namespace, pod, expected) in [
            (Absent, Absent, Some(SkipReason::AnnotationAbsent)),
            (Disabled, Absent, Some(SkipReason::AnnotationAbsent)),
            (Enabled, Absent, None),
            (Enabled, Disabled, Some(SkipReason::AnnotationDisabled)),
            (Disabled, Enabled, None),
            (Absent, Enabled, None),
            (Invalid, Enabled, Some(SkipReason::InvalidAtNamespace)),
            (Invalid, Disabled, Some(SkipReason::AnnotationDisabled)),
            (Enabled, Invalid, Some(SkipReason::InvalidAtWorkload)),
        ] {
            assert!(wish_reason(namespace, pod) == expected, "{expected:?}");
        }
    }

    #[test]
    fn ours_wins_over_linkerds_annotation() {
        let read = |annotations: Value| wish(annotations.as_object());
        assert!(read(json!({ "linkerd.io/inject": "enabled" })) == Wish::Enabled);
        assert!(
            read(json!({ "linkerd.io/inject": "enabled", "ringmail.dev/inject": "disabled" }))
                == Wish::Disabled
        );
        assert!(read(json!({ "ringmail.dev/inject": true })) == Wish::Invalid);
        assert!(read(json!({ "linkerd.io/inject": "ingress" })) == Wish::Invalid);
    }

    #[test]
    fn sidecars_are_known_by_name_or_image() {
        for (name, image, sidecar) in [
            ("ringmail-proxy", "x", true),
            ("a", "cr.l5d.io/linkerd/proxy:edge-26.8.3", true),
            ("a", "docker.io/istio/proxyv2@sha256:00", true),
            ("a", "localhost:5000/ringmail/proxy", true),
            ("a", "example.com/mylinkerd/proxy:1", false),
            ("a", "nginx:1", false),
        ] {
            assert_eq!(is_sidecar(&json!({ "name": name, "image": image })), sidecar, "{name} {image}");
        }
    }
}
