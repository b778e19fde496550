//! The control plane as manifests: it runs like every other workload of the mesh, and is meshed like them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::addresses::{DESTINATION, IDENTITY, Networks, POLICY};
use crate::manifest::Document;

/// The control plane's namespace, service accounts and deployments are named so.
pub const NAMESPACE: &str = "ringmail";

/// The audience of the tokens with which proxies prove who they are.
pub const AUDIENCE: &str = "identity.ringmail.dev";

/// The version of every image of this release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Image of the control plane.
pub const CONTROLLER_IMAGE: &str = concat!("ringmail/controller:", env!("CARGO_PKG_VERSION"));

/// Image of the proxy and of the init container.
pub const PROXY_IMAGE: &str = concat!("ringmail/proxy:", env!("CARGO_PKG_VERSION"));

/// What the control plane is told.
#[derive(Debug)]
pub struct ControlPlane<'a> {
    /// The trust domain, such as `cluster.local`.
    pub trust_domain: &'a str,
    /// The networks of the mesh.
    pub networks: &'a Networks,
    /// Trust anchors in PEM.
    pub anchors: &'a str,
    /// The issuer's certificate in PEM.
    pub issuer_certificate: &'a str,
    /// The issuer's private key in PEM.
    pub issuer_key: &'a str,
    /// The public keys of the tokens.
    pub jwks: &'a str,
    /// Directory with the mesh's objects, as the daemon sees it.
    pub registry: &'a Path,
    /// The policy of workloads that name none.
    pub default_inbound_policy: &'a str,
    /// Log levels of the control plane.
    pub log: &'a str,
}

impl ControlPlane<'_> {
    /// The documents, in the order in which they are applied.
    pub fn documents(&self) -> Vec<Document> {
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": NAMESPACE, "annotations": {"ringmail.dev/inject": "enabled"},
            }}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("trust-anchors"),
                "data": {"ca-bundle.crt": self.anchors}}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("token-keys"), "data": {"jwks.json": self.jwks}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("identity-issuer"), "type": "kubernetes.io/tls",
            "data": {
                "tls.crt": STANDARD.encode(self.issuer_certificate),
                "tls.key": STANDARD.encode(self.issuer_key),
            }}),
            self.service("identity", "identity", 8080, IDENTITY),
            self.service("destination", "destination", 8086, DESTINATION),
            self.service("policy", "destination", 8090, POLICY),
        ];
        for component in ["identity", "destination", "viz"] {
            objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(component)}));
        }
        objects.push(self.identity());
        objects.push(self.destination());
        objects.push(self.viz());
        objects.into_iter().map(|object| Document::generated("control plane", object)).collect()
    }

    fn service(&self, name: &str, component: &str, port: u16, place: u128) -> Value {
        let addresses: Vec<String> = self.networks.fixed(place).iter().map(ToString::to_string).collect();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            // Proxies try again until it answers; waiting for its probes would only make all pods start later.
            "publishNotReadyAddresses": true,
            "selector": {COMPONENT: component},
            "ports": [{"name": "grpc", "port": port, "targetPort": port}],
        }})
    }

    fn identity(&self) -> Value {
        let mut args = self.common("identity");
        args.extend(
            [
                "--identity-addr=[::]:8080",
                "--issuer-dir=/var/run/ringmail/issuer",
                "--trust-anchors=/var/run/ringmail/anchors/ca-bundle.crt",
                "--token-jwks=/var/run/ringmail/token-keys/jwks.json",
            ]
            .map(str::to_owned),
        );
        args.push(format!("--token-audience={AUDIENCE}"));
        // A proxy without a certificate asks for its first one here.
        let annotations = json!({"config.ringmail.dev/default-inbound-policy": "all-unauthenticated"});
        let mounts = [
            ("issuer", json!({"secret": {"secretName": "identity-issuer", "defaultMode": 0o400}})),
            ("anchors", json!({"configMap": {"name": "trust-anchors"}})),
            ("token-keys", json!({"configMap": {"name": "token-keys"}})),
        ];
        self.deployment("identity", &annotations, &args, &[8080], &mounts)
    }

    fn destination(&self) -> Value {
        let mut args = self.common("destination,policy");
        args.extend(["--destination-addr=[::]:8086", "--policy-addr=[::]:8090"].map(str::to_owned));
        args.push(format!("--default-inbound-policy={}", self.default_inbound_policy));
        let annotations = json!({"config.ringmail.dev/default-inbound-policy": "all-authenticated"});
        self.deployment("destination", &annotations, &args, &[8086, 8090], &[])
    }

    fn viz(&self) -> Value {
        let mut args = self.common("viz");
        // Whoever may enter the pod may ask; nobody reaches it over the network.
        args.push("--viz-addr=127.0.0.1:8085".to_owned());
        let annotations = json!({"config.ringmail.dev/default-inbound-policy": "all-authenticated"});
        self.deployment("viz", &annotations, &args, &[], &[])
    }

    fn common(&self, roles: &str) -> Vec<String> {
        vec![
            format!("--roles={roles}"),
            "--registry-dir=/var/run/ringmail/registry".to_owned(),
            format!("--trust-domain={}", self.trust_domain),
            format!("--identity-namespace={NAMESPACE}"),
            format!("--control-plane-namespace={NAMESPACE}"),
            format!("--cluster-networks={}", self.networks.listed()),
            "--admin-addr=[::]:9990".to_owned(),
        ]
    }

    fn deployment(
        &self,
        name: &str,
        annotations: &Value,
        args: &[String],
        ports: &[u16],
        volumes: &[(&str, Value)],
    ) -> Value {
        let registry = ("registry", json!({"hostPath": {"path": self.registry, "type": "Directory"}}));
        let all: Vec<&(&str, Value)> = volumes.iter().chain([&registry]).collect();
        let mounts: Vec<Value> = all
            .iter()
            .map(|(name, _)| json!({"name": name, "mountPath": format!("/var/run/ringmail/{name}"), "readOnly": true}))
            .collect();
        let volumes: Vec<Value> = all
            .iter()
            .map(|(name, source)| {
                let mut volume = json!({"name": name});
                if let (Some(volume), Some(source)) = (volume.as_object_mut(), source.as_object()) {
                    volume.extend(source.clone());
                }
                volume
            })
            .collect();
        let mut container_ports: Vec<Value> =
            ports.iter().map(|port| json!({"name": format!("grpc-{port}"), "containerPort": port})).collect();
        container_ports.push(json!({"name": "admin", "containerPort": 9990}));
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(name), "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {COMPONENT: name}},
            "template": {
                "metadata": {"labels": {COMPONENT: name}, "annotations": annotations},
                "spec": {
                    "serviceAccountName": name,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 10,
                    "containers": [{
                        "name": name,
                        "image": CONTROLLER_IMAGE,
                        "args": args,
                        "env": [{"name": "RINGMAIL_LOG", "value": self.log}, {"name": "NO_COLOR", "value": "1"}],
                        "ports": container_ports,
                        "volumeMounts": mounts,
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 9990}, "periodSeconds": 5, "timeoutSeconds": 2},
                        "livenessProbe": {"httpGet": {"path": "/live", "port": 9990}, "periodSeconds": 10, "timeoutSeconds": 2},
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                    "volumes": volumes,
                },
            },
        }})
    }
}

/// Label of the control plane's pods.
pub const COMPONENT: &str = "ringmail.dev/control-plane-component";

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::check::check;
    use crate::programs::Programs;
    use crate::store::Store;

    #[test]
    fn the_control_plane_passes_the_same_checks_as_a_users_manifests() {
        let networks = Networks::default();
        let plane = ControlPlane {
            trust_domain: "cluster.local",
            networks: &networks,
            anchors: "A",
            issuer_certificate: "C",
            issuer_key: "K",
            jwks: "{}",
            registry: Path::new("/registry"),
            default_inbound_policy: "all-unauthenticated",
            log: "info",
        };
        let mut programs = Programs::parse(&[], "/usr/bin:/bin").unwrap();
        programs.add("ringmail/controller", vec!["/bin/sh".into()]);
        let checked =
            check(&Store::new(jiff::Timestamp::UNIX_EPOCH), &plane.documents(), &programs, &[]).unwrap();
        assert_eq!(checked.warnings, []);
        assert_eq!(checked.objects.len(), 13);
        let secret = checked.objects.iter().find(|o| o.key().name == "identity-issuer").unwrap();
        assert_eq!(secret.to_json()["data"]["tls.key"], "Sw==");
    }
}
