//! The decision and the patch.

use ringmail_identity::{NameError, WorkloadId};
use serde_json::{Map, Value, json};

use crate::container::{Parts, init_container, proxy_container, token_volume};
use crate::decide::{self, SkipReason};
use crate::error::{InjectError, Warning};
use crate::patch::{Operation, Patch, escape};
use crate::ports::Ports;
use crate::settings::Settings;
use crate::values::Values;
use crate::{
    ANCHORS_ANNOTATION, COMPONENT_LABEL, CONTROL_PLANE_LABEL, CREATED_BY_ANNOTATION, EFFECTIVE_ANNOTATION,
    OPTION_PREFIX, OWNER_LABEL_PREFIX, TOKEN_VOLUME, VERSION_ANNOTATION, WORKLOAD_NAMESPACE_LABEL,
};

/// Injects pods into one mesh.
#[derive(Clone, Debug)]
pub struct Injector {
    values: Values,
    identities: Identities,
    fingerprints: String,
}

/// The identities that control-plane services must prove.
#[derive(Clone, Debug)]
pub(crate) struct Identities {
    pub(crate) identity: String,
    pub(crate) destination: String,
}

impl Injector {
    /// Checks the mesh's settings, once for all pods.
    pub fn new(values: Values) -> Result<Self, InjectError> {
        let fingerprints = values.check()?.join(",");
        let name = |account: &str| {
            let id = WorkloadId::new(account, &values.control_plane_namespace, &values.trust_domain);
            id.map(|id| id.to_string()).map_err(|error: NameError| InjectError::Values {
                field: "control_plane_namespace".to_owned(),
                value: values.control_plane_namespace.clone(),
                why: error.to_string(),
            })
        };
        let identities = Identities { identity: name("identity")?, destination: name("destination")? };
        let injector = Self { values, identities, fingerprints };
        // The mesh's own options are read as every pod without annotations reads them.
        let nothing = json!({});
        let namespace = Namespace { name: None, annotations: None };
        Settings::read(&Request { pod: &nothing, namespace, owner: None }, &injector.values)?;
        Ok(injector)
    }

    /// The mesh's settings.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// What to do with a pod.
    pub fn inject(&self, request: &Request<'_>) -> Result<Outcome, InjectError> {
        request.check()?;
        let skipped = decide::reasons(request);
        if !skipped.is_empty() {
            let patch = opaque_of_namespace(request, &skipped);
            return Ok(Outcome { skipped, patch, warnings: Vec::new() });
        }
        let mut settings = Settings::read(request, &self.values)?;
        let mut warnings = std::mem::take(&mut settings.warnings);
        let mut patch = self.spec(request, &settings);
        patch.extend(make_metadata(request.pod));
        patch.extend(self.labels(request, &mut warnings));
        patch.extend(self.annotations(request, &settings));
        Ok(Outcome { skipped, patch, warnings })
    }

    fn spec(&self, request: &Request<'_>, settings: &Settings) -> Patch {
        let component = request.component();
        let parts =
            Parts { values: &self.values, identities: &self.identities, settings, request, component };
        let (init, proxy) = (init_container(&parts), proxy_container(&parts));
        let mut patch = Vec::new();
        let mut push = |list: &str, index: Option<usize>, value: Value| {
            let path = format!("/spec/{list}");
            let begun = patch.iter().any(|operation: &Operation| operation.path() == path);
            if !begun && !request.pod.pointer(&path).is_some_and(Value::is_array) {
                patch.push(Operation::Add { path: path.clone(), value: json!([]) });
            }
            let index = index.map_or_else(|| "-".to_owned(), |index| index.to_string());
            patch.push(Operation::Add { path: format!("{path}/{index}"), value });
        };
        if settings.native {
            // Before all others, so that init containers of the application are meshed as well.
            push("initContainers", Some(0), init);
            push("initContainers", Some(1), proxy);
        } else {
            push("initContainers", None, init);
            // Containers start in order, and the first one's postStart hook holds back the rest.
            push("containers", settings.awaited.then_some(0), proxy);
        }
        push("volumes", None, token_volume(&self.values));
        patch
    }

    fn labels(&self, request: &Request<'_>, warnings: &mut Vec<Warning>) -> Patch {
        let mut labels = vec![(CONTROL_PLANE_LABEL.to_owned(), self.values.control_plane_namespace.clone())];
        labels.extend(
            request.namespace.name.map(|name| (WORKLOAD_NAMESPACE_LABEL.to_owned(), name.to_owned())),
        );
        if let Some(owner) = request.owner {
            if owner.name.len() <= MAX_LABEL {
                let key = format!("{OWNER_LABEL_PREFIX}{}", owner.kind.to_ascii_lowercase());
                labels.push((key, owner.name.clone()));
            } else {
                warnings.push(Warning::OwnerName { kind: owner.kind.clone(), name: owner.name.clone() });
            }
        }
        set(request.pod, "labels", labels)
    }

    fn annotations(&self, request: &Request<'_>, settings: &Settings) -> Patch {
        let mut annotations = vec![
            (CREATED_BY_ANNOTATION.to_owned(), self.values.created_by.clone()),
            (VERSION_ANNOTATION.to_owned(), settings.version.clone()),
            (ANCHORS_ANNOTATION.to_owned(), self.fingerprints.clone()),
        ];
        let own = |key: &str| request.annotations().is_some_and(|annotations| annotations.contains_key(key));
        let mut written = Vec::new();
        // Discovery and policy read these from the pod, so that neither has to know what a namespace or the mesh says.
        for (name, value) in [
            ("skip-inbound-ports", settings.skip_inbound.to_string()),
            ("skip-outbound-ports", settings.skip_outbound.to_string()),
            ("opaque-ports", settings.opaque.to_string()),
            ("default-inbound-policy", settings.policy.clone()),
        ] {
            let key = format!("{OPTION_PREFIX}{name}");
            if !own(&key) {
                written.push(name);
            }
            annotations.push((key, value));
        }
        if !written.is_empty() {
            annotations.push((EFFECTIVE_ANNOTATION.to_owned(), written.join(",")));
        }
        set(request.pod, "annotations", annotations)
    }
}

/// A pod, and what is known about where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A pod or a pod template: `metadata` and `spec`.
    pub pod: &'a Value,
    /// Its namespace.
    pub namespace: Namespace<'a>,
    /// The workload that the pod belongs to at the top, such as its Deployment.
    pub owner: Option<&'a Owner>,
}

/// A namespace, as far as injection needs it.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// Its name, where it is known.
    pub name: Option<&'a str>,
    /// Its annotations.
    pub annotations: Option<&'a Map<String, Value>>,
}

impl Namespace<'_> {
    pub(crate) fn object(&self) -> String {
        format!("namespace `{}`", self.name.unwrap_or("of the pod"))
    }
}

/// The workload that a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind, such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What injection came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Why the pod is not injected; empty when it is.
    pub skipped: Vec<SkipReason>,
    /// The change to the pod. Also a pod that is not injected may get one: its namespace's `opaque-ports`.
    pub patch: Patch,
    /// What its author should know.
    pub warnings: Vec<Warning>,
}

impl Outcome {
    /// Whether the patch adds a proxy.
    pub fn is_injected(&self) -> bool {
        self.skipped.is_empty()
    }
}

impl Request<'_> {
    pub(crate) fn annotations(&self) -> Option<&Map<String, Value>> {
        self.pod.pointer("/metadata/annotations").and_then(Value::as_object)
    }

    /// The pod as messages name it.
    pub(crate) fn object(&self) -> String {
        let text =
            |path| self.pod.pointer(path).and_then(Value::as_str).filter(|name: &&str| !name.is_empty());
        let namespace =
            self.namespace.name.map_or_else(String::new, |name| format!(" in namespace `{name}`"));
        match (self.owner, text("/metadata/name").or_else(|| text("/metadata/generateName"))) {
            (Some(owner), _) => format!("{} `{}`{namespace}", owner.kind.to_ascii_lowercase(), owner.name),
            (None, Some(name)) => format!("pod `{name}`{namespace}"),
            (None, None) => format!("a pod{namespace}"),
        }
    }

    pub(crate) fn component(&self) -> Option<&str> {
        let labels = self.pod.pointer("/metadata/labels").and_then(Value::as_object)?;
        labels.get(COMPONENT_LABEL).and_then(Value::as_str)
    }

    /// TCP ports that the application's containers declare.
    pub(crate) fn application_ports(&self) -> Ports {
        Ports::of_numbers(
            self.container_ports(|port| port.get("protocol").is_none_or(|protocol| protocol == "TCP")),
        )
    }

    pub(crate) fn named_ports(&self, name: &str) -> Vec<u16> {
        self.container_ports(|port| port.get("name").and_then(Value::as_str) == Some(name)).collect()
    }

    fn container_ports(&self, wanted: impl Fn(&Value) -> bool) -> impl Iterator<Item = u16> {
        let ports = decide::containers(self.pod).filter_map(|container| container.get("ports")?.as_array());
        let wanted = move |port: &&Value| wanted(port);
        ports
            .flatten()
            .filter(wanted)
            .filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok())
    }

    /// Refuses what is no pod, so that no patch misses its place.
    fn check(&self) -> Result<(), InjectError> {
        let malformed = |field: &str, why: &str| {
            Err(InjectError::Malformed {
                object: self.object(),
                field: field.to_owned(),
                why: why.to_owned(),
            })
        };
        match self.pod.pointer("/spec/containers") {
            Some(Value::Array(containers)) if !containers.is_empty() => {}
            _ => return malformed("spec.containers", "must be a list with at least one container"),
        }
        for list in ["initContainers", "volumes"] {
            if !self
                .pod
                .pointer(&format!("/spec/{list}"))
                .is_none_or(|value| value.is_array() || value.is_null())
            {
                return malformed(&format!("spec.{list}"), "must be a list");
            }
        }
        if !self.pod.get("metadata").is_none_or(|value| value.is_object() || value.is_null()) {
            return malformed("metadata", "must be an object");
        }
        for map in ["labels", "annotations"] {
            let value = self.pod.pointer(&format!("/metadata/{map}"));
            if !value.is_none_or(|value| value.is_object() || value.is_null()) {
                return malformed(&format!("metadata.{map}"), "must be an object of texts");
            }
        }
        let volumes = self.pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
        let taken =
            volumes.filter(|volume| volume.get("name").is_some_and(|name| name == TOKEN_VOLUME)).count() > 0;
        if taken && !decide::has_our_proxy(self.pod) {
            return malformed(
                "spec.volumes",
                &format!("has a volume `{TOKEN_VOLUME}`, whose name the proxy needs"),
            );
        }
        Ok(())
    }
}

/// A pod outside of the mesh keeps what its namespace says about its ports, which its meshed clients need.
fn opaque_of_namespace(request: &Request<'_>, skipped: &[SkipReason]) -> Patch {
    let keys = ["config.ringmail.dev/opaque-ports", "config.linkerd.io/opaque-ports"];
    let of = |annotations: Option<&Map<String, Value>>| {
        keys.iter().find_map(|key| annotations?.get(*key)?.as_str()).map(str::to_owned)
    };
    match (of(request.namespace.annotations), of(request.annotations())) {
        (Some(ports), None) if !skipped.contains(&SkipReason::SidecarExists) => {
            let annotation = set(request.pod, "annotations", vec![(keys[0].to_owned(), ports)]);
            make_metadata(request.pod).into_iter().chain(annotation).collect()
        }
        _ => Vec::new(),
    }
}

/// Makes `metadata` where it is absent, before its parts are set.
pub(crate) fn make_metadata(pod: &Value) -> Option<Operation> {
    let absent = !pod.get("metadata").is_some_and(Value::is_object);
    absent.then(|| Operation::Add { path: "/metadata".to_owned(), value: json!({}) })
}

/// Sets members of `metadata.labels` or `metadata.annotations`, making the map where it is absent.
pub(crate) fn set(pod: &Value, map: &str, members: Vec<(String, String)>) -> Patch {
    let mut patch = Vec::new();
    let path = format!("/metadata/{map}");
    let present = pod.pointer(&path).and_then(Value::as_object);
    if present.is_none() {
        patch.push(Operation::Add { path: path.clone(), value: json!({}) });
    }
    for (key, value) in members {
        let found = present.and_then(|present| present.get(&key));
        if found.and_then(Value::as_str) != Some(&value) {
            patch.push(Operation::Add {
                path: format!("{path}/{}", escape(&key)),
                value: Value::String(value),
            });
        }
    }
    patch
}

const MAX_LABEL: usize = 63;
