//! Every pod passes through the real injector.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use ringmail_identity::{TrustDomain, WorkloadId};
use ringmail_inject::{
    Exemption, INIT_CONTAINER, Injector, Owner, PROXY_CONTAINER, Request, Values, apply_patch,
};
use serde_json::Value;

use crate::addresses::{DESTINATION, IDENTITY, Networks, POLICY};
use crate::control_plane::{AUDIENCE, NAMESPACE, PROXY_IMAGE, VERSION};
use crate::sandbox::Profile;

/// Why a pod could not be passed through the injector.
#[derive(Debug, thiserror::Error)]
pub enum MeshingError {
    /// The injector refused.
    #[error(transparent)]
    Inject(#[from] ringmail_inject::InjectError),
    /// The pod's annotations want a proxy that is not the mesh's.
    #[error(
        "the local mesh runs its own proxy only, not image `{0}`; take the annotation `config.ringmail.dev/proxy-image` away"
    )]
    Image(String),
    /// What came out is no pod.
    #[error("the injected pod cannot be read: {0}")]
    Shape(#[from] serde_json::Error),
}

/// A pod as it is run.
#[derive(Debug)]
pub struct Meshed {
    /// The pod.
    pub pod: Pod,
    /// The containers that injection added, and what they may do. Nothing else earns a profile: a pod that brings a container of the
    /// same name is not injected.
    pub trusted: BTreeMap<String, Profile>,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// The injector with the settings of this mesh.
#[derive(Debug)]
pub struct Meshing {
    injector: Injector,
}

impl Meshing {
    /// An injector for a mesh with these networks and trust anchors (PEM).
    pub fn new(
        domain: &TrustDomain,
        anchors: &str,
        networks: &Networks,
        options: BTreeMap<String, String>,
    ) -> Result<Self, MeshingError> {
        let address = |place: u128, port: u16| {
            let ip = networks.fixed(place).into_iter().next();
            ip.map(|ip| std::net::SocketAddr::new(ip, port).to_string()).unwrap_or_default()
        };
        let values = Values {
            identity_address: address(IDENTITY, 8080),
            destination_address: address(DESTINATION, 8086),
            policy_address: address(POLICY, 8090),
            tap_identity: WorkloadId::new("viz", NAMESPACE, domain).ok().map(|id| id.identity()),
            cluster_networks: networks.pods.iter().chain(&networks.services).copied().collect(),
            // Without root a pod has one uid only; root does the same, so that there is one way to test.
            exemption: Exemption::Mark(ringmail_redirect::PROXY_MARK),
            ipv6: networks.pods.iter().any(|net| net.addr().is_ipv6()),
            token_audience: AUDIENCE.to_owned(),
            created_by: format!("ringmail/local {VERSION}"),
            options,
            control_plane_namespace: NAMESPACE.to_owned(),
            ..Values::kubernetes(domain.clone(), anchors.to_owned())
        };
        Ok(Self { injector: Injector::new(values)? })
    }

    /// Passes a pod through the injector.
    pub fn apply(
        &self,
        pod: &Pod,
        namespace: &Namespace,
        owner: Option<(&str, &str)>,
    ) -> Result<Meshed, MeshingError> {
        let mut value = serde_json::to_value(pod)?;
        let annotations = serde_json::to_value(namespace.metadata.annotations.clone().unwrap_or_default())?;
        let owner = owner.map(|(kind, name)| Owner { kind: kind.to_owned(), name: name.to_owned() });
        let request = Request {
            pod: &value,
            namespace: ringmail_inject::Namespace {
                name: namespace.metadata.name.as_deref(),
                annotations: annotations.as_object(),
            },
            owner: owner.as_ref(),
        };
        let outcome = self.injector.inject(&request)?;
        let mut trusted = BTreeMap::new();
        if outcome.is_injected() {
            let own = own_containers(&value);
            for (name, profile) in [(INIT_CONTAINER, Profile::Init), (PROXY_CONTAINER, Profile::Proxy)] {
                if !own.contains(name) {
                    trusted.insert(name.to_owned(), profile);
                }
            }
        }
        apply_patch(&mut value, &outcome.patch)?;
        let mut warnings: Vec<String> = outcome.warnings.iter().map(ToString::to_string).collect();
        warnings.extend(
            outcome
                .skipped
                .iter()
                .filter(|reason| {
                    reason.id().starts_with("invalid") || reason.id() == "sidecar_already_exists"
                })
                .map(|reason| format!("is not meshed: {reason}")),
        );
        let mut pod: Pod = serde_json::from_value(value)?;
        if !trusted.is_empty() {
            make_trustworthy(&mut pod, &trusted)?;
        }
        Ok(Meshed { pod, trusted, warnings })
    }
}

/// The mesh's own containers run with rights that applications lack. So a pod's author, whose annotations reach their image and
/// environment, gets neither another program nor a library into them.
fn make_trustworthy(pod: &mut Pod, trusted: &BTreeMap<String, Profile>) -> Result<(), MeshingError> {
    let Some(spec) = pod.spec.as_mut() else { return Ok(()) };
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers.filter(|c| trusted.contains_key(&c.name)) {
        let image = container.image.clone().unwrap_or_default();
        if image != PROXY_IMAGE {
            return Err(MeshingError::Image(image));
        }
        container.command = None;
        if let Some(env) = container.env.as_mut() {
            env.retain(|variable| !variable.name.starts_with("LD_") && variable.name != "GLIBC_TUNABLES");
        }
    }
    Ok(())
}

/// The names of a pod's containers before injection.
fn own_containers(pod: &Value) -> BTreeSet<&str> {
    ["/spec/containers", "/spec/initContainers"]
        .iter()
        .filter_map(|path| pod.pointer(path).and_then(Value::as_array))
        .flatten()
        .filter_map(|container| container.get("name").and_then(Value::as_str))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn meshing() -> Meshing {
        let domain = TrustDomain::new("cluster.local", NAMESPACE).unwrap();
        let root = ringmail_identity::root::make_root_and_issuer(
            &domain,
            SystemTime::now(),
            ringmail_identity::root::Lifetimes::default(),
        )
        .unwrap();
        Meshing::new(&domain, &root.root_cert_pem, &Networks::default(), BTreeMap::new()).unwrap()
    }

    fn apply(annotation: &str, pod: &str) -> Result<Meshed, MeshingError> {
        let namespace: Namespace =
            serde_saphyr::from_str(&format!("metadata: {{name: a, annotations: {{{annotation}}}}}")).unwrap();
        let pod: Pod = serde_saphyr::from_str(pod).unwrap();
        meshing().apply(&pod, &namespace, Some(("Deployment", "web")))
    }

    const POD: &str = "{metadata: {name: p, namespace: a}, spec: {containers: [{name: app, command: [sh]}]}}";

    #[test]
    fn pods_of_an_annotated_namespace_get_trusted_containers_and_no_others() {
        let meshed = apply("ringmail.dev/inject: enabled", POD).unwrap();
        assert_eq!(meshed.trusted.len(), 2);
        assert_eq!(meshed.trusted["ringmail-proxy"], Profile::Proxy);
        let labels = meshed.pod.metadata.labels.unwrap();
        assert_eq!(labels["ringmail.dev/control-plane-ns"], "ringmail");
        assert_eq!(labels["ringmail.dev/proxy-deployment"], "web");
        assert!(apply("", POD).unwrap().trusted.is_empty());
    }

    #[test]
    fn a_pod_cannot_lend_itself_the_proxys_rights() {
        let own = POD.replace("name: app", "name: ringmail-proxy");
        let meshed = apply("ringmail.dev/inject: enabled", &own).unwrap();
        assert!(meshed.trusted.is_empty());
        assert_eq!(meshed.warnings.len(), 1);

        let image =
            POD.replace("namespace: a", "namespace: a, annotations: {config.ringmail.dev/proxy-image: evil}");
        assert!(matches!(apply("ringmail.dev/inject: enabled", &image), Err(MeshingError::Image(_))));

        let env = "annotations: {config.ringmail.dev/proxy-additional-env: '[{\"name\":\"LD_PRELOAD\",\"value\":\"/x\"}, \
                   {\"name\":\"FINE\",\"value\":\"1\"}]'}";
        let meshed = apply(
            "ringmail.dev/inject: enabled",
            &POD.replace("namespace: a", &format!("namespace: a, {env}")),
        )
        .unwrap();
        let inits = meshed.pod.spec.unwrap().init_containers.unwrap();
        let proxy = inits.iter().find(|c| c.name == "ringmail-proxy").unwrap();
        let names: Vec<&str> = proxy.env.iter().flatten().map(|e| e.name.as_str()).collect();
        assert!(names.contains(&"FINE") && !names.contains(&"LD_PRELOAD"));
    }
}
