//! The registry as viz's knowledge of pods.

use std::time::Duration;

use futures::StreamExt;
use ringmail_identity::TrustDomain;
use ringmail_registry::{MeshSettings, Object, Registry};
use ringmail_viz::names::{Named, Names, RegistryNames};
use serde_json::{Value, json};

use crate::support::identity;

fn pod(name: &str, ip: &str, meshed: bool, phase: &str) -> Value {
    let labels = if meshed {
        json!({"app": "web", "ringmail.dev/control-plane-ns": "ringmail"})
    } else {
        json!({"app": "web"})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "ballot", "uid": format!("uid-{name}"), "labels": labels,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}],
        },
        "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {
            "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.142.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn apply(registry: &Registry, object: Value) {
    registry.apply(Object::from_json(object).expect("readable").expect("a kind that counts"));
}

#[tokio::test]
async fn pods_nodes_services_and_changes_come_from_the_registry() {
    let registry = Registry::new(MeshSettings {
        trust_domain: TrustDomain::new("cluster.local", "ringmail").expect("valid"),
        control_plane_namespace: "ringmail".to_owned(),
    });
    let names = RegistryNames::new(registry.clone());
    let mut changes = names.changes();
    apply(&registry, pod("web-0", "10.142.0.12", true, "Running"));
    tokio::time::timeout(Duration::from_secs(10), changes.next()).await.expect("told").expect("a change");
    apply(&registry, pod("web-1", "10.142.0.13", false, "Running"));
    apply(&registry, pod("web-2", "10.142.0.14", true, "Succeeded"));
    apply(
        &registry,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "ballot", "uid": "svc"},
            "spec": {"clusterIP": "10.143.0.9", "clusterIPs": ["10.143.0.9"], "selector": {"app": "web"},
                     "ports": [{"port": 80, "targetPort": 8080}]},
        }),
    );
    let mut pods = names.pods();
    pods.sort_by(|one, other| one.uid.cmp(&other.uid));
    let seen: Vec<_> = pods.iter().map(|pod| (pod.workload.pod.as_str(), pod.identity.clone())).collect();
    assert_eq!(
        seen,
        [("web-0", Some(identity("web"))), ("web-1", None)],
        "a pod that ended holds no address"
    );
    assert_eq!(
        (pods[0].workload.owner_kind.as_str(), pods[0].workload.owner.as_str()),
        ("statefulset", "web")
    );
    let by_ip = |ip: &str| names.by_ip(ip.parse().expect("an address"));
    assert_eq!(by_ip("10.142.0.12"), Some(Named::Pod(pods[0].clone())));
    assert_eq!(by_ip("10.142.0.1"), Some(Named::Node));
    assert_eq!(by_ip("10.142.0.14"), None);
    let behind = ["10.142.0.12", "10.142.0.13"].map(|ip| ip.parse().expect("an address"));
    assert_eq!(names.service("ballot", "web"), Some(behind.to_vec()));
    assert_eq!(names.service("elsewhere", "web"), None);
}
